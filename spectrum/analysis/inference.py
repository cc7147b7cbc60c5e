"""Intervals, tests and sample sizes for a handful of runs. Pure functions on numbers.

Everything here is for the mean over seeds of accuracies, or of differences that are paired by seed: n values that are
independent and about normal, with n often as small as 3.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, special, stats

ALPHA = 0.05  # error rate of a family of tests, by default
FEWEST_FOR_BOOTSTRAP = 20
MOST_SEEDS = 10_000
_ROUNDING = 1e-12  # a spread below this part of the values is rounding


def t_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and its Student t-interval: (mean, low, high). With one value, or equal ones, it is unknown: both ends NaN.

    Args:
        values: one per seed, such as accuracies from 0 to 1; the interval is in their unit.
        confidence: of the interval.

    Assumes values that are independent and about normal (Student 1908). Raises ValueError for no value at all, or one
    that is not finite, and for a confidence outside 0 to 1.

    >>> mean, low, high = t_interval([0.90, 0.91, 0.92])
    >>> print(f"{mean:.3f}, {low:.3f} to {high:.3f}")
    0.910, 0.885 to 0.935
    """
    x = _sample(values, "t_interval")
    check_parts("t_interval", confidence=confidence)
    mean = float(x.mean())
    if not _spread(x) > 0:
        return mean, float("nan"), float("nan")
    half = float(special.stdtrit(len(x) - 1, (1 + confidence) / 2) * _spread(x) / np.sqrt(len(x)))
    return mean, mean - half, mean + half


def bootstrap_interval(
    values: ArrayLike, confidence: float = 0.95, *, resamples: int = 9999, seed: int = 0
) -> tuple[float, float, float]:
    """Mean and its bias-corrected, accelerated bootstrap interval (Efron 1987): (mean, low, high).

    Args:
        values: one per seed.
        confidence: of the interval.
        resamples: how many samples are drawn from the values.
        seed: of the draws.

    Assumes no shape, and needs many values in turn. Equal values have no interval: both ends are NaN. Raises ValueError
    below 20: of three values, the nominal 95% interval holds the mean three times in four.
    """
    x = _sample(values, "bootstrap_interval")
    check_parts("bootstrap_interval", confidence=confidence)
    _check_whole("bootstrap_interval", least=100, resamples=resamples)
    if len(x) < FEWEST_FOR_BOOTSTRAP:
        raise ValueError(f"bootstrap_interval: {len(x)} values, needs {FEWEST_FOR_BOOTSTRAP}; try t_interval")
    if not _spread(x) > 0:
        return float(x.mean()), float("nan"), float("nan")
    found = stats.bootstrap(
        (x,), np.mean, confidence_level=confidence, n_resamples=resamples, rng=np.random.default_rng(seed)
    ).confidence_interval
    return float(x.mean()), float(found.low), float(found.high)


def noise_floor(accuracy: float, images: int, confidence: float = 0.95) -> float:
    """Half width of the binomial interval of an accuracy that is measured on so many images: z·√(p(1−p)/N).

    Args:
        accuracy: from 0 to 1.
        images: that it was measured on.
        confidence: of the interval.

    What one network's accuracy says of images beyond the test set is known no better than this, however many seeds
    there are. The normal approximation, as Wald's. Raises ValueError for an accuracy outside 0 to 1 or less than one
    image.

    >>> round(noise_floor(0.9, 10_000), 4)
    0.0059
    """
    check_parts("noise_floor", confidence=confidence)
    _check_whole("noise_floor", least=1, images=images)
    if not 0 <= accuracy <= 1:
        raise ValueError(f"noise_floor: accuracy={accuracy}; expected a number from 0 to 1")
    return float(stats.norm.ppf((1 + confidence) / 2) * np.sqrt(accuracy * (1 - accuracy) / images))


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, and what it shows. Without two values that differ, all but the mean is NaN."""

    n: int
    mean: float
    sd: float
    low: float  # of the 95% CI
    high: float
    p: float  # that there is no difference: two-sided t-test
    p_equivalent: float  # that the difference is at least the margin: two one-sided t-tests


def difference(values: ArrayLike, margin: float | None = None, confidence: float = 0.95) -> Difference:
    """What paired differences show of their mean: t-interval, t-test, and equivalence to zero within a margin.

    Args:
        values: one difference per seed.
        margin: a difference below which two things count as equivalent, in the unit of the values, set before the
            runs: of accuracies from 0 to 1, 0.005 is half a percentage point. Without it p_equivalent is NaN.
        confidence: of the interval.

    The equivalence test is Schuirmann's (1987): both one-sided tests, against +margin and −margin, must reject, and
    p_equivalent is the larger of their p-values. Equal values tell nothing of the spread, so their p-values are NaN.
    Raises ValueError for a margin that is not a finite number above zero.
    """
    x = _sample(values, "difference")
    if margin is not None:
        check_numbers("difference", above=0, margin=margin)
    check_parts("difference", confidence=confidence)
    mean, nan, sd = float(x.mean()), float("nan"), _spread(x)
    if not sd > 0:
        return Difference(len(x), mean, sd, nan, nan, nan, nan)
    return _tested(len(x), mean, sd, sd / np.sqrt(len(x)), len(x) - 1, margin, confidence)


def unpaired_difference(
    first: ArrayLike, second: ArrayLike, margin: float | None = None, confidence: float = 0.95
) -> Difference:
    """What two independent samples show of the difference of their means, first minus second, by Welch's tests.

    Args:
        first: one value per run of the first side.
        second: one value per run of the second side; the samples may differ in size and in spread.
        margin: a difference below which the sides count as equivalent, as in `difference`; without it p_equivalent is
            NaN.
        confidence: of the interval.

    The result's n is the size of the smaller sample, and its sd that of the difference of two runs, √(sd₁² + sd₂²).
    Without two values on each side, or without any spread, all but the mean is NaN. Welch (1947) has the degrees of
    freedom; equivalence is shown as in `difference`. Raises ValueError as `difference` does.

    >>> found = unpaired_difference([0.91, 0.92, 0.93], [0.90, 0.90, 0.91])
    >>> print(f"{found.mean:.4f}, {found.low:.4f} to {found.high:.4f}")
    0.0167, -0.0038 to 0.0372
    """
    who, nan = "unpaired_difference", float("nan")
    x, y = _sample(first, who), _sample(second, who)
    if margin is not None:
        check_numbers(who, above=0, margin=margin)
    check_parts(who, confidence=confidence)
    n, mean = min(len(x), len(y)), float(x.mean() - y.mean())
    if n < 2:
        return Difference(n, mean, nan, nan, nan, nan, nan)
    parts = np.array([x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)])  # of the mean's variance
    sd, error = float(np.sqrt(x.var(ddof=1) + y.var(ddof=1))), float(np.sqrt(parts.sum()))
    if not sd > _ROUNDING * max(1.0, abs(x).max(), abs(y).max()):
        return Difference(n, mean, sd, nan, nan, nan, nan)
    freedom = float(parts.sum() ** 2 / (parts**2 / [len(x) - 1, len(y) - 1]).sum())
    return _tested(n, mean, sd, error, freedom, margin, confidence)


def _tested(
    n: int, mean: float, sd: float, error: float, freedom: float, margin: float | None, confidence: float
) -> Difference:
    """Interval and tests of a mean whose standard error is known with so many degrees of freedom."""
    half = float(special.stdtrit(freedom, (1 + confidence) / 2)) * error
    p = 2 * _beyond(abs(mean) / error, freedom)
    p_equivalent = float("nan") if margin is None else _beyond((margin - abs(mean)) / error, freedom)
    return Difference(n, mean, sd, mean - half, mean + half, p, p_equivalent)


def holm(p_values: ArrayLike, exclusive: Sequence[Hashable] | None = None) -> NDArray[np.float64]:
    """Adjusted p-values that keep the error rate of a whole family of tests (Holm 1979). NaNs stay, and do not count.

    Args:
        p_values: of the family.
        exclusive: a label per test, if some of the hypotheses under test cannot hold together, such as "no difference"
            and "a difference of at least the margin". Of tests with one label at most one is true, so that they count
            once (Shaffer 1986).

    To reject what is at most α makes any false rejection at all as rare as α, however the tests depend on each other.
    Raises ValueError for what is no probability.

    >>> [float(round(p, 3)) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    labels = list(range(len(p))) if exclusive is None else list(exclusive)
    if len(labels) != len(p):
        raise ValueError(f"holm: {len(p)} p-values and {len(labels)} labels")
    if ((p < 0) | (p > 1)).any():
        raise ValueError(f"holm: {p.tolist()}; expected p-values from 0 to 1")
    adjusted = np.full(len(p), np.nan)
    left = [int(i) for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    least = 0.0
    while left:
        most_true = len({labels[i] for i in left})
        first = left.pop(0)
        least = max(least, min(1.0, most_true * p[first]))
        adjusted[first] = least
    return adjusted


def paired_freedom(n: int) -> float:
    """Degrees of freedom of a test of n paired differences: n − 1."""
    return n - 1


def welch_freedom(first_sd: float, second_sd: float) -> Callable[[int], float]:
    """Degrees of freedom of Welch's test with n runs on each side, as a function of n.

    Args:
        first_sd: standard deviation of the first side's runs.
        second_sd: of the second side's; not both are zero.
    """
    first, second = first_sd**2, second_sd**2
    share = (first + second) ** 2 / (first**2 + second**2)
    return lambda n: (n - 1) * share


def seeds_for_difference(
    difference: float,
    sd: float,
    *,
    power: float = 0.8,
    alpha: float = ALPHA,
    freedom: Callable[[int], float] = paired_freedom,
) -> int | None:
    """Seeds with which a two-sided paired t-test finds a difference with this power; None beyond 10,000.

    Args:
        difference: the true mean of the paired differences.
        sd: their standard deviation.
        power: how often the test is to find it.
        alpha: level of the test; for the first of a family of m, the family's level over m.
        freedom: degrees of freedom with n seeds; `welch_freedom` for runs that do not pair, whose sd is √(sd₁² + sd₂²).

    Exact, by integration over what the sample's standard deviation may be.

    >>> seeds_for_difference(0.5, 1.0)
    34
    """
    check_parts("seeds_for_difference", power=power, alpha=alpha)
    check_numbers("seeds_for_difference", difference=difference)
    check_numbers("seeds_for_difference", least=0, sd=sd)
    if difference == 0:
        return None
    return _fewest(lambda n: difference_power(n, difference, sd, alpha, freedom(n)), power) if sd else 2


def difference_power(n: int, difference: float, sd: float, alpha: float = ALPHA, freedom: float | None = None) -> float:
    """Power of the two-sided paired t-test with n seeds.

    Args:
        n: seeds, at least two.
        difference: the true mean of the paired differences.
        sd: their standard deviation, above zero.
        alpha: level of the test.
        freedom: degrees of freedom of the test; by default n − 1.

    The tails of scipy's noncentral t are NaN for some of the few seeds that matter here; this is the same integral.
    """
    check_parts("difference_power", alpha=alpha)
    _check_whole("difference_power", least=2, n=n)
    check_numbers("difference_power", difference=difference)
    check_numbers("difference_power", above=0, sd=sd)
    freedom = _freedom_of("difference_power", n, freedom)
    shift, critical = np.sqrt(n) * abs(difference) / sd, special.stdtrit(freedom, 1 - alpha / 2)

    def beyond(ratio: float) -> float:
        given = special.ndtr(shift - critical * ratio) + special.ndtr(-shift - critical * ratio)
        return float(given * np.exp(_log_density(np.float64(ratio), freedom)))

    low, high = _where_the_ratio_lies(freedom)
    turn = shift / critical  # where the test goes from rejecting to not
    edges = sorted(
        {low, high, *(edge for edge in (turn - 8 / critical, turn, turn + 8 / critical) if low < edge < high)}
    )
    return _probability(sum(integrate.quad(beyond, *ends, epsabs=1e-10)[0] for ends in pairwise(edges)))


def seeds_for_equivalence(
    margin: float,
    sd: float,
    *,
    difference: float = 0.0,
    power: float = 0.8,
    alpha: float = ALPHA,
    freedom: Callable[[int], float] = paired_freedom,
) -> int | None:
    """Seeds with which two one-sided t-tests show equivalence with this power; None beyond 10,000, or if never.

    Args:
        margin: of equivalence.
        sd: standard deviation of the paired differences.
        difference: the true mean; at the margin and beyond no number of seeds is enough.
        power: how often the test is to show equivalence.
        alpha: level of each one-sided test.
        freedom: degrees of freedom with n seeds, as for `seeds_for_difference`.

    >>> seeds_for_equivalence(0.5, 1.0)
    36
    """
    check_parts("seeds_for_equivalence", power=power, alpha=alpha)
    check_numbers("seeds_for_equivalence", difference=difference)
    check_numbers("seeds_for_equivalence", above=0, margin=margin)
    check_numbers("seeds_for_equivalence", least=0, sd=sd)
    if abs(difference) >= margin:
        return None
    return _fewest(lambda n: equivalence_power(n, margin, sd, difference, alpha, freedom(n)), power) if sd else 2


def equivalence_power(
    n: int,
    margin: float,
    sd: float,
    difference: float = 0.0,
    alpha: float = ALPHA,
    freedom: float | None = None,
) -> float:
    """Power of the two one-sided t-tests with n seeds: both reject, given the sample's sd, averaged over what that is.

    Args:
        n: seeds, at least two.
        margin: of equivalence.
        sd: standard deviation of the paired differences, above zero.
        difference: their true mean.
        alpha: level of each one-sided test.
        freedom: degrees of freedom of the tests; by default n − 1.

    Exact, by integration over the chi distribution of the sample's sd (Phillips 1990).
    """
    check_parts("equivalence_power", alpha=alpha)
    _check_whole("equivalence_power", least=2, n=n)
    check_numbers("equivalence_power", difference=difference)
    check_numbers("equivalence_power", above=0, margin=margin, sd=sd)
    freedom = _freedom_of("equivalence_power", n, freedom)
    critical, error = special.stdtrit(freedom, 1 - alpha), sd / np.sqrt(n)
    most = margin / (critical * error)  # of the sample's sd over the true one: beyond, the interval is too wide
    low, high = _where_the_ratio_lies(freedom)
    high = min(most, high)
    if high <= low:
        return 0.0

    def inside(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
        reach = margin - critical * error * ratio
        given = special.ndtr((reach - difference) / error) - special.ndtr((-reach - difference) / error)
        return np.asarray(given * np.exp(_log_density(ratio, freedom)))

    return _probability(integrate.fixed_quad(inside, low, high, n=200)[0])


def _freedom_of(who: str, n: int, freedom: float | None) -> float:
    if freedom is None:
        return paired_freedom(n)
    check_numbers(who, above=0, freedom=freedom)
    return freedom


def _log_density(ratio: Any, freedom: float) -> Any:
    """Of the sample's standard deviation over the true one: chi, with these degrees of freedom, over its root."""
    scale = np.sqrt(freedom)
    density = special.xlogy(freedom - 1, ratio * scale) - (ratio * scale) ** 2 / 2 - special.gammaln(freedom / 2)
    return density - (freedom / 2 - 1) * np.log(2) + np.log(scale)


def _where_the_ratio_lies(freedom: float) -> tuple[float, float]:
    """Ends of the range about 1 in which all of the density is."""
    spread = 12 / np.sqrt(2 * freedom)
    return max(0.0, 1 - spread), 1 + spread


def zero_crossing(
    places: ArrayLike, values: ArrayLike, confidence: float = 0.95
) -> tuple[float, list[tuple[float, float]]]:
    """Where a line through the means crosses zero, NaN outside the data; the stretches where it may (Fieller 1954).

    Args:
        places: positions of the values.
        values: a row per seed, a column per position.
        confidence: of the stretches.

    A straight line is fitted to each seed. A crossing is possible where the t-interval of the lines' heights contains
    zero, and everywhere where all seeds are equal.
    """
    x, lines = np.asarray(places, dtype=float), np.asarray(values, dtype=float)
    slope, height = np.polyfit(x, lines.T, 1)
    at = float(-height.mean() / slope.mean()) if slope.mean() else float("nan")
    at = at if x.min() <= at <= x.max() else float("nan")
    if (lines == lines[0]).all():
        return at, [(float(x.min()), float(x.max()))]  # without a spread nothing is shown
    # there (mean height + mean slope · x)² ≤ t² · (variance over seeds at x, a parabola too) / n
    spread = special.stdtrit(len(lines) - 1, (1 + confidence) / 2) ** 2 / len(lines) * np.cov(slope, height)
    parabola = [
        slope.mean() ** 2 - spread[0, 0],
        2 * (slope.mean() * height.mean() - spread[0, 1]),
        height.mean() ** 2 - spread[1, 1],
    ]
    roots = sorted(float(root.real) for root in np.roots(parabola) if root.imag == 0 and x.min() < root.real < x.max())
    ends = [float(x.min()), *roots, float(x.max())]
    inside = [(low, high) for low, high in pairwise(ends) if np.polyval(parabola, (low + high) / 2) <= 0]
    return at, inside


def upper_sd(sd: float, n: int, confidence: float = 0.8) -> float:
    """Upper limit of the true standard deviation, given that of n values. From three it is about twice the estimate.

    Args:
        sd: of the values.
        n: how many they are; below two nothing is known, NaN.
        confidence: one-sided, of the limit; 80% as Browne (1995) advises for planning by a pilot.

    >>> round(upper_sd(1.0, 3), 2)
    2.12
    """
    check_parts("upper_sd", confidence=confidence)
    if np.isnan(sd) or n < 2:
        return float("nan")
    check_numbers("upper_sd", least=0, sd=sd)
    return float(sd * np.sqrt((n - 1) / stats.chi2.ppf(1 - confidence, n - 1)))


def shown_better(values: NDArray[np.float64], than: NDArray[np.float64]) -> float:
    """p-value that one mean is not above another, of values that are paired by position; 1 where nothing is shown."""
    if len(values) < 2:
        return 1.0
    found = difference(values - than)
    if np.isnan(found.p):
        return 1.0
    return found.p / 2 if found.mean > 0 else 1 - found.p / 2


def _fewest(power_with: Callable[[int], float], wanted: float) -> int | None:
    """The smallest n from 2 up with at least the wanted power, which rises with n."""
    high = 2
    while power_with(high) < wanted:
        if high == MOST_SEEDS:
            return None
        high = min(2 * high, MOST_SEEDS)
    low = max(2, high // 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power_with(middle) >= wanted else (middle + 1, high)
    return high


def _beyond(t: float, freedom: float) -> float:
    """Probability of a larger t."""
    return float(special.stdtr(freedom, -t))


def check_parts(who: str, **parts: float) -> None:
    """Raise ValueError for a confidence, a power or a level that is not above 0 and below 1."""
    for name, value in parts.items():
        if not _is_number(value) or not 0 < value < 1:
            raise ValueError(f"{who}: {name}={value!r}; expected a part of 1, such as 0.05, 0.8 or 0.95")


def _check_whole(who: str, least: int, **counts: float) -> None:
    for name, value in counts.items():
        if not _is_number(value) or value != value // 1 or value < least:
            raise ValueError(f"{who}: {name}={value!r}; expected a whole number of at least {least}")


def check_numbers(who: str, *, least: float = -np.inf, above: float = -np.inf, **numbers: float) -> None:
    for name, value in numbers.items():
        if not _is_number(value) or not np.isfinite(value) or value < least or value <= above:
            bound = f" of at least {least:g}" if least > -np.inf else f" above {above:g}" if above > -np.inf else ""
            raise ValueError(f"{who}: {name}={value!r}; expected a finite number{bound}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)


def _probability(integral: float) -> float:
    """An integral over a density, which rounding may take a little out of 0 to 1."""
    return float(min(1.0, max(0.0, integral)))


def _spread(x: NDArray[np.float64]) -> float:
    """Standard deviation of a sample; zero where its values differ by rounding alone, NaN of one value."""
    sd = float(x.std(ddof=1)) if len(x) > 1 else float("nan")
    return 0.0 if sd <= _ROUNDING * max(1.0, abs(float(x.mean()))) else sd


def _sample(values: ArrayLike, who: str) -> NDArray[np.float64]:
    try:
        x = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{who}: expected a list of numbers, one per seed (got {type(values).__name__})") from None
    if x.ndim != 1:
        raise ValueError(f"{who}: expected a list of numbers, one per seed (got {x.ndim} dimensions)")
    if len(x) == 0:
        raise ValueError(f"{who}: no values")
    if not np.isfinite(x).all():
        raise ValueError(f"{who}: {x.tolist()}; expected finite values, a failed run has none")
    return x
