"""Claims about whole layers of published recipes: every cast operand has the bits of the vendor's own reference.

Products are sums of exact terms that a BLAS adds in an order of its own, and are compared within that; where the
reference takes the same library they, too, are the same bits. The data is that of `tests/references/linear`.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from altgrad.nn import PrecisionPolicy, QuantizedLinear, quantize_model
from altgrad.nn.slots import SLOTS, slot_text
from altgrad.quantize import Quantizer, round_to
from altgrad.quantize.transform import HadamardSpec, hadamard

FOLDER = Path(__file__).parent.parent / "references" / "linear"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def data(name: str) -> dict[str, Tensor]:
    """The tensors of a reference; what is stored as bfloat16 as float32."""
    found = load_file(FOLDER / f"{name}.safetensors")
    return {key: value.float() if value.dtype == torch.bfloat16 else value for key, value in found.items()}


def e4m3(codes: Tensor) -> Tensor:
    return codes.view(torch.float8_e4m3fn).float()


def e2m1(codes: Tensor) -> Tensor:
    """Two to a byte, the low nibble first."""
    both = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).long()
    return VALUES[both & 7] * (1 - 2.0 * (both >> 3))


class Step:
    """One step of a layer: its product, its gradients, and each slot's operand."""

    def __init__(self, rule: dict[str, Any], x: Tensor, w: Tensor, dy: Tensor, dtype: torch.dtype) -> None:
        linear = nn.Linear(w.shape[1], w.shape[0], bias=False)
        linear.weight = nn.Parameter(w.to(dtype))
        layer = quantize_model(nn.Sequential(linear), PrecisionPolicy.uniform(**rule))[0]  # type: ignore[index]
        assert isinstance(layer, QuantizedLinear)
        x = x.to(dtype).clone().requires_grad_()
        self.y = layer(x)
        self.y.backward(dy.to(dtype))
        assert x.grad is not None and layer.weight.grad is not None
        self.dx, self.dw = x.grad, layer.weight.grad
        matrices, self.slots = layer.matrices(w, False), {}
        given = {"input": x.detach(), "weight": layer.weight.detach(), "grad_output": dy.to(dtype)}
        for product, operand in SLOTS:
            found = layer.operands(given[operand], operand, False, dtype, matrices).values[product]
            self.slots[f"{product}.{operand}"] = found.float()

    def compare(self, y: Tensor, dx: Tensor | None, dw: Tensor, steps: float = 0.0) -> None:
        """The three products equal these; `steps` bounds the error by the largest value, in units of its last place."""
        unit = torch.finfo(self.y.dtype).eps
        for found, expected in ((self.y, y), (self.dx, dx), (self.dw, dw)):
            if expected is not None:
                error = (found.float() - expected).abs().max()
                assert error <= steps * unit * expected.abs().max()


def scaled(fmt: str, kind: str, **scaling: Any) -> dict[str, Any]:
    return {"format": fmt, "scaling": {"kind": kind, **scaling}}


@pytest.mark.parametrize("case", ["normal.f32", "t2.f32", "normal.bf16"])
def test_transformer_engine_nvfp4_with_its_hadamard_signs_and_square_weights(case: str) -> None:
    """Of 33,000 operand values none differs; with a bfloat16 input the turned values are rounded to bfloat16 first."""
    found, dtype = data("te_nvfp4_linear"), DTYPES[case.partition(".")[2]]
    cast = scaled("e2m1", "nvfp4", arithmetic="te")
    turn = {"kind": "hadamard", "signs": "fixed", "dtype": "bfloat16" if dtype == torch.bfloat16 else "float32"}
    rule = {
        "weight": scaled("e2m1", "nvfp4", arithmetic="te", shape="square"), "input": cast, "grad_output": cast,
        "operands": "per_product", "grad_weight": {"transform": turn},
    }  # fmt: skip
    x, w, dy = (found[f"{case}.{name}"] for name in ("x", "w", "dy"))
    step = Step(rule, x, w, dy, dtype)
    for slot, name in {
        "forward.input": "x.row", "grad_weight.input": "x.col", "forward.weight": "w.row", "grad_input.weight": "w.col",
        "grad_input.grad_output": "dy.row", "grad_weight.grad_output": "dy.col",
    }.items():  # fmt: skip
        of = f"{case}.rht_square.{name}"
        codes, scale = e2m1(found[f"{of}.codes"]), e4m3(found[f"{of}.scale"])
        expected = codes * scale.repeat_interleave(16, -1)[:, : codes.shape[1]] * (found[f"{of}.amax"] / 2688)
        operand = step.slots[slot]
        assert torch.equal(operand.T if name.endswith("col") else operand, expected), slot
    step.compare(*(found[f"{case}.rht_square.{name}"] for name in ("y", "dx", "dw")), steps=4)
    by_rows = {
        **rule,
        "weight": cast,
        "input": scaled("e2m1", "nvfp4", arithmetic="te", outer="row"),
        "grad_weight": {},
    }
    rows = Step(by_rows, x, w, dy, dtype)
    rows.compare(*(found[f"{case}.row_scaled.{name}"] for name in ("y", "dx", "dw")), steps=4)


@pytest.mark.parametrize("scale", ["power_of_two", "real"])
def test_transformer_engine_block_scaling(scale: str) -> None:
    found, name = data("te_float8_block"), "pow2" if scale == "power_of_two" else "real"
    run = scaled("e4m3fn", "block", size=128, scale=scale, arithmetic="te")
    square = scaled("e4m3fn", "block", size=128, scale=scale, arithmetic="te", shape="square")
    rule = {"weight": square, "input": run, "grad_output": run, "operands": "per_product"}

    def decoded(of: str) -> Tensor:
        values, scales = e4m3(found[f"{of}.codes"]), found[f"{of}.scale_inv"]
        rows = 1 if len(scales) == len(values) else 128
        return values * scales.repeat_interleave(rows, 0).repeat_interleave(128, 1)[:, : values.shape[1]]

    step = Step(rule, found["in.normal"], found["in.normal"], found["in.lognormal"], torch.float32)
    x, w = decoded(f"run128.e4m3fn.{name}.normal"), decoded(f"square128.e4m3fn.{name}.normal")
    assert torch.equal(step.slots["forward.input"], x)
    assert torch.equal(step.slots["forward.weight"], w) and torch.equal(step.slots["grad_input.weight"], w)
    dy = decoded(f"run128.e4m3fn.{name}.lognormal")
    assert torch.equal(step.slots["grad_input.grad_output"], dy)
    step.compare(x @ w.T, dy @ w, step.dw, steps=4)
    x = found["in.ragged_bf16"]
    ragged = Step(rule, x, torch.ones(8, x.shape[1]), torch.ones(len(x), 8), torch.bfloat16)
    assert torch.equal(ragged.slots["forward.input"], decoded(f"run128.e4m3fn.{name}.ragged_bf16"))
    assert torch.equal(ragged.slots["grad_weight.input"].T, decoded(f"run128.e4m3fn.{name}.ragged_bf16.transposed"))


def test_transformer_engine_current_scaling_in_bfloat16() -> None:
    """Products of operands that bfloat16 does not hold, rounded once; the reference keeps dW in float32."""
    found = data("te_float8_tensor")
    cast, gradient = (scaled(fmt, "current", scale="real", arithmetic="te") for fmt in ("e4m3fn", "e5m2"))
    x, w, dy = (found[f"linear.bf16.{name}"] for name in ("x", "w", "dy"))
    step = Step({"weight": cast, "input": cast, "grad_output": gradient}, x, w, dy, torch.bfloat16)
    y, dx, dw = (found[f"linear.bf16.{name}"] for name in ("y", "dx", "dw"))
    step.compare(y, dx, dw.bfloat16().float(), steps=0.5)


def of_torchao(recipe: str) -> dict[str, Any]:
    tensor = {"scale": "real"} if recipe == "tensorwise" else {"scale": "power_of_two"}
    common = {"arithmetic": "torchao", "floor": 1e-12}
    whole, row = (scaled("e4m3fn", "current", **more, **common) for more in (tensor, {"granularity": "channel"}))
    if recipe == "tensorwise":
        return {"weight": whole, "input": whole, "grad_output": {**whole, "format": "e5m2"}}
    if recipe == "rowwise":
        return {"weight": row, "input": row, "grad_output": row, "operands": "per_product"}
    plain = {"input": "none", "grad_output": "none"}
    return {"weight": row, "input": row, "grad_output": row, "grad_input": {"weight": whole}, "grad_weight": plain}


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
def test_torchao_float8(recipe: str, dtype: str) -> None:
    """Not one operand differs, and by the same library neither does a product."""
    found = data("torchao_float8_linear")
    x, w, dy = (found[f"normal.{dtype}.{name}"] for name in ("x", "w", "dy"))
    step, of = Step(of_torchao(recipe), x, w, dy, DTYPES[dtype]), f"normal.{dtype}.{recipe}"
    step.compare(*(found[f"{of}.{name}"] for name in ("y", "dx", "dw")), steps=2)
    compared = 0
    for slot, operand in step.slots.items():
        name = f"{of}.{slot.replace('weight', 'weight_t') if slot.endswith('.weight') else slot}"
        name = name.replace("grad_weight_t", "grad_weight")
        if f"{name}.codes" in found:
            e5m2 = recipe == "tensorwise" and slot.endswith("grad_output")
            codes = found[f"{name}.codes"].view(torch.float8_e5m2 if e5m2 else torch.float8_e4m3fn).float()
            assert torch.equal(operand.T if slot.endswith(".weight") else operand, codes / found[f"{name}.scale"]), slot
            compared += 1
    assert compared == (4 if recipe == "rowwise_with_gw_hp" else 6)


@pytest.mark.parametrize(
    ("case", "uncast"), [("f32.floor", False), ("f32.floor", True), ("f32.rceil", True), ("bf16.rceil", False)]
)
def test_torchao_mxfp8(case: str, uncast: bool) -> None:
    found = data("torchao_mx_fp8")
    dtype, _, mode = case.partition(".")
    cast = scaled("e4m3fn", "mx", mode=mode, arithmetic="torchao")
    rule: dict[str, Any] = {"weight": cast, "input": cast, "grad_output": cast, "operands": "per_product"}
    if uncast:
        rule["grad_weight"] = {"input": "none", "grad_output": "none"}
    x, w, dy = (found[f"linear.{dtype}.{name}"] for name in ("x", "w", "dy"))
    step, of = Step(rule, x, w, dy, DTYPES[dtype]), f"linear.{case}{'.wgrad_hp' * uncast}"
    step.compare(*(found[f"{of}.{name}"] for name in ("y", "dx", "dw")), steps=2)


def test_torchao_nvfp4_experts() -> None:
    """One level of scales, never below 2^-6; two experts of 32 tokens, bfloat16."""
    found = data("torchao_nvfp4")
    cast = scaled("e2m1", "nvfp4", outer="none", least=2.0**-6, arithmetic="torchao")
    rule = {"weight": cast, "input": cast, "grad_output": cast, "operands": "per_product"}
    for expert in range(2):
        its = slice(32 * expert, 32 * expert + 32)
        x, w, dy = found["grouped.x"][its], found["grouped.w"][expert], found["grouped.dy"][its]
        step = Step(rule, x, w, dy, torch.bfloat16)
        step.compare(found["grouped.y"][its], None, found["grouped.dw"][expert], steps=1)


def test_nanochat_fp8() -> None:
    found = data("nanochat_fp8")
    cast, gradient = (
        scaled(fmt, "current", scale="real", arithmetic="encode", floor=1e-12) for fmt in ("e4m3fn", "e5m2")
    )
    step = Step({"weight": cast, "input": cast, "grad_output": gradient}, found["x"], found["w"], found["dy"],
                torch.bfloat16)  # fmt: skip
    for name, slot in (("x", "forward.input"), ("w", "forward.weight"), ("dy", "grad_input.grad_output")):
        codes = found[f"{name}.codes"].view(torch.float8_e5m2 if name == "dy" else torch.float8_e4m3fn)
        assert torch.equal(step.slots[slot], codes.float() * found[f"{name}.scale_inv"])
    step.compare(found["y"], found["dx"], found["dw"], steps=1)


@pytest.mark.parametrize("uncast", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_torchao_int8(dtype: str, uncast: bool) -> None:
    """The reference adds integers and scales the sum; in bfloat16 its scales are bfloat16 numbers, a block a row."""
    found, name = data("torchao_int8"), "gw_hp" if uncast else "all"
    x, w, dy = (found[f"linear.{dtype}.{each}"] for each in ("x", "w", "dy"))
    whole = {"kind": "current", "granularity": "channel", "scale": "real"}
    longest = max(*x.shape, *w.shape)
    row = whole if dtype == "f32" else {"kind": "block", "size": longest, "scale": "bf16"}
    cast = scaled("e0m7", **row, arithmetic="reciprocal")
    rule: dict[str, Any] = {"weight": cast, "input": cast, "grad_output": cast, "operands": "per_product"}
    if uncast:
        rule["grad_weight"] = {"input": "none", "grad_output": "none"}
    step = Step(rule, x, w, dy, DTYPES[dtype])
    step.compare(*(found[f"linear.{dtype}.{name}.{each}"] for each in ("y", "dx", "dw")), steps=4)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", ["fp8_e4m3", "fp6_e3m2", "fp4_e2m1"])
def test_microxcaling(name: str, dtype: str) -> None:
    """Half away from zero, operands of each product along the axis that it sums over. `bf16` rounds what goes in, and
    half away what comes out of a product in float32, which ours rounds to even."""
    found, formats = data("microxcaling"), {"fp8_e4m3": "e4m3fn", "fp6_e3m2": "e3m2", "fp4_e2m1": "e2m1"}
    cast = {**scaled(formats[name], "mx"), "rounding": "nearest_away"}
    rule = {"weight": cast, "input": cast, "grad_output": cast, "operands": "per_product"}
    given = (found[f"linear.{each}"].to(DTYPES[dtype]).float() for each in ("x", "w", "dy"))
    step = Step(rule, *given, torch.float32)
    for ours, each in ((step.y, "y"), (step.dx, "dx"), (step.dw, "dw")):
        theirs = found[f"linear.{name}.{dtype}.{each}"]
        if dtype == "f32":
            torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=4 * 2.0**-23 * float(theirs.abs().max()))
        else:
            assert torch.equal(round_to(ours.detach(), "bf16", "nearest_away"), theirs)


def test_quartet_two_forward() -> None:
    """Both operands in NVFP4, each block to 6 or 4 by squared error."""
    found = load_file(FOLDER.parent / "recipes.safetensors")
    x, w, y = (found[f"quartet2.linear.{each}"].float() for each in ("x", "w", "y"))
    cast = {**scaled("e2m1", "nvfp4", choose=[6, 4], scale_max=256.0, arithmetic="quartet", zero_becomes=1.0),
            "rounding": "nearest_away"}  # fmt: skip
    step = Step({"weight": cast, "input": cast, "grad_output": "none"}, x, w, torch.ones_like(y), torch.float32)
    step.compare(y, None, step.dw, steps=4)


@pytest.mark.parametrize("name", ["normal", "t2", "normal_bf16"])
def test_the_published_signs_turn_a_tensor_to_the_same_bits(name: str) -> None:
    found = data("te_nvfp4_casts")
    dtype: Any = "bfloat16" if name.endswith("bf16") else "float32"
    made = HadamardSpec(signs="fixed", dtype=dtype).build("m/grad_weight", 0)
    x = found[f"in.{name}"]
    assert HadamardSpec(signs="fixed").vector == tuple(int(s) for s in found["rht.signs"])
    turned = made.turn(x.T.to(torch.bfloat16 if dtype == "bfloat16" else torch.float32), made.matrix(x, False))
    assert torch.equal(turned, found[f"rht.{name}.transformed"])


def test_the_matrices_are_those_of_the_references() -> None:
    cpu = torch.device("cpu")
    assert torch.equal(hadamard(64, cpu), data("mxfp4_llm")["hadamard64"])
    assert torch.equal(hadamard(32, cpu), data("quartet")["hadamard"])
    assert torch.equal(hadamard(32, cpu), data("quartet2")["eden.hadamard"])
    for of, key in (("quartet", "transformed.{}"), ("quartet2", "eden.{}.transformed")):
        found, made = data(of), HadamardSpec(size=32).build("m/forward", 0)
        for name in ("normal", "t2", "edge"):
            x = found[f"in.{name}"]
            assert torch.equal(made.turn(x, made.matrix(x, False)), found[key.format(name)])


def test_quest_masks_the_gradient_among_turned_values() -> None:
    """Quartet's forward and the backward of its cast: (dy . mask) H^T."""
    found = data("quartet")
    cast = {**scaled("e2m1", "mx", statistic="std", arithmetic="quartet"), "gradient": "clipped"}
    turn = HadamardSpec(size=32).build("m/forward", 0)
    matrix = hadamard(32, torch.device("cpu"))
    for name in ("normal", "edge", "t2"):
        turned = turn.turn(found[f"in.{name}"], matrix)
        values, mask = Quantizer(cast).values_and_factor(turned, False, torch.float32)
        assert mask is not None
        assert torch.equal(mask, found[f"quest.{name}.mask"].bool())
        assert torch.equal(values, found[f"quest.{name}.out"])
        if name != "t2":
            dx = turn.turn_back(torch.where(mask, found[f"quest.{name}.dy"], 0), matrix)
            assert torch.equal(dx, found[f"quest.{name}.dx"])


def test_a_table_says_what_turns_a_slot() -> None:
    rule = {"weight": "e2m1", "input": "e2m1", "forward": {"transform": {"kind": "hadamard", "size": 32}}}
    layer = PrecisionPolicy.uniform(**rule).rules[0].layer()
    assert slot_text(layer.slots["forward", "input"], layer.transforms["forward"]) == "e2m1 current hadamard/32"
