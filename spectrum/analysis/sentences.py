"""Contrasts in plain sentences, each with the numbers that it rests on."""

from __future__ import annotations

import math

import pandas as pd


def sentence(contrast: pd.Series) -> str:
    """What a contrast shows, from a row of `stats.contrasts`: difference, interval, verdict, what would decide it."""
    flag = " Confounded: it changes several factors at once." if contrast["confounded"] else ""
    return f"{contrast['name']}: {_difference(contrast)}{_verdict(contrast)}{flag}"


def contrasts_as_text(judged: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of a table of contrasts, from `stats.contrasts`; in points of a hundred."""
    titles = "contrast|n|difference, points|95 % t-interval|p|margin, points|p, equivalence|verdict".split("|")
    rows = []
    for _, row in judged.iterrows():
        known = not math.isnan(row["low"])
        rows.append(
            [
                row["name"] + (" (a doubling of the segments)" if row["kind"] == "slope" else ""),
                str(row["n"]),
                pp(row["mean"], sign=True) if row["n"] else "",
                f"{pp(row['low'])} to {pp(row['high'])}" if known else "",
                "" if math.isnan(row["p"]) else _p(row["p"]).removeprefix("= "),
                "" if math.isnan(row["margin"]) else f"±{pp(row['margin'])}",
                "" if math.isnan(row["p_equivalent"]) else _p(row["p_equivalent"]).removeprefix("= "),
                row["verdict"] + (", confounded" if row["confounded"] else ""),
            ]
        )
    return titles, rows


def _difference(row: pd.Series) -> str:
    if not row["n"]:
        return ""
    unit = "points a doubling of the segments" if row["kind"] == "slope" else "points"
    seeds = f"n = {row['n']} paired seeds" if row["n"] > 1 else "one seed"
    interval = "" if math.isnan(row["low"]) else f"95 % t-interval {pp(row['low'])} to {pp(row['high'])}, "
    sentences = [f"{pp(row['mean'], sign=True)} {unit} ({interval}{seeds})."]
    if row["left_out"]:
        seeds = ", ".join(map(str, row["left_out"]))
        sentences.append(f" {_plural(len(row['left_out']), 'Seed')} {seeds} left out, for want of a run.")
    if row["diverged"]:
        sentences.append(f" {row['diverged']} {_plural(row['diverged'], 'run')} diverged and counted, at chance.")
    return "".join(sentences)


WORDS = {  # of a verdict, by what is compared
    ("difference", "higher"): "The first is higher",
    ("difference", "lower"): "The first is lower",
    ("interaction", "higher"): "The difference is higher at the first setting",
    ("interaction", "lower"): "The difference is lower at the first setting",
    ("slope", "higher"): "The difference rises",
    ("slope", "lower"): "The difference falls",
}


def _verdict(row: pd.Series) -> str:
    verdict, margin = row["verdict"], pp(row["margin"])
    if verdict == "unknown":
        if not row["n"]:
            return f"{row['reason']}."
        return " Nothing is shown: " + ("one seed has no spread." if row["n"] == 1 else "all differences are equal.")
    if verdict == "equivalent":
        return f" Equivalent within ±{margin} points, the study's margin (equivalence: p {_p(row['p_equivalent'])})."
    shown = WORDS.get((row["kind"], verdict.removeprefix("negligibly ")))
    if verdict.startswith("negligibly"):
        both = f"p {_p(row['p'])}; equivalence: p {_p(row['p_equivalent'])}"
        return f" {shown}, but by less than {margin} points, the study's margin ({both})."
    if shown is not None:
        return f" {shown} (p {_p(row['p'])})."
    open_question, p = "no difference is shown", f"p {_p(row['p'])}"
    if not math.isnan(row["margin"]):
        open_question = f"neither a difference nor equivalence within ±{margin} points is shown"
        p = f"{p}; equivalence: p {_p(row['p_equivalent'])}"
    return f" Undecided: {open_question} ({p}).{_new_study(row)}"


def _new_study(row: pd.Series) -> str:
    """The size of a new study that would decide it at 80% power; seeds that are added to these would be a second look.

    In brackets the same where the spread is at its 80% upper limit.
    """
    beyond = math.isnan(row["margin"]) or abs(row["mean"]) > row["margin"]
    unit = "pp a doubling of the segments" if row["kind"] == "slope" else "pp"
    what = f"show a difference of {pp(abs(row['mean']))} {unit}"
    if not beyond:
        what = f"tell 0 from ±{pp(row['margin'])} pp"
    more = row["more_seeds_to_show" if beyond else "more_seeds"]
    if pd.isna(more):
        return f" To {what} with 80% power, a new study would need more than 10,000 seeds."
    safe = ""
    if math.isnan(row["margin"]) or not beyond:
        most = row["n"] + row["more_seeds_at_most"]
        safe = f" ({'more than 10,000' if pd.isna(most) else f'{most:,}'} to be safe)"
    between = "" if beyond else " A difference in between may stay undecided."
    return f" To {what} with 80% power, run a new study with {row['n'] + more:,} seeds{safe}.{between}"


def pp(value: float, *, sign: bool = False) -> str:
    """An accuracy from 0 to 1, or a difference of two, in points of a hundred; what rounds to zero has no sign."""
    text = f"{100 * value:+.2f}" if sign else f"{100 * value:.2f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"
