"""Claims about judging formats on a histogram of a tensor, against the cast of the tensor itself."""

import functools
import math

import pytest
import torch
from torch import Tensor

from altgrad.formats import FloatFormat
from altgrad.measures.format_fit import CastFit, fit_cast, fit_formats
from altgrad.measures.reference_sample import reference_sample
from altgrad.measures.value_histogram import LEADING_BITS, ValueHistogram, fit_histogram

EVERY = [f"e{e}m{m}f" if e else f"e0m{m}" for e in range(8) for m in range(8) if 2 <= e + m <= 7]
DEPLOYED = ["e4m3fn", "e5m2", "e3m4", "e4m3fnuz", "e4m3p3109"]


def counted(x: Tensor) -> ValueHistogram:
    histogram = ValueHistogram()
    histogram.add(x)
    return histogram


@functools.cache
def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    wide = torch.randn(2000) * torch.exp2(torch.randint(-60, 40, (2000,)).float())
    return {
        "normal": reference_sample("normal", 1 << 12) * 0.02,
        "laplace": reference_sample("laplace", 1 << 12),
        "t5": reference_sample("t5", 1 << 12) * 1e-3,
        "bf16, with every tie": torch.randn(2000).bfloat16(),
        "on the grid": torch.randint(-7, 8, (1000,)).float(),
        "relu": torch.randn(2000).relu(),
        "wide": wide,
        "sub-normal": torch.cat((torch.randn(500) * 1e-40, torch.zeros(7), torch.randn(500))),
    }


def alike(found: CastFit, true: CastFit, db: float) -> None:
    assert found.sqnr_db == pytest.approx(true.sqnr_db, abs=db) or found.sqnr_db == true.sqnr_db
    assert found.underflow_rate == pytest.approx(true.underflow_rate, abs=1e-12, nan_ok=True)
    assert found.saturation_rate == pytest.approx(true.saturation_rate, abs=1e-12)
    assert found.code_utilisation == pytest.approx(true.code_utilisation, abs=1e-9)


@pytest.mark.parametrize("case", list(tensors()))
def test_at_powers_of_two_the_histogram_tells_what_the_cast_does(case: str) -> None:
    x, histogram = tensors()[case].float(), counted(tensors()[case])
    for fmt in map(FloatFormat.parse, [*EVERY, *DEPLOYED]):
        snug = math.ceil(math.log2(float(x.abs().amax()) / float(fmt.max)))
        for exponent in {max(-126, snug), max(-126, snug - 2)}:
            scale = 2.0**exponent
            assert histogram.is_exact(fmt, scale)
            alike(histogram.fit(fmt, scale), fit_cast(x, fmt, scale), 1e-4)


@pytest.mark.parametrize("case", ["normal", "laplace", "t5", "relu", "bf16, with every tie"])
def test_all_four_scales_are_within_a_tenth_of_a_decibel_of_brute_force(case: str) -> None:
    x = tensors()[case].float()
    formats = [FloatFormat.parse(name) for name in ("e0m7", "e1m6", "e2m5", "e3m4", "e4m3fn", "e5m2", "e7m0", "e2m1")]
    true, found = fit_formats(x, formats), fit_histogram(counted(x), formats)
    for name, fit in found.items():
        for scale, cast in fit._asdict().items():
            brute = getattr(true[name], scale)
            assert cast.sqnr_db == pytest.approx(brute.sqnr_db, abs=0.1), (name, scale)
            # and the scale it names is as good as it says
            own = fit_cast(x, FloatFormat.parse(name), cast.scale)
            assert own.sqnr_db == pytest.approx(cast.sqnr_db, abs=0.1), (name, scale)


@pytest.mark.parametrize("name", ["e5m10", "e6m9", "e3m12", "e0m12", "bf16"])
def test_formats_finer_than_a_bin_are_estimated_within_a_tenth_of_a_decibel(name: str) -> None:
    x, fmt = reference_sample("normal", 1 << 16), FloatFormat.parse(name)
    histogram = counted(x)
    for factor in (1.0, 1.3):
        scale = 2.0 ** math.ceil(math.log2(float(x.abs().amax()) / float(fmt.max))) * factor
        assert histogram.fit(fmt, scale).sqnr_db == pytest.approx(fit_cast(x, fmt, scale).sqnr_db, abs=0.1)
        assert histogram.is_exact(fmt, scale) == (fmt.mantissa_bits < LEADING_BITS and factor == 1)


def test_pieces_add_up_in_any_order_and_what_is_not_finite_is_counted_apart() -> None:
    x = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    spoiled = torch.cat((x, torch.tensor([math.inf, -math.inf, math.nan])))
    whole, pieces = counted(x), ValueHistogram()
    for part in reversed(spoiled.split(701)):
        pieces.add(part)
    assert (pieces.count, pieces.nonfinite, pieces.amax) == (5000, 3, float(x.abs().amax()))
    fmt = FloatFormat.parse("e4m3fn")
    alike(pieces.fit(fmt, 2.0**-7), whole.fit(fmt, 2.0**-7), 1e-9)


def test_counts_are_those_that_numpy_finds_by_the_upper_bits() -> None:
    numpy = pytest.importorskip("numpy")
    x = torch.randn(3000, generator=torch.Generator().manual_seed(2))
    upper = x.numpy().view(numpy.uint32) >> (23 - LEADING_BITS)
    means, counts, _ = counted(x).bins()
    assert counts.tolist() == numpy.unique(upper, return_counts=True)[1].tolist()
    assert float((means * counts).sum()) == pytest.approx(float(x.double().sum()), rel=1e-12)


def test_a_tensor_without_finite_values_and_a_dtype_that_no_cast_takes_are_refused() -> None:
    with pytest.raises(ValueError, match="without finite values"):
        fit_histogram(counted(torch.tensor([math.nan])), [FloatFormat.parse("e4m3fn")])
    with pytest.raises(ValueError, match="casts run in float32"):
        fit_histogram(counted(torch.ones(1)), [FloatFormat.parse("e10m5")])
    with pytest.raises(TypeError, match="float64"):
        counted(torch.ones(1, dtype=torch.float64))


def test_zeros_alone_have_no_sqnr() -> None:
    fit = counted(torch.zeros(9)).fit(FloatFormat.parse("e4m3fn"), 1.0)
    assert math.isnan(fit.sqnr_db) and math.isnan(fit.underflow_rate) and fit.saturation_rate == 0
