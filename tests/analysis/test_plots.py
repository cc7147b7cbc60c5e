"""Content of the figures, read back from the axes."""

import hashlib
import io
import itertools
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from torch import nn

from spectrum import build_model, measure_cost, plots

CHANNELS = 16


def results(**settings):
    """Synthetic results: accuracy falls by 1 pp when segments double; seeds differ by half a percentage point."""
    rows = []
    axes = {"segments": [1, 2, 3, "per_channel"], "seed": [0, 1]} | dict(settings.items())
    for number, values in enumerate(itertools.product(*axes.values())):
        row = dict(zip(axes, values, strict=True))
        count = CHANNELS if row["segments"] == "per_channel" else row["segments"]
        rows.append(
            {
                "id": f"{number:016x}", "study": "made-up", "status": "done", "dataset": "digits", "match": "none",
                "budget_mismatch": None,
                "segment_width": None, "stage_segments": None, "pointwise": True, "params": 1000 // count,
                "macs": 100_000 // count, "train_seconds": 2.0, "realised_segments": [count], "val_accuracy": 0.9,
                "test_accuracy": 0.9 - 0.01 * np.log2(count) + 0.005 * row["seed"], **row,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def history(table):
    return pd.DataFrame(
        [{"id": id, "epoch": e, "lr": 0.1, "val_accuracy": 0.5 + 0.1 * e} for id in table["id"] for e in (1, 2, 3)]
    )


def line(ax, label):
    return next(handle for handle, text in zip(*ax.get_legend_handles_labels(), strict=True) if text == label)


def said(figure):
    """All text of a figure around and above the data, on one line."""
    texts = [*figure.texts, *(text for ax in figure.axes for text in (ax._left_title, *ax.texts))]
    return " ".join(" ".join(text.get_text() for text in texts).split())


def drawn(figure, stem):
    figure.canvas.draw()
    paths = plots.save_figure(figure, stem)
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_the_curve_shows_every_run_and_the_means_on_a_log_axis():
    figure = plots.spectrum_curve(results())
    (ax,) = figure.axes
    dots, means = ax.lines[0], ax.lines[1]
    assert len(dots.get_xdata()) == 8
    assert list(means.get_xdata()) == [1, 2, 3, 16]
    assert list(means.get_ydata()) == pytest.approx(100 * (0.9025 - 0.01 * np.log2([1, 2, 3, 16])))
    assert ax.get_xscale() == "log"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "3", "per-\nchannel"]
    assert "Accuracy along the spectrum digits · n = 2 seeds · width-matched" in said(figure)


def test_runs_that_realise_the_same_segments_stay_apart():
    table = results(segments=[1, 16, "per_channel"])
    ax = plots.spectrum_curve(table).axes[0]
    assert list(ax.lines[1].get_xdata()) == [1, 16, 16]


def test_schedules_by_stage_stand_side_by_side_after_the_even_runs():
    plain = results(segments=["per_channel", 2])
    staged = results(segments=[1]).assign(segments=None, test_accuracy=0.5)
    table = pd.concat([staged.assign(stage_segments=[(1, 8, "per_channel")] * len(staged)), plain])
    for figure in (plots.spectrum_curve(table), plots.budget_panels(table)):
        ax = figure.axes[0]
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["2", "per-channel", "1\n8\nper-channel"]
        assert list(ax.lines[1].get_xdata()) == [2, 1, 0], "in the order of the table, each at its label"
        assert ax.lines[1].get_linestyle() == "None"
    assert plots.learning_curves(history(table), table)


def test_the_curve_draws_one_line_a_setting_that_varies():
    table = results(activation=["none", "relu"], lr=[0.1, 0.2])
    labels = plots.spectrum_curve(table).axes[0].get_legend_handles_labels()[1]
    assert labels == [f"{a}, learning rate {lr}" for a in ("no activation", "ReLU") for lr in (0.1, 0.2)]
    only = plots.spectrum_curve(table, by="activation").axes[0].get_legend_handles_labels()[1]
    assert only == ["no activation", "ReLU"]


def test_curves_are_called_by_what_tells_them_apart_and_the_rest_is_said_once():
    table = pd.concat(
        [results(model=["probe"], norm=[False], depth=[None]), results(model=["vgg"], norm=[True], depth=[1])]
    )
    figure = plots.spectrum_curve(table)
    assert figure.axes[0].get_legend_handles_labels()[1] == ["probe", "vgg"]
    assert "depth, norm change with the model" in said(figure)


@pytest.mark.medium
@pytest.mark.filterwarnings("error")  # matplotlib's, where axes have no room left
def test_no_legend_lies_on_what_is_drawn(tmp_path):
    table = results(activation=["none", "relu", "elu"], order=["pointwise_first", "spatial_first"], lr=[0.1, 0.2])
    two = pd.concat([table, table.assign(match="macs", budget_mismatch=0.0)])
    one = Figure(layout="constrained")
    plots.spectrum_curve(table, ax=one.subplots())
    for figure in (
        one,
        plots.spectrum_curve(table),
        plots.budget_panels(two),
        plots.learning_curves(history(table), table),
        plots.accuracy_against(table),
    ):
        plots.save_figure(figure, tmp_path / "figure")
        legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend() is not None)]
        assert len(legends) == 1
        right = max(ax.get_window_extent().x1 for ax in figure.axes)
        assert legends[0].get_window_extent().x0 >= right
        assert all(ax.get_window_extent().height > 100 for ax in figure.axes)
    assert plots.spectrum_curve(results()).legends == []


def test_more_than_five_curves_stand_in_a_panel_per_teacher_and_the_sixth_axes_is_not_needed():
    table = results(teacher_segments=[1, 2, "per_channel"], width=[1.0, 2.0])
    figure = plots.spectrum_curve(table)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["1-segment teachers", "2-segment teachers", "per-channel teachers"]
    for ax in figure.axes:
        assert ax.get_legend_handles_labels()[1] == ["width ×1", "width ×2"]
    assert len({ax.get_xlim() for ax in figure.axes}) == len({ax.get_ylim() for ax in figure.axes}) == 1


def test_configurations_of_one_split_are_a_row_each():
    figure = plots.spectrum_curve(results(segments=["per_channel"], activation=["none", "relu"]))
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == ["no activation", "ReLU"]


def test_a_bare_convolution_stands_beside_the_curve():
    table = pd.concat([results(), results().iloc[:2].assign(pointwise=False, test_accuracy=0.95)])
    ax = plots.spectrum_curve(table).axes[0]
    curves = [line for line in ax.lines if len(line.get_xdata()) == 4 and line.get_linestyle() == "-"]
    assert len(curves) == 1
    assert max(curves[0].get_ydata()) < 95
    ticks = dict(zip(ax.get_xticks(), (tick.get_text() for tick in ax.get_xticklabels()), strict=True))
    (bare,) = [line for line in ax.lines if line.get_marker() == "o" and line.get_markerfacecolor() == "white"]
    assert ticks[bare.get_xdata()[0]] == "plain\n3×3"
    assert bare.get_xdata()[0] < 1


@pytest.mark.parametrize("cost", ["params", "macs", "train_seconds"])
def test_accuracy_against_a_cost_labels_every_run(cost):
    ax = plots.accuracy_against(results(), cost).axes[0]
    assert {text.get_text() for text in ax.texts} == {"1", "2", "3", "per-channel"}
    assert ax.get_xscale() == "log"


def test_the_front_joins_the_runs_that_no_other_beats():
    table = results()
    table.loc[table["segments"] == 2, "test_accuracy"] = 0.5
    ax = plots.accuracy_against(table, "params").axes[0]
    front = line(ax, "Pareto frontier of the means")
    assert list(front.get_xdata()) == [1000 // 16, 1000 // 3, 1000]
    assert front.get_drawstyle() == "steps-post", "what lies between two networks is no network"


def test_learning_curves_are_means_over_seeds():
    table = results(order=["pointwise_first", "spatial_first"])
    ax = plots.learning_curves(history(table), table).axes[0]
    assert len(ax.lines) == 8
    assert all(list(line.get_ydata()) == pytest.approx([60, 70, 80]) for line in ax.lines)


def test_a_diverged_run_stays_in_the_mean_at_chance():
    table = results(segments=[1])
    epochs = history(table)
    table.loc[1, "status"] = "diverged"
    epochs = epochs[(epochs["id"] != table["id"][1]) | (epochs["epoch"] == 1)]
    epochs.loc[epochs["id"] == table["id"][1], "val_accuracy"] = 0.1
    (drawn_line,) = plots.learning_curves(epochs, table).axes[0].lines
    assert list(drawn_line.get_ydata()) == pytest.approx([35, 40, 45])


def test_every_data_set_has_a_front_of_its_own():
    easy, hard = results(dataset=["digits"]), results(dataset=["cifar10"])
    table = pd.concat([easy, hard.assign(test_accuracy=hard["test_accuracy"] - 0.3)])
    ax = plots.accuracy_against(table, "params").axes[0]
    assert len([line for line in ax.lines if line.get_linestyle() == "--" and len(line.get_xdata()) > 2]) == 2


def test_learning_curves_survive_a_setting_that_the_history_has_too():
    table = results(lr=[0.1, 0.2])
    assert len(plots.learning_curves(history(table), table).axes[0].lines) == 8


@pytest.mark.parametrize(
    ("settings", "cost"),
    [
        ({}, "macs"),
        ({"match": ["none", "params", "step_time"]}, "macs"),
        ({"segments": [1, 2, 3, 4, 8, 16], "activation": ["none", "relu", "elu", "gelu", "silu"]}, "params"),
        ({"segments": [1], "width": [1.0, 1.1, 1.2, 1.3], "order": ["pointwise_first", "spatial_first"]}, "macs"),
    ],
)
def test_at_the_width_of_a_column_nothing_lies_on_anything_and_type_has_seven_points(settings, cost):
    table = results(**settings)
    if "width" in settings:  # costs within less than twice, where an axis has no decade
        table["macs"] = (1_500_000 * table["width"]).astype(int)
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=(3.5, 2.6), layout="constrained")
        plots.accuracy_against(table, cost, ax=figure.add_subplot(), caption=False)
        figure.savefig(io.BytesIO(), dpi=figure.dpi)
    (ax,) = figure.axes
    assert ax.get_window_extent().width > 2.2 * figure.dpi, "the picture has the column"
    legend = ax.get_legend().get_texts() if ax.get_legend() else []
    ticks = [label for label in ax.get_xticklabels() if ax.get_xlim()[0] <= label.get_position()[0] <= ax.get_xlim()[1]]
    texts = [text for text in (*ax.texts, *ticks, *legend, ax.xaxis.label) if text.get_text()]
    assert len(ticks) >= 2
    assert min(text.get_fontsize() for text in texts) >= 7
    boxes = [text.get_window_extent() for text in texts]
    for (one, first), (other, second) in itertools.combinations(zip(boxes, texts, strict=True), 2):
        assert not one.overlaps(other), (first.get_text(), second.get_text())
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_of_one_split_learning_curves_differ_in_colour():
    table = results(segments=["per_channel"], order=["pointwise_first", "spatial_first"])
    first, second = plots.learning_curves(history(table), table).axes[0].lines
    assert first.get_color() != second.get_color()


MANY = {
    "order": ["pointwise_first", "spatial_first"],
    "downsampling": ["stride", "pool"],
    "activation": ["none", "relu"],
}


@pytest.mark.parametrize("kind", ["learning", "tuning", "budgets"])
def test_long_names_of_settings_do_not_touch_and_leave_panels_their_width(kind):
    if kind == "tuning":
        table = results(match=["none", "macs"], lr=[0.05, 0.1, 0.2, 0.4], **MANY).assign(weight_decay=0.0, chosen=False)
        figure = plots.tuning_map(table)
    elif kind == "learning":
        table = results(segments=[1, 2, "per_channel"], **MANY)
        figure = plots.learning_curves(history(table), table)
    else:
        figure = plots.budget_panels(results(match=["none", "macs"], **MANY))
    figure.savefig(io.BytesIO(), dpi=figure.dpi)
    panels = [ax for ax in figure.axes if ax.get_title(loc="left")]
    assert len(panels) == {"tuning": 2, "learning": 8, "budgets": 2}[kind]
    assert all(ax.get_window_extent().width > 0.8 * figure.dpi for ax in panels)
    titles = [ax._left_title.get_window_extent() for ax in panels]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(titles, 2))
    cells = [text.get_window_extent() for ax in panels for text in ax.texts if text.get_text()]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(cells, 2))
    assert max(title.x1 for title in titles) < figure.bbox.x1


def test_settings_that_go_along_with_another_are_said_at_the_foot_of_a_sweep_and_of_learning_curves():
    probe, vgg = ({"model": ["probe"], "depth": [None]}, {"model": ["vgg"], "depth": [1]})
    sweep = pd.concat([results(**one, lr=[0.1, 0.2]) for one in (probe, vgg)], ignore_index=True)
    figure = plots.tuning_map(sweep.assign(weight_decay=0.0, chosen=False))
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["probe", "vgg"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["1", "2", "3", "per-channel"]
    table = pd.concat([results(**probe), results(**vgg).assign(id=lambda part: "v" + part["id"])], ignore_index=True)
    curves = plots.learning_curves(history(table), table)
    for drawn_figure in (figure, curves):
        assert any("depth change with the model" in text.get_text() for text in drawn_figure.texts)


def test_the_page_on_figures_for_a_paper_makes_them(tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    page = (root / "docs/howto/figures_for_a_paper.md").read_text()
    (tmp_path / "results").symlink_to(root / "results")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert {path.name for path in tmp_path.glob("*.pdf")} == {"curve.pdf", "question.pdf"}
    assert (tmp_path / "curve.pdf").read_bytes().startswith(b"%PDF")
    assert "Where along the spectrum is accuracy highest?" in said(names["figure"])
    labels = names["figure"].axes[0].get_legend_handles_labels()[1]
    assert labels == ["same widths", "same parameters"]
    names["plt"].close("all")


def test_ones_own_settings_hold_on_ones_own_axes():
    with mpl.rc_context({"font.size": 13, "lines.linewidth": 5, "axes.labelsize": 15}):
        figure = Figure(figsize=(3.4, 2.6), layout="constrained")
        plots.spectrum_curve(results(activation=["none", "relu"]), ax=figure.subplots(), caption=False, title="Which?")
        assert mpl.rcParams["font.size"] == 13
    (ax,) = figure.axes
    assert ax.xaxis.label.get_fontsize() == 15
    assert line(ax, "no activation")[0].get_linewidth() == 5
    assert ax.get_title(loc="left") == "Which?"
    assert said(figure) == "Which?"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["no activation", "ReLU"]
    assert tuple(figure.get_size_inches()) == (3.4, 2.6)


def test_at_a_columns_width_the_legend_stands_below_the_title_of_the_axis():
    with mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(3.4, 2.8), layout="constrained")
        tables = [results(segments=[1, 2, 4, 8, "per_channel"]).assign(match=match) for match in ("none", "params")]
        plots.spectrum_curve(pd.concat(tables), ax=figure.subplots(), caption=False)
        figure.draw_without_rendering()
    (ax,) = figure.axes
    title, legend = ax.xaxis.label.get_window_extent(), ax.get_legend().get_window_extent()
    ticks = [tick.get_window_extent() for tick in ax.get_xticklabels()]
    assert min(tick.y0 for tick in ticks) > title.y1 - 1
    assert title.y0 > legend.y1 - 1
    assert legend.y0 >= -1
    assert ax.get_window_extent().width > 0.7 * figure.bbox.width, "no name takes room beside the axes"


@pytest.mark.parametrize("width", [3.4, 7.0])
def test_no_type_is_below_seven_points(width):
    table = results(match=["params", "macs"], seed=[0, 1, 2]).assign(
        study_hash="0123456789abcdef", budget_mismatch=0.01
    )
    with plots.style():
        own = Figure(figsize=(width, 2.4))
        axes = own.subplots()
    plots.spectrum_curve(table, ax=axes)
    for figure in (own, plots.spectrum_curve(table), plots.budget_panels(table), plots.accuracy_against(table)):
        texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
        assert min(text.get_fontsize() for text in texts) >= 7


def test_per_channel_stands_at_one_place_whatever_widths_a_budget_gave_it():
    table = results(match=["params", "macs"])
    wide = table["segments"].eq("per_channel") & table["match"].eq("macs")
    table["realised_segments"] = [
        [40] if one else have for one, have in zip(wide, table["realised_segments"], strict=True)
    ]
    figure = plots.budget_panels(table)
    ends = {ax.containers[0].lines[0].get_xdata()[-1] for ax in figure.axes}
    assert len(ends) == 1


def test_figures_can_be_drawn_on_axes_of_ones_own():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plots.spectrum_curve(results(), ax=left) is figure
    assert plots.accuracy_against(results(), ax=right) is figure


@pytest.mark.parametrize(
    "draw",
    [plots.spectrum_curve, plots.budget_panels, lambda table: plots.learning_curves(history(table), table)],
    ids=["one panel", "a panel per budget", "learning curves"],
)
def test_a_figure_shows_itself_in_a_notebook_without_a_magic_line(draw):
    shown, sizes = DisplayFormatter().format(draw(results()))
    with Image.open(io.BytesIO(shown["image/png"])) as picture:
        width, height = picture.size
        assert picture.convert("L").getextrema() == (0, 255)  # something black on something white
    assert width / height == pytest.approx(sizes["image/png"]["width"] / sizes["image/png"]["height"], rel=0.01)
    assert sizes["image/png"]["width"] < width  # sharp on displays of high resolution


def test_the_same_table_gives_the_same_files(tmp_path):
    first = drawn(plots.spectrum_curve(results()), tmp_path / "a" / "curve")
    second = drawn(plots.spectrum_curve(results()), tmp_path / "b" / "curve")
    assert first == second


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no row has test_accuracy"):
        plots.spectrum_curve(results().assign(test_accuracy=None))
    with pytest.raises(ValueError, match="no epoch of these results"):
        plots.learning_curves(history(results()).assign(id="other"), results())


def test_budgets_stand_side_by_side_with_their_mismatch():
    table = results(match=["none", "params"])
    table["budget_mismatch"] = table["match"].map({"none": None, "params": -0.0031})
    table["widths"] = [None if match == "none" else (8, 16) for match in table["match"]]
    figure = plots.budget_panels(table)
    panels = figure.axes
    assert "parameter-matched within 0.31%" in said(figure)
    titles = [panel.get_title("left").splitlines()[0] for panel in panels]
    assert titles == ["width-matched, n = 2 seeds", "parameter-matched, n = 2 seeds"]
    assert len({panel.get_ylim() for panel in panels}) == 1
    curve = plots.spectrum_curve(table)
    assert curve.axes[0].get_legend_handles_labels()[1] == ["width-matched", "parameter-matched"]
    assert "parameter-matched within 0.31%" in said(curve)
    in_panels = [panel.containers[0].lines[0] for panel in panels]
    looks = [
        [(line.get_color(), line.get_marker()) for line in lines]
        for lines in (in_panels, [container.lines[0] for container in curve.axes[0].containers])
    ]
    assert looks[0] == looks[1], "a budget looks the same in both"


def test_a_search_is_a_map_with_the_choices_framed():
    table = results(lr=[0.05, 0.1], weight_decay=[0.0, 0.001])
    table["chosen"] = (table["lr"] == 0.1) & (table["weight_decay"] == 0.0)
    axes = plots.tuning_map(table).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2", "3", "per-channel"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.05, 0", "0.05, 0.001", "0.1, 0", "0.1, 0.001"]
    assert [patch.get_xy() for patch in axes.patches] == [(1.5, down - 0.5) for down in range(4)]


def test_cells_of_a_search_are_coloured_by_their_distance_from_the_best_of_the_row():
    table = results(lr=[0.05, 0.1, 0.2], match=["params", "macs"], seed=[0]).assign(weight_decay=0.0, chosen=False)
    table["val_accuracy"] = table["lr"].map({0.05: 0.6, 0.1: 0.7, 0.2: 0.69}) + 0.1 * table["segments"].eq(2)
    table = table[table["segments"].ne(3) | table["match"].eq("macs")]
    left, right = plots.tuning_map(table).axes[:2]
    cells = left.images[0].get_array()
    assert np.ma.filled(cells[:2], np.nan).tolist() == [pytest.approx([-10, 0, -1])] * 2
    assert [text.get_text() for text in left.texts[:6]] == ["60.0", "70.0", "69.0", "70.0", "80.0", "79.0"]
    assert np.isnan(np.ma.filled(cells[2], np.nan)).all(), "not trained under this budget"
    assert np.isfinite(np.ma.filled(right.images[0].get_array(), np.nan)).all()


def test_a_run_that_a_cheaper_one_beats_is_open():
    table = results(seed=[0, 1, 2, 3, 4])
    table.loc[table["segments"] == 1, "test_accuracy"] = 0.7 + 0.001 * table["seed"]  # costs most, and is worst
    ax = plots.accuracy_against(table, "params").axes[0]
    faces = {bar[0].get_xdata()[0]: bar[0].get_markerfacecolor() for bar in ax.containers}
    assert faces[1000] == "white"
    assert faces[1000 // 3] != "white"
    assert "shown to be off it" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_many_runs_are_told_apart_by_shades_and_named_in_the_legend():
    ax = plots.accuracy_against(results(activation=["none", "relu", "elu"])).axes[0]
    assert {text.get_text() for text in ax.texts} <= {"1", "2", "3", "per-channel"}
    assert len(ax.texts) <= 4, "those on the frontier"
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert named[-4:] == ["1", "2", "3", "per-channel"]


def test_time_against_macs_has_medians_and_the_line_of_the_fastest_arithmetic():
    table = results(seed=[0, 1, 2])
    table["images_per_second"] = [1000.0, 1000.0, 10.0] + [500.0] * 9  # of 1 segment one run was disturbed
    ax = plots.time_against_macs(table).axes[0]
    proportional, marks = ax.lines[0], ax.lines[1]
    assert list(marks.get_ydata()) == pytest.approx([1, 2, 2, 2])
    assert list(proportional.get_xdata()) == [100_000 // 16, 100_000]
    assert list(proportional.get_ydata()) == pytest.approx([100_000 // 16 / 100_000, 1])
    with pytest.raises(ValueError, match="images_per_second: no such column"):
        plots.time_against_macs(table.drop(columns="images_per_second"))


def test_cost_by_layer_stacks_every_layer_up_to_the_total():
    cost = measure_cost(build_model("probe", segments=4), (3, 32, 32))
    for count in ("macs", "params"):
        ax = plots.cost_by_layer({"one": cost}, count).axes[0]
        blocks = [bar for bar in ax.patches if bar.get_width() > 0 and bar.get_height() > 0]
        assert sum(block.get_width() for block in blocks) == getattr(cost, count)
        assert len(blocks) == sum(getattr(layer, count) > 0 for layer in cost.layers)
    with pytest.raises(ValueError, match="count='speed': try macs, params"):
        plots.cost_by_layer({"one": cost}, "speed")
    with pytest.raises(ValueError, match="no network to draw"):
        plots.cost_by_layer({})


def test_cost_by_layer_says_where_a_count_is_a_lower_bound():
    class Fourier(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return torch.fft.fft2(self.first(x)).real

    costs = {"whole": measure_cost(nn.Conv2d(3, 4, 1), (3, 8, 8)), "part": measure_cost(Fourier(), (3, 8, 8))}
    for count in ("macs", "backward_macs", "activations"):
        ax = plots.cost_by_layer(costs, count).axes[0]
        assert ["at least" in text.get_text() for text in ax.texts] == [False, True]
        caption = said(ax.get_figure())
        assert "part: Not counted, since the cost is unknown: aten._fft_c2c" in caption
        assert "whole:" not in caption
    ax = plots.cost_by_layer(costs, "params").axes[0]
    assert not any("at least" in text.get_text() for text in ax.texts)
    assert "Not counted" not in said(ax.get_figure())


def test_the_literature_stands_beside_differences_paired_by_seed():
    table = results(seed=[0, 1, 2])
    ax = plots.literature_curve(table).axes[0]
    ours = line(ax, "this study")[0]
    assert list(ours.get_xdata()) == [1, 2, 3, 16]
    assert list(ours.get_ydata()) == pytest.approx(list(-np.log2([1, 2, 3, 16])))
    assert list(line(ax, "ResNeXt-50").get_ydata()) == pytest.approx([0, 0.9, 1.3, 1.6, 1.7])
    with pytest.raises(ValueError, match="no seed has 1 segment"):
        plots.literature_curve(table[table["segments"] != 1])


# What a picture says of itself, and what it refuses


def test_what_varies_beside_is_averaged_within_a_seed():
    table = results(activation=["none", "relu"])
    figure = plots.spectrum_curve(table, by=[])
    assert "n = 2 seeds" in said(figure)
    assert len(figure.axes[0].lines[0].get_xdata()) == 16  # every run is drawn


def test_failed_runs_are_not_counted_and_diverged_ones_are_told():
    table = results(seed=[0, 1, 2])
    table.loc[(table["segments"] == 1) & (table["seed"] > 0), ["status", "test_accuracy"]] = ["failed", None]
    table.loc[(table["segments"] == 2) & (table["seed"] == 0), ["status", "test_accuracy"]] = ["diverged", 0.1]
    for figure in (
        plots.spectrum_curve(table),
        plots.accuracy_against(table),
        plots.learning_curves(history(table), table),
    ):
        assert "n = 1–3 seeds" in said(figure)
        assert "1 run diverged, drawn at chance" in said(figure)


def test_every_picture_names_the_study_and_its_hash():
    table = results(match=["params", "macs"], lr=[0.1, 0.2]).assign(study_hash="0123456789abcdef", weight_decay=0.0)
    one = table[(table["match"] == "macs") & (table["lr"] == 0.1)]
    for figure in (
        plots.budget_panels(table),
        plots.tuning_map(table.assign(chosen=False)),
        plots.learning_curves(history(table), table),
        plots.spectrum_curve(one),
        plots.time_against_macs(one.assign(images_per_second=1000.0)),
        plots.literature_curve(one),
    ):
        assert "study made-up 01234567" in said(figure)
        assert "digits" in said(figure)


def test_a_table_without_mismatch_says_no_number_for_it():
    text = said(plots.spectrum_curve(results().assign(match="params").drop(columns="budget_mismatch")))
    assert "parameter-matched" in text
    assert "nan" not in text


def test_shades_go_from_light_to_dark_along_the_spectrum_in_every_panel():
    table = results(match=["none", "params", "macs", "step_time"])
    figure = plots.learning_curves(history(table), table)
    panels = [ax for ax in figure.axes if ax.lines]
    assert len(panels) == 4
    colours = [{line.get_label(): line.get_color() for line in ax.lines} for ax in panels]
    for found in colours:
        assert {label: tuple(colour) for label, colour in found.items()} == {
            label: tuple(colour) for label, colour in colours[0].items()
        }
        light = [sum(found[label][:3]) for label in ("1", "2", "3", "per-channel")]
        assert light == sorted(light, reverse=True)


def test_a_study_that_drops_budgets_from_a_comparison_says_so():
    table = results(match=["none", "macs"])
    table = table[~((table["match"] == "macs") & (table["segments"] == 1))]
    assert "not drawn, for lack of 1 segment: MAC-matched" in said(plots.literature_curve(table))


def test_looks_do_not_repeat_beyond_the_palette():
    from spectrum.analysis.plots.drawing import look_of

    with plots.style():
        looks = [repr(sorted(look_of(number).items(), key=str)) for number in range(14)]
    assert len(set(looks)) == 14


def test_axes_of_ones_own_keep_their_size_and_hold_the_caption():
    with plots.style():
        figure = Figure(figsize=(8, 3.2))
        left, right = figure.subplots(1, 2)
    plots.spectrum_curve(results(), ax=left)
    plots.time_against_macs(results().assign(images_per_second=1000.0), ax=right)
    figure.canvas.draw()
    ends = left.title.get_window_extent().x1, left._left_title.get_window_extent().x1
    assert max(ends) < right._left_title.get_window_extent().x0
    assert tuple(figure.get_size_inches()) == (8, 3.2)


@pytest.mark.parametrize("segments", [[1, 2, 3, 4, 8, 16, 32, 64, "per_channel"], [1, 15, 16]])
def test_labels_on_the_axis_do_not_lie_on_each_other(segments):
    table = pd.concat(
        [results(segments=segments).assign(match=match) for match in ("none", "params", "macs", "step_time")]
    )
    figure = plots.budget_panels(table)
    figure.canvas.draw()
    for ax in figure.axes:
        boxes = sorted((tick.get_window_extent() for tick in ax.get_xticklabels()), key=lambda box: box.x0)
        assert all(one.x1 <= other.x0 for one, other in itertools.pairwise(boxes))
        labels = [tick.get_text() for tick in ax.get_xticklabels() if tick.get_visible()]
        assert labels[:1] in ([], ["1"])
    assert figure.axes[-1].get_xticklabels()[0].get_visible()


def two_curves():
    return results(activation=["none", "relu"])


def test_a_word_for_a_label_holds_where_lines_break_it():
    (ax,) = plots.spectrum_curve(results(), labels={"per-channel": "depthwise"}).axes
    assert ax.get_xticklabels()[-1].get_text() == "depthwise"


def test_an_ending_in_capitals_is_the_same_kind(tmp_path):
    (path,) = plots.save_figure(Figure(), tmp_path / "x.PNG")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in plots.save_figure(Figure(), tmp_path / "v1.2")] == ["v1.2.svg", "v1.2.png"]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.spectrum_curve(results(), by="ordr"), "lacks the columns ordr"),
        (lambda: plots.spectrum_curve(results(), metric="acuracy"), "acuracy: no such column"),
        (lambda: plots.spectrum_curve(results().assign(test_accuracy=90.0)), "expected accuracies from 0 to 1"),
        (lambda: plots.spectrum_curve(results().drop(columns="match")), "lacks the columns match"),
        (lambda: plots.setting_map(results(), "ordr"), "lacks the columns ordr"),
        (lambda: plots.accuracy_against(results(), "mac"), "lacks the columns mac"),
        (lambda: plots.accuracy_against(results(), "study"), "study: is no number"),
        (
            lambda: plots.spectrum_curve(results(), metric="params"),
            "params = 1000: expected accuracies from 0 to 1; the t",
        ),
        (
            lambda: plots.budget_panels(results().assign(top="high"), metric="top"),
            "top = high: expected accuracies from",
        ),
        (
            lambda: plots.spectrum_curve(results().assign(val_loss=0.5), metric="val_loss"),
            "val_loss: is no accuracy; exp",
        ),
        (
            lambda: plots.spectrum_curve(results().assign(lr=0.5), metric="lr"),
            "lr: is no accuracy; .* val_accuracy, test",
        ),
        (lambda: plots.spectrum_curve(results(), metric="Test-Accuracy"), "no such column; did you mean test_accuracy"),
        (
            lambda: plots.learning_curves(history(results()).assign(train_loss=0.5), results(), metric="train_loss"),
            "train_loss: is no accuracy",
        ),
        (
            lambda: plots.learning_curves(results(), results()),
            "lacks the columns epoch; expected a table from load_hist",
        ),
        (lambda: plots.learning_curves(None, results()), "expected a table from load_history, got NoneType"),
        (
            lambda: plots.tuning_map(results()),
            "lacks the columns chosen, lr, weight_decay; expected a table from load_tun",
        ),
        (
            lambda: plots.spectrum_curve(results(), labels={"Per-chanel": "x"}),
            'labels: .* no "Per-chanel"; did you mean "p',
        ),
        (lambda: plots.spectrum_curve(results(), colors={"x": "red"}), 'colors: the picture has no "x"; it has none'),
        (lambda: plots.spectrum_curve(two_curves(), colors={"RELU": "red"}), 'no "RELU"; did you mean "ReLU"'),
        (lambda: plots.spectrum_curve(two_curves(), colors={"x": "red"}), 'no "x"; it has "no activation", "ReLU"'),
        (lambda: plots.forest(None, results()), "expected a table of stats.contrasts first"),
        (lambda: plots.compared(results()), "compared: expected what spectrum.compare returns, got DataFrame"),
        (lambda: plots.cost_by_layer({"a": 1}), "cost_by_layer: expected the costs of networks by their names"),
        (
            lambda: plots.roofline_curve(results()),
            "lacks the columns shape, .* expected a table from spectrum bench op",
        ),
        (lambda: plots.save_figure(results(), "x"), "save_figure: expected a figure, then its path"),
        (
            lambda: plots.save_figure(Figure(), "x.jpg"),
            "x.jpg: cannot write .jpg; name a path that ends in .svg, .png or",
        ),
        (
            lambda: plots.save_figure(Figure(), "x.WEBP"),
            "cannot write .webp; name a path that ends in .svg, .png or .pdf",
        ),
        (lambda: plots.learning_curves(history(results()), pd.concat([results()] * 2)), "is there 2 times"),
        (
            lambda: plots.learning_curves(history(results()), results(), metric="x"),
            "lacks the columns x; expected a table from",
        ),
        (lambda: plots.difference_curve(results(), [{"segments": 1}]), "expected two sides"),
        (lambda: plots.difference_curve(results(), [{}, {}], margin=0.5), "margin: 0.5 would be 50 percent"),
        (lambda: plots.difference_curve(results(), [{"ordr": 1}, {"ordr": 2}]), "lacks the columns ordr"),
        (lambda: plots.forest(results(), results()), "expected a table of stats.contrasts first"),
        (lambda: plots.roofline_curve(pd.DataFrame()), "has no rows"),
    ],
)
def test_what_would_mislead_is_refused_with_a_reason(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
