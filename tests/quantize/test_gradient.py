"""Claims about what becomes of the gradient behind a cast: slopes are those of the formula and of MS-AMP's kernel."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.formats import parse_format
from altgrad.nn import PrecisionPolicy, QuantizedLinear, quantize_model
from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.quantize.gradient import Clipped, Dge, Estimator, joined, multiplied
from altgrad.quantize.transform import hadamard
from altgrad.spec import SpecError
from bench.reference_casts import recorded

DGE: dict[str, Any] = {"format": "e2m1", "scaling": "unscaled", "gradient": "dge"}
VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def points(format: str) -> Tensor:
    """Twenty places in each gap of a format, its values and midpoints among them; of both signs."""
    ends = torch.tensor(parse_format(format).ranked, dtype=torch.float64)
    return torch.cat([ends[:-1].lerp(ends[1:], k / 20) for k in range(21)]).float()


@pytest.mark.parametrize("format", ["e2m1", "e3m0", "e4m3fn", "nf4", "[-1, -0.25, 0.25, 2]"])
@pytest.mark.parametrize(("k", "clamp"), [(5, 3.0), (2, 100.0), (64, 0.01), (3, 1.5)])
def test_a_slope_is_that_of_the_formula(format: str, k: int, clamp: float) -> None:
    fmt, x = parse_format(format), points(format)
    found = Dge(k=k, clamp=clamp).factor(x, fmt)
    ends = torch.tensor(fmt.ranked, dtype=torch.float64)
    place = (torch.bucketize(x.double(), ends, right=True) - 1).clamp(max=len(ends) - 2)
    t = (x.double() - ends[place]) / (ends[place + 1] - ends[place])
    wanted = ((2 * t - 1).abs() ** (1 / k - 1) / k).clamp(max=clamp)
    assert found is not None and found.dtype == torch.float32
    near_clamp = (2 * t - 1).abs() < 1e-5  # where x itself, a float32 number, is not quite the midpoint
    torch.testing.assert_close(found[~near_clamp].double(), wanted[~near_clamp], rtol=2e-5, atol=0)
    assert bool((found <= torch.tensor(clamp)).all())


def test_it_is_the_same_on_every_grid_value_the_clamp_at_midpoints_and_nothing_beyond() -> None:
    fmt, grid = parse_format("e2m1"), torch.tensor(VALUES)
    x = torch.cat((grid, -grid))
    middles = (grid[1:] + grid[:-1]) / 2
    spec = Dge()
    assert (spec.k, spec.clamp) == (5, 3.0)
    for values, slope in ((x, 0.2), (middles, 3.0), (-middles, 3.0), (torch.tensor([6.01, -7.0, torch.inf]), 0.0)):
        found = spec.factor(values, fmt)
        assert found is not None and torch.equal(found, torch.full_like(values, slope))
    assert spec.factor(torch.tensor([torch.nan]), fmt) == 0


def test_its_mean_is_one_without_a_clamp_and_059_with_the_published_one() -> None:
    x = torch.linspace(4, 6, (1 << 18) + 1)[:-1] + 2.0**-18
    means = {}
    for clamp in (3.0, 1024.0):
        found = Dge(clamp=clamp).factor(x, parse_format("e2m1"))
        assert found is not None
        means[clamp] = float(found.double().mean())
    assert means[3.0] == pytest.approx(0.5934, abs=1e-3) and means[1024.0] == pytest.approx(1, abs=0.1)


def test_slopes_equal_ms_amps_but_below_its_range() -> None:
    """Bit for bit once rounded to bfloat16, in which it writes them; its kernel has no lower end."""
    found, fmt = recorded()["msamp_fp4"], parse_format("e2m1")
    x = found["slope.in"].float()
    for name, spec in (("k5_clamp3", Dge()), ("k3_clamp2", Dge(k=3, clamp=2))):
        slope = spec.factor(x, fmt)
        assert slope is not None
        unequal = slope.bfloat16().float() != found[f"slope.{name}"].float()
        assert torch.equal(unequal, x < -6) and int(unequal.sum()) == 282
    for name, columns in (("normal", 0), ("edge", 5)):
        x = found[f"in.{name}"].bfloat16().T.contiguous()
        exact = (
            Quantizer({"format": "e2m1", "scaling": {"kind": "current", "granularity": "channel"}}).cast(x, False).exact
        )
        slope = Dge().factor(exact, fmt)
        assert slope is not None
        unequal = (slope.bfloat16().float() != found[f"channel.{name}.slope"].float().T).any(1)
        assert int((exact != found[f"channel.{name}.scaled"].float().T).any(1).sum()) == columns
        assert int(unequal.sum()) <= columns


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaling", ["current", {"kind": "block", "size": 8, "scale": "real"}, "nvfp4", "mx"])
def test_a_gradient_is_multiplied_with_the_slope_of_the_scaled_value(scaling: Any, dtype: torch.dtype) -> None:
    x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    g = torch.randn(8, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    quantizer = Quantizer({**DGE, "scaling": scaling}, "s")
    quantizer(x).backward(g)
    made = quantizer.cast(x.detach(), False)
    slope = Dge().factor(made.exact, made.format)
    assert slope is not None and x.grad is not None and x.grad.dtype == dtype
    assert torch.equal(x.grad, (g * slope).to(dtype)) and len(slope.unique()) > 50


def test_a_straight_line_is_the_clipped_gradient() -> None:
    x = torch.linspace(-9, 9, 999)
    line, clipped = Dge(k=1).factor(x, parse_format("e2m1")), Clipped().factor(x, parse_format("e2m1"))
    assert line is not None and clipped is not None and torch.equal(line, clipped.float())


def test_an_infinite_gradient_is_zero_where_the_slope_is() -> None:
    factor = torch.tensor([0.0, 0.5])
    assert multiplied(torch.tensor([torch.inf, torch.inf]), factor).tolist() == [0, torch.inf]
    both = joined([torch.tensor([True, False]), factor + 1, torch.tensor([True, True])])
    assert both is not None and both.tolist() == [1, 0] and joined([]) is None


def test_words_of_the_first_edition_stay_and_dge_reads_what_it_writes() -> None:
    for word in ("identity", "clipped"):
        spec = QuantizerSpec.made_from({"format": "e2m1", "gradient": word})
        assert spec.tree()["gradient"] == word and spec.gradient.kind == word
    assert QuantizerSpec.made_from("e4m3fn").tree()["gradient"] == "identity"
    spec = QuantizerSpec.made_from({"format": "e2m1", "gradient": {"kind": "dge", "k": 3, "clamp": 2}})
    assert spec.tree()["gradient"] == {"kind": "dge", "k": 3, "clamp": 2.0}
    assert QuantizerSpec.made_from(spec.tree()) == spec
    assert list(Estimator.kinds()) == ["clipped", "dge", "identity"]
    with pytest.raises(SpecError, match="'cliped' is not a gradient. Did you mean 'clipped'"):
        QuantizerSpec.made_from({"format": "e2m1", "gradient": "cliped"})


def layer(**rule: Any) -> QuantizedLinear:
    torch.manual_seed(0)
    made = quantize_model(nn.Sequential(nn.Linear(32, 16, bias=False)), PrecisionPolicy.uniform(**rule))[0]
    assert isinstance(made, QuantizedLinear)
    return made


@pytest.mark.parametrize(
    "rule", [{"weight": DGE}, {"weight": DGE, "operands": "per_product"}, {"forward": {"weight": DGE}}]
)
def test_a_weights_gradient_has_the_slope_of_its_forward_cast_once(rule: dict[str, Any]) -> None:
    linear, x, g = layer(**rule), torch.randn(8, 32), torch.randn(8, 16)
    with torch.no_grad():
        linear.weight.mul_(20)
    linear(x).backward(g)
    slope = Dge().factor(linear.weight.detach(), parse_format("e2m1"))
    assert slope is not None and linear.weight.grad is not None
    assert torch.equal(linear.weight.grad, (g.T @ x) * slope)


def test_under_a_transform_the_slope_is_that_of_the_turned_values() -> None:
    turned: dict[str, Any] = {"weight": DGE, "input": "e2m1", "transform": {"kind": "hadamard", "size": 16}}
    linear, x, g = layer(forward=turned), torch.randn(8, 32), torch.randn(8, 16)
    linear(x).backward(g)
    matrix = hadamard(16, x.device)

    def turn(values: Tensor) -> Tensor:
        return (values.reshape(-1, 16) @ matrix).view(values.shape)

    slope = Dge().factor(turn(linear.weight.detach()), parse_format("e2m1"))
    assert slope is not None and linear.weight.grad is not None
    torch.testing.assert_close(linear.weight.grad, turn(turn(g.T @ x) * slope), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"grad_output": DGE}, "gradient: dge has no meaning for grad_input.grad_output"),
        ({"grad_input": {"weight": DGE}}, "grad_input.weight has gradient: dge, .* and forward.weight has another"),
        ({"weight": "e2m1", "grad_input": {"weight": DGE}}, "and forward.weight has another gradient"),
        ({"weight": {**DGE, "gradient": {"kind": "dge", "k": 0}}}, "gradient.k is 0; it takes a whole number"),
    ],
)  # fmt: skip
def test_a_slope_where_there_is_none_is_refused_in_one_line(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        PrecisionPolicy.uniform(**rule)
    assert "\n" not in str(caught.value)
