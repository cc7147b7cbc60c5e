"""Width against split: slopes, costs that splits share, and the picture of both."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from spectrum import plots, stats

WIDTHS = (0.5, 1.0, 2.0)
CHANNELS = (8, 4, 2, 1)  # per segment
SEEDS = (0, 1, 2)


def landscape_of(accuracy, noise=(0.0, 0.0, 0.0), plain=0.8):
    """Of 32·width channels: the plain 3×3, 1 segment, and CHANNELS; seeds differ by `noise` times log₂ width."""
    rows = []
    splits = [{"pointwise": False, "segments": 1}, {"segments": 1}, *({"segment_width": c} for c in CHANNELS)]
    for split in splits:
        for width in WIDTHS:
            channels = int(32 * width)
            per_segment = split.get("segment_width") or channels
            mean = accuracy(np.log2(width), np.log2(per_segment)) if split.get("pointwise", True) else plain
            params = channels * (9 * per_segment + (channels if split.get("pointwise", True) else 0))
            for seed in SEEDS:
                rows.append(
                    {
                        "id": f"{len(rows):016x}", "study": "made-up", "status": "done", "dataset": "digits",
                        "match": "none", "budget_mismatch": None, "model": "probe", "width": width, "seed": seed,
                        "segments": None, "segment_width": None, "stage_segments": None, "pointwise": True,
                        "realised_segments": [channels // per_segment], "params": params, "macs": 64 * params,
                        "test_accuracy": mean + noise[seed] * np.log2(width), "val_accuracy": mean, **split,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def straight(log_width, log_channels):
    return 0.7 + 0.03 * log_width - 0.004 * log_channels


def test_a_doubling_of_the_width_gives_what_it_gives_at_each_split():
    noise = (-0.002, 0.001, 0.004)
    found = stats.width_slopes(landscape_of(straight, noise)).set_index("label")
    assert list(found.index) == ["plain 3×3", "1", "width 8", "width 4", "width 2", "width 1"]
    assert (found["n"] == 3).all()
    half = student.ppf(0.975, 2) * np.std(noise, ddof=1) / 3**0.5
    # with 1 segment the channels per segment are the width itself
    assert found["slope"].tolist() == pytest.approx([0.001, 0.027, *4 * [0.031]])
    assert (found["high"] - found["slope"]).tolist() == pytest.approx(6 * [half])
    assert (found["slope"] - found["low"]).tolist() == pytest.approx(6 * [half])


def test_a_halving_of_the_channels_per_segment_gives_what_it_gives_at_each_width():
    found = stats.split_slopes(landscape_of(straight))
    assert found["width"].tolist() == list(WIDTHS)
    assert found["slope"].tolist() == pytest.approx(3 * [0.004])
    by_number = landscape_of(straight)
    by_number = by_number[by_number["segment_width"].isna() | by_number["segment_width"].eq(4)]
    by_number = by_number.assign(segments=by_number["realised_segments"].str[0], segment_width=None)
    assert stats.split_slopes(by_number)["slope"].tolist() == pytest.approx(3 * [0.004])


@pytest.mark.parametrize("cost", ["params", "macs"])
def test_at_equal_cost_accuracy_is_interpolated_within_each_split(cost):
    table = landscape_of(straight, noise=(-0.002, 0.001, 0.004))
    low, high = stats.common_costs(table, cost)
    ranges = table.fillna({"segment_width": 0}).groupby(["segment_width", "pointwise"])[cost].agg(["min", "max"])
    assert (low, high) == (ranges["min"].max(), ranges["max"].min())
    level = (low * high) ** 0.5
    found = stats.at_equal_cost(table, cost, level).set_index("label")
    for label, channels in [("width 4", 4), ("width 1", 1)]:
        counts = [32 * w * (9 * channels + 32 * w) * (64 if cost == "macs" else 1) for w in WIDTHS]
        log_width = np.interp(np.log(level), np.log(counts), np.log2(WIDTHS))
        assert found.loc[label, "width"] == pytest.approx(2**log_width)
        mean = straight(log_width, np.log2(channels)) + 0.001 * log_width
        assert found.loc[label, "mean"] == pytest.approx(mean)
        assert found.loc[label, "low"] < mean < found.loc[label, "high"]
    for beyond in (0.99 * low, 1.01 * high):
        with pytest.raises(ValueError, match="do all splits have networks"):
            stats.at_equal_cost(table, cost, beyond)


def test_what_is_no_landscape_is_refused():
    table = landscape_of(straight)
    with pytest.raises(ValueError, match="width: has one value"):
        stats.width_slopes(table[table["width"] == 1.0])
    with pytest.raises(ValueError, match="order varies too"):
        stats.width_slopes(table.assign(order=["pointwise_first", "spatial_first"] * (len(table) // 2)))
    with pytest.raises(ValueError, match="cost='flops': try 'params' or 'macs'"):
        stats.common_costs(table, "flops")
    with pytest.raises(ValueError, match="contours='flops'"):
        plots.landscape(table, contours=["flops"])
    with pytest.raises(ValueError, match="a slope needs at least two numbers of segments"):
        stats.split_slopes(table[table["segment_width"].eq(4)])


def test_seeds_without_a_run_of_every_width_take_no_part_in_a_slope():
    table = landscape_of(straight, noise=(-0.002, 0.001, 0.004))
    table = table[~((table["seed"] == 2) & (table["width"] == 2.0) & table["segment_width"].eq(4))]
    found = stats.width_slopes(table).set_index("label")
    assert found.loc["width 4", "n"] == 2
    assert found.loc["width 4", "slope"] == pytest.approx(0.03 - 0.0005)
    assert found.loc["width 8", "n"] == 3


def test_the_picture_has_a_cell_per_configuration_and_lines_of_equal_cost():
    table = landscape_of(straight)
    ax = plots.landscape(table, levels=3).axes[0]
    assert len(ax.patches) == 6 * 3
    assert [label.get_text() for label in ax.get_yticklabels()] == ["16", "32", "64"]
    places = [float(tick) for tick in ax.get_xticks()]
    assert places[1] - places[0] > places[2] - places[1] == 1.0, "the plain 3×3 stands apart"
    full = [line for line in ax.lines if line.get_color() == "black" and line.get_linestyle() == "-"]
    curves = [line for line in full if len(line.get_xdata()) == 5]
    assert len(curves) == 3
    low, high = stats.common_costs(table[table["pointwise"]], "params")
    for line, level in zip(curves, np.geomspace(low, high, 5)[1:-1], strict=True):
        widths = 2 ** (np.asarray(line.get_ydata()) - 1)  # rows are doublings here
        found = stats.at_equal_cost(table[table["pointwise"]], "params", level)
        assert widths.tolist() == pytest.approx(found["width"].tolist())


def test_widths_that_share_no_cost_have_no_line():
    table = landscape_of(straight)
    narrow, wide = table["segment_width"].eq(1) & table["width"].lt(1), table["segments"].eq(1) & table["width"].gt(1)
    table = table[narrow | wide]
    with pytest.raises(ValueError, match="width: has one value"):
        plots.landscape(table[table["width"] == 0.5])
    assert len(plots.landscape(table).axes[0].lines) == 0
