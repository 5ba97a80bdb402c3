"""A flip is a change of rung, for every format there is: what values say, rungs say, too."""

import pytest
import torch

from altgrad.formats import parse_format
from altgrad.measures.flips import flip_counts, flipped, rescale_flip_counts
from altgrad.quantize import at_rung, rung

NAMES = [
    "e4m3fn", "e5m2", "e2m1", "e3m4f", "e7m0f", "e0m7", "e1m6f", "e4m3fnuz", "e5m2fnuz", "e5m10", "e8m7", "e2m3",
    "int8", "int4", "nf4", "posit8", "lns8", "[-1,-0.2,0,0.1,0.4]", "[-1,-0.25,0.5,1]",
]  # fmt: skip
SPECIAL = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 2.0**-149, -(2.0**-126), 3e38, -3e38])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [None, 0.037])
def test_values_tell_codes_apart_as_rungs_do(name: str, scale: float | None) -> None:
    fmt = parse_format(name)
    top = float(fmt.highest) * (scale or 1)
    drawn = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    sizes = torch.logspace(-12, 1, 64, base=2.0)
    before = torch.cat([(drawn[:64, None] * sizes * top).flatten(), drawn * top, SPECIAL.repeat(9)])
    for after in (before.flip(0), before * 1.01, -before, torch.cat([before[:-81], SPECIAL.repeat_interleave(9)])):
        old, new = rung(before, fmt, scale=scale), rung(after, fmt, scale=scale)
        assert torch.equal(flipped(before, after, fmt, scale=scale), old != new)
        signs = [at_rung(place, fmt).sign() for place in (old, new)]
        counts = flip_counts(before, after, fmt, scale=scale)
        assert int(counts["flips"]) == int((old != new).sum())
        assert int(counts["sign_flips"]) == int((signs[0] * signs[1] < 0).sum())
    moved = rescale_flip_counts(before, fmt, scale or 1.0, 2 * (scale or 1.0))["rescale_flips"]
    codes = (rung(before, fmt, scale=times * (scale or 1.0)) for times in (1, 2))
    assert int(moved) == int(torch.ne(*codes).sum()) > 0
