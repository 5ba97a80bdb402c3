"""The stiffness field against exact scalar arithmetic, and the factor that comes of it."""

import math

import pytest
import torch
from torch import Tensor

from altgrad.formats import FloatFormat
from altgrad.optim.stiffness import absolute, factor, floored, permutation, spacing_field, stiffness_of
from altgrad.quantize import Grid, spacing

EIGHT = ("e0m7f", "e1m6f", "e2m5f", "e3m4f", "e4m3f", "e5m2f", "e6m1f", "e7m0f")


def weights(decades: float = 3.0, count: int = 4096) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(count) * 10 ** (-decades * torch.rand(count))


def scalar_spacing(u: float, fmt: FloatFormat) -> float:
    """2^(clamp(floor(log2 u), e_min, top) - M) by frexp, in float64."""
    exponent = math.frexp(u)[1] - 1 if u else -10_000
    top = max(fmt.e_min, fmt.max_binade)
    return math.ldexp(1.0, min(max(exponent, fmt.e_min), top) - fmt.mantissa_bits)


@pytest.mark.parametrize("name", EIGHT)
@pytest.mark.parametrize("kappa", [0.0, 2.0**-6, 1.0])
def test_own_stiffness_is_the_spacing_of_the_floored_weight(name: str, kappa: float) -> None:
    w, fmt, scale = weights(), FloatFormat.parse(name), 2.0**-9
    field = spacing_field(w, Grid(fmt, torch.tensor(scale)), kappa=kappa)
    rms = float(w.double().square().mean().sqrt())
    floor = torch.tensor(kappa) * torch.tensor(rms, dtype=torch.float64).float()
    expected = [scalar_spacing(max(abs(float(x)), float(floor)) / scale, fmt) for x in w]
    assert field.tolist() == expected
    assert torch.equal(absolute(field, Grid(fmt, torch.tensor(scale))), spacing(floored(w, kappa), fmt, scale=scale))


@pytest.mark.parametrize("name", EIGHT)
@pytest.mark.parametrize("power", [0.0, 0.3, 0.5, 1.0])
def test_the_factors_rms_is_one_for_every_power(name: str, power: float) -> None:
    f = factor(spacing_field(weights(), Grid(FloatFormat.parse(name), torch.tensor(2.0**-7))), power)
    assert float(f.double().square().mean().sqrt()) == pytest.approx(1, abs=1e-6)
    if power == 0:
        assert bool((f == 1).all())


def test_the_factors_median_is_one_under_median() -> None:
    f = factor(spacing_field(weights(), Grid(FloatFormat.parse("e4m3fn"), torch.tensor(2.0**-9))), 1.0, "median")
    assert float(f.median()) == 1


@pytest.mark.parametrize("name", ["e0m7f", "e1m6f"])
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-7, 0.3, 2.0**20])
def test_a_uniform_grid_has_no_geometry_at_any_scale(name: str, scale: float) -> None:
    f = factor(spacing_field(weights(), Grid(FloatFormat.parse(name), torch.tensor(scale))), 1.0)
    assert bool((f == 1).all())


def test_scales_by_channel_are_geometry_even_for_fixed_point() -> None:
    w = torch.stack([weights(count=64), weights(count=64) * 2**-5])
    scale = torch.tensor([[2.0**-7], [2.0**-12]])
    field = spacing_field(w, Grid(FloatFormat.parse("e0m7"), scale))
    assert torch.equal(field[0] / field[1], torch.full((64,), 32.0))


def test_wide_formats_do_not_leave_float32() -> None:
    """E7M0 scaled to amax 0.01 has a smallest step of 2^-132."""
    w = weights() * 0.01 / weights().abs().max()
    f = factor(spacing_field(w, Grid(FloatFormat.parse("e7m0"), torch.tensor(2.0**-71)), kappa=0.0), 1.0)
    assert bool(f.isfinite().all()) and bool((f > 0).all())


def test_another_formats_stiffness_has_its_top_where_the_own_grid_has_it() -> None:
    w, grid = weights(), Grid(FloatFormat.parse("e3m4f"), torch.tensor(2.0**-6))
    top = 2.0**-6 * grid.format.max
    other = FloatFormat.parse("e5m2")
    scale = 2.0 ** math.ceil(math.log2(top / other.max))
    field = spacing_field(w, grid, stiffness=other, kappa=0.0)
    assert torch.equal(field * scale, spacing(w, other, scale=scale))


def test_smooth_is_the_curve_and_constant_is_flat() -> None:
    w, grid = weights(), Grid(FloatFormat.parse("e4m3fn"), torch.tensor(2.0**-9))
    beta = 2.0**-9 * 2.0**-6
    smooth = spacing_field(w, grid, stiffness="smooth", kappa=0.0).double() * 2.0**-9
    assert torch.allclose(smooth, (w.double().square() + beta**2).sqrt(), rtol=1e-6)
    assert bool((factor(spacing_field(w, grid, stiffness="constant"), 1.0) == 1).all())


def test_a_permutation_is_one_and_differs_by_key_and_step() -> None:
    field = weights()
    first, again, other, later = (permutation(field, k, s) for k, s in ((1, 0), (1, 0), (2, 0), (1, 1)))
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, later)
    assert torch.equal(first.sort().values, torch.arange(len(field)))


@pytest.mark.parametrize("tensor", [torch.zeros(5), torch.tensor([3.0]), torch.full((4,), 1e-40)])
def test_degenerate_tensors_have_factor_one(tensor: Tensor) -> None:
    f = factor(spacing_field(tensor, Grid(FloatFormat.parse("e5m2"), torch.tensor(1.0))), 1.0)
    assert bool((f == 1).all())


@pytest.mark.parametrize("name", ["own", "smooth", "constant", "shuffled", "reshuffled"])
def test_controls_go_by_name(name: str) -> None:
    assert stiffness_of(name) == name


@pytest.mark.parametrize(("name", "why"), [("owned", "stiffness is one of own, "), ("e4m3", "e4m3fn"), ("e9m9", "19")])
def test_other_names_are_refused(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        stiffness_of(name)
