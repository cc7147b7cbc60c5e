"""Statistics of a table of results, one row a training run. Pure functions; `spectrum.stats` is this module.

    from spectrum import load_results, stats
    results = load_results("results/order")
    stats.contrast(results, [{"order": "pointwise_first"}, {"order": "spatial_first"}], margin=0.005)

Seeds are what counts as n. A diverged run counts, at chance, as its row has it; a failed one has no accuracy.
"""

from spectrum.analysis.along import optimum, trend
from spectrum.analysis.contrasts import Crossing, contrast, contrasts, crossing
from spectrum.analysis.fronts import pareto_front, pareto_table
from spectrum.analysis.inference import (
    ALPHA,
    Difference,
    bootstrap_interval,
    difference,
    difference_power,
    equivalence_power,
    holm,
    noise_floor,
    seeds_for_difference,
    seeds_for_equivalence,
    t_interval,
    unpaired_difference,
    upper_sd,
    welch_freedom,
)
from spectrum.analysis.landscape import at_equal_cost, common_costs, split_slopes, width_slopes
from spectrum.analysis.pairing import NoRunsError, differences_by_seed
from spectrum.analysis.summary import summarise
from spectrum.analysis.table import (
    PER_CHANNEL,
    SETTINGS,
    SPLIT,
    check,
    scored,
    scored_metric,
    segments_label,
    spectrum_position,
    split_label,
    varied_settings,
    worst_mismatch,
)

__all__ = [
    "ALPHA",
    "PER_CHANNEL",
    "SETTINGS",
    "SPLIT",
    "Crossing",
    "Difference",
    "NoRunsError",
    "at_equal_cost",
    "bootstrap_interval",
    "check",
    "common_costs",
    "contrast",
    "contrasts",
    "crossing",
    "difference",
    "difference_power",
    "differences_by_seed",
    "equivalence_power",
    "holm",
    "noise_floor",
    "optimum",
    "pareto_front",
    "pareto_table",
    "scored",
    "scored_metric",
    "seeds_for_difference",
    "seeds_for_equivalence",
    "segments_label",
    "spectrum_position",
    "split_label",
    "split_slopes",
    "summarise",
    "t_interval",
    "trend",
    "unpaired_difference",
    "upper_sd",
    "varied_settings",
    "welch_freedom",
    "width_slopes",
    "worst_mismatch",
]  # fmt: skip
