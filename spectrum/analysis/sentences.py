"""Comparisons in plain sentences: the winner first, each with the numbers that it rests on."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

import pandas as pd

from spectrum.analysis.sides import LONGEST


@dataclass(frozen=True)
class Unit:
    """How a difference is printed: multiplied by `scale`, with so many decimals, and followed by the unit's name."""

    name: str = "pp"
    scale: float = 100
    decimals: int = 2

    def number(self, value: float, *, sign: bool = False) -> str:
        """The value alone; what rounds to zero has no sign."""
        text = f"{self.scale * value:{'+' if sign else ''}.{self.decimals}f}"
        return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")

    def amount(self, value: float) -> str:
        """The value and its unit."""
        return f"{self.number(value)} {self.name}".rstrip()


PP = Unit()
BOLD = "\x02"  # stands around the finding until its form is known
PER_DOUBLING = "pp per doubling of the segments"
PLURAL = re.compile(r"(no )?([\w/-]+ )?(segments|channels|connections)\b")


def sentence(comparison: pd.Series, *, bold: str = "") -> str:
    """Say what a comparison shows and, where it is inconclusive, what would decide it.

    Args:
        comparison: a row of `stats.contrasts`.
        bold: what to put around the finding, such as "**" in Markdown.
    """
    return f"{finding(comparison, bold=bold)} {power_note(comparison)}".rstrip()


def finding(comparison: pd.Series, *, bold: str = "") -> str:
    """Say what a comparison shows: the difference, its interval and the verdict.

    Args:
        comparison: a row of `stats.contrasts`.
        bold: what to put around the finding.
    """
    if not comparison["n"]:
        name = ", ".join(filter(None, _label(comparison)))
        head = name if name and comparison["kind"] != "difference" else _sides(comparison)[0]
        return f"{head}: {comparison['reason']}."
    parts = [_shown(comparison) if verdict_of(comparison) in SHOWN else _not_shown(comparison)]
    if comparison["left_out"]:
        seeds = ", ".join(map(str, comparison["left_out"]))
        kind = str(comparison.get("pair", "seed"))
        kind = _plural(len(comparison["left_out"]), kind[:1].upper() + kind[1:])
        parts.append(f"{kind} {seeds} left out, for lack of a run.")
    if comparison["diverged"]:
        runs = _plural(comparison["diverged"], "run")
        parts.append(f"{comparison['diverged']} {runs} diverged and counted, at chance.")
    if comparison["confounded"]:
        parts.append("Confounded: the sides differ in several factors at once.")
    return " ".join(parts).replace(BOLD, bold)


def power_note(comparison: pd.Series) -> str:
    """Say which new study would decide an inconclusive comparison with 80% power; empty for any other.

    A new study, since seeds that are added to these would be a second look. In brackets its size where the spread is at
    its 80% upper limit.
    """
    row = comparison
    if row["verdict"] != "inconclusive":
        return ""
    beyond = math.isnan(row["margin"]) or abs(row["mean"]) > row["margin"]
    unit = _unit(row)
    per = PER_DOUBLING.removeprefix("pp") if row["kind"] == "slope" else ""
    what = f"show a difference of {unit.amount(abs(row['mean']))}{per}"
    what = what if beyond else f"tell 0 from ±{unit.amount(row['margin'])}"
    more = row["more_seeds_to_show" if beyond else "more_seeds"]
    if pd.isna(more):
        return f"To {what} with 80% power, a new study would need more than 10,000 seeds."
    safe = ""
    if math.isnan(row["margin"]) or not beyond:
        most = row["n"] + row["more_seeds_at_most"]
        safe = f" ({'more than 10,000' if pd.isna(most) else f'{most:,}'} to be safe)"
    between = "" if beyond else " A difference in between may stay inconclusive."
    return f"To {what} with 80% power, run a new study with {row['n'] + more:,} {_sampled(row)}{safe}.{between}"


SHOWN = ("higher", "lower")


def verdict_of(comparison: pd.Series) -> str:
    """The verdict of a comparison, without whether the difference is below the margin."""
    return str(comparison["verdict"]).removeprefix("negligibly ")


def verdict_in_words(comparison: pd.Series) -> str:
    """Say a verdict in a few words, such as "per-channel better" or "inconclusive".

    Args:
        comparison: a row of `stats.contrasts`.
    """
    verdict = verdict_of(comparison)
    if verdict in SHOWN:
        winner = _better_and_other(comparison)[0]
        words = {
            "slope": "rises" if verdict == "higher" else "falls",
            "interaction": f"higher for {comparison.get('setting_1' if verdict == 'higher' else 'setting_2')}",
        }.get(comparison["kind"], f"{winner} better")
        small = ", by less than the margin" if str(comparison["verdict"]).startswith("negligibly") else ""
    else:
        words = {"unknown": "not known"}.get(verdict, verdict)
        small = ""
    return words + small + (", confounded" if comparison["confounded"] else "")


def comparison_labels(judged: pd.DataFrame) -> list[tuple[str, str]]:
    """Name every comparison by its sides, "A − B", and by what they share; by its own name where these do not tell it.

    Args:
        judged: from `stats.contrasts`.
    """
    labels = [_label(row) for _, row in judged.iterrows()]
    counts = Counter(labels)
    return [
        label if label[0] and counts[label] == 1 else (str(row["name"]), "")
        for label, (_, row) in zip(labels, judged.iterrows(), strict=True)
    ]


def comparison_names(judged: pd.DataFrame) -> list[str]:
    """Name every comparison on one line, by its sides and what they share.

    Args:
        judged: from `stats.contrasts`.
    """
    return [", ".join(filter(None, label)) for label in comparison_labels(judged)]


def contrasts_as_text(judged: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of a table of comparisons, in percentage points.

    Args:
        judged: from `stats.contrasts`.
    """
    titles = "A − B|seeds|difference, pp|95% CI|p|margin, pp|p, equivalence|verdict".split("|")
    rows = []
    for name, (_, row) in zip(comparison_names(judged), judged.iterrows(), strict=True):
        known = not math.isnan(row["low"])
        rows.append(
            [
                name,
                str(row["n"]),
                pp(row["mean"], sign=True) if row["n"] else "",
                f"{pp(row['low'])} to {pp(row['high'])}" if known else "",
                "" if math.isnan(row["p"]) else _p(row["p"]).removeprefix("= "),
                "" if math.isnan(row["margin"]) else f"±{pp(row['margin'])}",
                "" if math.isnan(row["p_equivalent"]) else _p(row["p_equivalent"]).removeprefix("= "),
                verdict_in_words(row),
            ]
        )
    return titles, rows


def pp(value: float, *, sign: bool = False) -> str:
    """An accuracy from 0 to 1, or a difference of two, in percentage points; what rounds to zero has no sign."""
    return PP.number(value, sign=sign)


def _unit(row: pd.Series) -> Unit:
    """The unit of a comparison; percentage points, unless its row has another."""
    unit = row.get("unit")
    return unit if isinstance(unit, Unit) else PP


def _shown(row: pd.Series) -> str:
    """A difference that is shown, the higher side first."""
    unit = _unit(row)
    higher, amount = row["mean"] > 0, unit.amount(abs(row["mean"]))
    head, settings = _sides(row, winner_first=row["kind"] == "difference")
    if row["kind"] == "slope":
        said = f"{'rises' if higher else 'falls'} by {amount} {PER_DOUBLING.removeprefix('pp ')}"
    elif row["kind"] == "interaction":
        said = f"higher by {amount} for {settings[0]} than for {settings[1]}"
    else:
        winner = _better_and_other(row)[0]
        said = f"{winner} {'are' if PLURAL.match(winner) else 'is'} better by {amount}"
    if str(row["verdict"]).startswith("negligibly"):
        both = f"p {_p(row['p'])}; equivalence p {_p(row['p_equivalent'])}"
        less = f"less than the margin of {unit.amount(row['margin'])}"
        return f"{head}: {BOLD}{said}{BOLD}, {less} ({_evidence(row)}; {both})."
    return f"{head}: {BOLD}{said}{BOLD} ({_evidence(row)}; p {_p(row['p'])})."


def _not_shown(row: pd.Series) -> str:
    """A difference that is not shown, and what that means."""
    head, settings = _sides(row, minus=True)
    unit = _unit(row)
    amount = unit.amount(abs(row["mean"]))
    if row["kind"] == "slope":
        estimate = f"{pp(row['mean'], sign=True)} {PER_DOUBLING}"
    elif row["kind"] == "interaction":
        estimate = f"{amount} higher for {settings[0]} than for {settings[1]}"
    else:
        estimate = amount
    margin = unit.amount(row["margin"])
    if row["verdict"] == "unknown":
        alone = {"pairs": "one pair", "runs on each side": "a side with one run"}.get(_sampled(row), "one seed")
        why = f"{alone} has no spread" if row["n"] == 1 else "all differences are equal"
        verdict = f"{BOLD}Nothing is shown{BOLD}: {why}."
    elif row["verdict"] == "equivalent":
        verdict = f"{BOLD}Equivalent within ±{margin}{BOLD} (p {_p(row['p_equivalent'])})."
    elif math.isnan(row["margin"]):
        verdict = f"{BOLD}Inconclusive{BOLD}: no difference is shown (p {_p(row['p'])})."
    else:
        verdict = (
            f"{BOLD}Inconclusive{BOLD}: neither different (p {_p(row['p'])}) "
            f"nor equivalent within ±{margin} (p {_p(row['p_equivalent'])})."
        )
    return f"{head}: {estimate} ({_evidence(row)}). {verdict}"


def _evidence(row: pd.Series) -> str:
    """The interval, turned as the sentence is, and the seeds."""
    seeds = row.get("sample") or (f"{row['n']} paired seeds" if row["n"] > 1 else "one seed")
    if math.isnan(row["low"]):
        return seeds
    low, high = row["low"], row["high"]
    inconclusive_slope = row["kind"] == "slope" and verdict_of(row) not in SHOWN
    if row["mean"] < 0 and not inconclusive_slope:
        low, high = -high, -low
    unit = _unit(row)
    return f"95% CI {unit.number(low)} to {unit.number(high)}; {seeds}"


def _sampled(row: pd.Series) -> str:
    """What the n of a comparison counts."""
    return str(row.get("sampled") or "seeds")


def _short_names(row: pd.Series) -> tuple[str, str]:
    """Both sides; A and B where they cannot be named shortly."""
    first, second = row.get("side_a") or "", row.get("side_b") or ""
    return (first, second) if first and second and max(len(first), len(second)) <= LONGEST else ("A", "B")


def _larger_and_other(row: pd.Series) -> tuple[str, str]:
    first, second = _short_names(row)
    return (first, second) if not row["mean"] < 0 else (second, first)


def _better_and_other(row: pd.Series) -> tuple[str, str]:
    """The side with the higher mean first, of a metric such as loss the one with the lower."""
    larger, other = _larger_and_other(row)
    return (other, larger) if row.get("lower_is_better", False) else (larger, other)


def _sides(row: pd.Series, *, winner_first: bool = False, minus: bool = False) -> tuple[str, tuple[str, str]]:
    """How a sentence begins, and the settings of an interaction, the one with the larger difference first."""
    first, second = row.get("setting_1") or "the first setting", row.get("setting_2") or "the second"
    settings = (first, second) if not row["mean"] < 0 else (second, first)
    if not row.get("side_a") or not row.get("side_b"):
        return f"{row['name']}, A − B", settings
    minus |= row["kind"] != "difference"
    if row["kind"] == "difference":
        names = _better_and_other(row) if winner_first else _larger_and_other(row)
    else:
        names = _short_names(row)
    where = f", {row['where']}" if row.get("where") else ""
    explained = f" (A: {row['side_a']}; B: {row['side_b']})" if names[0] in ("A", "B") else ""
    return f"{names[0]} {'minus' if minus else 'vs'} {names[1]}{explained}{where}", settings


def _label(row: pd.Series) -> tuple[str, str]:
    if not row.get("side_a"):
        return "", ""
    settings = f"{row['setting_1']} − {row['setting_2']}" if row.get("setting_1") else ""
    slope = "per doubling of the segments" if row["kind"] == "slope" else ""
    return f"{row['side_a']} − {row['side_b']}", ", ".join(filter(None, [settings, slope, row.get("where")]))


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"
