"""The width solver against brute force, on synthetic counts and on real networks."""

import itertools
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spectrum import build_model, measure_cost
from spectrum.cost.budget import (
    COUNT_AIM,
    COUNT_BOUND,
    TIME_BOUND,
    BudgetError,
    keeps_ratios,
    scaled,
    smallest_scale,
    solve_count,
    solve_ratio,
)


def made_up(coefficients, segments):
    """Parameters of a chain of stages: dense between stages, in segments within a stage, which may be uneven."""

    def count(widths):
        dense = sum(a * b for a, b in itertools.pairwise(widths))
        total = 3 * widths[0] + 10 * widths[-1] + dense
        for coefficient, width in zip(coefficients, widths, strict=True):
            size, larger = divmod(width, min(segments, width))
            squares = larger * (size + 1) ** 2 + (min(segments, width) - larger) * size**2
            total += coefficient * squares
        return total

    return count


bases = st.lists(st.integers(4, 128), min_size=1, max_size=4).map(tuple)


@settings(max_examples=200)
@given(bases, st.data(), st.integers(1, 40), st.floats(0.2, 4))
def test_a_budget_is_met_within_its_bound_at_widths_that_keep_the_ratios(base, data, segments, scale):
    coefficients = data.draw(st.lists(st.integers(1, 30), min_size=len(base), max_size=len(base)))
    count = made_up(coefficients, segments)
    budget = count(scaled(base, scale))
    solution = solve_count(count, base, budget)  # some widths meet it exactly
    assert abs(solution.mismatch) <= COUNT_AIM
    assert solution.cost == count(solution.widths)
    assert solution.mismatch == solution.cost / budget - 1
    assert keeps_ratios(base, solution.widths)
    assert solve_count(count, base, budget) == solution


@settings(max_examples=60)
@given(st.lists(st.integers(2, 10), min_size=1, max_size=2).map(tuple), st.data(), st.integers(1, 5))
def test_where_few_widths_are_near_none_is_nearer_than_what_is_found(base, data, segments):
    coefficients = data.draw(st.lists(st.integers(1, 30), min_size=len(base), max_size=len(base)))
    count = made_up(coefficients, segments)
    budget = data.draw(st.integers(count(scaled(base, smallest_scale(base))), 2 * count(base)))
    every = [
        widths for widths in itertools.product(range(1, 4 * max(base)), repeat=len(base)) if keeps_ratios(base, widths)
    ]
    nearest = min(abs(count(widths) / budget - 1) for widths in every)
    try:
        found = abs(solve_count(count, base, budget).mismatch)
    except BudgetError:
        assert nearest > COUNT_BOUND
    else:
        assert found <= max(nearest, COUNT_AIM)


@given(bases, st.lists(st.integers(1, 200), min_size=4, max_size=4))
def test_ratios_are_kept_if_one_scale_suits_every_stage(base, widths):
    widths = tuple(widths[: len(base)])
    ends = [
        end
        for w, b in zip(widths, base, strict=True)
        for end in (w / (1.1 * b), w / (0.9 * b), (w - 0.5) / b, (w + 0.5) / b)
    ]
    scales = [s for s in (*ends, *(math.sqrt(max(a * b, 0)) for a, b in itertools.combinations(ends, 2))) if s > 0]

    def suits(scale, slack):
        return all(abs(w - scale * b) <= max(0.1 * scale * b, 0.5) * slack for w, b in zip(widths, base, strict=True))

    if any(suits(scale, 1 - 1e-9) for scale in scales):
        assert keeps_ratios(base, widths)
    if keeps_ratios(base, widths):
        assert any(suits(scale, 1 + 1e-9) for scale in scales)


@pytest.mark.slow
@settings(max_examples=25)
@given(
    segments=st.sampled_from([1, 2, 3, 5, 8, 16, "per_channel"]),
    reference=st.sampled_from([1, 3, 8, 24, "per_channel"]),
    order=st.sampled_from(["pointwise_first", "spatial_first"]),
    depth=st.integers(1, 2),
    what=st.sampled_from(["params", "macs"]),
)
def test_networks_of_the_family_meet_the_budget_of_any_other(segments, reference, order, depth, what):
    base = (24, 48, 96)

    def count(widths, of=segments, **changes):
        options = {"segments": of, "order": order, "depth": depth, "image_size": 16} | changes
        return getattr(measure_cost(build_model("probe", widths=widths, **options), (3, 16, 16)), what)

    budget = count(base, of=reference, depth=1)
    assume(budget > 0)
    solution = solve_count(count, base, budget)
    assert abs(count(solution.widths) / budget - 1) <= COUNT_BOUND
    assert keeps_ratios(base, solution.widths)


def test_a_budget_below_the_smallest_network_names_the_nearest():
    with pytest.raises(
        BudgetError, match=r"10 cannot be met within 1%; the nearest that can is 18, with widths \[1, 1\]"
    ):
        solve_count(lambda widths: 18 * widths[0] * widths[1], (32, 64), 10)


def test_a_budget_beyond_all_widths_is_told():
    with pytest.raises(BudgetError, match="do not reach it"):
        solve_count(lambda widths: widths[0], (8,), 10**9)


@settings(max_examples=50)
@given(st.floats(0.3, 3), st.floats(0.8, 2.2), st.integers(0, 2**31))
def test_a_measured_ratio_comes_within_its_bound_in_spite_of_noise(scale, power, seed):
    import random

    noise = random.Random(seed)
    base = (32, 64, 128)
    target = scale * sum(base)

    def ratio(widths):
        return (sum(widths) / target) ** power * math.exp(noise.gauss(0, 0.005))

    solution = solve_ratio(ratio, base)
    assert abs(solution.mismatch) <= TIME_BOUND
    assert abs((sum(solution.widths) / target) ** power - 1) <= TIME_BOUND + 0.02


def test_a_ratio_that_widths_do_not_move_is_told():
    with pytest.raises(BudgetError, match=r"takes 2.000 times as long"):
        solve_ratio(lambda widths: 2.0, (8, 16))
