"""Forecasts of the time that a study takes."""

import itertools

import pytest

from spectrum import RunConfig, Study
from spectrum.data.images import images_of
from spectrum.study import forecast
from spectrum.study.planning import plan_study

RUN = RunConfig(dataset="digits", batch_size=50, epochs=2, width=0.25)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_that_take_the_next_run_when_free_end_after_the_makespan(workers):
    for seconds in itertools.product([0.0, 1.0, 5.0], repeat=4):
        free = [0.0] * workers
        for one in seconds:
            free[free.index(min(free))] += one
        assert forecast.makespan(seconds, workers) == max(free)


def test_a_run_takes_its_steps_its_evaluations_and_its_data():
    def seconds(run, step=0.0, data=(0.0, 0.0)):
        return forecast.run_seconds(run, sizes=(110, 30), test_images=40, step=step, data=data)

    assert seconds(RUN, data=(7.0, 0.0)) == 7
    assert seconds(RUN, data=(0.0, 1.0)) == 2 * 2  # two whole batches per epoch
    assert seconds(RUN, step=3.0) == 3 * 2 * 2 + (2 * 30 + 40) / 50
    assert seconds(RUN.model_copy(update={"scored_on": "validation"}), step=3.0) == 3 * 2 * 2 + 2 * 30 / 50
    assert seconds(RUN.model_copy(update={"batch_size": 500}), data=(0.0, 1.0)) == 2  # one smaller batch per epoch


def test_what_is_measured_is_positive_and_no_share_is_above_one():
    assert all(one > 0 for one in forecast.data_seconds(RUN, images_of(RUN)))
    assert forecast.start_seconds() > 0
    for workers in (1, 2):
        assert 0 < forecast.share_of_a_core(workers) <= 1


def test_twice_the_epochs_take_about_twice_as_long():
    base = RunConfig(dataset="digits", batch_size=50, width=0.25)
    study = Study(name="t", base=base, axes={"epochs": (10, 20)})
    shorter, longer = (one.seconds for one in plan_study(study, time_steps=True))
    assert shorter < longer < 2 * shorter + 1e-9
    assert [one.seconds for one in plan_study(study)] == [None, None]
