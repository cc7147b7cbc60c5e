"""Intervals, tests and sample sizes: closed forms, exhaustive references, and error rates by simulation."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as distributions

from spectrum.analysis.inference import (
    bootstrap_interval,
    difference,
    difference_power,
    equivalence_power,
    holm,
    noise_floor,
    seeds_for_difference,
    seeds_for_equivalence,
    shown_better,
    t_interval,
    unpaired_difference,
    upper_sd,
    zero_crossing,
)


def test_the_interval_of_a_textbook_sample():
    # n = 5, mean 3, sd √2.5, and the 97.5% quantile of Student's t with 4 degrees of freedom is 2.776445
    mean, low, high = t_interval([1, 2, 3, 4, 5])
    half = 2.7764451 * math.sqrt(2.5) / math.sqrt(5)
    assert (mean, low, high) == pytest.approx((3, 3 - half, 3 + half), rel=1e-7)


@pytest.mark.parametrize("n", [2, 3, 6, 20])
def test_an_interval_holds_the_true_mean_as_often_as_it_says(n):
    samples = np.random.default_rng(n).normal(0.9, 0.01, size=(4000, n))
    assert 0.94 < np.mean([low <= 0.9 <= high for _, low, high in map(t_interval, samples)]) < 0.96


def test_accuracies_of_few_images_are_close_enough_to_normal():
    """300 test images, as of digits: steps of a third of a percentage point."""
    accuracies = np.random.default_rng(0).binomial(300, 0.97, size=(3000, 5)) / 300
    assert 0.93 < np.mean([low <= 0.97 <= high for _, low, high in map(t_interval, accuracies)]) < 0.97


def test_one_value_has_no_interval_and_none_is_an_error():
    mean, low, high = t_interval([0.5])
    assert mean == 0.5
    assert math.isnan(low)
    assert math.isnan(high)
    with pytest.raises(ValueError, match="no values"):
        t_interval([])


def test_the_bootstrap_covers_where_it_is_used_and_is_refused_where_it_would_not():
    samples = np.random.default_rng(1).exponential(size=(400, 60))
    held = [low <= 1 <= high for _, low, high in (bootstrap_interval(x, resamples=999) for x in samples)]
    assert 0.91 < np.mean(held) < 0.98
    with pytest.raises(ValueError, match="19 values, needs 20; try t_interval"):
        bootstrap_interval(range(19))
    mean, *ends = bootstrap_interval([0.5] * 20)
    assert mean == 0.5
    assert np.isnan(ends).all()


def test_percentile_bootstrap_of_three_covers_three_times_in_four():
    """The reason why it is not used: all 27 resamples of three values, exactly."""
    held = 0
    for x in np.random.default_rng(2).normal(size=(2000, 3)):
        means = [np.mean(pick) for pick in itertools.product(x, repeat=3)]
        low, high = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
        held += low <= 0 <= high
    assert 0.70 < held / 2000 < 0.80


def test_the_noise_floor_is_that_of_the_binomial():
    draws = np.random.default_rng(3).binomial(10_000, 0.9, size=20_000) / 10_000
    assert 0.945 < np.mean(abs(draws - 0.9) <= noise_floor(0.9, 10_000)) < 0.956
    for accuracy, images, why in ((1.1, 10, "from 0 to 1"), (-0.1, 10, "from 0 to 1"), (0.5, 0, "at least 1")):
        with pytest.raises(ValueError, match=why):
            noise_floor(accuracy, images)


def test_a_difference_agrees_with_scipys_tests():
    x = np.array([0.3, -0.1, 0.4, 0.2])
    found = difference(x, margin=0.5)
    test = distributions.ttest_1samp(x, 0)
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    below, above = (
        distributions.ttest_1samp(x, at, alternative=way).pvalue for at, way in ((0.5, "less"), (-0.5, "greater"))
    )
    assert found.p_equivalent == pytest.approx(max(below, above))


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=8), st.floats(0.01, 1))
def test_equivalence_is_a_90_percent_interval_within_the_margin(values, margin):
    found = difference(values, margin)
    if math.isnan(found.p):
        return
    _, low, high = t_interval(values, 0.90)
    if min(abs(low + margin), abs(high - margin)) > 1e-9:
        assert (found.p_equivalent < 0.05) == (-margin < low and high < margin)


@pytest.mark.parametrize("values", [[0.1], [0.1, 0.1], [0.0, 0.0, 0.0]])
def test_values_without_spread_show_nothing(values):
    found = difference(values, 0.5)
    assert found.mean == pytest.approx(values[0])
    assert all(math.isnan(x) for x in (found.low, found.high, found.p, found.p_equivalent))


@pytest.mark.parametrize("n", [3, 8])
@pytest.mark.parametrize("at", [-1.0, 1.0])
def test_equivalence_keeps_its_level_at_the_margin(n, at):
    samples = np.random.default_rng(n).normal(at, 0.5, size=(3000, n))
    assert np.mean([difference(x, 1.0).p_equivalent <= 0.05 for x in samples]) < 0.06


def test_the_t_test_keeps_its_level():
    samples = np.random.default_rng(5).normal(0, 1, size=(3000, 4))
    assert 0.04 < np.mean([difference(x).p <= 0.05 for x in samples]) < 0.06


def closed_testing(p, true_together):
    """Adjusted p-values by the closure principle (Marcus, Peritz, Gabriel 1976): every set of hypotheses that can hold
    together is tested, by Bonferroni over as many as can; one is rejected when all sets that hold it are."""
    adjusted = np.zeros(len(p))
    for size in range(1, len(p) + 1):
        for members in itertools.combinations(range(len(p)), size):
            if true_together(members):
                bound = min(1.0, size * min(p[i] for i in members))
                for i in members:
                    adjusted[i] = max(adjusted[i], bound)
    return adjusted


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_closed_testing_of_bonferroni(p):
    assert holm(p) == pytest.approx(closed_testing(p, lambda members: True))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=3))
def test_hypotheses_that_exclude_each_other_count_once_and_no_claim_is_bolder_than_closed_testing(pairs):
    p = [value for pair in pairs for value in pair]
    labels = [number for number in range(len(pairs)) for _ in "ab"]
    exact = closed_testing(p, lambda members: len({labels[i] for i in members}) == len(members))
    adjusted = holm(p, labels)
    assert (adjusted >= exact - 1e-12).all()
    assert (adjusted <= holm(p) + 1e-12).all()


def test_holm_keeps_the_rate_of_any_false_claim_whatever_is_true():
    """A family of five contrasts with margins, three of no difference, one at the margin, one large, all correlated."""
    truth = np.array([0, 0, 0, 1.0, 3.0])
    rng, wrong, rounds = np.random.default_rng(7), 0, 1500
    for _ in range(rounds):
        shared = rng.normal(size=(5, 1))
        found = [difference(x, 1.0) for x in (truth + 0.7 * rng.normal(size=(5, 5)) + 0.7 * shared).T]
        p = holm([q for one in found for q in (one.p, one.p_equivalent)], [i for i in range(5) for _ in "ab"])
        different, equivalent = p.reshape(-1, 2).T <= 0.05
        wrong += bool((different & (truth == 0)).any() or (equivalent & (abs(truth) >= 1)).any())
    assert wrong / rounds < 0.06


def test_holm_leaves_unknown_ones_out():
    adjusted = holm([0.01, float("nan"), 0.04])
    assert adjusted[[0, 2]] == pytest.approx([0.02, 0.04])
    assert math.isnan(adjusted[1])
    with pytest.raises(ValueError, match="2 p-values and 1 labels"):
        holm([0.1, 0.2], ["a"])
    assert len(holm([])) == 0


def test_sample_sizes_of_the_tables():
    # Cohen (1988), table 2.3, two-sided 5%, power 80%, one sample: d = 0.2, 0.5, 0.8 take 199, 34 and 15
    assert [seeds_for_difference(d, 1.0) for d in (0.2, 0.5, 0.8)] == [199, 34, 15]
    assert seeds_for_difference(0.0, 1.0) is None
    assert seeds_for_difference(1e-6, 1.0) is None  # beyond 10,000
    assert seeds_for_difference(0.5, 0.0) == seeds_for_equivalence(0.5, 0.0) == 2
    assert seeds_for_equivalence(0.5, 1.0, difference=0.5) is None


@pytest.mark.parametrize(("n", "effect"), [(3, 2.0), (6, 1.0), (20, 0.5)])
def test_power_of_the_t_test_is_what_simulation_finds(n, effect):
    samples = np.random.default_rng(n).normal(effect, 1, size=(2500, n))
    found = np.mean([difference(x).p <= 0.05 for x in samples])
    assert difference_power(n, effect, 1.0) == pytest.approx(found, abs=0.03)


@pytest.mark.parametrize(("n", "margin", "truth"), [(3, 2.5, 0.0), (6, 1.5, 0.3), (40, 0.5, 0.0)])
def test_power_of_equivalence_is_what_simulation_finds(n, margin, truth):
    samples = np.random.default_rng(n).normal(truth, 1, size=(2500, n))
    found = np.mean([difference(x, margin).p_equivalent <= 0.05 for x in samples])
    assert equivalence_power(n, margin, 1.0, truth) == pytest.approx(found, abs=0.03)


@given(st.floats(0.3, 3), st.floats(0.5, 0.95))
def test_the_number_of_seeds_is_the_fewest_with_that_power(effect, power):
    for needed, reached in (
        (seeds_for_difference(effect, 1.0, power=power), lambda n: difference_power(n, effect, 1.0)),
        (seeds_for_equivalence(effect, 1.0, power=power), lambda n: equivalence_power(n, effect, 1.0)),
    ):
        assert needed is not None
        assert reached(needed) >= power
        assert needed == 2 or reached(needed - 1) < power


def test_the_upper_limit_of_a_spread_holds_it_as_often_as_it_says():
    sds = np.random.default_rng(9).normal(0, 2, size=(4000, 4)).std(axis=1, ddof=1)
    assert 0.78 < np.mean([upper_sd(sd, 4) >= 2 for sd in sds]) < 0.82
    assert math.isnan(upper_sd(1.0, 1))


def test_what_does_not_vary_is_not_shown_to_be_better():
    assert shown_better(np.array([1.0, 1.0]), np.array([0.5, 0.5])) == 1.0
    assert shown_better(np.array([1.0]), np.array([0.5])) == 1.0
    better, worse = np.array([1.0, 1.1, 1.3]), np.array([0.1, 0.3, 0.2])
    assert shown_better(better, worse) == pytest.approx(
        distributions.ttest_rel(better, worse, alternative="greater").pvalue
    )


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 20, 200])
@pytest.mark.parametrize("effect", [0.1, 0.5, 1.0, 2.0, 5.5])
def test_power_is_that_of_the_noncentral_t_wherever_scipy_has_it(n, effect):
    critical = distributions.t.ppf(0.975, n - 1)
    shift = effect * np.sqrt(n)
    expected = distributions.nct.sf(critical, n - 1, shift) + distributions.nct.cdf(-critical, n - 1, shift)
    found = difference_power(n, effect, 1.0)
    assert 0 <= found <= 1 + 1e-9
    if not np.isnan(expected):
        assert found == pytest.approx(expected, abs=1e-6)


def test_power_with_two_seeds_is_what_simulation_gives():
    values = np.random.default_rng(0).normal(5.5, 1, (200_000, 2))  # where scipy's tails are NaN
    t = values.mean(axis=1) / (values.std(axis=1, ddof=1) / np.sqrt(2))
    simulated = (np.abs(t) > distributions.t.ppf(0.975, 1)).mean()
    assert difference_power(2, 5.5, 1.0) == pytest.approx(simulated, abs=0.005)
    assert seeds_for_difference(6.5, 1.0) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: t_interval([0.9, float("nan")]), "expected finite values"),
        (lambda: t_interval([0.9, 0.8], 95), "confidence=95"),
        (lambda: difference([0.1, 0.2], -0.005), "margin=-0.005"),
        *(
            (lambda wrong=wrong: difference([0.1, 0.2], wrong), f"margin={wrong}")
            for wrong in (0, np.nan, np.inf, True)
        ),
        (lambda: unpaired_difference([0.1, 0.2], [0.1, 0.3], float("inf")), "unpaired_difference: margin=inf"),
        (lambda: holm([0.5, 1.2]), "expected p-values from 0 to 1"),
        (lambda: t_interval([[1, 2], [3, 4]]), "one per seed .got 2 dimensions"),
        (lambda: t_interval(5), "one per seed"),
        (lambda: t_interval(["a"]), "one per seed"),
        (lambda: difference([[0.1, 0.2], [0.2, 0.4]]), "one per seed"),
        (lambda: bootstrap_interval(range(25), 95), "confidence=95"),
        (lambda: bootstrap_interval(range(25), 0), "confidence=0"),
        (lambda: bootstrap_interval(range(25), resamples=1), "resamples=1"),
        (lambda: noise_floor(0.5, 100, 2), "confidence=2"),
        (lambda: noise_floor(0.5, 2.5), "images=2.5"),
        (lambda: upper_sd(-0.1, 3), "sd=-0.1"),
        (lambda: seeds_for_equivalence(float("nan"), 1.0), "margin=nan"),
        (lambda: seeds_for_difference(float("nan"), 1.0), "difference=nan"),
        (lambda: seeds_for_difference(0.01, 0.01, power=80), "power=80"),
        (lambda: seeds_for_difference(0.01, 0.01, alpha=5), "alpha=5"),
        (lambda: seeds_for_difference(0.01, -1), "sd=-1"),
        (lambda: difference_power(5, 0.01, -1), "sd=-1"),
        (lambda: equivalence_power(5, 0.01, 0), "sd=0"),
    ],
)
def test_numbers_that_can_mean_nothing_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.medium
@pytest.mark.parametrize("slope", [-0.005, -0.001])
def test_the_set_of_crossings_holds_the_true_one_as_often_as_it_says(slope):
    rng, places, held = np.random.default_rng(0), np.array([0.0, 1.0, 3.0, 4.0]), 0
    for _ in range(4000):
        values = slope * (places - 2) + rng.normal(0, 0.01, (6, 4))
        held += any(low <= 2 <= high for low, high in zero_crossing(places, values)[1])
    assert 0.93 <= held / 4000 <= 0.97


def test_a_second_look_with_more_seeds_makes_more_false_claims():
    values = np.random.default_rng(0).normal(size=(20_000, 12))
    first, both = (distributions.ttest_1samp(part, 0, axis=1).pvalue <= 0.05 for part in (values[:, :6], values))
    assert first.mean() == pytest.approx(0.05, abs=0.005)
    assert (first | both).mean() == pytest.approx(0.086, abs=0.005)
    page = (Path(__file__).parents[2] / "docs/fairness.md").read_text()
    assert f"with six seeds and six more it is {(first | both).mean():.0%}" in page


def test_lines_that_are_all_equal_leave_every_place_possible():
    assert zero_crossing([0.0, 1.0, 2.0], [[-1.0, 0.0, 1.0]] * 3) == (pytest.approx(1.0), [(0.0, 2.0)])


@pytest.mark.parametrize(("difference", "needed"), [(0.03, True), (0.01, False)])
def test_seeds_are_looked_for_up_to_ten_thousand(difference, needed):
    found = seeds_for_difference(difference, 1.0)
    assert (found is not None) is needed
    assert found is None or difference_power(found, difference, 1.0) >= 0.8 > difference_power(
        found - 1, difference, 1.0
    )


def test_a_line_that_crosses_beyond_the_places_has_no_crossing():
    at, possible = zero_crossing([0.0, 1.0, 2.0], [[1.0, 2.0, 3.1], [1.1, 2.0, 3.0], [1.0, 2.1, 3.0]])
    assert math.isnan(at)
    assert possible == []


@pytest.mark.parametrize(("n", "sd"), [(5, 1e-6), (10**6, 0.01), (2, 1e3)])
def test_a_power_is_a_probability(n, sd):
    assert 0 <= difference_power(n, 0.01, sd) <= 1
    assert 0 <= equivalence_power(n, 0.01, sd) <= 1
