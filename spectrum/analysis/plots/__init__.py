"""Pictures of a study. Each takes a table and, if wanted, axes, and returns the figure.

from spectrum import load_results, plots
plots.spectrum_curve(load_results("results/order"))
"""

from spectrum.analysis.plots.accuracy import budget_panels, spectrum_curve
from spectrum.analysis.plots.compared import compared
from spectrum.analysis.plots.costs import accuracy_against, cost_by_layer, roofline_curve, time_against_macs
from spectrum.analysis.plots.differences import difference_curve, forest
from spectrum.analysis.plots.drawing import save_figure, style
from spectrum.analysis.plots.landscape import landscape
from spectrum.analysis.plots.learning import learning_curves
from spectrum.analysis.plots.literature import literature, literature_curve
from spectrum.analysis.plots.maps import setting_map, tuning_map

__all__ = [
    "accuracy_against",
    "budget_panels",
    "compared",
    "cost_by_layer",
    "difference_curve",
    "forest",
    "landscape",
    "learning_curves",
    "literature",
    "literature_curve",
    "roofline_curve",
    "save_figure",
    "setting_map",
    "spectrum_curve",
    "style",
    "time_against_macs",
    "tuning_map",
]
