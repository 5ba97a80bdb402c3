"""Claims about a product of cast operands: what turns them, what is cast again in backward, where the gradient leaves.

Layers are compared with the three products written out, of operands that a Quantizer alone has cast.
"""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from altgrad.nn import (
    PrecisionPolicy,
    QuantizedLinear,
    commit,
    counted_sites,
    quantize_model,
    unrecorded,
    weight_quantizers,
)
from altgrad.nn.rule import Rule
from altgrad.quantize import Quantizer
from altgrad.quantize.engine import quickly
from altgrad.quantize.transform import Hadamard, HadamardSpec, TransformSpec, hadamard, to_bfloat16

MX = {"format": "e2m1", "scaling": {"kind": "mx", "size": 16}}
CLIPPED = {"format": "e2m1", "scaling": "unscaled", "gradient": "clipped"}
H16 = {"kind": "hadamard", "size": 16}


def layer(inputs: int = 32, outputs: int = 48, seed: int = 0, **rule: Any) -> QuantizedLinear:
    torch.manual_seed(1)
    linear = nn.Linear(inputs, outputs, bias=False)
    made = quantize_model(nn.Sequential(linear), PrecisionPolicy.uniform(**rule), seed=seed)[0]  # type: ignore[index]
    assert isinstance(made, QuantizedLinear)
    return made


def tensors(tokens: int = 64, inputs: int = 32, outputs: int = 48) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(tokens, inputs), torch.randn(tokens, outputs)


def step(linear: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.clone().requires_grad_()
    linear.zero_grad()
    y = linear(x)
    y.backward(g)
    weight = linear.weight.grad
    assert x.grad is not None and isinstance(weight, Tensor)
    return y.detach(), x.grad, weight.clone()


def turn(x: Tensor, signs: Tensor | None = None, size: int = 16) -> Tensor:
    matrix = hadamard(size, x.device)
    matrix = matrix if signs is None else signs[:, None] * matrix
    return (x.reshape(-1, size) @ matrix).view(x.shape)


def cast(x: Tensor, spec: Any = MX) -> Tensor:
    return Quantizer(spec)(x)


def test_a_transform_turns_both_operands_along_the_summed_axis_before_they_are_cast() -> None:
    linear = layer(weight=MX, input=MX, grad_output=MX, operands="per_product", grad_weight={"transform": H16})
    x, g = tensors()
    y, dx, dw = step(linear, x, g)
    w = linear.weight.detach()
    assert torch.equal(y, cast(x) @ cast(w).T)
    assert torch.equal(dx, cast(g) @ cast(w.T.contiguous()).T)
    torch.testing.assert_close(dw, cast(turn(g.T)) @ cast(turn(x.T)).T, rtol=1e-6, atol=1e-6)
    assert not torch.equal(cast(turn(g.T)), turn(cast(g.T.contiguous())))


def test_a_forward_that_is_turned_lets_the_gradient_leave_through_the_transpose() -> None:
    """Cast to a grid that is fine enough it is the plain layer; and the gradient of what it computes, turned."""
    fine = {"format": "e4m11", "scaling": "unscaled"}
    again = {**fine, "source": "forward_rotated"}
    rule: dict[str, Any] = {"forward": {"input": fine, "weight": fine, "transform": H16}, "grad_output": "none"}
    linear = layer(**rule, grad_input={"weight": again}, grad_weight={"input": again})
    x, g = tensors()
    y, dx, dw = step(linear, x, g)
    w = linear.weight.detach()
    for found, plain in ((y, x @ w.T), (dx, g @ w), (dw, g.T @ x)):
        assert 0 < float((found - plain).norm() / plain.norm()) < 2e-3
    torch.testing.assert_close(dx, turn(g @ cast(turn(w), fine)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dw, turn(g.T @ cast(turn(x), fine)), rtol=1e-5, atol=1e-5)


def test_a_clipped_gradient_is_masked_among_the_turned_values() -> None:
    """As QuEST and Quartet have it: (mask . (g W_q)) R^T, from the turned weights or from the weights as they are."""
    rotated = {"format": "e2m1", "scaling": "unscaled", "source": "forward_rotated"}
    rule: dict[str, Any] = {"forward": {"input": CLIPPED, "weight": CLIPPED, "transform": H16}}
    x, g = tensors()
    x = x * 4
    own = layer(**rule)
    again = layer(**rule, grad_input={"weight": rotated}, grad_weight={"input": rotated})
    w = own.weight.detach()
    mask = turn(x).abs() <= 6
    assert 0.02 < 1 - float(mask.float().mean()) < 0.5
    assert turn(w).abs().max() < 6
    _, dx, dw = step(own, x, g)
    torch.testing.assert_close(dx, turn(mask * turn(g @ w)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dw, turn(turn(g.T @ x)), rtol=1e-5, atol=1e-4)
    _, dx, dw = step(again, x, g)
    torch.testing.assert_close(dx, turn(mask * (g @ cast(turn(w), CLIPPED))), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dw, turn(g.T @ cast(turn(x), CLIPPED)), rtol=1e-5, atol=1e-4)


def test_a_source_casts_what_forward_made_of_the_operand() -> None:
    coarse = {"format": "e2m1", "scaling": "unscaled"}
    fine = {"format": "e4m3fn", "scaling": "mx"}
    x, g = tensors()
    rule: dict[str, Any] = {"forward": {"input": coarse, "weight": coarse}, "operands": "per_product"}
    own = layer(**rule, grad_weight={"input": fine}, grad_input={"weight": fine})
    again = layer(
        **rule,
        grad_weight={"input": {**fine, "source": "forward"}},
        grad_input={"weight": {**fine, "source": "forward"}},
    )
    w = own.weight.detach()
    _, dx, dw = step(own, x, g)
    assert torch.equal(dx, g @ cast(w.T.contiguous(), fine).T)
    _, dx, dw = step(again, x, g)
    assert torch.equal(dx, g @ cast(cast(w, coarse).T.contiguous(), fine).T)
    torch.testing.assert_close(dw, g.T @ cast(cast(x, coarse).T.contiguous(), fine).T)
    # Where forward is turned, `forward` turns its values back.
    turned: dict[str, Any] = {"forward": {"input": coarse, "weight": coarse, "transform": H16}}
    _, dx, _ = step(layer(**turned, grad_input={"weight": {**fine, "source": "forward"}}), x, g)
    torch.testing.assert_close(dx, g @ cast(turn(cast(turn(w), coarse)).T, fine).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("differs", "names"),
    [
        ({}, {"weight"}),
        ({"grad_input": {"weight": "e5m2"}}, {"weight_forward", "weight_grad_input"}),
        ({"operands": "per_product"}, {"weight_forward", "weight_grad_input"}),
        ({"grad_input": {"weight": {**MX, "source": "forward"}}}, {"weight_forward", "weight_grad_input"}),
        (
            {"grad_input": {"transform": H16}, "grad_output": MX},
            {"weight_forward", "weight_grad_input", "grad_output_grad_input", "grad_output_grad_weight"},
        ),
        (
            {"forward": {"transform": H16}, "grad_input": {"transform": H16}, "grad_output": MX, "input": MX},
            {
                "weight_forward", "weight_grad_input", "grad_output_grad_input", "grad_output_grad_weight",
                "input_forward", "input_grad_weight",
            },
        ),
    ],
    ids=["nothing", "spec", "axis", "source", "transform", "two transforms, two axes"],
)  # fmt: skip
def test_slots_share_a_cast_where_spec_transform_source_and_axis_agree(differs: Any, names: set[str]) -> None:
    linear = layer(weight=MX, **differs)
    assert {name for name in linear.casts if not name.endswith("_transform")} == names
    assert len(set(linear.slot_casts.values())) == len(names)
    step(linear, *tensors())


@given(
    size=st.sampled_from([2, 8, 16, 32, 128]), runs=st.integers(1, 5), rows=st.integers(1, 9), seed=st.integers(0, 99),
    signs=st.sampled_from(["none", "step", "call"]), side=st.sampled_from(["input", "output"]),
    rest=st.integers(0, 3), large=st.floats(0, 20),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_product_of_turned_operands_is_the_product(
    size: int, runs: int, rows: int, seed: int, signs: Any, side: Any, rest: int, large: float
) -> None:
    """(x R)(w R)^T = x w^T within float32, and R R^T = 1; outliers and ragged ends included."""
    torch.manual_seed(seed)
    made = Hadamard(HadamardSpec(size=size, signs=signs, side=side, rest="leave"), "m/forward", seed)
    x, w = torch.randn(rows, size * runs + rest), torch.randn(rows + 2, size * runs + rest)
    x[0, 0] = 2.0**large
    matrix = made.matrix(x, True)
    turned, product = made.turn(x, matrix), x.double() @ w.double().T
    bound = 1e-6 * float(x.norm() * w.norm())
    assert ((turned @ made.turn(w, matrix).T).double() - product).abs().max() <= bound
    torch.testing.assert_close(made.turn_back(turned, matrix), x, rtol=1e-5, atol=1e-6 * 2.0**large)
    assert torch.equal(turned[:1], made.turn(x[:1], matrix))  # rows do not see one another, nor their number


def test_signs_of_the_outputs_mix_nothing_anew() -> None:
    x = torch.randn(4, 32)
    input, output = (
        [
            made.turn(x, made.matrix(x, True)).abs()
            for seed in (0, 1)
            for made in [Hadamard(HadamardSpec(size=32, signs="step", side=side), "m/forward", seed)]
        ]
        for side in ("input", "output")
    )
    assert torch.equal(output[0], output[1]) and not torch.equal(input[0], input[1])


def signs_of(linear: QuantizedLinear, live: bool = True) -> Tensor:
    return linear.transforms["grad_weight"].matrix(linear.weight, live)[:, 0].sign()


def test_signs_are_drawn_for_the_step_or_for_each_micro_batch_and_both_operands_have_the_same() -> None:
    x, g = tensors()
    rule: dict[str, Any] = {"weight": MX, "input": MX, "grad_output": MX, "operands": "per_product"}
    step_, call = (layer(**rule, grad_weight={"transform": {**H16, "signs": signs}}) for signs in ("step", "call"))
    for linear, alike in ((step_, True), (call, False)):
        with unrecorded(linear):
            signs = [signs_of(linear) for _ in range(2)]
        first, second = step(linear, x, g), step(linear, x, g)
        for seen, (_, _, dw) in zip(signs, (first, second), strict=True):
            expected = cast(turn(g.T, seen)) @ cast(turn(x.T, seen)).T
            torch.testing.assert_close(dw, expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(first[2], second[2]) is alike
        commit(linear)
        assert not torch.equal(step(linear, x, g)[2], first[2])
        other = layer(
            seed=1, **rule, grad_weight={"transform": {**H16, "signs": linear.transforms["grad_weight"].spec.signs}}
        )
        assert not torch.equal(step(other, x, g)[2], first[2])


LAYER = {
    "weight": MX, "input": MX, "grad_output": MX, "grad_weight": {"transform": {**H16, "signs": "layer"}}
}  # fmt: skip


def test_signs_drawn_for_a_layer_are_its_own_and_stay() -> None:
    x, g = tensors()
    linear = layer(**LAYER)
    signs = signs_of(linear)
    for _ in range(2):
        _, _, dw = step(linear, x, g)
        expected = cast(turn(g.T, signs)) @ cast(turn(x.T, signs)).T
        torch.testing.assert_close(dw, expected, rtol=1e-6, atol=1e-6)
        commit(linear)
    assert not linear.state_dict().keys() & {"casts.grad_weight_transform.counter"}
    turns = [Hadamard(HadamardSpec(size=64, signs="layer"), *of) for of in (("a", 0), ("a", 0), ("b", 0), ("a", 1))]
    same, again, other, seed = (made.matrix(x, True)[:, 0].sign() for made in turns)
    assert torch.equal(same, again) and not torch.equal(same, other) and not torch.equal(same, seed)
    assert torch.equal(same, turns[0].matrix_of(x, 3)[:, 0].sign())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
@pytest.mark.parametrize(
    "backend",
    ["aot_eager", pytest.param("inductor", marks=[pytest.mark.long, pytest.mark.needs("c++")])],
)
def test_compiled_like_layers_have_signs_of_their_own_with_the_same_bits(backend: str) -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32))
    eager = quantize_model(plain, PrecisionPolicy.uniform(**LAYER))
    compiled = copy.deepcopy(eager)
    run = torch.compile(compiled, fullgraph=True, backend=backend)
    x = torch.randn(64, 32)
    eager(x).square().sum().backward()
    run(x).square().sum().backward()
    first, second = (each.transforms["grad_weight"].matrix(x, False) for each in eager.children())
    assert not torch.equal(first, second)
    for found, expected in zip(compiled.children(), eager.children(), strict=True):
        assert expected.weight.grad is not None and torch.equal(found.weight.grad, expected.weight.grad)


def test_a_checkpoint_goes_on_with_the_signs_of_the_run() -> None:
    x, g = tensors()
    rule: dict[str, Any] = {"weight": MX, "input": MX, "grad_output": MX}
    rule["grad_weight"] = {"transform": {**H16, "signs": "call"}}
    whole = layer(**rule)
    for _ in range(3):
        step(whole, x, g)
        commit(whole)
    resumed = layer(**rule)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert [name for name in whole.state_dict() if "counter" in name] == ["casts.grad_weight_transform.counter"]
    assert all(torch.equal(a, b) for a, b in zip(step(whole, x, g), step(resumed, x, g), strict=True))


def test_a_region_that_runs_again_takes_the_signs_of_its_pass() -> None:
    from torch.utils.checkpoint import checkpoint

    x, g = tensors()
    rule: dict[str, Any] = {"weight": MX, "input": MX, "grad_output": MX}
    rule["grad_weight"] = {"transform": {**H16, "signs": "call"}}
    plain, again = layer(**rule), layer(**rule)
    for _ in range(2):
        step(plain, x, g)
        again.zero_grad()
        checkpoint(again, x, use_reentrant=False).backward(g)
        assert again.weight.grad is not None and torch.equal(again.weight.grad, plain.weight.grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
@pytest.mark.parametrize(
    ("case", "backend"),
    [
        ("corrected", "aot_eager"),
        *(
            pytest.param(case, "inductor", marks=[pytest.mark.long, pytest.mark.needs("c++")])
            for case in ("corrected", "even", "bfloat16", "stochastic")
        ),
    ],
)
def test_compiled_the_layer_is_one_graph_with_the_same_bits(case: str, backend: str) -> None:
    dtype = torch.bfloat16 if case == "bfloat16" else torch.float32
    rule: dict[str, Any] = {
        "grad_weight": {
            "grad_output": {"format": "e2m1", "scaling": "nvfp4", "correction": "eden"},
            "transform": {**H16, "size": 32, "signs": "step"},
        }
    }
    if case == "corrected":
        rule["grad_weight"]["input"] = MX
    else:
        rounding = "stochastic" if case == "stochastic" else "nearest_even"
        again = {"format": "e2m1", "scaling": "nvfp4", "rounding": rounding}
        rotated = {**again, "source": "forward_rotated"}
        signs = {**H16, "signs": "fixed", "dtype": "bfloat16"}
        rule["forward"] = {"input": CLIPPED, "weight": CLIPPED, "transform": signs}
        rule["grad_output"] = again
        rule["grad_input"] = {"weight": rotated, "transform": {**H16, "signs": "step"}}
        rule["grad_weight"]["input"] = rotated
    x, g = (tensor.to(dtype) for tensor in tensors())
    eager, compiled = layer(**rule).to(dtype), layer(**rule).to(dtype)
    run = torch.compile(compiled, fullgraph=True, backend=backend, options=quickly() if backend == "inductor" else None)
    for _ in range(2):
        expected = step(eager, x.clone(), g)
        x_ = x.clone().requires_grad_()
        compiled.zero_grad()
        y = run(x_)
        y.backward(g)
        assert x_.grad is not None and compiled.weight.grad is not None
        assert torch.equal(y, expected[0])
        assert torch.equal(x_.grad, expected[1]) and torch.equal(compiled.weight.grad, expected[2])
        commit(eager)
        commit(compiled)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
@pytest.mark.parametrize(
    "backend",
    ["aot_eager_decomp_partition", pytest.param("inductor", marks=[pytest.mark.long, pytest.mark.needs("c++")])],
)
def test_signs_of_each_call_are_kept_for_backward_in_a_graph(backend: str) -> None:
    """A compiled backward pass must not draw them again, from a counter that has gone on."""
    x, g = tensors()
    call = {"transform": {**H16, "signs": "call"}}
    rule: dict[str, Any] = {"weight": MX, "input": MX, "grad_output": MX, "grad_input": call, "grad_weight": call}
    eager, compiled = layer(**rule), layer(**rule)
    run = torch.compile(compiled, fullgraph=True, backend=backend)
    seen = []
    for last in (False, True, True):
        expected = step(eager, x.clone(), g)
        x_ = x.clone().requires_grad_()
        compiled.zero_grad()
        y = run(x_)
        y.backward(g)
        assert x_.grad is not None and compiled.weight.grad is not None
        assert torch.equal(y, expected[0]) and torch.equal(x_.grad, expected[1])
        assert torch.equal(compiled.weight.grad, expected[2])
        seen.append(x_.grad)
        if last:
            commit(eager)
            commit(compiled)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2]), "other signs in each call"


def test_turned_to_bfloat16_is_what_torch_rounds_to() -> None:
    bits = torch.randint(-(2**31), 2**31, (1 << 16,), dtype=torch.int64).to(torch.int32)
    x = torch.cat((bits.view(torch.float32), torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 3.4e38])))
    assert torch.equal(to_bfloat16(x).nan_to_num(7.0), x.bfloat16().float().nan_to_num(7.0))


def test_tokens_that_runs_do_not_fill_are_refused_or_left() -> None:
    x, g = tensors(tokens=40)
    rule: dict[str, Any] = {"weight": MX, "input": MX, "grad_output": MX}
    refused = layer(**rule, grad_weight={"transform": H16})
    with pytest.raises(ValueError, match="0/grad_weight: transform.size 16 does not divide 40, .*rest: leave"):
        step(refused, x, g)
    left = layer(**rule, grad_weight={"transform": {**H16, "rest": "leave"}})
    _, _, dw = step(left, x, g)
    turned = [cast(torch.cat((turn(t.T[:, :32]), t.T[:, 32:]), -1)) for t in (g, x)]
    torch.testing.assert_close(dw, turned[0] @ turned[1].T, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="0/forward: transform.size 64 does not divide 32"):
        layer(weight=MX, input=MX, forward={"transform": {"kind": "hadamard", "size": 64}})


def test_reduced_precision_products_are_refused() -> None:
    linear = layer(weight=MX, input=MX, forward={"transform": H16})
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(RuntimeError, match="set_float32_matmul_precision"):
            linear(tensors()[0])
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"weight": MX, "grad_weight": {"transform": H16}},
            "grad_weight.transform .*grad_output is not cast",
        ),
        ({"weight": {**MX, "source": "forward"}}, "source: forward is for .*; forward.weight is none of them"),
        ({"grad_output": {**MX, "source": "forward"}}, "grad_input.grad_output is none of them"),
        ({"grad_input": {"weight": {**MX, "source": "forward"}}}, "grad_input.weight .* forward.weight is not cast"),
        (
            {"weight": MX, "grad_input": {"weight": {**MX, "source": "forward_rotated"}}},
            "grad_input.weight has source: forward_rotated, and there is no forward.transform",
        ),
        (
            {"weight": CLIPPED, "input": CLIPPED, "grad_output": MX, "grad_weight": {"transform": H16}},
            "gradient: clipped of grad_weight.input does not go with grad_weight.transform",
        ),
        ({"input": MX, "grad_weight": {"input": {**CLIPPED, "source": "forward"}}}, "clipped .* with source: forward"),
        ({"forward": {"transform": {"kind": "hadamard", "size": 24}}}, "size is 24; .* powers of two"),
        (
            {"forward": {"transform": {"kind": "hadamard", "size": 32, "signs": "fixed"}}},
            "fixed has 16 .* size is 32",
        ),
        ({"forward": {"transform": "hadamrd"}}, "'hadamrd' is not a transform. Did you mean 'hadamard'"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        PrecisionPolicy.uniform(**rule)
    assert "\n" not in str(caught.value)


def test_new_words_are_absent_where_they_are_not_said() -> None:
    rule = Rule.model_validate({"weight": MX})
    assert "transform" not in str(rule.tree()) and "source" not in str(rule.tree())
    said = Rule.model_validate({"weight": MX, "input": MX, "forward": {"transform": {**H16, "signs": [1, -1] * 8}}})
    assert Rule.parse(said.to_yaml()) == said and said.layer().transforms["forward"].size == 16
    assert TransformSpec.kinds() == {"hadamard": HadamardSpec}


def test_a_weight_that_is_turned_has_no_grid_of_its_own() -> None:
    """What its cast enters is no grid of the weight's values, so nothing that asks for one is told a wrong one."""
    turned = nn.Sequential(layer(weight=MX, input=MX, forward={"transform": H16}))
    assert weight_quantizers(turned) == {} and len(counted_sites(turned)) == 5  # four casts, one transform
    assert set(weight_quantizers(nn.Sequential(layer(weight=MX)))) == {"0.weight"}


def test_a_transposed_weight_is_turned_along_the_same_axis() -> None:
    transformers = pytest.importorskip("transformers.pytorch_utils")
    x, g = tensors()
    rotated = {**MX, "source": "forward_rotated"}
    rule: dict[str, Any] = {
        "forward": {"input": CLIPPED, "weight": CLIPPED, "transform": H16}, "grad_output": MX,
        "grad_input": {"weight": {**MX, "source": "forward"}, "transform": H16}, "grad_weight": {"input": rotated},
    }  # fmt: skip
    plain = layer(**rule)
    conv = transformers.Conv1D(48, 32)
    with torch.no_grad():
        conv.weight.copy_(plain.weight.T)
        conv.bias.zero_()
    turned = quantize_model(nn.Sequential(conv), PrecisionPolicy.uniform(**rule))[0]  # type: ignore[index]
    found, expected = step(turned, x, g), step(plain, x, g)
    for a, b in zip((*found[:2], found[2].T), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_errors_of_turned_casts_are_seen_among_the_operands_own_elements() -> None:
    """What an attribution multiplies: the turned operand less its error, turned back, is the operand."""
    rotated = {**MX, "source": "forward_rotated"}
    linear = layer(
        forward={"input": MX, "weight": MX, "transform": {**H16, "signs": "fixed"}}, grad_output=MX,
        grad_weight={"input": rotated, "transform": {**H16, "signs": "call"}},
    )  # fmt: skip
    x, _ = tensors()
    matrices = linear.matrices(x, False)
    values = linear.operands(x, "input", False, torch.float32, matrices).values
    once = linear.turned_back(values["forward"], ("forward", "input"), 0)
    twice = linear.turned_back(values["grad_weight"], ("grad_weight", "input"), 0)
    twice = linear.turned_back(twice, ("forward", "input"), 0)
    for found, bound in ((once, 0.2), (twice, 0.3)):
        assert 0.01 < float((found - x).norm() / x.norm()) < bound
    torch.testing.assert_close(once, linear.input_as_cast(x))
