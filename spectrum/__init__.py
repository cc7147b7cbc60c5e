"""spectrum: how should a convolution be split, and what does each split cost and gain?

    from spectrum import SegmentedConv2d, build_model, measure_cost
    SegmentedConv2d(128, 128, segments=1)                # a 1×1, then a regular convolution
    SegmentedConv2d(128, 128, segments=3)                # three Inception towers of 1×1 and 3×3
    SegmentedConv2d(128, 128, segments="per_channel")    # a 1×1, then a depthwise convolution

    from spectrum import load_study, run_study, progress, load_results, load_history, plots, stats

Names are imported on first use, so `import spectrum` and reading a study file do not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spectrum._version import __version__

_HOME = {
    "SegmentedConv1d": "spectrum.conv.one_and_three_axes",
    "SegmentedConv2d": "spectrum.conv.segmented",
    "SegmentedConv3d": "spectrum.conv.one_and_three_axes",
    "Backend": "spectrum.conv.backends.interface",
    "list_backends": "spectrum.conv.backends.choice",
    "prefer_backend": "spectrum.conv.backends.choice",
    "register_backend": "spectrum.conv.backends.choice",
    "tune": "spectrum.conv.tuning",
    "use_choices": "spectrum.conv.tuning",
    "build_model": "spectrum.models",
    "list_models": "spectrum.models",
    "load_keras_weights": "spectrum.models.weights",
    "load_model": "spectrum.study.trained",
    "load_weights": "spectrum.models.weights",
    "save_weights": "spectrum.models.weights",
    "register_model": "spectrum.models",
    "segment_model": "spectrum.models.convert",
    "Arrays": "spectrum.design.own_data",
    "register_dataset": "spectrum.design.own_data",
    "Engine": "spectrum.engines.interface",
    "Outcome": "spectrum.engines.interface",
    "register_engine": "spectrum.engines.interface",
    "measure_cost": "spectrum.cost.count",
    "RunConfig": "spectrum.design.run",
    "Study": "spectrum.design.study_file",
    "load_study": "spectrum.design.study_file",
    "load_history": "spectrum.results",
    "load_results": "spectrum.results",
    "load_tuning": "spectrum.results",
    "read_plan": "spectrum.study.store",
    "run_study": "spectrum.study.driver",
    "Callback": "spectrum.study.callbacks",
    "TensorBoard": "spectrum.study.tensorboard",
    "compare": "spectrum.analysis.compare",
    "read_runs": "spectrum.analysis.run_files",
    "plots": "spectrum.analysis.plots",
    "stats": "spectrum.analysis.stats",
    "progress": "spectrum.cli.progress",
}
__all__ = [
    "Arrays",
    "Backend",
    "Callback",
    "Engine",
    "Outcome",
    "RunConfig",
    "SegmentedConv1d",
    "SegmentedConv2d",
    "SegmentedConv3d",
    "Study",
    "TensorBoard",
    "__version__",
    "build_model",
    "compare",
    "list_backends",
    "list_models",
    "load_history",
    "load_keras_weights",
    "load_model",
    "load_results",
    "load_study",
    "load_tuning",
    "load_weights",
    "measure_cost",
    "plots",
    "prefer_backend",
    "progress",
    "read_plan",
    "read_runs",
    "register_backend",
    "register_dataset",
    "register_engine",
    "register_model",
    "run_study",
    "save_weights",
    "segment_model",
    "stats",
    "tune",
    "use_choices",
]

if TYPE_CHECKING:
    from spectrum.analysis import plots, stats
    from spectrum.analysis.compare import compare
    from spectrum.analysis.run_files import read_runs
    from spectrum.cli.progress import progress
    from spectrum.conv.backends.choice import list_backends, prefer_backend, register_backend
    from spectrum.conv.backends.interface import Backend
    from spectrum.conv.one_and_three_axes import SegmentedConv1d, SegmentedConv3d
    from spectrum.conv.segmented import SegmentedConv2d
    from spectrum.conv.tuning import tune, use_choices
    from spectrum.cost.count import measure_cost
    from spectrum.design.own_data import Arrays, register_dataset
    from spectrum.design.run import RunConfig
    from spectrum.design.study_file import Study, load_study
    from spectrum.engines.interface import Engine, Outcome, register_engine
    from spectrum.models import build_model, list_models, register_model
    from spectrum.models.convert import segment_model
    from spectrum.models.weights import load_keras_weights, load_weights, save_weights
    from spectrum.results import load_history, load_results, load_tuning
    from spectrum.study.callbacks import Callback
    from spectrum.study.driver import run_study
    from spectrum.study.store import read_plan
    from spectrum.study.tensorboard import TensorBoard
    from spectrum.study.trained import load_model


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'spectrum' has no attribute {name!r}")
    home = import_module(_HOME[name])
    return home if name in ("plots", "stats") else getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
