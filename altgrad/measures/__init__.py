"""Measures: pure functions of tensors, used by monitors, interventions and diagnose.

Counts and sums come first, as scalars on the device that add up over micro-batches, pieces and ranks; ratios follow
from them, by `share`, and are NaN where there is nothing to be a share of. No function waits for the device, draws a
random number or changes its arguments; all but `trend`, which runs on the host, are traced into one graph by
torch.compile if the format is given as a NumberFormat.
"""

from altgrad.measures.alignment import alignment, alignment_sums, grid_offset
from altgrad.measures.code_utilisation import code_histogram, code_utilisation
from altgrad.measures.correlation import below_half_by_binade, log_correlation
from altgrad.measures.dead import activation_sums, alive_features, alive_rows, dead_share, dormant_share
from altgrad.measures.fidelity import fidelity, fidelity_sums
from altgrad.measures.flips import (
    Trail,
    expected_flips,
    expected_master_flips,
    flip_counts,
    flipped,
    follow_trail,
    oscillation_average,
    rescale_flip_counts,
    trail_start,
    trail_sums,
)
from altgrad.measures.gsnr import GradientMoments, add_gradient, gsnr, gsnr_summary, merge_moments, moments_start
from altgrad.measures.quantiles import LogBins, histogram_quantiles, log_histogram, quantiles, spread_sample
from altgrad.measures.range import AmaxAverage, add_amax, amax_average_start, average_amax, range_counts
from altgrad.measures.ranks import (
    effective_rank,
    gram_singular_values,
    matrix_ranks,
    numerical_rank,
    power_start,
    r99,
    singular_values,
    stable_rank,
    stable_rank_step,
)
from altgrad.measures.share import share
from altgrad.measures.sqnr import decibels, energies, l2_norm, linf_norm, sqnr
from altgrad.measures.stall import (
    effective_update_ratio,
    effective_update_sums,
    predicted_stall_counts,
    stall_counts,
    stall_ratio,
    zero_update_counts,
    zero_update_fraction,
)
from altgrad.measures.stiffness import stiffness_exponents, stiffness_histogram, stiffness_quantiles
from altgrad.measures.trend import RankTrend, RankVerdict, hamed_rao, mann_kendall, observe_rank, theil_sen
from altgrad.measures.ulp import ulp_counts, ulps

__all__ = [
    "AmaxAverage",
    "GradientMoments",
    "LogBins",
    "RankTrend",
    "RankVerdict",
    "Trail",
    "activation_sums",
    "add_amax",
    "add_gradient",
    "alignment",
    "alignment_sums",
    "alive_features",
    "alive_rows",
    "amax_average_start",
    "average_amax",
    "below_half_by_binade",
    "code_histogram",
    "code_utilisation",
    "dead_share",
    "decibels",
    "dormant_share",
    "effective_rank",
    "effective_update_ratio",
    "effective_update_sums",
    "energies",
    "expected_flips",
    "expected_master_flips",
    "fidelity",
    "fidelity_sums",
    "flip_counts",
    "flipped",
    "follow_trail",
    "gram_singular_values",
    "grid_offset",
    "gsnr",
    "gsnr_summary",
    "hamed_rao",
    "histogram_quantiles",
    "l2_norm",
    "linf_norm",
    "log_correlation",
    "log_histogram",
    "mann_kendall",
    "matrix_ranks",
    "merge_moments",
    "moments_start",
    "numerical_rank",
    "observe_rank",
    "oscillation_average",
    "power_start",
    "predicted_stall_counts",
    "quantiles",
    "r99",
    "range_counts",
    "rescale_flip_counts",
    "share",
    "singular_values",
    "spread_sample",
    "sqnr",
    "stable_rank",
    "stable_rank_step",
    "stall_counts",
    "stall_ratio",
    "stiffness_exponents",
    "stiffness_histogram",
    "stiffness_quantiles",
    "theil_sen",
    "trail_start",
    "trail_sums",
    "ulp_counts",
    "ulps",
    "zero_update_counts",
    "zero_update_fraction",
]
