"""The picture of `spectrum bench op`."""

from pathlib import Path

import pandas as pd
import pytest

from spectrum import plots

TABLE = pd.read_csv(Path(__file__).parents[2] / "results/bench/amd-epyc/op.csv")


def test_ours_is_drawn_first_and_every_way_has_a_line_of_its_medians():
    lines = plots.roofline_curve(TABLE).axes[0].get_lines()
    labels = [line.get_label() for line in lines if not line.get_label().startswith("_")]
    assert labels[0] == "spectrum"
    assert set(labels) == set(TABLE.way)
    part = TABLE[(TABLE["shape"] == TABLE["shape"][0]) & (TABLE.channels_per_segment % 1 == 0)]
    drawn = dict(zip(*lines[0].get_data(), strict=True))
    assert drawn == dict(part[part.way == "spectrum"][["segments", "percent"]].to_numpy())


def test_a_shape_that_was_not_measured_is_refused_with_those_that_were():
    with pytest.raises(ValueError, match="not measured; try 32×128×16×16"):
        plots.roofline_curve(TABLE, shape="1×1×1×1")


def test_only_the_plain_layer_is_drawn():
    """Of a table with other kernels, layouts and the measured choice."""
    now = TABLE.assign(kernel=3, stride=1, dilation=1, layout="channels_last")
    others = [now.assign(kernel=5), now.assign(stride=2), now.assign(dilation=2), now.assign(layout="contiguous")]
    measured = now[now.way == "spectrum"].assign(way="spectrum, measured choice")
    drawn = plots.roofline_curve(pd.concat([*others, now, measured])).axes[0].get_lines()
    alone = plots.roofline_curve(TABLE).axes[0].get_lines()
    assert [line.get_label() for line in drawn] == [line.get_label() for line in alone]
    for line, same in zip(drawn, alone, strict=True):
        assert line.get_xydata().tolist() == same.get_xydata().tolist()
