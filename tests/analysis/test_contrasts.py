"""Comparisons, slope, optimum and Pareto frontier of a table, against loops over the rows and by simulation."""

import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest

from spectrum import plots, stats
from spectrum.analysis.inference import difference
from spectrum.analysis.sentences import comparison_labels, contrasts_as_text, pp, sentence, verdict_in_words
from spectrum.analysis.summary import summary_table
from spectrum.design.plan import PlannedContrast

RELU = [{"activation": "relu"}, {"activation": "none"}]
ENDS = [{"segments": "per_channel"}, {"segments": 1}]
SEGMENTS = [1, 2, 8, "per_channel"]


def made_up(accuracy, *, segments=SEGMENTS, activation=("none", "relu"), seeds=5, **columns):
    """A study whose accuracies are `accuracy(segments in numbers, activation, seed)`."""
    rows = []
    for number, (s, a, seed) in enumerate(itertools.product(segments, activation, range(seeds))):
        count = 16 if s == "per_channel" else s
        rows.append(
            {
                "id": f"{number:04}", "study": "made-up", "study_hash": "0123456789abcdef", "status": "done",
                "dataset": "digits", "segments": s, "segment_width": None, "stage_segments": None,
                "pointwise": True, "activation": a, "seed": seed, "match": "params", "budget_mismatch": 0.001,
                "widths": (count, 2 * count), "realised_segments": [1, count], "params": 1000, "macs": 100 * count,
                "train_seconds": 1.0, "test_accuracy": accuracy(count, a, seed),
            }
        )  # fmt: skip
    return pd.DataFrame(rows).assign(**columns)


CELLS = list(itertools.product((1, 2, 8, 16), ("none", "relu"), range(5)))
NOISE = dict(zip(CELLS, np.random.default_rng(0).normal(0, 0.004, 40), strict=True))


def noisy(count, activation, seed):
    return 0.8 + 0.01 * math.log2(count) - 0.02 * (activation == "relu") + 0.03 * seed + NOISE[count, activation, seed]


def accuracy(table, seed, **values):
    rows = table[table["seed"] == seed]
    for name, value in values.items():
        rows = rows[[have == value for have in rows[name]]]
    (found,) = rows["test_accuracy"]
    return found


def test_a_difference_is_the_mean_over_what_the_sides_share_seed_by_seed():
    table = made_up(noisy)
    expected = [
        np.mean(
            [accuracy(table, seed, segments=s, activation="relu") - accuracy(table, seed, segments=s, activation="none")
             for s in SEGMENTS]
        )
        for seed in range(5)
    ]  # fmt: skip
    assert stats.differences_by_seed(table, RELU).tolist() == pytest.approx(expected)
    mixed = table.sample(frac=1, random_state=0)
    assert stats.contrast(mixed, RELU, margin=0.1) == stats.contrast(table, RELU, margin=0.1)


@pytest.mark.parametrize("wrong", [2, 0.5, 0, -0.005, float("nan"), float("inf"), True, "0.5%"])
def test_a_margin_that_cannot_be_meant_is_refused_before_anything_is_judged(wrong):
    table = made_up(noisy)
    with pytest.raises(ValueError, match=r"^contrast: margin: .* 0.005 is half a percentage point$"):
        stats.contrast(table, RELU, margin=wrong)
    asked = [{"name": "activation", "between": RELU, "margin": wrong}]
    with pytest.raises(ValueError, match=r"^contrasts: 'activation': margin: .* 0.005 is half a percentage point$"):
        stats.contrasts(table, asked)


def test_a_frozen_plan_with_a_large_margin_is_still_judged():
    planned = PlannedContrast(name="activation", between=tuple(RELU), margin=0.5)
    assert stats.contrasts(made_up(noisy), [planned])["margin"].tolist() == [0.5]


def test_seeds_that_differ_widely_do_not_blur_a_paired_difference():
    assert made_up(noisy)["test_accuracy"].std() > 0.04
    assert stats.contrast(made_up(noisy), RELU).high - stats.contrast(made_up(noisy), RELU).low < 0.01


def test_an_interaction_is_a_difference_of_differences():
    table = made_up(noisy)

    def effect(seed, s):
        relu, none = (accuracy(table, seed, segments=s, activation=a) for a in ("relu", "none"))
        return relu - none

    expected = [effect(seed, "per_channel") - effect(seed, 1) for seed in range(5)]
    assert stats.differences_by_seed(table, RELU, ENDS).tolist() == pytest.approx(expected)
    slopes = [np.polyfit([0, 1, 3, 4], [effect(seed, s) for s in SEGMENTS], 1)[0] for seed in range(5)]
    assert stats.differences_by_seed(table, RELU, "segments").tolist() == pytest.approx(slopes)


def test_sides_that_differ_in_more_are_compared_as_they_are():
    """The second side names one option and others follow, as in BSConv's swap."""
    table = made_up(lambda s, a, seed: 0.9 if a == "none" else 0.8, segments=[1]).assign(norm=[True] * 5 + [False] * 5)
    assert stats.differences_by_seed(table, [{"activation": "none"}, {"norm": False}]).tolist() == pytest.approx(
        [0.1] * 5
    )


def test_a_seed_with_a_missing_run_is_left_out_and_a_diverged_run_counts():
    table = made_up(noisy)
    table.loc[table["seed"] == 3, "test_accuracy"] = table["test_accuracy"].where(table["segments"] != 2)
    table.loc[0, ["status", "test_accuracy"]] = ["diverged", 0.1]
    assert list(stats.differences_by_seed(table, RELU).index) == [0, 1, 2, 4]
    (row,) = stats.contrasts(table, [{"name": "x", "between": RELU}]).to_dict("records")
    assert (row["n"], row["left_out"], row["diverged"]) == (4, (3,), 1)
    said = sentence(pd.Series(row))
    assert "Seed 3 left out, for lack of a run." in said
    assert "1 run diverged and counted, at chance." in said


def failed(table, rows):
    """The table with some of its runs failed."""
    return table.assign(
        status=table["status"].where(~rows, "failed"), test_accuracy=table["test_accuracy"].where(~rows)
    )


def test_a_place_at_which_all_runs_failed_is_missing_and_not_gone():
    """Without this rule, the effect over the spectrum would change its sign."""
    whole = made_up(lambda s, a, seed: 0.8 + (a == "relu") * (0.05 if s == 1 else -0.01) + NOISE[s, a, seed] / 10)
    assert stats.contrast(whole, RELU).low > 0
    table = failed(whole, whole["segments"].eq(1))
    asked = [{"name": "relu", "between": RELU}, {"name": "slope", "between": RELU, "across": "segments"}]
    for row in stats.contrasts(table, asked).to_dict("records"):
        assert (row["n"], row["verdict"], row["left_out"]) == (0, "unknown", (0, 1, 2, 3, 4))
        assert row["reason"].startswith("no seed has a run on every side")
    assert "with segments = 1" in stats.contrasts(table, asked)["reason"][0]
    without = table[table["segments"] != 1]
    assert stats.contrast(without, RELU).high < 0, "which may be asked, as what it is"


def test_a_seed_that_failed_on_both_sides_is_left_out_and_said():
    whole = made_up(noisy)
    table = failed(whole, whole["seed"].eq(2) & whole["segments"].eq(8))
    (row,) = stats.contrasts(table, [{"name": "relu", "between": RELU}]).to_dict("records")
    assert (row["n"], row["left_out"]) == (4, (2,))


def in_two_orders(effect):
    """Two tables in one, with an effect of ReLU that depends on the segments only."""
    orders = [
        made_up(lambda s, a, seed: 0.8 + (a == "relu") * effect(s) + NOISE[s, a, seed] / 10).assign(order=order)
        for order in ("pointwise_first", "spatial_first")
    ]
    return pd.concat(orders, ignore_index=True)


def test_an_interaction_is_refused_where_a_setting_has_other_places():
    """The effect is the same in both orders, but 1 segment was only run in one."""
    table = in_two_orders(lambda s: 0.06 if s == 1 else 0)
    orders = [{"order": "pointwise_first"}, {"order": "spatial_first"}]
    for lacks, others in (("spatial_first", "the first setting"), ("pointwise_first", "the second")):
        part = table[~(table["order"].eq(lacks) & table["segments"].eq(1))]
        with pytest.raises(ValueError, match=rf"has no run with segments = 1, .* and {others} has"):
            stats.differences_by_seed(part, RELU, orders)
    shared = table[table["segments"] != 1]
    assert stats.contrast(shared, RELU, orders).mean == pytest.approx(0, abs=1e-9)


def test_a_slope_is_refused_where_a_place_has_other_settings():
    """No slope in either order, but different means, and one order has only two numbers of segments."""
    table = in_two_orders(lambda s: 0)
    high = table["order"].eq("spatial_first") & table["activation"].eq("relu")
    table["test_accuracy"] += 0.02 * high
    assert stats.contrast(table, RELU, "segments").mean == pytest.approx(0, abs=0.001)
    part = table[~(table["order"].eq("spatial_first") & table["segments"].isin([1, 2]))]
    with pytest.raises(ValueError, match="the place at 1 segments has no run with order = 'spatial_first'"):
        stats.differences_by_seed(part, RELU, "segments")


def test_bare_convolutions_have_no_place_on_the_line():
    table = made_up(lambda s, a, seed: 0.8 + 0.01 * (a == "relu") * (math.log2(s) - 2) + NOISE[s, a, seed] / 10)
    bare = table[table["segments"].eq(1)].assign(pointwise=False)
    bare["test_accuracy"] += 0.1 * bare["activation"].eq("relu")
    both = pd.concat([table, bare], ignore_index=True)
    pd.testing.assert_series_equal(
        stats.differences_by_seed(both, RELU, "segments"), stats.differences_by_seed(table, RELU, "segments")
    )
    assert stats.crossing(both, RELU) == stats.crossing(table, RELU)


def test_an_optimum_is_not_said_to_be_elsewhere_than_where_all_runs_failed():
    whole = made_up(lambda s, a, seed: 0.8 + 0.01 * math.log2(s) + NOISE[s, a, seed] / 10, activation=["none"])
    found = stats.optimum(failed(whole, whole["segments"].eq(2))).set_index("label")
    assert found["in_set"].to_dict() == {"1": False, "8": False, "per-channel": True, "2": True}
    assert found["n"].to_dict() == {"1": 5, "8": 5, "per-channel": 5, "2": 0}
    assert found["best"].sum() == 1


def test_a_curve_has_its_own_places_whatever_other_curves_are_in_the_table():
    small = made_up(noisy, activation=["none"]).assign(order="pointwise_first")
    large = small.assign(
        order="spatial_first", realised_segments=[[1, 4 * have[1]] for have in small["realised_segments"]]
    )
    alone = stats.trend(small)["slope"][0]
    assert stats.trend(pd.concat([small, large], ignore_index=True))["slope"][0] == pytest.approx(alone)


def test_a_network_of_two_studies_at_two_learning_rates_is_not_two_seeds():
    one = made_up(noisy, activation=["none"]).assign(lr=0.1, searched="lr")
    other = one.assign(lr=0.2, study="other", id=[f"b{id}" for id in one["id"]])
    with pytest.raises(ValueError, match=r"is there 2 times \(in made-up, other\).*; take one study at a time"):
        stats.pareto_table(pd.concat([one, other], ignore_index=True))
    with pytest.raises(ValueError, match=r'drop_duplicates\(\["id", "match"\]\)'):
        stats.pareto_table(pd.concat([one, one], ignore_index=True))


def test_an_axis_of_one_field_beside_a_search_of_the_other_is_an_axis():
    low, high = (
        made_up(noisy, activation=["none"]).assign(lr=lr, weight_decay=wd, searched="weight_decay")
        for lr, wd in ((0.1, 1e-4), (0.2, 1e-5))
    )
    both = pd.concat([low, high.assign(test_accuracy=high["test_accuracy"] + 0.01)], ignore_index=True)
    assert stats.varied_settings(both) == ["lr"]
    found = stats.contrast(both, [{"lr": 0.2}, {"lr": 0.1}])
    assert (found.n, found.mean) == (5, pytest.approx(0.01))


def test_what_has_no_place_on_the_spectrum_has_no_slope():
    """Rows of a network without segments, and failed rows of another program, next to a curve."""
    table = made_up(noisy, activation=["none"])
    odd = table.assign(order="other", realised_segments=[[], None] * 10, status="failed", test_accuracy=float("nan"))
    both = pd.concat([table.assign(order="own"), odd], ignore_index=True)
    assert stats.trend(both)["slope"].tolist() == stats.trend(table)["slope"].tolist()
    assert set(stats.optimum(both)["order"]) == {"own"}


def test_studies_that_are_joined_may_have_one_index_twice():
    one = made_up(noisy, activation=["none"])
    other = one.assign(dataset="letters", test_accuracy=one["test_accuracy"] + 0.01)
    asked = [{"dataset": "letters"}, {"dataset": "digits"}]
    both = pd.concat([one, other])
    assert stats.contrast(both, asked).mean == pytest.approx(0.01)
    assert stats.contrasts(both, [{"name": "x", "between": asked}])["n"].tolist() == [5]
    assert stats.crossing(both, asked).n == 5


def test_the_summary_says_of_each_run_what_is_its_own():
    """One run failed and one diverged, with different mismatches: each value stays with its configuration."""
    table = made_up(noisy, activation=["none"])
    table["budget_mismatch"] = [{1: 0.001, 2: 0.002, 8: 0.003, "per_channel": 0.0}[s] for s in table["segments"]]
    table = failed(table, table["segments"].eq(1) & table["seed"].eq(0))
    table.loc[table["segments"].eq(2) & table["seed"].eq(1), "status"] = "diverged"
    shown = summary_table(table).set_index("segments")
    assert shown["diverged"].to_dict() == {"1": 0, "2": 1, "8": 0, "per-channel": 0}
    assert shown["mismatch"].to_dict() == {"1": "+0.10%", "2": "+0.20%", "8": "+0.30%", "per-channel": "+0.00%"}
    assert shown["n"].to_dict() == {"1": 4, "2": 5, "8": 5, "per-channel": 5}


def test_seeds_of_bare_convolutions_are_not_left_out_of_a_slope_that_has_none():
    table = made_up(noisy)
    bare = table.assign(pointwise=False, seed=table["seed"] + 100, status="diverged")
    both = pd.concat([table, bare], ignore_index=True)
    (row,) = stats.contrasts(both, [{"name": "x", "between": RELU, "across": "segments"}]).to_dict("records")
    assert (row["n"], row["left_out"], row["diverged"]) == (5, (), 0)


def test_figures_leave_a_gap_where_a_contrast_has_none():
    table = in_two_orders(lambda s: 0.01)
    table = failed(table, table["order"].eq("spatial_first") & table["segments"].eq(2))
    line = plots.difference_curve(table, RELU).axes[0].get_lines()
    assert not any(np.isclose(one.get_xdata(), 2).any() for one in line if len(one.get_xdata()) > 1)
    curve = plots.spectrum_curve(table, by="activation").axes[0].containers[0].lines[0]
    x, y = np.asarray(curve.get_data(), dtype=float)
    assert np.isnan(y).tolist() == [False, True, False, False]
    assert x[1] == pytest.approx(2, rel=0.1)


def test_a_mean_over_several_runs_is_over_the_same_runs_in_every_seed():
    table = made_up(lambda s, a, seed: 0.8 + 0.02 * math.log2(s))
    part = failed(table, table["seed"].eq(2) & table["segments"].isin([8, "per_channel"]))
    found = stats.summarise(part, "activation")
    assert found["n"].tolist() == [4, 4]
    assert found["mean"].tolist() == stats.summarise(table, "activation")["mean"].tolist()


@pytest.mark.medium
def test_a_family_is_corrected_and_each_verdict_follows():
    table = made_up(noisy)
    asked = [
        {"name": "relu", "between": RELU, "margin": 0.01},
        {"name": "relu, wide margin", "between": RELU, "margin": 0.05},
        {"name": "interaction", "between": RELU, "across": ENDS, "margin": 0.001},
        {"name": "slope", "between": RELU, "across": "segments", "margin": None},
    ]
    found = stats.contrasts(table, asked).set_index("name")
    assert list(found["verdict"]) == ["lower", "negligibly lower", "inconclusive", "inconclusive"]
    assert list(found["kind"]) == ["difference", "difference", "interaction", "slope"]
    raw = stats.contrast(table, RELU)
    assert found["p"]["relu"] == pytest.approx(4 * raw.p)
    assert found["more_seeds"].isna().tolist() == [True, True, False, False]
    assert found["more_seeds"]["interaction"] < found["more_seeds_at_most"]["interaction"]
    said = [sentence(row) for _, row in stats.contrasts(table, asked).iterrows()]
    where = "averaged over 4 numbers of segments, parameter-matched"
    higher = (pp(-raw.mean), pp(-raw.high), pp(-raw.low))
    beginning = f"no activation vs ReLU, {where}: no activation is better by {higher[0]} pp"
    evidence = f"95% CI {higher[1]} to {higher[2]}; 5 paired seeds; p < 0.001"
    assert said[0] == f"{beginning} ({evidence})."
    assert said[1] == f"{beginning}, less than the margin of 5.00 pp ({evidence}; equivalence p < 0.001)."
    assert said[2].startswith("ReLU minus no activation, parameter-matched: ")
    assert " higher for " in said[2]
    assert re.search(
        r"Inconclusive: neither different \(p = \d\.\d{3}\) nor equivalent within ±0.10 pp \(p = \d\.\d{3}\)\.", said[2]
    )
    assert re.match(
        r"ReLU minus no activation, parameter-matched: [+−]\d.\d\d pp per doubling of the segments", said[3]
    )
    assert "pp per doubling of the segments with 80% power" in said[3]
    assert abs(found["mean"]["interaction"]) > 0.001, "beyond the margin: what counts is to show as large a one"
    for words, n in zip(said[2:], found["more_seeds_to_show"][2:], strict=True):
        assert re.search(
            rf"To show a difference of \d.\d\d pp.* with 80% power, run a new study with {5 + n} seeds", words
        )
        assert "more seeds" not in words
    assert [sentence(stats.contrasts(table, asked).iloc[number]) for number in range(4)] == said


def test_the_size_of_a_new_study_is_the_whole_of_it():
    """By their power: with this many seeds a new study is conclusive four times in five, with fewer less often."""
    row = pd.Series(
        {
            "name": "x", "kind": "difference", "n": 6, "left_out": (), "diverged": 0, "confounded": False, "reason": "",
            "mean": 0.001, "low": -0.004, "high": 0.006, "p": 0.5, "p_equivalent": 0.1, "verdict": "inconclusive",
            "margin": 0.005, "more_seeds": 2, "more_seeds_at_most": 5, "more_seeds_to_show": 900,
        }
    )  # fmt: skip
    assert sentence(row).endswith(
        "To tell 0 from ±0.50 pp with 80% power, run a new study with 8 seeds (11 to be safe). "
        "A difference in between may stay inconclusive."
    )
    beyond = pd.Series(row.to_dict() | {"mean": 0.006})
    assert sentence(beyond).endswith("To show a difference of 0.60 pp with 80% power, run a new study with 906 seeds.")
    never = pd.Series(row.to_dict() | {"more_seeds": pd.NA})
    assert sentence(never).endswith("with 80% power, a new study would need more than 10,000 seeds.")
    rarely = pd.Series(row.to_dict() | {"more_seeds_at_most": pd.NA})
    assert "run a new study with 8 seeds (more than 10,000 to be safe)" in sentence(rarely)


def test_equivalence_is_said():
    table = made_up(lambda s, a, seed: 0.9 + (a == "relu") * NOISE[s, a, seed] / 10)
    (row,) = [row for _, row in stats.contrasts(table, [{"name": "x", "between": RELU, "margin": 0.005}]).iterrows()]
    assert row["verdict"] == "equivalent"
    assert re.search(r"\(95% CI .*; 5 paired seeds\)\. Equivalent within ±0\.50 pp \(p [=<] [\d.]+\)\.$", sentence(row))


@pytest.mark.parametrize(
    ("seeds", "accuracy", "says"),
    [
        (1, noisy, "(one seed). Nothing is shown: one seed has no spread."),
        (3, lambda s, a, seed: 0.9 - 0.1 * (a == "relu"), "Nothing is shown: all differences are equal."),
    ],
)
def test_nothing_is_claimed_of_one_seed_or_of_no_spread(seeds, accuracy, says):
    (row,) = [
        row for _, row in stats.contrasts(made_up(accuracy, seeds=seeds), [{"name": "x", "between": RELU}]).iterrows()
    ]
    assert row["verdict"] == "unknown"
    assert says in sentence(row)


def test_a_contrast_without_runs_is_told_and_counts_in_the_family():
    table = made_up(noisy)
    asked = [{"name": "x", "between": RELU}, {"name": "later", "between": [{"segments": 4}, {"segments": 1}]}]
    both = stats.contrasts(table, asked)
    assert sentence(both.iloc[1]) == "4 segments vs 1 segment, parameter-matched: no seed has a run on every side."
    assert both["p"][0] == pytest.approx(2 * stats.contrast(table, RELU).p)


def test_the_trend_is_the_mean_of_the_seeds_slopes():
    found = stats.trend(made_up(noisy)).set_index("activation")
    table = made_up(noisy)
    slopes = [
        np.polyfit([0, 1, 3, 4], [accuracy(table, seed, segments=s, activation="relu") for s in SEGMENTS], 1)[0]
        for seed in range(5)
    ]
    assert tuple(found.loc["relu", ["slope", "low", "high"]]) == pytest.approx(stats.t_interval(slopes))
    bent = made_up(lambda s, a, seed: 0.9 - 0.01 * (math.log2(s) - 2) ** 2 + NOISE[s, a, seed] / 10)
    assert (stats.trend(bent)["curvature_high"] < 0).all()
    with pytest.raises(ValueError, match="at least two numbers of segments"):
        stats.trend(made_up(noisy, segments=[1]))


@pytest.mark.medium
def test_the_confidence_set_holds_the_best_as_often_as_it_says_and_leaves_the_worst_out():
    """Unequal spreads and shared seeds; two configurations share the highest mean, and 16 is far below."""
    rng, rounds, held, out = np.random.default_rng(4), 150, 0, 0
    means, spread = {1: 0.90, 2: 0.91, 8: 0.91, 16: 0.85}, {1: 0.002, 2: 0.004, 8: 0.012, 16: 0.006}
    for _ in range(rounds):
        draws = {(s, seed): means[s] + spread[s] * rng.normal() for s in means for seed in range(4)}
        shared = dict(enumerate(rng.normal(0, 0.02, 4)))
        table = made_up(lambda s, a, seed: 0.0, activation=["none"], seeds=4)
        places = table["realised_segments"].map(max)
        table["test_accuracy"] = [draws[key] + shared[key[1]] for key in zip(places, table["seed"], strict=True)]
        found = stats.optimum(table).set_index("label")
        held += bool(found["in_set"]["8"])
        out += not found["in_set"]["per-channel"]
    assert held / rounds >= 0.93
    assert out / rounds > 0.6


def test_one_seed_leaves_everything_in_the_set():
    assert stats.optimum(made_up(noisy, seeds=1))["in_set"].all()


def test_a_run_is_off_the_front_only_if_one_that_costs_no_more_is_shown_better():
    below = (0.003, -0.001, 0.002, -0.001, 0.002)  # lower on the average, and no more than that
    at = {1: [0.90] * 5, 2: [0.80, 0.81] * 3, 8: [0.90 - d for d in below], 16: [0.95, 0.94, 0.96] * 2}
    table = made_up(lambda s, a, seed: at[s][seed], activation=["none"])
    found = stats.pareto_table(table, "macs").set_index("label")
    assert list(found["on_front"]) == [True, False, False, True]
    assert list(found["beaten_by"]) == ["", "1", "", ""]
    same = stats.pareto_table(table, "params").set_index("label")  # all cost the same
    assert list(same["beaten_by"]) == ["per-channel", "per-channel", "per-channel", ""]


# Tables that would mislead


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (pd.DataFrame(), "the table has no rows; load_results"),
        ([1, 2], "expected a table from load_results, got list"),
        (made_up(noisy).drop(columns=["seed", "pointwise"]), "lacks the columns seed, pointwise"),
        (made_up(noisy).assign(test_accuracy=None), "no row has test_accuracy; every run failed"),
        (pd.concat([made_up(noisy), made_up(noisy, study="copy")]), r"seed 0 is there 2 times \(in made-up, copy\)"),
        (
            made_up(noisy).assign(provenance=[{"data_fingerprint": "a"}] * 39 + [{"data_fingerprint": "b"}]),
            r"digits: these rows come from 2 versions of the data set \(data_fingerprint a, b\)",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "read", [stats.trend, stats.optimum, stats.pareto_table, plots.spectrum_curve, plots.budget_panels]
)
def test_a_table_that_would_mislead_is_refused(table, says, read):
    with pytest.raises(ValueError, match=says):
        read(table)


@pytest.mark.parametrize(
    ("between", "across", "says"),
    [
        ([{"segments": 3}, {"segments": 1}], None, r"segments = 3: no row has it; try 1, 2, 8, 'per_channel'"),
        ([{"segmets": 3}, {"segments": 1}], None, "segmets: no such column"),
        ([{"segments": 1}], None, "between: expected two sides, got 1"),
        (RELU, "order", 'across: expected two settings or "segments"'),
        (RELU, [{"segments": 1}], 'across: expected two settings or "segments"'),
    ],
)
def test_a_wrong_contrast_says_what_would_work(between, across, says):
    with pytest.raises(ValueError, match=says):
        stats.contrast(made_up(noisy), between, across)


# Pictures


def test_the_forest_has_a_mark_a_contrast_open_where_inconclusive():
    table = made_up(noisy)
    asked = [
        {"name": "relu", "between": RELU, "margin": 0.01},
        {"name": "slope", "between": RELU, "across": "segments", "confounded": True},
    ]
    figure = plots.forest(stats.contrasts(table, asked), table)
    (ax,) = figure.axes
    marks = [line for line in ax.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in marks] == [False, True]
    assert marks[0].get_xdata()[0] == pytest.approx(100 * stats.contrast(table, RELU).mean)
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == [
        "ReLU − no activation\naveraged over 4 numbers of segments,\nparameter-matched",
        "ReLU − no activation\nper doubling of the segments,\nparameter-matched\n(confounded)",
    ]
    assert any("made-up 01234567" in text.get_text() for text in figure.texts)
    found = stats.contrast(table, RELU)
    values = f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]".replace("-", "−")
    beside = [text.get_text() for text in ax.texts]
    assert beside[:2] == [values, "worse" if found.mean < 0 else "better"]
    assert beside[3] == "inconclusive"
    with pytest.raises(ValueError, match="no contrast has a run"):
        plots.forest(stats.contrasts(table, [{"name": "x", "between": [{"segments": 4}, {"segments": 1}]}]), table)


def test_the_forest_says_what_a_slope_does_and_what_is_not_known_or_not_there():
    table = made_up(lambda c, a, s: 0.7 - 0.02 * (a == "relu") * math.log2(c) + NOISE[c, a, s] / 10)
    asked = [
        {"name": "slope", "between": RELU, "across": "segments", "confounded": True},
        {"name": "interaction", "between": RELU, "across": ENDS},
        {"name": "later", "between": [{"segments": 4}, {"segments": 1}]},
    ]
    judged = stats.contrasts(table, asked)
    figure = plots.forest(judged, table)
    assert [text.get_text() for text in figure.axes[0].texts][1::2] == ["falls", "higher for 1 segment"]
    below = " ".join(" ".join(text.get_text() for text in figure.texts).split())
    assert "bars: 95% CI; 1 not shown, for lack of runs" in below
    single = table[table["seed"].eq(0)]
    figure = plots.forest(stats.contrasts(single, asked[:2]), single)
    assert [text.get_text() for text in figure.axes[0].texts][1::2] == ["not known"] * 2
    assert [line.get_marker() for line in figure.axes[0].lines if len(line.get_xdata()) == 1] == ["X", "X"]
    below = " ".join(" ".join(text.get_text() for text in figure.texts).split())
    assert "cross: not known" in below
    assert "bars" not in below


def test_the_forest_says_the_sides_and_the_name_where_these_do_not_tell_or_where_the_caller_wants_it():
    table = made_up(noisy)
    asked = [
        {"name": "one segment a channel, whatever", "between": [{"segments": 2}, {"segments": 1}]},
        {"name": "first twin", "between": RELU},
        {"name": "second twin", "between": RELU, "margin": 0.01},
        {"name": "a swap", "between": [{"segments": 1, "activation": "relu"}, {"segments": 2, "activation": "none"}]},
    ]
    ax = plots.forest(stats.contrasts(table, asked), table, labels={"a swap": "the swap, as published"}).axes[0]
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names[0].startswith("2 segments − 1 segment\n")
    assert names[1:] == ["first twin", "second twin", "the swap, as published"]


def test_the_curve_of_differences_is_paired_at_each_place():
    table = made_up(noisy)
    ax = plots.difference_curve(table, RELU, margin=0.005).axes[0]
    (line,) = [line for line in ax.lines if line.get_marker() == "o"]
    expected = [100 * stats.contrast(table[[s == have for have in table["segments"]]], RELU).mean for s in SEGMENTS]
    assert list(line.get_ydata()) == pytest.approx(expected)
    assert list(line.get_xdata()) == pytest.approx([1, 2, 8, 16])
    assert "grey: ±0.5 pp" in " ".join(text.get_text() for text in ax.get_figure().texts)


def test_several_pairs_are_a_curve_each_beside_one_another():
    effects = {"none": 0.0, "relu": 0.01, "elu": -0.02}
    table = made_up(
        lambda count, activation, seed: 0.8 + effects[activation] * math.sqrt(count + seed), activation=effects
    )
    pairs = [[{"activation": one}, {"activation": "none"}] for one in ("relu", "elu")]
    ax = plots.difference_curve(table, pairs).axes[0]
    lines = [line for line in ax.lines if line.get_marker() in ("o", "s")]
    assert len(lines) == 2
    for line, pair in zip(lines, pairs, strict=True):
        alone = plots.difference_curve(table, pair).axes[0]
        (expected,) = [one for one in alone.lines if one.get_marker() == "o"]
        assert list(line.get_ydata()) == pytest.approx(list(expected.get_ydata()))
    heights = {text.get_text(): text.xy[1] for text in ax.texts}  # names stand at the ends of their curves
    assert heights == pytest.approx({name: lines[n].get_ydata()[-1] for n, name in enumerate(["ReLU", "ELU"])})
    assert ax.get_ylabel().startswith("each − no activation")


def test_a_curve_of_differences_leaves_out_what_has_no_pair_and_bare_convolutions():
    table = made_up(noisy)
    bare = table[table["segments"].eq(1)].assign(pointwise=False, test_accuracy=0.1)
    bare["id"] = "bare " + bare["id"]
    lone = table["segments"].eq(2) & table["activation"].eq("relu")
    ax = plots.difference_curve(pd.concat([bare, table[~lone]]), RELU).axes[0]
    (line,) = [line for line in ax.lines if line.get_marker() == "o"]
    (whole,) = [line for line in plots.difference_curve(table, RELU).axes[0].lines if line.get_marker() == "o"]
    assert list(line.get_xdata()) == pytest.approx([1, 8, 16])
    assert list(line.get_ydata()) == pytest.approx([whole.get_ydata()[i] for i in (0, 2, 3)])


def test_the_map_has_a_mean_and_an_interval_a_cell_and_refuses_to_mix():
    table = made_up(noisy)
    ax = plots.setting_map(table, "activation").axes[0]
    cells = [text.get_text() for text in ax.texts]
    mean, _, high = stats.t_interval([accuracy(table, seed, segments=1, activation="none") for seed in range(5)])
    assert cells[0] == f"{100 * mean:.2f}\n± {100 * (high - mean):.2f}"
    assert len(cells) == 8
    with pytest.raises(ValueError, match="lr varies too"):
        plots.setting_map(pd.concat([table.assign(lr=0.1), table.assign(lr=0.2)]), "activation")


def test_differences_are_those_of_the_columns_that_are_named():
    values = stats.differences_by_seed(made_up(noisy), RELU)
    assert stats.contrast(made_up(noisy), RELU, margin=0.01) == difference(values, 0.01)


# Sides that do not pair


ORDERS = [{"order": "pointwise_first"}, {"order": "spatial_first"}]


def two_orders(**columns):
    """Two orders at four numbers of segments, the second order 1 pp above the first at each of them."""
    first, second = (
        made_up(lambda c, a, s, up=up: 0.8 + 0.01 * math.log2(c) + up + NOISE[c, "none", s], activation=["none"])
        for up in (0.0, 0.01)
    )
    both = pd.concat([first.assign(order="pointwise_first"), second.assign(order="spatial_first")], ignore_index=True)
    return both.assign(**columns)


def test_a_run_that_is_missing_at_every_seed_makes_a_contrast_incomplete_not_biased():
    table = two_orders()
    assert stats.contrast(table, ORDERS).mean == pytest.approx(-0.01)
    short = table[~((table["order"] == "spatial_first") & (table["segments"] == 1))]
    with pytest.raises(stats.NoRunsError, match="segments is 1, 2, 8, 'per_channel' on the first side and 2, 8"):
        stats.contrast(short, ORDERS)
    (row,) = stats.contrasts(short, [{"name": "order", "between": ORDERS, "factors": ["order: a → b"]}]).to_dict(
        "records"
    )
    assert (row["n"], row["verdict"], row["left_out"]) == (0, "unknown", (0, 1, 2, 3, 4))
    assert "no seed has a run on every side" in sentence(pd.Series(row))


def test_a_study_of_which_one_run_a_side_is_there_compares_nothing():
    table = two_orders()
    first = table[(table["order"] == "pointwise_first") & (table["segments"] == 1)].head(1)
    second = table[(table["order"] == "spatial_first") & (table["segments"] == 8)].head(1)
    (row,) = stats.contrasts(
        pd.concat([first, second]), [{"name": "order", "between": ORDERS, "factors": ["order: a → b"]}]
    ).to_dict("records")
    assert row["n"] == 0


def test_what_is_there_on_one_side_only_is_not_averaged_into_it():
    other = two_orders(dataset="other", study="other").query("order == 'pointwise_first'").assign(test_accuracy=0.1)
    with pytest.raises(ValueError, match="dataset is 'digits', 'other' on the first side and 'digits' on the second"):
        stats.contrast(pd.concat([two_orders(), other], ignore_index=True), ORDERS)
    bare = two_orders().query("segments == 1").assign(pointwise=False, test_accuracy=0.99)
    with pytest.raises(ValueError, match="pointwise is True, False on the first side"):
        stats.contrast(pd.concat([two_orders(), bare], ignore_index=True), [{"segments": 1}, {"segments": 8}])


@pytest.mark.parametrize("between", [[{"order": "spatial_first"}, {"segments": 8}], [{}, {"segments": 8}]])
def test_a_run_cannot_be_on_both_sides(between):
    with pytest.raises(ValueError, match="runs are on both sides"):
        stats.contrast(two_orders(), between)


def test_a_setting_that_goes_with_a_side_is_compared_with_it():
    table = two_orders()
    table["norm"] = table["order"] == "spatial_first"  # as in BSConv's swap
    assert stats.contrast(table, ORDERS).mean == pytest.approx(-0.01)


def test_diverged_runs_count_where_they_are_used():
    table = made_up(noisy)
    at = (table["segments"] == 8) & (table["seed"] == 0) & (table["activation"] == "relu")
    table.loc[at, ["status", "test_accuracy"]] = ["diverged", 0.1]
    asked = [{"name": "ends", "between": RELU, "across": ENDS}, {"name": "all", "between": RELU}]
    assert list(stats.contrasts(table, asked)["diverged"]) == [0, 1]


def test_an_interaction_is_said_as_one():
    table = made_up(lambda c, a, s: 0.8 + 0.02 * (a == "relu") * (c == 1) + NOISE[c, a, s] / 4)
    (row,) = stats.contrasts(table, [{"name": "x", "between": RELU, "across": ENDS}]).to_dict("records")
    said = sentence(pd.Series(row))
    assert said.startswith("ReLU minus no activation, parameter-matched: higher by ")
    assert " pp for 1 segment than for per-channel (95% CI " in said
    assert verdict_in_words(pd.Series(row)) == "higher for 1 segment"


# Where an effect crosses zero


def crossing_at(place, slope, spread, seed, seeds=6):
    """ReLU's effect falls along the spectrum and is zero at so many segments; every cell has its own noise."""
    rng = np.random.default_rng(seed)

    def accuracy(count, activation, _):
        effect = -slope * (math.log2(count) - math.log2(place)) * (activation == "relu")
        return 0.7 + effect + rng.normal(0, spread)

    return made_up(accuracy, seeds=seeds)


def test_the_crossing_is_found_where_it_is():
    found = stats.crossing(crossing_at(4, 0.02, 0.0005, 0), RELU)
    assert found.segments == pytest.approx(4, rel=0.05)
    ((low, high),) = found.possible
    assert 3.8 < low < high < 4.2
    assert found.n == 6


def test_the_set_of_crossings_is_where_the_interval_of_the_line_holds_zero():
    table = crossing_at(4, 0.005, 0.01, 3)
    found = stats.crossing(table, RELU, confidence=0.9)
    differences = {s: stats.differences_by_seed(table[table["segments"] == s], RELU) for s in SEGMENTS}
    places = np.log2([1, 2, 8, 16])
    lines = [np.polyfit(places, [differences[s][seed] for s in SEGMENTS], 1) for seed in range(6)]
    for place in np.linspace(0, 4, 81):
        _, low, high = stats.t_interval([np.polyval(line, place) for line in lines], 0.9)
        inside = any(math.log2(a) - 1e-9 <= place <= math.log2(b) + 1e-9 for a, b in found.possible)
        assert inside == (low <= 0 <= high)


def test_an_effect_without_a_slope_may_cross_anywhere_or_nowhere():
    flat = made_up(lambda c, a, s: 0.7 + NOISE[c, a, s])
    assert stats.crossing(flat, RELU).possible == ((1.0, 16.0),)
    above = made_up(lambda c, a, s: 0.7 + 0.2 * (a == "relu") + NOISE[c, a, s])
    found = stats.crossing(above, RELU)
    assert found.possible == ()
    assert math.isnan(found.segments)


def test_a_crossing_needs_two_seeds_and_two_places():
    with pytest.raises(ValueError, match="two complete seeds"):
        stats.crossing(made_up(noisy, seeds=1), RELU)
    with pytest.raises(ValueError, match="two numbers of segments"):
        stats.crossing(made_up(noisy, segments=[8]), RELU)


# The sides in words


def names(table, first, second, **more):
    row = stats.contrasts(table, [{"name": "x", "between": [first, second], **more}]).iloc[0]
    return row["side_a"], row["side_b"], row["where"]


def test_sides_are_named_by_what_differs_between_them_whatever_the_comparison_is_called():
    table = made_up(noisy, segments=[1, 2, "per_channel"])
    bare = made_up(noisy, segments=[1]).assign(pointwise=False, activation="none", seed=list(range(5)) * 2).iloc[:5]
    both = pd.concat([table, bare], ignore_index=True)
    relu, none = RELU
    assert names(table, relu | {"segments": 1}, none | {"segments": 1}) == (
        "ReLU", "no activation", "1 segment, parameter-matched",
    )  # fmt: skip
    assert names(both, {"segments": "per_channel"} | none, {"pointwise": False}) == (
        "per-channel", "plain 3×3", "no activation, parameter-matched",
    )  # fmt: skip
    assert names(table, {"segments": 2} | relu, {"segments": 1} | none)[:2] == (
        "2 segments, ReLU", "1 segment, no activation",
    )  # fmt: skip
    assert names(table, *RELU, across="segments")[2] == "parameter-matched"


def test_sides_under_budgets_of_different_size_are_not_called_matched():
    table = made_up(noisy, segments=[1, "per_channel"]).assign(width=1.0, params=49_962)
    wide = table.assign(width=2.0, params=187_054, id="w" + table["id"])
    both = pd.concat([table, wide], ignore_index=True)
    side, other = {"segments": "per_channel", "width": 1.0}, {"segments": 1, "width": 2.0}
    assert names(both, side, other) == (
        "per-channel, width ×1, 49,962 parameters", "1 segment, width ×2, 187,054 parameters",
        "averaged over 2 values of activation",
    )  # fmt: skip
    assert names(both, {"segments": "per_channel"}, {"segments": 1})[2].endswith("parameter-matched")
    timed = both.assign(match="step_time")
    assert names(timed, side, other)[2].endswith("under different time budgets")
    assert names(timed, {"segments": "per_channel"}, {"segments": 1})[2].endswith("time-matched")


def test_a_winner_comes_first_and_its_difference_is_positive_whichever_side_it_is():
    table = made_up(noisy)
    asked = [{"name": "a", "between": RELU}, {"name": "b", "between": RELU[::-1]}]
    first, second = (sentence(row) for _, row in stats.contrasts(table, asked).iterrows())
    assert first == second
    assert re.search(
        r"no activation is better by \d\.\d\d pp \(95% CI \d\.\d\d to \d\.\d\d; 5 paired seeds; p [<=]", first
    )


def test_a_finding_can_be_marked():
    (row,) = (row for _, row in stats.contrasts(made_up(noisy), [{"name": "x", "between": RELU}]).iterrows())
    assert re.search(r": \*\*no activation is better by \d\.\d\d pp\*\* \(", sentence(row, bold="**"))
    assert sentence(row, bold="**").replace("**", "") == sentence(row)


@pytest.mark.parametrize(("segments", "verb"), [(1, "is"), (2, "are"), ("per_channel", "is")])
def test_several_segments_are_better_and_one_is(segments, verb):
    count = 16 if segments == "per_channel" else segments
    table = made_up(lambda c, a, s: 0.5 + 0.2 * (c == count) + NOISE[c, a, s])
    other = {"segments": 8}
    row = stats.contrasts(table, [{"name": "x", "between": [other, {"segments": segments}]}]).iloc[0]
    assert f": {row['side_b']} {verb} better by " in sentence(row)


def test_long_sides_are_explained_once_and_called_a_and_b():
    long = "a very long name of an activation that nobody would want to read twice"
    table = made_up(noisy, activation=("none", "relu")).replace({"activation": {"relu": long}})
    row = stats.contrasts(table, [{"name": "x", "between": [{"activation": long}, {"activation": "none"}]}]).iloc[0]
    where = "averaged over 4 numbers of segments, parameter-matched"
    assert sentence(row).startswith(f"B vs A (A: {long}; B: no activation), {where}: B is better by ")


def test_comparisons_that_their_sides_do_not_tell_apart_keep_their_names():
    asked = [{"name": name, "between": RELU} for name in ("one", "other")]
    judged = stats.contrasts(made_up(noisy), [*asked, {"name": "ends", "between": ENDS}])
    assert [sides for sides, _ in comparison_labels(judged)] == ["one", "other", "per-channel − 1 segment"]
    assert [line[0] for line in contrasts_as_text(judged)[1]][:2] == ["one", "other"]
