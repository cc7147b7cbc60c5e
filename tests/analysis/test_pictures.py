"""Every picture against a reference that was inspected: `make pictures` draws the references anew."""

import numpy as np
import pandas as pd
import pytest

from spectrum import build_model, measure_cost, plots, stats
from spectrum.analysis.plots.drawing import STYLE
from spectrum.design.study_file import parse_study
from spectrum.study.contrasts import examine
from spectrum.study.planning import plan_study
from tests.analysis.test_landscape import landscape_of
from tests.analysis.test_plots import history, results

looks_as_before = pytest.mark.mpl_image_compare(
    baseline_dir="pictures", tolerance=4, style=str(STYLE), savefig_kwargs={"dpi": 80}
)


def study(**settings):
    """Three seeds with a spread, a plain 3×3 next to the spectrum, and speeds."""
    table = results(seed=[0, 1, 2], **settings)
    spread = np.random.default_rng(0).normal(0, 0.003, len(table))
    table["test_accuracy"] += spread
    table["images_per_second"] = 4e7 / (table["macs"] + 2e4)
    return table.assign(study_hash="0123456789abcdef")


@looks_as_before
def test_spectrum_curve():
    bare = study().iloc[:3].assign(pointwise=False, id=["a", "b", "c"])
    return plots.spectrum_curve(pd.concat([study(activation=["none", "relu"]), bare.assign(activation="none")]))


@looks_as_before
def test_budget_panels():
    return plots.budget_panels(study(match=["params", "macs"]).assign(budget_mismatch=0.004))


@looks_as_before
def test_accuracy_against():
    return plots.accuracy_against(study())


@looks_as_before
def test_accuracy_against_with_many_runs():
    return plots.accuracy_against(study(activation=["none", "relu", "elu", "gelu"]), "params")


@looks_as_before
def test_time_against_macs():
    return plots.time_against_macs(study())


@looks_as_before
def test_cost_by_layer():
    shape = (1, 28, 28)
    model = {s: build_model("probe", segments=s, in_channels=1, image_size=28) for s in (1, 8, "per_channel")}
    return plots.cost_by_layer({f"segments {s}": measure_cost(one, shape) for s, one in model.items()})


@looks_as_before
def test_literature_curve():
    return plots.literature_curve(study())


@looks_as_before
def test_learning_curves():
    table = study(order=["pointwise_first", "spatial_first"])
    epochs = history(table).merge(table[["id", "macs", "seed"]], on="id")
    epochs["val_accuracy"] = 0.9 - 0.3 / (epochs["epoch"] + epochs["seed"] / 9) - 1e-6 * epochs["macs"]
    return plots.learning_curves(epochs[["id", "epoch", "val_accuracy"]], table)


@looks_as_before
def test_tuning_map():
    table = study(lr=[0.1, 0.2, 0.4])
    val = 0.9 - 0.05 * (np.log2(table["lr"] / 0.2) ** 2) - 1e-7 * table["macs"]
    return plots.tuning_map(table.assign(val_accuracy=val, weight_decay=0.0, chosen=table["lr"] == 0.2))


@looks_as_before
def test_setting_map():
    return plots.setting_map(study(activation=["none", "relu", "elu"]), "activation")


@looks_as_before
def test_landscape():
    return plots.landscape(landscape_of(lambda log_width, log_channels: 0.7 + 0.03 * log_width - 0.004 * log_channels))


@looks_as_before
def test_difference_curve():
    table = study(order=["pointwise_first", "spatial_first"])
    sides = [{"order": "pointwise_first"}, {"order": "spatial_first"}]
    return plots.difference_curve(table, sides, margin=0.005)


@pytest.mark.medium
@looks_as_before
def test_forest():
    asked = parse_study(
        {
            "base": {"dataset": "digits", "width": 0.25},
            "axes": {"segments": [1, 2, 3, "per_channel"], "seed": [0, 1, 2], "activation": ["none", "relu"]},
            "contrasts": [
                {
                    "name": "ReLU against none",
                    "between": [{"activation": "relu"}, {"activation": "none"}],
                    "margin": 0.01,
                },
                {"name": "1 segment against one a channel", "between": [{"segments": 1}, {"segments": "per_channel"}]},
                {
                    "name": "the effect of a ReLU between the halves, along the spectrum",
                    "between": [{"activation": "relu"}, {"activation": "none"}],
                    "across": "segments",
                },
            ],
        },
        "made-up",
    )
    table = study(activation=["none", "relu"])
    entries = [one.record() for one in examine(asked, plan_study(asked))]
    return plots.forest(stats.contrasts(table, entries), table)


@looks_as_before
def test_roofline_curve():
    counts = [1, 2, 4, 8, 16]
    rows = [
        {"shape": "32×16×8×8", "way": way, "segments": s, "channels_per_segment": 16 / s, "percent": speed - 5 * s,
         "yardstick_ms": 1.0, "ms_q1": 90 / (speed - 5 * s), "ms_q3": 110 / (speed - 5 * s)}
        for way, speed in (("spectrum", 95), ("torch", 85))
        for s in counts
    ]  # fmt: skip
    return plots.roofline_curve(pd.DataFrame(rows))
