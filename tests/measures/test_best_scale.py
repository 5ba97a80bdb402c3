"""Claims about the search for the best scale, against casting under every scale there is to try."""

import math

import pytest
import torch

from altgrad.formats import FloatFormat
from altgrad.measures.best_scale import Magnitudes, best_power_of_two, best_real
from altgrad.quantize import round_to

FORMATS = pytest.mark.parametrize("name", ["e2m1", "e0m7", "e1m6", "e3m4", "e4m3fn", "e5m2fnuz", "e7m0", "e0m1"])
POWERS = [2.0**k for k in range(-126, 128)]


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "normal": torch.randn(3000),
        "heavy tails": torch.randn(3000) / torch.rand(3000),
        "one outlier": torch.cat((torch.randn(500), torch.tensor([-1000.0]))),
        "wide": torch.randn(1000) * torch.exp2(torch.randint(-30, 30, (1000,)).float()),
        "large": torch.randn(300) * 1e37,
        "small": torch.randn(300) * 1e-37,
        "one value": torch.tensor([0.3]),
        "two values": torch.tensor([0.0, -5.0]),
    }


CASES = pytest.mark.parametrize("case", list(tensors()))


def error(x: torch.Tensor, fmt: FloatFormat, scale: float) -> float:
    """Squared error of the cast itself, in float64; its product with the scale too, where float32 would underflow."""
    grid = round_to(x / torch.tensor(scale), fmt).double() * scale
    return (grid - x.double()).square().sum().item()


@FORMATS
@CASES
def test_the_error_of_a_scale_is_that_of_its_cast(name: str, case: str) -> None:
    x, fmt = tensors()[case], FloatFormat.parse(name)
    energy = x.double().square().sum().item()
    amax = float(x.abs().amax())
    least = max(amax / float(fmt.max), 2.0**-126)
    scales = [least * factor for factor in (0.01, 0.3, 0.5, 0.77, 1.0, 1.3, 2.0, 5.0)]
    scales = [scale for scale in scales if 2.0**-126 <= scale < 2.0**127]
    found = Magnitudes.of(x).errors(torch.tensor(scales, dtype=torch.float32).double(), fmt)
    # what is left is the rounding of the cast's own division and product, in float32
    assert found.tolist() == pytest.approx([error(x, fmt, scale) for scale in scales], rel=1e-4, abs=1e-7 * energy)


@FORMATS
@CASES
def test_the_best_power_of_two_beats_every_other(name: str, case: str) -> None:
    x, fmt = tensors()[case], FloatFormat.parse(name)
    best = best_power_of_two(Magnitudes.of(x), fmt)
    errors = Magnitudes.of(x).errors(torch.tensor(POWERS, dtype=torch.float64), fmt)
    found = errors[POWERS.index(best)]
    assert found <= errors.min() + 1e-12 * x.double().square().sum()


@FORMATS
@CASES
def test_no_real_scale_of_thousands_is_a_hundredth_of_a_decibel_better(name: str, case: str) -> None:
    x, fmt = tensors()[case], FloatFormat.parse(name)
    magnitudes = Magnitudes.of(x)
    top = 4 * max(float(magnitudes.amax) / float(fmt.max), 2.0**-126)
    tried = torch.exp2(-torch.linspace(0, 12, 4000, dtype=torch.float64)) * top
    tried = tried[(tried >= 2.0**-126) & (tried <= 2.0**127)]
    best = magnitudes.errors(torch.tensor([best_real(magnitudes, fmt)], dtype=torch.float64), fmt).item()
    slack = 1e-12 * x.double().square().sum().item()
    assert best <= magnitudes.errors(tried, fmt).min().item() * 10**0.001 + slack
    power = torch.tensor([best_power_of_two(magnitudes, fmt)], dtype=torch.float64)
    assert best <= magnitudes.errors(power, fmt).item() + slack


@FORMATS
def test_values_of_the_format_keep_their_scale_and_have_no_error(name: str) -> None:
    fmt = FloatFormat.parse(name)
    x = torch.tensor(fmt.magnitudes, dtype=torch.float32) * 0.25
    magnitudes = Magnitudes.of(x)
    best = best_power_of_two(magnitudes, fmt)
    assert error(x, fmt, best) == 0
    assert best == best_real(magnitudes, fmt)


def test_the_largest_of_equally_good_powers_of_two_is_taken() -> None:
    """1 is a value of e4m3fn under every scale from 2^-8 to 2^9."""
    assert best_power_of_two(Magnitudes.of(torch.tensor([1.0])), FloatFormat.parse("e4m3fn")) == 2.0**-8


@FORMATS
def test_the_search_commutes_with_powers_of_two(name: str) -> None:
    fmt, x = FloatFormat.parse(name), torch.randn(500, generator=torch.Generator().manual_seed(3))
    for find in (best_power_of_two, best_real):
        assert find(Magnitudes.of(x * 2.0**-9), fmt) == find(Magnitudes.of(x), fmt) * 2.0**-9


def test_e0m7_wants_four_times_the_scale_of_e1m6() -> None:
    magnitudes = Magnitudes.of(torch.randn(500, generator=torch.Generator().manual_seed(4)))
    for find in (best_power_of_two, best_real):
        assert find(magnitudes, FloatFormat.parse("e0m7")) == 4 * find(magnitudes, FloatFormat.parse("e1m6"))


@pytest.mark.parametrize("x", [torch.zeros(4), torch.empty(0), torch.tensor([math.nan, math.inf])])
def test_a_tensor_without_a_magnitude_has_scale_1(x: torch.Tensor) -> None:
    fmt = FloatFormat.parse("e4m3fn")
    assert best_power_of_two(Magnitudes.of(x), fmt) == best_real(Magnitudes.of(x), fmt) == 1


def test_one_value_has_a_real_scale_without_error() -> None:
    for name in ("e0m1", "e7m0", "e4m3fn"):
        fmt, x = FloatFormat.parse(name), torch.tensor([0.0, -5.0, 5.0])
        assert error(x, fmt, best_real(Magnitudes.of(x), fmt)) == 0


def test_what_is_not_finite_does_not_count() -> None:
    x = torch.tensor([0.5, -0.2, 0.7])
    spoiled = torch.cat((x, torch.tensor([math.nan, math.inf, -math.inf])))
    fmt = FloatFormat.parse("e2m1")
    assert best_real(Magnitudes.of(spoiled), fmt) == best_real(Magnitudes.of(x), fmt)


def test_a_format_outside_float32_is_refused() -> None:
    with pytest.raises(ValueError, match="e10m5 spans"):
        best_power_of_two(Magnitudes.of(torch.ones(1)), FloatFormat.parse("e10m5"))


@pytest.mark.parametrize("name", ["bf16", "fp16", "e0m15"])
def test_wide_formats_find_a_scale_no_worse_than_that_of_amax(name: str) -> None:
    fmt, x = FloatFormat.parse(name), torch.randn(4000, generator=torch.Generator().manual_seed(5))
    best = best_real(Magnitudes.of(x), fmt)
    assert error(x, fmt, best) <= error(x, fmt, float(x.abs().amax()) / float(fmt.max)) * (1 + 1e-4)
