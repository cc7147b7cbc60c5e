import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectrum import RunConfig
from spectrum.analysis.stats import (
    SETTINGS,
    SPLIT,
    pareto_front,
    segments_label,
    spectrum_position,
    summarise,
    varied_settings,
)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=30))
def test_the_front_is_what_no_other_run_beats(runs):
    cost, value = zip(*runs, strict=True)
    front = pareto_front(cost, value)
    kept = {runs[i] for i in front}
    for c, v in runs:
        beaten = any((c2 <= c and v2 > v) or (c2 < c and v2 >= v) for c2, v2 in runs)
        assert ((c, v) in kept) == (not beaten)
    assert [cost[i] for i in front] == sorted({c for c, _ in kept})


def table(**columns):
    rows = {
        "segments": [1, 1, "per_channel", "per_channel"],
        "segment_width": None,
        "stage_segments": None,
        "pointwise": True,
        "seed": [0, 1, 0, 1],
        "status": "done",
        "test_accuracy": [0.9, 0.92, 0.8, 0.8],
        "train_seconds": [1.0, 3.0, 1.0, 1.0],
        "params": [10, 10, 5, 5],
        "macs": [20, 20, 9, 9],
        "realised_segments": [[1, 1], [1, 1], [8, 16], [8, 16]],
        "provenance": [{"threads": 1}, {"threads": 2}] * 2,
    }
    return pd.DataFrame(rows | columns)


def test_a_summary_has_a_row_a_run():
    summary = summarise(table(), ["segments"])
    assert list(summary["segments"]) == [1, "per_channel"]
    assert list(summary["n"]) == [2, 2]
    assert list(summary["mean"]) == pytest.approx([0.91, 0.8])
    assert list(summary["params"]) == [10, 5]
    assert list(summary["seconds"]) == [2.0, 1.0]


def test_failed_runs_are_left_out_and_diverged_ones_count():
    summary = summarise(table(test_accuracy=[0.9, None, 0.8, 0.1]), ["segments"])
    assert list(summary["n"]) == [1, 2]
    assert summary["mean"][1] == pytest.approx(0.45)


def test_the_interval_of_an_accuracy_stays_between_0_and_1():
    summary = summarise(table(test_accuracy=[0.95, 0.99, 0.01, 0.05]), ["segments"])
    assert summary["high"][0] == 1.0
    assert summary["low"][1] == 0.0
    assert summary["mean"][0] + summary["half"][0] > 1  # what is printed after ± is not cut


def test_every_field_of_a_run_is_a_setting_or_tells_the_split_or_the_seed():
    assert {*SETTINGS, *SPLIT, "seed", "recipe"} == {*RunConfig.model_fields, "match"}  # a recipe is values of others


def test_settings_that_vary_are_found_and_other_columns_are_no_settings():
    assert varied_settings(table(label=["a", "b", "c", "d"])) == []
    assert varied_settings(table(activation=["none", "relu"] * 2, lr=0.1)) == ["activation"]


def test_a_run_lies_where_its_widest_layer_is():
    assert list(spectrum_position(table())) == [1, 1, 16, 16]


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ((4, None, True), "4"),
        (("per_channel", float("nan"), True), "per-channel"),
        ((None, 8.0, True), "width 8"),
        ((1, None, False), "plain 3×3"),
        ((None, None, True, (1, 8, "per_channel")), "1, 8, per-channel"),
        ((None, None, False, (2, 4)), "2, 4, no 1×1"),
    ],
)
def test_runs_are_called_by_their_segments(key, label):
    assert segments_label(*key) == label
