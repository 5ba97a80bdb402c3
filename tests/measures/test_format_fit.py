"""Claims about how a format's fit is measured."""

import math

import pytest
import torch

from altgrad.formats import FloatFormat
from altgrad.measures.format_fit import fit_cast, fit_formats
from altgrad.measures.reference_sample import reference_sample
from altgrad.quantize import round_to, rung

NAMES = ["e0m7", "e1m6", "e3m4", "e4m3fn", "e5m2", "e7m0", "e2m1"]
FORMATS = [FloatFormat.parse(name) for name in NAMES]


@pytest.fixture(scope="module", params=["normal", "laplace", "t5"])
def sample(request: pytest.FixtureRequest) -> torch.Tensor:
    return reference_sample(request.param, 1 << 14)


def test_the_best_scales_are_never_worse_than_those_of_amax(sample: torch.Tensor) -> None:
    for fit in fit_formats(sample, FORMATS).values():
        assert fit.best_real.sqnr_db >= fit.best_power_of_two.sqnr_db >= fit.amax_power_of_two.sqnr_db
        assert fit.best_real.sqnr_db >= fit.amax_real.sqnr_db


def test_nothing_saturates_at_the_scales_of_amax(sample: torch.Tensor) -> None:
    for fit in fit_formats(sample, FORMATS).values():
        assert fit.amax_power_of_two.saturation_rate == fit.amax_real.saturation_rate == 0


def test_e0m7_and_e1m6_are_one_grid_at_scales_a_factor_of_four_apart(sample: torch.Tensor) -> None:
    first, second = fit_formats(sample, FORMATS[:2]).values()
    for one, other in zip(first, second, strict=True):
        assert one.scale == 4 * other.scale
        assert one[1:] == other[1:]


def test_every_figure_is_that_of_the_cast_counted_by_hand() -> None:
    x = torch.tensor([0.0, -0.0, 0.1, -0.24, 0.25, 1.0, -2.9, 6.9, 7.1, -40.0])
    fmt = FloatFormat.parse("e2m1")
    fit = fit_cast(x, fmt, 1.0)
    assert round_to(x, fmt).tolist() == [0, 0, 0, 0, 0, 1, -3, 6, 6, -6]
    noise = 0.1**2 + 0.24**2 + 0.25**2 + 0.1**2 + 0.9**2 + 1.1**2 + 34**2
    signal = x.double().square().sum().item()
    assert fit.sqnr_db == pytest.approx(10 * math.log10(signal / noise), rel=1e-6)
    assert fit.underflow_rate == 3 / 8
    assert fit.saturation_rate == 2 / 10  # 6.9 rounds to 6: the next value up would have been 8
    shares = [3 / 10, 2 / 10, 1 / 10, 1 / 10, 2 / 10, 1 / 10]  # +0, -0, 1, -3, 6, -6
    assert fit.code_utilisation == pytest.approx(-sum(p * math.log2(p) for p in shares) / 4)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_tensor_of_all_values_uses_all_codes_without_error(fmt: FloatFormat) -> None:
    up = torch.tensor(fmt.magnitudes, dtype=torch.float32)
    fit = fit_cast(torch.cat((up, -up)), fmt, 1.0)
    assert (fit.sqnr_db, fit.underflow_rate, fit.saturation_rate) == (math.inf, 0, 0)
    assert fit.code_utilisation == pytest.approx(1)


def test_what_is_not_finite_is_left_out_and_a_tensor_of_it_refused() -> None:
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    spoiled = torch.cat((x, torch.tensor([math.nan, math.inf])))
    assert fit_formats(spoiled, FORMATS) == fit_formats(x, FORMATS)
    with pytest.raises(ValueError, match="a tensor without finite values"):
        fit_formats(torch.tensor([math.nan]), FORMATS)


def test_a_tensor_of_zeros_has_no_sqnr_and_no_underflow_rate() -> None:
    for fit in fit_formats(torch.zeros(10), FORMATS).values():
        assert math.isnan(fit.best_real.sqnr_db)
        assert math.isnan(fit.best_real.underflow_rate)
        assert (fit.best_real.scale, fit.best_real.saturation_rate) == (1, 0)


def test_bf16_and_any_shape_are_taken_as_their_values() -> None:
    x = torch.randn(4, 25, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert fit_formats(x, FORMATS) == fit_formats(x.float().flatten(), FORMATS)


def test_a_format_outside_float32_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="e10m5 spans"):
        fit_formats(torch.ones(3), [*FORMATS, FloatFormat.parse("e10m5")])


def test_underflow_is_what_lands_on_rung_0() -> None:
    x = reference_sample("t5", 1 << 12)
    fit = fit_cast(x, FORMATS[-1], 0.5)
    assert fit.underflow_rate == int((rung(x, "e2m1", scale=0.5) == 0).sum()) / x.numel()
