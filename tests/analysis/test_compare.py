"""Comparisons of runs from anywhere: against scipy and statsmodels, and what they say of incomplete tables."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as distributions

from spectrum.analysis.compare import compare
from spectrum.analysis.inference import (
    difference_power,
    equivalence_power,
    seeds_for_difference,
    unpaired_difference,
    welch_freedom,
)

statsmodels = pytest.importorskip("statsmodels.stats.api", reason="needs the extra packages for development")
multitest = pytest.importorskip("statsmodels.stats.multitest")
weights = pytest.importorskip("statsmodels.stats.weightstats")


def runs_of(rng, methods=3, seeds=6, spread=0.004):
    """A table of paired runs: a seed's effect is shared by all methods."""
    shared = rng.normal(0, 0.01, seeds)
    means = 0.9 + rng.normal(0, 0.005, methods)
    return pd.DataFrame(
        [
            {"method": f"m{method}", "seed": seed, "accuracy": means[method] + shared[seed] + rng.normal(0, spread)}
            for method in range(methods)
            for seed in range(seeds)
        ]
    )


def values_of(runs, method):
    return runs[runs["method"] == method].set_index("seed")["accuracy"]


@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(3, 8))
@settings(max_examples=12, deadline=None)
def test_paired_comparisons_equal_those_of_scipy_and_statsmodels(seed, methods, seeds):
    runs = runs_of(np.random.default_rng(seed), methods, seeds).sample(frac=1, random_state=seed)
    found = compare(runs, by="method", pair="seed", metric="accuracy", margin=0.005).judged
    assert len(found) == methods * (methods - 1) / 2
    raw = []
    for _, row in found.iterrows():
        a, b = values_of(runs, row["side_a"]), values_of(runs, row["side_b"])
        a, b = a.sort_index(), b.sort_index()
        test = distributions.ttest_rel(a, b)
        interval = test.confidence_interval()
        equivalence = weights.ttost_paired(a.to_numpy(), b.to_numpy(), -0.005, 0.005)[0]
        assert row["paired"]
        assert (row["mean"], row["low"], row["high"]) == pytest.approx(((a - b).mean(), *interval), rel=1e-9)
        raw.append((test.pvalue, equivalence))
    if methods == 2:  # one comparison: two exclusive hypotheses, which count once
        smaller = min(raw[0])
        assert min(found["p"].iloc[0], found["p_equivalent"].iloc[0]) == pytest.approx(smaller, rel=1e-9)
    corrected = compare(runs, by="method", pair="seed", metric="accuracy").judged["p"]
    expected = multitest.multipletests([p for p, _ in raw], method="holm")[1]
    assert list(corrected) == pytest.approx(list(expected), rel=1e-9)


@given(st.integers(0, 10_000), st.integers(2, 7), st.integers(2, 7))
@settings(max_examples=12, deadline=None)
def test_unpaired_comparisons_are_welchs(seed, first, second):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0.9, 0.01, first), rng.normal(0.91, 0.003, second)
    runs = pd.DataFrame({"method": ["a"] * first + ["b"] * second, "accuracy": [*a, *b]})
    found = compare(runs, by="method", metric="accuracy", margin=0.01)
    row = found.judged.iloc[0]
    test = distributions.ttest_ind(a, b, equal_var=False)
    assert (row["low"], row["high"]) == pytest.approx(tuple(test.confidence_interval()), rel=1e-9)
    alone = unpaired_difference(a, b, 0.01)
    assert alone.p == pytest.approx(test.pvalue, rel=1e-9)
    equivalence = weights.ttost_ind(a, b, -0.01, 0.01, usevar="unequal")[0]
    assert alone.p_equivalent == pytest.approx(equivalence, rel=1e-9)
    assert not row["paired"]
    assert f"{first} and {second} runs, unpaired" in found.sentences()[0]
    assert any("no column to pair by was given" in note for note in found.notes)


@pytest.mark.parametrize(("n", "effect", "sd"), [(4, 1.5, 1.0), (10, 0.7, 1.0), (30, 0.4, 0.9)])
def test_power_of_an_unpaired_test_equals_that_of_statsmodels(n, effect, sd):
    """With equal spreads Welch's test has the degrees of freedom of the pooled one."""
    freedom = welch_freedom(sd, sd)(n)
    assert freedom == pytest.approx(2 * n - 2)
    ours = difference_power(n, effect, sd * math.sqrt(2), freedom=freedom)
    assert ours == pytest.approx(statsmodels.TTestIndPower().power(effect / sd, n, 0.05), abs=1e-6)
    found = seeds_for_difference(effect, sd * math.sqrt(2), freedom=welch_freedom(sd, sd))
    wanted = statsmodels.TTestIndPower().solve_power(effect / sd, power=0.8, alpha=0.05)
    assert found == math.ceil(wanted)


def test_power_of_unequal_spreads_equals_simulation():
    rng = np.random.default_rng(0)
    n, sds, margin = 8, (1.0, 2.5), 4.0
    a, b = rng.normal(2.0, sds[0], (20_000, n)), rng.normal(0, sds[1], (20_000, n))
    rejected = distributions.ttest_ind(a, b, axis=1, equal_var=False).pvalue <= 0.05
    sd = math.hypot(*sds)
    power = difference_power(n, 2.0, sd, freedom=welch_freedom(*sds)(n))
    assert power == pytest.approx(rejected.mean(), abs=0.02)
    shown = distributions.ttest_ind(a - 2 + margin, b, axis=1, equal_var=False, alternative="greater").pvalue <= 0.05
    shown &= distributions.ttest_ind(a - 2 - margin, b, axis=1, equal_var=False, alternative="less").pvalue <= 0.05
    assert equivalence_power(n, margin, sd, freedom=welch_freedom(*sds)(n)) == pytest.approx(shown.mean(), abs=0.02)


def test_runs_that_are_averaged_count_once():
    """Two data sets per seed are one value: the interval is that of the seeds' means, in the summary too."""
    rng = np.random.default_rng(1)
    runs = pd.concat([runs_of(rng, 2, 5).assign(dataset=name) for name in ("x", "y")])
    with pytest.raises(
        ValueError, match=r"2 rows, expected one\. They differ in dataset: add it to by, pair or average"
    ):
        compare(runs, by="method", pair="seed", metric="accuracy")
    found = compare(runs, by="method", pair="seed", metric="accuracy", average_over="dataset")
    means = runs.groupby(["method", "seed"])["accuracy"].mean()
    expected = distributions.ttest_rel(means["m0"], means["m1"]).confidence_interval()
    row = found.judged.iloc[0]
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected))
    own = distributions.t.interval(0.95, 4, means["m0"].mean(), means["m0"].std() / math.sqrt(5))
    assert (found.methods["low"][0], found.methods["high"][0]) == pytest.approx(own)
    assert list(found.methods["n"]) == [5, 5]


def test_a_pair_that_lacks_a_run_is_left_out_and_named():
    runs = runs_of(np.random.default_rng(2), 2, 6)
    runs.loc[2, "accuracy"] = np.nan  # a failed run of m0, seed 2
    runs = runs.drop(index=11)  # m1 has no seed 5
    found = compare(runs, by="method", pair="seed", metric="accuracy")
    row = found.judged.iloc[0]
    assert row["n"] == 4
    assert row["left_out"] == ("2", "5")
    assert "Seeds 2, 5 left out, for lack of a run." in found.sentences()[0]
    assert "Runs without a value of accuracy are left out: 1 of m0." in found.notes[0]


def test_methods_that_share_no_pair_are_compared_unpaired_and_that_is_said():
    runs = runs_of(np.random.default_rng(3), 3, 4)
    runs.loc[runs["method"] == "m2", "seed"] += 100
    found = compare(runs, by="method", pair="seed", metric="accuracy")
    assert list(found.judged["paired"]) == [True, False, False]
    assert any("Some comparisons are unpaired: no value of seed is on both sides" in note for note in found.notes)


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_better_is_the_side_that_the_metric_calls_better(lower_is_better):
    runs = pd.DataFrame({"m": list("aaaabbbb"), "s": [0, 1, 2, 3] * 2, "loss": [3.0, 3.1, 2.9, 3.0, 1, 1.1, 1, 0.95]})
    found = compare(runs, by="m", pair="s", metric="loss", lower_is_better=lower_is_better)
    winner = "b" if lower_is_better else "a"
    assert f"{winner} is better by 1.99 (95% CI" in found.sentences()[0]
    assert found.judged["verdict"][0] == "higher"  # of the first side's metric, whichever is better


def test_an_inconclusive_difference_is_printed_larger_minus_smaller():
    runs = pd.DataFrame({"m": list("aaabbb"), "s": [0, 1, 2] * 2, "loss": [1.0, 3.0, 2.0, 2.1, 2.2, 2.3]})
    said = compare(runs, by="m", pair="s", metric="loss", lower_is_better=True).sentences()[0]
    assert said.startswith("b minus a: 0.20 (95% CI ")
    assert "Inconclusive" in said


def test_numbers_are_named_and_kept_apart():
    runs = pd.DataFrame({"lr": [0.1, 0.1, 0.2, 0.2], "seed": [0.0, 1.0, 0, 1], "accuracy": [0.5, 0.6, 0.7, 0.9]})
    row = compare(runs, by="lr", pair="seed", metric="accuracy").judged.iloc[0]
    assert (row["side_a"], row["side_b"]) == ("lr 0.1", "lr 0.2")


def test_the_noise_floor_and_other_causes_are_noted():
    runs = runs_of(np.random.default_rng(4), 2, 3).assign(lr=[0.1] * 3 + [0.2] * 3)
    notes = " ".join(compare(runs, by="method", pair="seed", metric="accuracy", test_images=10_000).notes)
    assert "10,000 images is known to ±0.6" in notes
    assert "The methods also differ in lr, each of which may be the cause." in notes


def test_a_margin_in_percent_is_noticed():
    runs = runs_of(np.random.default_rng(5), 2, 4)
    asked = {"by": "method", "pair": "seed"}
    with pytest.raises(ValueError, match=r"^compare: margin: 0\.5 would be 50 percentage points; write a share of 1"):
        compare(runs, metric="accuracy", margin=0.5, **asked)
    notes = " ".join(compare(runs.rename(columns={"accuracy": "f1"}), metric="f1", margin=0.5, **asked).notes)
    assert "The margin, 0.5, exceeds the range of all values" in notes
    in_percent = runs.assign(accuracy=100 * runs["accuracy"])
    assert compare(in_percent, metric="accuracy", margin=0.5, **asked).judged["margin"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("change", "asked", "said"),
    [
        ({}, {"by": "methd"}, "by: no column methd; did you mean method?"),
        ({}, {"metric": "acuracy"}, "metric: no column acuracy; did you mean accuracy?"),
        ({}, {"pair": "method"}, "method: is given for by and for pair"),
        ({}, {"against": "m9"}, "against: no method m9; the table has m0, m1"),
        ({}, {"margin": 0}, "compare: margin=0; expected a finite number above 0"),
        ({}, {"margin": float("nan")}, "compare: margin=nan; expected a finite number above 0"),
        ({}, {"margin": True}, "compare: margin=True; expected a finite number above 0"),
        ({}, {"by": ()}, "by: expected the column whose values are the methods"),
        ({}, {"pair": (), "average_over": "seed"}, "average_over: needs pair"),
        ({"method": "one"}, {"pair": ()}, "method: only one; expected two methods or more"),
        ({"accuracy": "91.2%"}, {}, "accuracy: '91.2%' is no number"),
        ({"accuracy": np.inf}, {}, "accuracy: has an infinite value"),
        ({"accuracy": np.nan}, {}, "accuracy: no row has a value"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, asked, said):
    runs = runs_of(np.random.default_rng(6), 2, 3).assign(**change)
    with pytest.raises(ValueError, match="^" + said.replace("?", r"\?").replace("(", r"\(")):
        compare(runs, **({"by": "method", "pair": "seed", "metric": "accuracy"} | asked))


def test_one_pair_shows_nothing():
    runs = pd.DataFrame({"m": ["a", "b"], "s": [0, 0], "accuracy": [0.9, 0.8]})
    assert "one pair has no spread" in compare(runs, by="m", pair="s", metric="accuracy").sentences()[0]


def test_the_figure_has_each_comparison_with_its_values_and_verdict(tmp_path):
    from spectrum import plots

    runs = runs_of(np.random.default_rng(7), 3, 5)
    found = compare(runs, by="method", pair="seed", metric="accuracy", margin=0.005)
    figure = plots.compared(found)
    (ax,) = figure.axes
    texts = [text.get_text() for text in ax.texts]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(found.judged["name"])
    for text, (_, row) in zip(texts, found.judged.iterrows(), strict=True):
        assert f"[{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]".replace("-", "−") in text
    assert ax.get_xlabel() == "A − B, accuracy, percentage points"
    with pytest.raises(ValueError, match="no comparison has a run on both sides"):
        plots.compared(compare(runs.assign(accuracy=runs["accuracy"].where(runs["method"] == "m0")), by="method",
                               pair="seed", metric="accuracy"))  # fmt: skip
