"""Claims about the grid as tensor arithmetic: spacing, gaps, rungs, scales, and what goes in and comes out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from altgrad.formats import CATALOG, FloatFormat, Rounding
from altgrad.quantize import at_rung, gap, round_to, rung, spacing
from altgrad.quantize.grid import NO_RUNG
from altgrad.quantize.traced import binade, computed_binade

NAMES = [entry.name for entry in CATALOG]
WIDE = ["e8m7", "e0m15", "e1m14", "e0m1", "e1m0", "e2m0", "e8m0b127p3109", "e5m10p3109", "e4m3b-60f", "e1m0b-100"]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
MODES = [mode for mode in Rounding if mode.by_value]


def ladder(fmt):
    """Every value from -max to max in float64, where the difference of two neighbours is exact, and its rung."""
    up = torch.tensor(fmt.magnitudes, dtype=torch.float64)
    return torch.cat([-up.flip(0)[:-1], up]), torch.arange(-fmt.max_code, fmt.max_code + 1, dtype=torch.int32)


def same_bits(a, b):
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize("name", NAMES + WIDE)
def test_gap_is_the_exact_distance_to_the_neighbouring_code_in_both_directions(name):
    fmt = FloatFormat.parse(name)
    grid, _ = ladder(fmt)
    x, distance = grid.to(torch.float32), grid.diff().to(torch.float32)
    for at, direction in ((x[:-1], 1.0), (x[1:], -1.0)):
        for towards in (direction, torch.full_like(at, direction * 1e-45), direction * math.inf, int(direction)):
            assert torch.equal(gap(at, fmt, towards), distance)
    assert gap(torch.tensor([0.0, -0.0]), fmt, -1.0).tolist() == [fmt.min_subnormal] * 2
    # outward from the largest value there is no neighbour: as if the binade went on
    assert torch.equal(gap(x[[0, -1]], fmt, x[[0, -1]]), spacing(x[[0, -1]], fmt))


@pytest.mark.parametrize("name", NAMES + WIDE)
def test_spacing_is_the_gap_outward_and_constant_between_codes(name):
    fmt = FloatFormat.parse(name)
    low = torch.tensor(fmt.magnitudes[:-1], dtype=torch.float32)
    high = torch.tensor(fmt.magnitudes[1:], dtype=torch.float32)
    for x in (low, low + (high - low) / 2, torch.from_numpy(np.nextafter(high.numpy(), np.float32(0)))):
        for sign in (1, -1):
            assert torch.equal(spacing(sign * x, fmt), high - low)
    assert torch.equal(gap(low, fmt, 0.0), high - low)


@pytest.mark.parametrize("name", NAMES)
def test_spacing_beyond_the_ends_is_that_of_the_ends(name):
    fmt = FloatFormat.parse(name)
    top = float(fmt.magnitude(fmt.max_code + 1) - fmt.magnitude(fmt.max_code))
    beyond = torch.tensor([fmt.max, -fmt.max, 3e38, -3e38, math.inf, -math.inf, math.nan])
    assert spacing(beyond, fmt).tolist() == [top] * 7
    around_zero = torch.tensor([0.0, -0.0, 1e-45, -1e-45, fmt.min_subnormal])
    assert spacing(around_zero, fmt).tolist() == [fmt.min_subnormal] * 5


@pytest.mark.parametrize("name", NAMES + WIDE)
def test_rung_and_at_rung_are_inverse_over_every_code(name):
    fmt = FloatFormat.parse(name)
    grid, position = ladder(fmt)
    x = grid.to(torch.float32)
    assert rung(x, fmt).dtype == torch.int32 and torch.equal(rung(x, fmt), position)
    assert same_bits(at_rung(position, fmt), x)
    assert rung(torch.tensor([0.0, -0.0]), fmt).tolist() == [0, 0]
    assert torch.equal(at_rung(position.to(torch.int64), fmt, scale=0.5), x / 2)


@pytest.mark.parametrize("name", NAMES)
def test_rungs_of_nan_infinity_and_beyond_the_ends(name):
    fmt = FloatFormat.parse(name)
    top = fmt.max_code
    x = torch.tensor([math.nan, math.inf, -math.inf, 3.4e38, -3.4e38])
    assert rung(x, fmt).tolist() == [NO_RUNG, top, -top, top, -top]
    beyond = at_rung(torch.tensor([NO_RUNG, top + 1, -top - 1, (1 << 31) - 1, NO_RUNG + 1], dtype=torch.int32), fmt)
    assert beyond[0].isnan() and beyond[1:].tolist() == [fmt.max, -fmt.max, fmt.max, -fmt.max]


def test_rung_is_that_of_the_nearest_value_and_reads_every_signed_integer():
    fmt = FloatFormat.parse("e4m3fn")
    x = torch.linspace(-500, 500, 4001)
    assert torch.equal(at_rung(rung(x, fmt), fmt), round_to(x, fmt) + 0.0)
    for dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
        assert at_rung(torch.tensor([0, 1, -8, 126, 127, -128], dtype=dtype), fmt).tolist() == [
            0, 2.0**-9, -(2.0**-6), 448, 448, -448
        ]  # fmt: skip
    for dtype in (torch.float32, torch.bool, torch.uint8):
        with pytest.raises(TypeError, match="at_rung takes signed integers"):
            at_rung(torch.ones(2, dtype=dtype), fmt)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_a_power_of_two_scale_commutes_with_a_power_of_two_factor(name, mode, critical_points):
    """Q(2^k x; 2^k s) = 2^k Q(x; s) wherever float32 holds both sides."""
    fmt = FloatFormat.parse(name)
    x = critical_points(fmt, 9973)
    x = x[(x == 0) | ((x.abs() < 2.0**100) & (x.abs() > 2.0**-110))]
    rounded = round_to(x, fmt, mode)
    for k in (-13, -1, 1, 20):
        s = 2.0**k
        scaled = round_to(x * s, fmt, mode, scale=s)
        held = rounded * s if fmt.bits <= 8 else torch.where(scaled.abs() < 2.0**-126, scaled, rounded * s)
        assert same_bits(scaled, held)
        assert torch.equal(spacing(x * s, fmt, scale=s), spacing(x, fmt) * s)
        assert torch.equal(rung(x * s, fmt, scale=torch.tensor(s)), rung(x, fmt))
        assert torch.equal(gap(x * s, fmt, -1.0, scale=s), gap(x, fmt, -1.0) * s)


@pytest.mark.parametrize("mode", Rounding)
def test_e0m7_and_e1m6_are_one_grid_under_scales_a_factor_of_four_apart(mode, critical_points):
    x = torch.cat([critical_points(FloatFormat.parse("e0m7")), critical_points(FloatFormat.parse("e1m6"))])
    for s in (1.0, 2.0**-20, 0.3, torch.full_like(x, 2.0**9)):
        fixed = round_to(x, "e0m7", mode, scale=s, key=7, average=x.flip(0))
        assert same_bits(fixed, round_to(x, "e1m6", mode, scale=s / 4, key=7, average=x.flip(0)))
        assert torch.equal(rung(x, "e0m7", scale=s), rung(x, "e1m6", scale=s / 4))


@settings(max_examples=100)
@given(
    x=st.floats(-1000, 1000, width=32),
    scale=st.floats(2.0**-20, 2.0**20, width=32),
    name=st.sampled_from(NAMES),
)
def test_any_scale_divides_once_and_multiplies_once(x, scale, name):
    """numpy's correctly rounded float32 operations are the oracle."""
    u = np.float32(x) / np.float32(scale)
    q = round_to(torch.tensor([float(u)]), name).numpy()
    expected = (q * np.float32(scale)).tolist()
    assert round_to(torch.tensor([x]), name, scale=scale).tolist() == expected
    assert round_to(torch.tensor([x]), name, scale=torch.tensor([scale], dtype=torch.float64)).tolist() == expected


def test_a_scale_broadcasts_and_must_be_a_positive_float32_number():
    x = torch.tensor([[1.1, 2.3], [1.1, 2.3]])
    rows = torch.tensor([[1.0], [0.25]])
    together = round_to(x, "e2m1", scale=rows)
    assert torch.equal(together[0], round_to(x[0], "e2m1"))
    assert torch.equal(together[1], round_to(x[1], "e2m1", scale=0.25))
    for function in (round_to, spacing, rung):
        for scale in (0, -1.0, math.nan, math.inf, 1e-50, 1e50):
            with pytest.raises(ValueError, match="a scale is a positive float32 number"):
                function(x, "e2m1", scale=scale)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", NAMES)
def test_the_result_keeps_a_dtype_that_holds_the_grid_and_is_float32_otherwise(name, dtype):
    fmt = FloatFormat.parse(name)
    values = torch.tensor(fmt.magnitudes, dtype=torch.float32)
    holds = torch.equal(values.to(dtype).to(torch.float32), values)
    x = torch.linspace(-2, 2, 101).to(dtype)
    found = round_to(x, fmt)
    assert found.dtype == (dtype if holds else torch.float32)
    assert torch.equal(found.to(torch.float32), round_to(x.to(torch.float32), fmt))
    assert round_to(x, fmt, scale=0.5).dtype == torch.float32
    assert spacing(x, fmt).dtype == gap(x, fmt, 1).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_other_dtypes_are_refused(dtype):
    x = torch.ones(3).to(dtype)
    calls = (round_to, spacing, rung, lambda x, fmt: gap(x, fmt, 1.0))
    for call in calls:
        with pytest.raises(TypeError, match="casts take float32, bfloat16 and float16 tensors"):
            call(x, "e4m3fn")


@pytest.mark.parametrize("name", ["e10m5", "e8m7fnuz", "e4m3b200f", "e8m3b130f"])
def test_formats_beyond_float32_are_refused(name):
    for call in (
        round_to,
        spacing,
        rung,
        lambda x, fmt: gap(x, fmt, 1.0),
        lambda x, fmt: at_rung(rung(x, "e2m1"), fmt),
    ):
        with pytest.raises(ValueError, match=r"casts run in float32"):
            call(torch.ones(2), name)


@pytest.mark.parametrize("mode", Rounding)
def test_layout_does_not_matter(mode):
    x = torch.linspace(-3, 3, 60).view(3, 4, 5)
    strided = x.permute(2, 0, 1)[::2, :, 1:]
    assert not strided.is_contiguous()
    for function in (
        lambda v: round_to(v, "e2m1", mode, key=3, average=v.flip(0)),
        lambda v: spacing(v, "e2m1"),
        lambda v: rung(v, "e2m1"),
    ):
        assert torch.equal(function(strided), function(strided.contiguous()))
        assert function(x[1, 1, 1]).shape == ()
        assert torch.equal(function(x.flatten()[:1])[0], function(x.flatten()[0]))
        assert function(torch.empty(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("mode", Rounding)
def test_the_input_is_neither_changed_nor_part_of_the_result(mode):
    x = torch.tensor([0.3, -0.7, 5.0, 0.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    before = x.detach().clone()
    for s in (None, scale):
        for found in (
            round_to(x, "e2m1", mode, scale=s, key=0, average=x),
            spacing(x, "e2m1", scale=s),
            gap(x, "e2m1", x, scale=s),
        ):
            assert not found.requires_grad
            found.fill_(9.0)
    on_grid = torch.tensor([0.5, 1.0])
    round_to(on_grid, "e2m1", mode, key=0, average=on_grid).fill_(9.0)
    assert torch.equal(x, before) and on_grid.tolist() == [0.5, 1.0]


@pytest.mark.parametrize(("lowest", "highest"), [(2.0**-6, 2.0**8), (1.0, 1.0), (2.0**-99, 2.0**99)])
def test_a_computed_binade_is_the_one_that_bits_show(lowest: float, highest: float) -> None:
    """Every power of two of float32 and both its neighbours, every 65,537th bit pattern, zeros, inf and NaN."""
    powers = torch.exp2(torch.arange(-149, 128, dtype=torch.float64)).float()
    patterns = torch.arange(0, 1 << 31, 65_537).to(torch.int32).view(torch.float32)
    around = [torch.nextafter(powers, torch.full((), end)) for end in (0.0, math.inf)]
    x = torch.cat([powers, *around, patterns, torch.tensor([math.inf, math.nan])])
    for u in (x, -x):
        assert torch.equal(computed_binade(u, lowest, highest), binade(u, lowest, highest))
