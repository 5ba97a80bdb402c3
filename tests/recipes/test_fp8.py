"""Claims about FP8 recipes that are neither Transformer Engine's nor torchao's, and about MX in any element."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from altgrad.quantize import Quantizer, round_to
from altgrad.quantize.scaling import scale_of
from altgrad.recipes.book import find
from altgrad.training.gradient_sums import GradientCasts
from bench.reference_casts import recorded
from tests.recipes.vendor import DTYPES, Step, data, e4m3, kernels, rule, slots


def test_nanochat() -> None:
    found = data("nanochat_fp8")
    step = Step(rule("nanochat"), found["x"], found["w"], found["dy"], torch.bfloat16)
    for name, slot in (("x", "forward.input"), ("w", "forward.weight"), ("dy", "grad_input.grad_output")):
        codes = found[f"{name}.codes"].view(torch.float8_e5m2 if name == "dy" else torch.float8_e4m3fn)
        assert torch.equal(step.slots[slot], codes.float() * found[f"{name}.scale_inv"])
    step.compare(found["y"], found["dx"], found["dw"], steps=1)


def test_modded_nanogpt_head() -> None:
    """As its authors run it, compiled: elements are divided in float32, which in eager bfloat16 they are not."""
    found = kernels("modded_nanogpt")
    step = Step(rule("modded_nanogpt_head"), found["x"], found["w"].T.contiguous(), found["dy"], torch.bfloat16)
    for name, slot, scale in (("x", "forward.input", 100 / 448), ("w", "forward.weight", 1.6 / 448)):
        codes = e4m3(found[f"{name}.codes"]) * torch.tensor(scale, dtype=torch.float32)
        assert torch.equal(step.slots[slot], codes.T if name == "w" else codes)
    step.compare(found["y"], found["dx"], found["dw"].T.bfloat16().float(), steps=1)


def test_fp8_lm() -> None:
    """Factors are MS-AMP's, of 2,241 amaxes, those of the sum over processes, too; scales of inputs and gradients are
    those of a window of 16 steps."""
    found, casts = kernels("msamp_fp8"), slots("fp8_lm")
    reduce = GradientCasts.made_from(find("fp8_lm").expansion(processes=8).run["gradients"]).reduce
    assert reduce is not None and (reduce.processes, reduce.factor) == (8, "auto")
    scale = scale_of(found["amax"], reduce.format, power_of_two=reduce.scale == "power_of_two")
    assert torch.equal(1 / scale, found["e4m3fn.factor"])
    amax = found["amax"][:, None]
    for slot, spec in casts.items():
        scaling = spec.scaling.tree() | {"kind": "current", "granularity": "channel"}
        own = {key: value for key, value in scaling.items() if key not in ("history", "reduce")}
        scale = Quantizer({"format": str(spec.format), "scaling": own}).find_scale(amax)  # type: ignore[arg-type]
        assert scale is not None and torch.equal(1 / scale.entries.view(-1), found[f"{spec.format}.factor"]), slot
        if slot.endswith(".weight"):
            continue
        made = Quantizer(spec)
        for each in (4.0, *(1.0,) * 16):
            made(torch.tensor([[each]]))
            held = made.find_scale(amax)
            made.commit()
        now = made.find_scale(amax)
        assert held is not None and now is not None and float(held.entries) == 4 * float(now.entries)


@pytest.mark.parametrize(("scale", "kind"), [("real", "real"), ("power_of_two", "ue8m0")])
def test_deepseek_v3(scale: str, kind: str) -> None:
    """Operands of a layer are DeepGEMM's casts; the input of the weight gradient's product is what forward rounded,
    rounded again along the tokens, which costs nothing if scales are powers of two, as the authors say. The gradient
    is half of the input, whose blocks it has."""
    found = recorded()["deepgemm_casts"]

    def decoded(shape: str, name: str) -> Tensor:
        values, scales = e4m3(found[f"{shape}128.{kind}.{name}.codes"]), found[f"{shape}128.{kind}.{name}.scale"]
        runs = [1 if part == whole else 128 for part, whole in zip(scales.shape, values.shape, strict=True)]
        whole = scales.repeat_interleave(runs[0], 0).repeat_interleave(runs[1], 1)
        return values * whole[: values.shape[0], : values.shape[1]]

    x = found["in.normal"].float()
    half = len(x)
    step = Step(rule("deepseek_v3", scale=scale), x, x, x[:, :half], torch.float32)
    rows, squares, columns = (decoded(shape, "normal") for shape in ("run", "square", "column"))
    dy, turned = rows[:, :half], columns[:, :half]
    assert torch.equal(step.slots["forward.input"], rows) and torch.equal(step.slots["grad_input.grad_output"], dy)
    assert torch.equal(step.slots["forward.weight"], squares) and torch.equal(step.slots["grad_input.weight"], squares)
    assert torch.equal(step.slots["grad_weight.grad_output"], turned)
    again = Quantizer(slots("deepseek_v3", scale=scale)["grad_weight.grad_output"])(rows.T.contiguous()).T
    assert torch.equal(step.slots["grad_weight.input"], again)
    assert torch.equal(again, columns) == (scale == "power_of_two")
    step.compare(rows @ squares.T, dy @ squares, turned.T @ again, steps=4)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(("element", "name"), [("e4m3fn", "fp8_e4m3"), ("e3m2", "fp6_e3m2"), ("e2m1", "fp4_e2m1")])
def test_microxcaling(element: str, name: str, dtype: str) -> None:
    """Operands of each product along the axis that it sums over. `bf16` rounds what goes in, and half away what comes
    out of a product in float32, which ours rounds to even."""
    found = data("microxcaling")
    given = (found[f"linear.{each}"].to(DTYPES[dtype]).float() for each in ("x", "w", "dy"))
    step = Step(rule("mx", element=element), *given, torch.float32)
    for ours, each in ((step.y, "y"), (step.dx, "dx"), (step.dw, "dw")):
        theirs = found[f"linear.{name}.{dtype}.{each}"]
        if dtype == "f32":
            torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=4 * 2.0**-23 * float(theirs.abs().max()))
        else:
            assert torch.equal(round_to(ours.detach(), "bf16", "nearest_away"), theirs)


def test_hif8() -> None:
    """Every recorded value, and nothing else decides: there is no scale."""
    found = load_file(Path(__file__).parents[1] / "quantize" / "table_references.safetensors")
    names = [key.split(".")[1] for key in found if key.startswith("hif8.") and key.endswith(".in")]
    compared = 0
    for spec in slots("hif8").values():
        for name in names:
            x, expected = found[f"hif8.{name}.in"], found[f"hif8.{name}.out"]
            assert torch.equal(Quantizer(spec)(x), expected), name
            compared += x.numel()
    assert compared > 6 * 8_000


@pytest.mark.parametrize("name", ["normal", "lognormal", "t2", "edge"])
def test_coat(name: str) -> None:
    """Codes of both formats and the tensor's bfloat16 scale, by COAT's kernels in Triton's interpreter."""
    x = kernels("int8")[f"in.{name}"].to(torch.bfloat16)
    for slot, spec in slots("coat").items():
        dtype = torch.float8_e5m2 if slot.endswith("grad_output") else torch.float8_e4m3fn
        found, quantizer = kernels(f"coat.{spec.format.short_name}"), Quantizer(spec)
        codes, scale = found[f"{name}.codes"].view(dtype).float(), quantizer.find_scale(x)
        assert scale is not None and torch.equal(scale.entries, found[f"{name}.scale"])
        assert torch.equal(quantizer.cast(x, False).rounded, codes), slot
        assert torch.equal(quantizer.values(x, False, torch.float32), codes * scale.entries), slot
