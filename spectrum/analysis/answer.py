"""What a study found, in two sentences, and what a reader must know before believing it."""

from __future__ import annotations

import pandas as pd

from spectrum.analysis.along import optimum
from spectrum.analysis.sentences import SHOWN, comparison_names, finding, pp, verdict_of
from spectrum.analysis.summary import summarise
from spectrum.analysis.table import SPLIT, keys, scored_metric, varied_settings, worst_mismatch
from spectrum.analysis.unfinished import NOT_COMPLETE
from spectrum.analysis.words import configuration_words, setting_label
from spectrum.design.plan import Plan

FEW_SEEDS = 6
NO_SEED = "no seed has a run of each configuration"
MOST_CURVES = 4  # whose possible optima a sentence can list


def answer(results: pd.DataFrame, judged: pd.DataFrame, *, bold: str = "") -> list[str]:
    """Answer a study's question in two sentences, or say why it is not answered yet.

    The first comparison of the study and the count of all verdicts; of a study without comparisons, the highest mean
    and the possible optima.

    Args:
        results: the study's rows, from `load_results`; empty while only its sweep has run.
        judged: its comparisons, from `stats.contrasts`; empty where there is none.
        bold: what to put around the finding.
    """
    if not len(results):
        return ["Not answered yet: no final run has finished."]
    if not results[scored_metric(results)].notna().any():
        return ["Not answered: every run has failed."]
    if not len(judged) or not (judged["n"].any() or judged["verdict"].eq(NOT_COMPLETE).any()):
        return [_highest(results, bold), _optima(results)]
    return [finding(judged.iloc[0], bold=bold), _verdicts(judged) if len(judged) > 1 else _highest(results, "")]


def caveats(results: pd.DataFrame, plan: Plan, judged: pd.DataFrame) -> list[str]:
    """List what limits the conclusions of a study, a sentence or two each.

    Args:
        results: the study's rows, from `load_results`.
        plan: its frozen plan.
        judged: its comparisons, from `stats.contrasts`.
    """
    if not len(results):
        swept = plan.tuning is not None and not plan.runs
        return ["Only the learning-rate sweep has run: nothing is scored on the test set."] if swept else []
    found = [*_unfinished(results, plan), *_seeds(results), *_capacity(results), *_losses(results, plan, judged)]
    if len(judged) and judged["confounded"].any():
        found.append(f"Confounded, since several factors change at once: {_quoted(judged, judged['confounded'])}.")
    edges = [one for one in (plan.tuning.choices if plan.tuning is not None else ()) if one.edges]
    if edges and plan.tuning is not None:
        found.append(
            f"For {len(edges)} of {len(plan.tuning.choices)} configurations the sweep chose a value at the edge of its "
            "grid; a better one may lie beyond."
        )
    return found


def worst_mismatches(results: pd.DataFrame, plan: Plan) -> dict[str, str]:
    """The largest relative distance of a run from each budget that is matched, in words."""
    if not len(results):
        return {}
    matches = [match for match in plan.budgets if match != "none"]
    return {match: f"{100 * worst_mismatch(results[results['match'] == match]):.2f}%" for match in matches}


def _verdicts(judged: pd.DataFrame) -> str:
    """How many comparisons show what."""
    verdicts = [verdict_of(row) for _, row in judged.iterrows()]
    shown = sum(verdict in SHOWN for verdict in verdicts)
    others = ("equivalent", "inconclusive", "unknown", NOT_COMPLETE)
    equivalent, inconclusive, unknown, unfinished = (verdicts.count(one) for one in others)
    counts = [
        (shown, "show a difference" if shown > 1 else "shows a difference"),
        (equivalent, "show equivalence within the margin" if equivalent > 1 else "shows equivalence within the margin"),
        (inconclusive, "are inconclusive" if inconclusive > 1 else "is inconclusive"),
        (unknown, "lack runs or a spread" if unknown > 1 else "lacks runs or a spread"),
        (unfinished, "are not complete" if unfinished > 1 else "is not complete"),
    ]
    said = [f"{count} {words}" for count, words in counts if count]
    listed = said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
    return f"That is the first of {len(judged)} comparisons, of which {listed}."


def _highest(results: pd.DataFrame, bold: str) -> str:
    metric, names = scored_metric(results), varied_settings(results)
    table = summarise(results, [*SPLIT, *names], metric)
    best = table.iloc[int(table["mean"].argmax())]
    seeds = "one seed" if best["n"] == 1 else f"{best['n']} seeds"
    interval = "" if best["low"] != best["low"] else f"95% CI {pp(best['low'])} to {pp(best['high'])}; "
    what = configuration_words(best, names)
    if len(table) == 1:
        return f"{what}: accuracy {bold}{pp(best['mean'])}%{bold} ({interval}{seeds})."
    return f"Highest mean accuracy: {bold}{what}, {pp(best['mean'])}%{bold} ({interval}{seeds})."


def _optima(results: pd.DataFrame) -> str:
    """The possible optima of each curve; the spread of the means where there are too many curves to list."""
    metric, names = scored_metric(results), varied_settings(results)
    configurations = keys(results, [*SPLIT, *names]).nunique()
    if configurations == 1:
        return "One configuration: there is nothing to compare it with."
    if results["seed"].nunique() == 1:
        return "One seed per configuration: no difference can be told from chance."
    groups = optimum(results, metric=metric)
    curves = list(groups.groupby(names, sort=False, dropna=False)) if names else [((), groups)]
    if len(curves) > MOST_CURVES or all(len(curve) == 1 for _, curve in curves):
        means = results.groupby(keys(results, [*SPLIT, *names]))[metric].mean()
        low, high = means.min(), means.max()
        return f"Mean accuracies of the {configurations} configurations range from {pp(low)}% to {pp(high)}%."
    if not groups["n"].any():
        return f"Possible optima are not known: {NO_SEED}."
    said = []
    for values, curve in curves:
        where = setting_label(names, values)
        labels = ", ".join(curve[curve["in_set"]]["label"]) if curve["n"].any() else f"not known, since {NO_SEED}"
        said.append(f"{where + ': ' if where else ''}{labels}")
    return f"Possible optima (95% set of segments): {'; '.join(said)}."


def _unfinished(results: pd.DataFrame, plan: Plan) -> list[str]:
    planned, finished = len(plan.runs), int((results["status"] != "failed").sum())
    if len(results) >= planned:
        return []
    return [f"{finished} of {planned} runs have finished; the numbers may still change."]


def _seeds(results: pd.DataFrame) -> list[str]:
    names = [*SPLIT, *varied_settings(results)]
    seeds = results[results[scored_metric(results)].notna()].groupby(keys(results, names))["seed"].nunique()
    fewest = int(seeds.min()) if len(seeds) else 0
    if fewest == 1:
        return ["One seed per configuration has no interval: no difference can be told from chance."]
    if 0 < fewest < FEW_SEEDS:
        return [f"{fewest} seeds per configuration are few: intervals are wide and say little about small differences."]
    return []


def _capacity(results: pd.DataFrame) -> list[str]:
    """What the budgets leave free: capacity where none is matched, width where one is."""
    found = []
    unmatched, matched = results[results["match"] == "none"], results[results["match"] != "none"]
    if any(unmatched[count].nunique() > 1 for count in ("params", "macs") if count in unmatched):
        where = "Where widths are matched, parameters" if len(matched) else "No budget is matched: parameters"
        found.append(f"{where} and MACs vary between configurations. A difference in accuracy may be one of capacity.")
    if "widths" in matched and matched.groupby("match")["widths"].agg(lambda one: one.map(repr).nunique()).gt(1).any():
        found.append(
            "A budget is matched by changing the stage widths. A difference may therefore come from the width as well."
        )
    return found


def _losses(results: pd.DataFrame, plan: Plan, judged: pd.DataFrame) -> list[str]:
    """Runs that failed or diverged, and seeds that a comparison lacks."""
    found = []
    failed, diverged = (int(results["status"].eq(status).sum()) for status in ("failed", "diverged"))
    if failed:
        found.append(f"{_counted(failed, 'run')} failed and {'is' if failed == 1 else 'are'} left out.")
    if diverged:
        found.append(f"{_counted(diverged, 'run')} diverged and {'counts' if diverged == 1 else 'count'}, at chance.")
    if len(results) == len(plan.runs):
        for seeds in dict.fromkeys(filter(None, judged["left_out"] if len(judged) else ())):
            these = judged["left_out"].map(lambda one, seeds=seeds: one == seeds)
            where = f"all {len(judged)} comparisons" if these.all() and len(judged) > 1 else _quoted(judged, these)
            listed = f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}"
            found.append(f"Left out of {where}, for lack of a run on some side: {listed}.")
    return found


def _quoted(judged: pd.DataFrame, which: pd.Series) -> str:
    """Some of the comparisons, as tables call them."""
    return "; ".join(f"“{name}”" for name, listed in zip(comparison_names(judged), which, strict=True) if listed)


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
