"""Remaining training time of a study, in seconds."""

import pytest

from spectrum import RunConfig
from spectrum.study.pace import Pace
from spectrum.study.planning import CostedRun


def costed(macs, **options):
    run = RunConfig(dataset="digits", **options)
    return CostedRun(run=run, params=1, macs=macs, activations=0, realised_segments=(), asked=run)


SMALL, LARGE = costed(100, segments="per_channel"), costed(1000, segments=1)


def test_a_configuration_that_was_not_seen_is_estimated_by_its_cost():
    pace = Pace([SMALL, LARGE])
    pace.end(SMALL.run.id, 2.0)
    assert (pace.ended, pace.left) == (2.0, pytest.approx(20.0))


def test_a_configuration_that_was_seen_takes_as_long_as_before_at_any_seed_and_learning_rate():
    again = [costed(1000, segments=1, seed=1), costed(1000, segments=1, lr=0.01)]
    longer = costed(1000, segments=1, epochs=16)
    pace = Pace([SMALL, LARGE, *again, longer])
    pace.end(SMALL.run.id, 2.0)
    pace.end(LARGE.run.id, 5.0)
    mean = (2 / SMALL.macs + 5 / LARGE.macs) / 2
    assert pace.left == pytest.approx(2 * 5 + mean * 2 * LARGE.macs)


def test_a_failed_run_ends_with_the_seconds_that_were_expected_of_it():
    pace = Pace([SMALL, LARGE])
    pace.end(LARGE.run.id, None)
    pace.end(SMALL.run.id, 2.0)
    assert (pace.ended, pace.left) == (pytest.approx(22.0), 0)
