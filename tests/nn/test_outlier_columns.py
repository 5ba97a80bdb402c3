"""Claims about outliers within a layer: the products see the sum, weights follow the input, transforms do not mix."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad import PrecisionPolicy, commit, quantize_model
from altgrad.diagnosis.attribution import unattributed
from altgrad.diagnosis.sites import casts_as
from altgrad.nn import observed, quantizers
from altgrad.nn.linear import QuantizedLayer
from altgrad.nn.slots import slot_text
from altgrad.quantize import Quantizer
from altgrad.spec import SpecError

NVFP4: dict[str, Any] = {"format": "e2m1", "scaling": {"kind": "nvfp4", "outer": 128}}
MXFP8 = {"format": "e4m3fn", "scaling": "mx"}
KEPT = {"kind": "columns", "largest": 0.05, "record": 2, "renew": False, "cast": MXFP8}
FOLLOWING = {"kind": "columns", "follow": "input", "cast": MXFP8}
OUTCONTROL: dict[str, Any] = {
    "input": {**NVFP4, "outliers": KEPT},
    "weight": {**NVFP4, "outliers": FOLLOWING},
    "grad_output": NVFP4,
    "grad_input": {"weight": {**NVFP4, "source": "forward"}, "transform": {"kind": "hadamard", "signs": "step"}},
    "grad_weight": {
        "input": {**NVFP4, "source": "forward", "outliers": {**FOLLOWING, "grad_output": MXFP8}},
        "transform": {"kind": "hadamard", "signs": "step"},
    },
}


def layer(**rule: Any) -> QuantizedLayer:
    torch.manual_seed(3)
    model = quantize_model(nn.Sequential(nn.Linear(64, 32)), PrecisionPolicy.uniform(**rule))
    made = model[0]  # type: ignore[index]
    assert isinstance(made, QuantizedLayer)
    return made


def sample(at: int = 7) -> Tensor:
    x = torch.randn(48, 64, generator=torch.Generator().manual_seed(5))
    x[:, [at, at + 20, at + 31]] *= 50
    return x


def step(made: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.clone().requires_grad_()
    made.zero_grad()
    y = made(x)
    y.square().sum().backward()
    assert x.grad is not None and made.weight.grad is not None
    return y.detach(), x.grad, made.weight.grad.clone()


def test_the_outlier_channels_of_the_input_are_those_of_every_operand_that_meets_them() -> None:
    """After two steps y = Q(x) Q(W)^T + C(x) C(W)^T over two disjoint sets of channels."""
    made, x = layer(**OUTCONTROL), sample()
    again = OUTCONTROL["grad_weight"] | {"input": {**NVFP4, "source": "forward"}}
    plain = layer(**{**OUTCONTROL, "input": NVFP4, "weight": NVFP4, "grad_weight": again})
    for _ in range(2):
        for found, expected in zip(step(made, x), step(plain, x), strict=True):
            assert torch.equal(found, expected)
        commit(made), commit(plain)
    chosen = made.slot_casts["forward", "input"].outliers.chosen > 0  # type: ignore[union-attr,operator]
    assert chosen.nonzero().flatten().tolist() == [7, 27, 38]
    both = []
    for spec, mask in ((NVFP4, ~chosen), (MXFP8, chosen)):
        alone = layer(input=spec, weight=spec)
        with torch.no_grad():
            alone.weight.mul_(mask)
        both.append(alone(x * mask) - alone.bias)
    y = step(made, x)[0]
    torch.testing.assert_close(y, both[0] + both[1] + made.bias, rtol=1e-5, atol=1e-5)
    assert (y - x @ made.weight.T - made.bias).norm() < (step(plain, x)[0] - x @ made.weight.T - made.bias).norm()
    own = {q.site for q in quantizers(made)} - {q.site for q in made.slot_casts.values()}
    assert own == {"0/grad_output.grad_weight.columns"}


def test_products_in_bfloat16_take_the_sum_as_it_is() -> None:
    rule: Any = {"input": {**NVFP4, "outliers": {"kind": "elements", "quantile": 0.97}}, "weight": "e4m3fn"}
    made, x = layer(**rule).bfloat16(), sample().bfloat16()
    q, w = (made.slot_casts["forward", name] for name in ("input", "weight"))  # type: ignore[index]
    exact = q.values(x, False, torch.float32) @ w.values(made.weight, False, torch.float32).T + made.bias.float()
    assert torch.equal(made(x), exact.bfloat16())


def test_a_cast_with_outliers_says_so_and_its_weight_has_no_grid_of_its_own() -> None:
    made = layer(**OUTCONTROL)
    spec = made.precision.slots["forward", "input"]
    assert slot_text(spec).endswith("+ columns 0.05 e4m3fn mx") and "columns of the input" in repr(made)
    split = made.precision.text(("grad_weight", "input"))
    assert split.endswith("+ columns of the input e4m3fn mx times grad_output e4m3fn mx")
    assert not made.casts_weight_in_place


PARTED = {**FOLLOWING, "grad_output": MXFP8}
AVERAGE = {**MXFP8, "rounding": "toward_average"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"input": {**NVFP4, "outliers": "columns"}, "weight": NVFP4, "forward": {"transform": "hadamard"}},
        "forward.input has outliers: columns, which forward.transform",
    ),
    (
        {"weight": NVFP4, "grad_output": {**NVFP4, "outliers": "columns"}, "grad_input": {"transform": "hadamard"}},
        "grad_input.grad_output has outliers: columns, which grad_input.transform",
    ),
    ({"weight": {**NVFP4, "outliers": FOLLOWING}, "input": NVFP4}, "follow: input, and forward.input keeps no columns"),
    ({"input": {**NVFP4, "outliers": FOLLOWING}}, "follow: input is for weights"),
    ({"input": {**NVFP4, "outliers": {**KEPT, "largest": 64}}}, "largest: 64 of 64 columns"),
    ({"weight": {**NVFP4, "outliers": PARTED}}, "forward.weight has outliers.grad_output"),
    ({"input": {**NVFP4, "outliers": {**KEPT, "grad_output": "e5m2"}}}, "use follow: input"),
    (
        {**OUTCONTROL, "grad_weight": {"input": {**NVFP4, "outliers": {**FOLLOWING, "grad_output": AVERAGE}}}},
        "0, input.grad_weight: .*toward_average",
    ),
    (
        {"weight": {**NVFP4, "outliers": {**FOLLOWING, "grad_output": {**NVFP4, "outliers": "columns"}}}},
        "outliers.grad_output has outliers: columns",
    ),
]


@pytest.mark.parametrize(("rule", "said"), REFUSED, ids=lambda value: value[:30] if isinstance(value, str) else "")
def test_columns_where_they_have_no_meaning_are_refused_in_a_line(rule: Any, said: str) -> None:
    with pytest.raises((SpecError, ValueError), match=said) as told:
        layer(**rule)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("partner", ["same", "none", "e5m2", MXFP8])
def test_columns_of_the_weight_gradient_meet_what_grad_output_is_cast_to_for_them(partner: Any) -> None:
    """With a product of their own dW[:, S] = C'(g)^T C(x), as it came; without, C(H x) meets the cast of H g."""
    rule = OUTCONTROL["grad_weight"] | {"input": {**NVFP4, "outliers": {**FOLLOWING, "grad_output": partner}}}
    made, x = layer(**{**OUTCONTROL, "grad_weight": rule}), sample()
    for _ in range(2):
        made(x).sum().backward()
        commit(made)
    made.zero_grad()
    y = made(x)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(8))
    matrix = made.transforms["grad_weight"].matrix(x, False)
    y.backward(g)
    chosen = made.slot_casts["forward", "input"].outliers.chosen > 0  # type: ignore[union-attr,operator]

    def cast(spec: Any, x: Tensor) -> Tensor:
        return Quantizer(spec, "s", reduced="first")(x)

    def turned(x: Tensor) -> Tensor:
        return (x.T.reshape(-1, 16) @ matrix).reshape(x.T.shape).T

    rest = cast(NVFP4, turned(x) * ~chosen)
    apart, meets = cast(MXFP8, turned(x) if partner == "same" else x), {"same": cast(NVFP4, turned(g)), "none": g}
    expected = torch.where(
        chosen, (meets[partner] if partner in ("same", "none") else cast(partner, g)).double().T @ apart.double(),
        cast(NVFP4, turned(g)).double().T @ rest.double(),
    )  # fmt: skip
    assert made.weight.grad is not None
    torch.testing.assert_close(made.weight.grad.double(), expected, rtol=1e-5, atol=1e-4)


def test_the_partner_is_a_site_that_is_watched_and_goes_where_its_cast_goes() -> None:
    made, x = layer(**OUTCONTROL), sample()
    seen: list[str] = []
    with observed(made, lambda cast: seen.append(cast.site)):
        step(made, x)
    assert seen.count("0/grad_output.grad_weight.columns") == 1
    for _ in range(2):
        step(made, x)
        commit(made)
    split = step(made, x)[2]
    model = nn.Sequential(made)
    with casts_as(model, lambda q: None if q.site == "0/input.grad_weight" else q):
        whole = step(made, x)[2]
    other = copy.deepcopy(made)
    assert not torch.equal(split, whole) and torch.equal(step(other, x)[2], split)
    assert "in 0 grad_weight.input has outliers.grad_output" in unattributed(model)
    assert unattributed(nn.Sequential(layer(weight=NVFP4, input=NVFP4, grad_output=NVFP4))) == ""


@pytest.mark.long
@pytest.mark.needs("c++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
def test_compiled_the_layer_is_one_graph_with_the_same_bits() -> None:
    torch._dynamo.reset()
    elements = {**NVFP4, "outliers": {"kind": "elements", "granularity": "channel"}}
    eager, compiled = (layer(**{**OUTCONTROL, "grad_output": elements}) for _ in range(2))
    run = torch.compile(compiled, fullgraph=True)
    for at in (7, 7, 9):
        x = sample(at)
        expected = step(eager, x)
        x_ = x.clone().requires_grad_()
        compiled.zero_grad()
        y = run(x_)
        y.square().sum().backward()
        for found, wanted in zip((y, x_.grad, compiled.weight.grad), expected, strict=True):
            assert torch.equal(found, wanted)
        commit(eager), commit(compiled)
