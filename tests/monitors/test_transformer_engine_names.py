"""Claims about what docs/METRICS.md says of Transformer Engine: its names exist, and the counts differ as described.

The names are those of its debug features in version 2.20.2; the formulas are written down here from its documentation.
"""

import pytest
import torch

from altgrad.formats import FloatFormat, Rounding
from altgrad.measures import range_counts
from altgrad.monitors import MonitorSpec
from altgrad.quantize.grid import bound_units, round_units

NAMES = {
    "min", "max", "mean", "std", "l1_norm", "l2_norm", "cur_amax", "dynamic_range", "max_blockwise_dynamic_range",
    "underflows%", "overflows%", "scale_inv_min", "scale_inv_max", "mse",
}  # fmt: skip
TENSORS = {"activation", "gradient", "weight", "output", "wgrad", "dgrad"}


def test_every_name_given_is_one_of_its_statistics() -> None:
    told = [metric.elsewhere for spec in MonitorSpec.kinds().values() for metric in spec.metrics if metric.elsewhere]
    assert len(told) >= 7
    for text in told:
        name, _, rest = text.replace(",", "").partition(" ")
        assert name in NAMES, text
        assert not rest.startswith("of ") or rest.split()[1] in TENSORS | {"delayed"} or "dynamic_range" in name, text


@pytest.mark.parametrize("name", ["e4m3fn", "e5m2"])
def test_its_percentages_count_over_all_elements_and_its_overflows_before_rounding(name: str) -> None:
    fmt = FloatFormat.parse(name)
    top, least = float(fmt.max), float(fmt.min_subnormal)
    x = torch.tensor([0.0, 0.0, 0.0, least / 4, least, 1.0, top, top * (1 + 2.0**-10), top * 2, -least / 8])
    unbounded = round_units(x, fmt, Rounding.nearest_even)
    rounded = bound_units(unbounded, fmt, "saturate")
    counts = {key: int(value) for key, value in range_counts(x, unbounded, rounded, fmt).items()}
    underflows = 100 * (x.count_nonzero() - rounded.count_nonzero()) / x.numel()
    overflows = 100 * (x.abs() > top).sum() / x.numel()
    assert underflows == pytest.approx(100 * counts["underflow"] / 10) and counts["underflow"] == 2
    assert counts["underflow"] / counts["nonzero"] == 2 / 7
    assert overflows == 20 and counts["saturated"] == 1
