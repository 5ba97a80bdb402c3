"""Claims about `engine: native`: the same cast operands, on torch's 8-bit product, wherever that takes them.

A CPU has that product too, for scales of tensors and of rows; what a GPU alone has is in `tests/cuda/test_native.py`.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.nn import PrecisionPolicy, quantize_model, use_engine
from altgrad.nn.native import accumulator_of, missing_units, native_products
from tests.nn.test_accumulated import CHANNEL, DEEPSEEK, FP8, REAL, all_of, layer, step, tensors, with_accumulator

FORWARD = ["forward", "grad_input", "grad_weight"]
OUTLIERS = {"format": "e4m3fn", "outliers": {"kind": "elements"}}


def exact(rows: int, columns: int, seed: int) -> Tensor:
    """Numbers of which e5m2 holds every one, and whose products add up in float32 without rounding."""
    torch.manual_seed(seed)
    return torch.tensor([0.0, 1, -1, 2, -2, 3, -3, 4, -6])[torch.randint(9, (rows, columns))]


def both(recipe: dict[str, Any], dtype: torch.dtype, x: Tensor, g: Tensor, bias: bool) -> list[tuple[Tensor, ...]]:
    """y, dx and dW of a layer, emulated and native."""
    found = []
    for engine in ("eager", "native"):
        made = layer(recipe, bias=bias)
        with torch.no_grad():
            made.weight.copy_(exact(*made.weight.shape, 3))
            if bias:
                made.bias.copy_(torch.arange(len(made.bias)) - 8)
        use_engine(made, engine)
        for quantizer in made.slot_casts.values():
            quantizer.engine = "eager"  # the bits are the same, and nothing is compiled here
        found.append(step(made.to(dtype), x.to(dtype), g.to(dtype)))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("recipe", "bias"),
    [(FP8, True), (FP8, False), (all_of("e4m3fn", CHANNEL, operands="per_product"), True)],
    ids=["bias", "tensor", "rows"],
)
def test_operands_are_those_of_the_emulation_bit_for_bit(
    recipe: dict[str, Any], bias: bool, dtype: torch.dtype
) -> None:
    """Where every sum is exact, all three products are equal, so what they multiplied was."""
    emulated, native = both(recipe, dtype, exact(130, 160, 1), exact(130, 144, 2), bias)
    for ours, theirs in zip(emulated, native, strict=True):
        assert ours.dtype == theirs.dtype == dtype and ours.abs().sum() > 0
        if recipe is FP8:
            assert torch.equal(ours, theirs)
        else:  # real scales of rows: multiplied with the sum here, with each term there
            assert torch.allclose(ours, theirs, rtol=8e-3 if dtype == torch.bfloat16 else 1e-5, atol=1e-3)


def test_the_chip_makes_the_products_it_takes_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[torch.dtype, torch.dtype]] = []
    product = torch._scaled_mm

    def counted(a: Tensor, b: Tensor, **more: Any) -> Tensor:
        calls.append((a.dtype, b.dtype))
        return product(a, b, **more)

    monkeypatch.setattr(torch, "_scaled_mm", counted)
    x, g = tensors()
    for recipe, expected in ((FP8, 3), (with_accumulator(FP8, "hopper_fast", ("grad_weight",)), 2), (DEEPSEEK, 0)):
        calls.clear()
        made = layer(recipe)
        made.native = True
        step(made, x, g)
        assert len(calls) == expected
    made = layer(FP8)
    made.native = True
    step(made, x, g)
    eight, five = torch.float8_e4m3fn, torch.float8_e5m2
    assert calls == [(eight, eight), (five, eight), (five, eight)]
    assert made(x[:0]).shape == (0, 144), "no rows: nothing to multiply"
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (FP8, FORWARD), (all_of("e5m2", "current"), []), (all_of("e4m3fn", REAL), FORWARD),
        (all_of("e4m3fn", CHANNEL, operands="per_product"), FORWARD), (all_of("e4m3fn", CHANNEL), ["forward"]),
        (DEEPSEEK, FORWARD), (all_of("e4m3fn", "mx", operands="per_product"), []), (all_of("e2m1", "nvfp4"), []),
        ({"weight": "e4m3fn", "input": "e4m3fn"}, ["forward"]), ({**FP8, "input": "e3m4"}, ["grad_input"]),
        ({**FP8, "weight": {"format": "e4m3fn", "scaling": CHANNEL}}, ["grad_weight"]),
        (with_accumulator(FP8, "hopper_fast", ("forward",)), ["grad_input", "grad_weight"]),
        ({**FP8, "input": OUTLIERS}, ["grad_input"]),
    ],
)  # fmt: skip
def test_what_a_chip_may_take_is_known_from_the_casts(recipe: dict[str, Any], expected: list[str]) -> None:
    assert native_products(layer(recipe, 128, 128)) == expected


def test_what_is_said_of_a_cpu_is_what_a_cpu_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, rows = torch.device("cpu"), all_of("e4m3fn", CHANNEL, operands="per_product")
    assert native_products(layer(DEEPSEEK, 128, 128), cpu) == [] and native_products(layer(FP8), cpu) == FORWARD
    for takes, expected in ((True, FORWARD), (False, [])):
        monkeypatch.setattr("altgrad.nn.native.CPU_TAKES_ROWS", takes)
        assert native_products(layer(rows, 128, 128), cpu) == expected


def test_a_product_that_this_chip_has_not_is_emulated_with_the_same_bits() -> None:
    """Scales of 128, which a CPU's product does not take."""
    x, g = tensors()
    found = []
    for native in (False, True):
        made = layer(DEEPSEEK)
        made.native = native
        found.append(step(made, x, g))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_sums_differ_in_float32s_last_bits_alone() -> None:
    x, g = tensors()
    found = []
    for native in (False, True):
        made = layer(FP8)
        made.native = native
        found.append(step(made, x, g))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=float(ours.abs().max()) * 1e-6)


def test_the_accumulator_is_named_and_devices_without_such_products_say_so() -> None:
    cpu = torch.device("cpu")
    assert missing_units(cpu) is None and "float32" in accumulator_of(cpu)
    assert missing_units(torch.device("meta")) == "torch has no 8-bit products on meta"


@pytest.mark.long
@pytest.mark.needs("c++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
def test_a_compiled_graph_has_the_same_products() -> None:
    """Of a model of two layers, on exact sums, so that the compiler's order of them is of no consequence."""
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = quantize_model(nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 32)), PrecisionPolicy.uniform(**FP8))
        with torch.no_grad():
            for number, p in enumerate(net.parameters()):
                p.copy_(exact(*p.shape, number) if p.ndim == 2 else torch.zeros(p.shape))
        use_engine(net, "native")
        x = exact(96, 64, 9).requires_grad_()
        y = (torch.compile(net, fullgraph=True) if compiled else net)(x)
        y.backward(exact(*y.shape, 8))
        assert x.grad is not None
        found.append((y.detach(), x.grad, *(p.grad for p in net.parameters())))
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None and theirs is not None and torch.allclose(ours, theirs, rtol=1e-5)
