"""Claims about infinities that enter a cast: kept, they leave as they came; saturated, they are the largest value.

`keep` is the default of a cast, so that a loss scaler, a monitor or the loss sees an overflow. What is finite is cast
the same either way, bit for bit.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from altgrad.formats import CATALOG, FloatFormat, Rounding
from altgrad.nn import PrecisionPolicy, quantize_model
from altgrad.quantize import Quantizer, QuantizerSpec, ScalingSpec, round_to
from altgrad.quantize.engine import cast_values, serves

FORMATS = ("e4m3fn", "e5m2", "e3m4", "e2m1", "e0m7", "e7m0")
SCALINGS = sorted(ScalingSpec.kinds())
CASTABLE = [fmt for fmt in (FloatFormat.parse(entry.name) for entry in CATALOG) if fmt.bits <= 8]


def sample(dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of 64 values of all magnitudes, with infinities of both signs and a NaN, each row on its own."""
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)).exp2()
    x[0, 3], x[1, 5], x[2, 0], x[2, 1], x[3, 7] = math.inf, -math.inf, math.inf, -math.inf, math.nan
    x[4] = math.inf  # a row, and a block, of nothing else
    return x.to(dtype)


def quantizer(scaling: str, rounding: str, nonfinite: str | None = None, fmt: str = "e4m3fn") -> Quantizer:
    spec = {"format": fmt, "rounding": rounding, "scaling": scaling}
    told = spec if nonfinite is None else {**spec, "nonfinite": nonfinite}
    return Quantizer(told, "site", "weight", rows=6, shape=tuple(sample(torch.float32).shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rounding", [mode.value for mode in Rounding])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_an_infinity_stays_and_nothing_else_moves(scaling: str, rounding: str, dtype: torch.dtype) -> None:
    """For every scaling and rounding, watched or not; the default is `keep`."""
    x = sample(dtype)
    kept, saturated = quantizer(scaling, rounding), quantizer(scaling, rounding, "saturate")
    found, other = kept(x), saturated(x)
    assert torch.equal(found[x.isinf()], x[x.isinf()]) and not bool(other.isinf().any())
    finite = x.isfinite()  # a NaN fills its block under mx
    torch.testing.assert_close(found[finite], other[finite], rtol=0, atol=0, equal_nan=True)
    watched = kept.cast(x, False).values(dtype)
    torch.testing.assert_close(watched, kept.values(x, False, dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("fmt", CASTABLE, ids=str)
def test_round_to_keeps_infinities_only_when_told(fmt: FloatFormat) -> None:
    x = torch.tensor([math.inf, -math.inf, math.nan, 1.0, -3e38])
    top = float(fmt.max)
    kept, today = round_to(x, fmt, nonfinite="keep"), round_to(x, fmt)
    assert kept[:2].tolist() == [math.inf, -math.inf] and today[:2].tolist() == [top, -top]
    assert bool(kept[2].isnan()) and torch.equal(kept[3:], today[3:])


@pytest.mark.parametrize("rounding", [Rounding.nearest_even, Rounding.stochastic])
@pytest.mark.parametrize("name", FORMATS)
def test_the_short_form_keeps_them(name: str, rounding: Rounding) -> None:
    """Eagerly; tests/quantize/test_engine.py holds the compiled one to these bits."""
    fmt = FloatFormat.parse(name)
    if not serves(fmt, rounding):
        pytest.skip(f"{name} takes the general definition under {rounding}")
    x = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    x[::100], x[50::100] = math.inf, -math.inf
    options = {"exact_reciprocal": True, "key": torch.tensor(7)}
    for scale in (None, torch.tensor(0.25)):
        kept = cast_values(x, scale, fmt, rounding, nonfinite="keep", **options)  # type: ignore[arg-type]
        today = cast_values(x, scale, fmt, rounding, **options)  # type: ignore[arg-type]
        assert torch.equal(kept[x.isinf()], x[x.isinf()])
        assert torch.equal(kept[x.isfinite()], today[x.isfinite()])
        assert bool(today.isfinite().all())


def test_a_finite_overflow_is_not_an_infinity() -> None:
    """A value whose quotient by a tiny scale leaves float32 is finite, and saturates."""
    x = torch.tensor([[3e38, 1e-38]])
    found = round_to(x, "e4m3fn", scale=2.0**-126, nonfinite="keep")
    assert found.tolist()[0][0] == 448 * 2.0**-126


def test_a_loss_scaler_sees_the_overflow_of_a_gradient() -> None:
    """As with the plain model: the step is skipped and the scale halved."""
    torch.manual_seed(0)
    net = quantize_model(
        nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False)),
        PrecisionPolicy.uniform(weight="e4m3fn", input="e4m3fn", grad_output="e5m2"),
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    coefficient = torch.full((4, 4), 1e-3)
    coefficient[0, 0] = 8.0  # times 2^16 it is beyond float16
    with torch.autocast("cpu", dtype=torch.float16):
        y = net(torch.randn(4, 8))
    scaler.scale((y.float() * coefficient).sum()).backward()
    before = [p.detach().clone() for p in net.parameters()]
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**15
    assert all(torch.equal(p, kept) for p, kept in zip(net.parameters(), before, strict=True))


def test_the_default_leaves_a_spec_as_it_was_written() -> None:
    assert "nonfinite" not in QuantizerSpec.model_validate("e4m3fn").tree()
    told = QuantizerSpec.model_validate({"format": "e4m3fn", "nonfinite": "saturate"})
    assert told.tree()["nonfinite"] == "saturate" and QuantizerSpec.model_validate(told.tree()) == told
