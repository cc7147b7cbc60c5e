"""What a study found, in two sentences, and what a reader must know before believing it."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from spectrum.analysis.along import optimum
from spectrum.analysis.sentences import SHOWN, comparison_names, finding, pp, verdict_of
from spectrum.analysis.summary import summarise
from spectrum.analysis.table import SPLIT, keys, scored_metric, unique_runs, varied_settings
from spectrum.analysis.unfinished import NOT_COMPLETE
from spectrum.analysis.words import configuration_words, data_name, edge_sides, setting_label
from spectrum.design.keys import images_key
from spectrum.design.plan import Plan

FEW_SEEDS = 6
NO_SEED = "no seed has a run of each configuration"
MOST_TIED = 3  # configurations that a sentence lists
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
    found = [*_unfinished(results, plan), *_seeds(results), *_capacity(results, plan), *_losses(results, plan, judged)]
    found += _at_chance(results, plan)
    if len(judged) and judged["confounded"].any():
        found.append(f"Confounded, since several factors change at once: {_quoted(judged, judged['confounded'])}.")
    return [*found, *_edges(plan)]


def not_prespecified(results: pd.DataFrame, plan: Plan) -> list[str]:
    """Say that a study of several configurations names no comparison, and how the next one can; else nothing."""
    if plan.contrasts or not len(results) or not results[scored_metric(results)].notna().any():
        return []
    if keys(results, [*SPLIT, *varied_settings(results)]).nunique() == 1:
        return []
    return [
        "No comparison was prespecified, so no difference is tested: name one under [[contrasts]] in the study file "
        "before the next study runs."
    ]


def _edges(plan: Plan) -> list[str]:
    """How often the sweep chose the smallest or the largest value of its grid."""
    if plan.tuning is None:
        return []
    sides = Counter(side for choice in plan.tuning.choices for side in edge_sides(plan, choice))
    if not sides:
        return []
    at_edge = sum(bool(choice.edges) for choice in plan.tuning.choices)
    which = ", ".join(f"the {side} for {count}" for side, count in sides.items())
    return [
        f"For {at_edge} of {len(plan.tuning.choices)} configurations the sweep chose a value at the edge of its "
        f"grid ({which}); a better one may lie beyond."
    ]


def _at_chance(results: pd.DataFrame, plan: Plan) -> list[str]:
    """Data sets on which no configuration is clearly above chance: the share of the most frequent class.

    A network that learned nothing exceeds chance by less than two standard errors of its accuracy, or nearly so.
    """
    metric = scored_metric(results)
    means = results.groupby(keys(results, [*SPLIT, *varied_settings(results)]))[metric].transform("mean")
    own = results.apply(lambda row: images_key(row.to_dict()), axis=1)
    found = []
    for entry in plan.images:
        counts = entry.get("test_images" if metric == "test_accuracy" else "train_images")
        if not counts or (metric != "test_accuracy" and not entry.get("used")):
            continue  # an early plan, which does not count them
        scored_images = sum(counts) if metric == "test_accuracy" else min(held for _, held in entry["used"])
        chance = max(counts) / sum(counts)
        reached = means[own == images_key(entry)].max()
        if reached <= chance + 2 * (chance * (1 - chance) / scored_images) ** 0.5:
            where = f" on {data_name(entry['dataset'])}" if len(plan.images) > 1 else ""
            found.append(
                f"No configuration is clearly above chance{where}, {pp(chance)}% (the share of the most frequent "
                "class): differences say nothing about what was learned."
            )
    return found


def worst_mismatches(plan: Plan) -> dict[str, str]:
    """The largest relative distance of a planned run from each budget that is matched, in words."""
    found: dict[str, float] = {}
    for run in plan.known:
        if run.match not in (None, "none") and run.mismatch is not None:
            found[str(run.match)] = max(abs(run.mismatch), found.get(str(run.match), 0.0))
    return {match: f"{100 * worst:.2f}%" for match, worst in found.items()}


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
    tied = table[table["mean"].map(pp) == pp(best["mean"])]
    if len(tied) > 1:
        return _shared_highest(tied, len(table), names, bold)
    if len(table) == 1:
        return f"{what}: accuracy {bold}{pp(best['mean'])}%{bold} ({interval}{seeds})."
    return f"Highest mean accuracy: {bold}{what}, {pp(best['mean'])}%{bold} ({interval}{seeds})."


def _shared_highest(tied: pd.DataFrame, count: int, names: list[str], bold: str) -> str:
    """The highest mean accuracy of several configurations that share it."""
    accuracy = f"{bold}{pp(tied['mean'].iloc[0])}%{bold}"
    if len(tied) == count:
        return f"{'Both' if count == 2 else f'All {count}'} configurations have the mean accuracy {accuracy}."
    if len(tied) > MOST_TIED:
        return f"Highest mean accuracy: {accuracy}, of {len(tied)} of the {count} configurations."
    listed = "; ".join(configuration_words(row, names) for _, row in tied.iterrows())
    return f"Highest mean accuracy: {bold}{listed}{bold}, each {accuracy}."


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
    runs = unique_runs(results)
    planned, finished = plan.count, int((runs["status"] != "failed").sum())
    if len(runs) >= planned:
        return []
    return [f"{finished} of {planned} runs have finished; the numbers may still change."]


def _seeds(results: pd.DataFrame) -> list[str]:
    names = [*SPLIT, *varied_settings(results)]
    seeds = results[results[scored_metric(results)].notna()].groupby(keys(results, names))["seed"].nunique()
    if not len(seeds):
        return []
    alone, fewest, most = int(seeds.eq(1).sum()), int(seeds.min()), int(seeds.max())
    found = []
    if most == 1:
        return ["One seed per configuration has no interval: no difference can be told from chance."]
    if alone:
        found.append(f"{alone} of {len(seeds)} configurations {'has' if alone == 1 else 'have'} one seed: no interval.")
        fewest = int(seeds[seeds.gt(1)].min())
    if fewest < FEW_SEEDS:
        counts = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        which = f"{counts} seeds per configuration" if not alone else f"The {counts} seeds of the others"
        found.append(f"{which} are few: intervals are wide and say little about small differences.")
    return found


def _capacity(results: pd.DataFrame, plan: Plan) -> list[str]:
    """What the budgets leave free: capacity where none is matched, width where one is."""
    found = []
    unmatched, matched = results[results["match"] == "none"], results[results["match"] != "none"]
    if any(unmatched[count].nunique() > 1 for count in ("params", "macs") if count in unmatched):
        matches = len(matched) or set(plan.budgets) - {"none"}  # some may still be to come
        where = "Where widths are matched, parameters" if matches else "No budget is matched: parameters"
        found.append(f"{where} and MACs vary between configurations. A difference in accuracy may be one of capacity.")
    if "widths" in matched and matched.groupby("match")["widths"].agg(lambda one: one.map(repr).nunique()).gt(1).any():
        found.append(
            "A budget is matched by changing the stage widths. A difference may therefore come from the width as well."
        )
    return found


def _losses(results: pd.DataFrame, plan: Plan, judged: pd.DataFrame) -> list[str]:
    """Runs that failed or diverged, and seeds that a comparison lacks."""
    found = []
    runs = unique_runs(results)
    failed, diverged = (int(runs["status"].eq(status).sum()) for status in ("failed", "diverged"))
    if failed:
        found.append(f"{_counted(failed, 'run')} failed and {'is' if failed == 1 else 'are'} left out.")
    if lost := _lost(results):
        found.append(f"Every run of these configurations failed, so tables and figures lack them: {'; '.join(lost)}.")
    if diverged:
        found.append(f"{_counted(diverged, 'run')} diverged and {'counts' if diverged == 1 else 'count'}, at chance.")
    if len(runs) == plan.count:
        for seeds in dict.fromkeys(filter(None, judged["left_out"] if len(judged) else ())):
            these = judged["left_out"].map(lambda one, seeds=seeds: one == seeds)
            where = f"all {len(judged)} comparisons" if these.all() and len(judged) > 1 else _quoted(judged, these)
            listed = f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}"
            found.append(f"Left out of {where}, for lack of a run on some side: {listed}.")
    return found


def _lost(results: pd.DataFrame) -> list[str]:
    """Names of the configurations whose runs have all failed, where others have not."""
    names = varied_settings(results)
    groups = [rows for _, rows in results.groupby(keys(results, [*SPLIT, *names]), sort=False)]
    lost = [configuration_words(rows.iloc[0], names) for rows in groups if rows["status"].eq("failed").all()]
    return [] if len(lost) == len(groups) else lost


def _quoted(judged: pd.DataFrame, which: pd.Series) -> str:
    """Some of the comparisons, as tables call them."""
    return "; ".join(f"“{name}”" for name, listed in zip(comparison_names(judged), which, strict=True) if listed)


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
