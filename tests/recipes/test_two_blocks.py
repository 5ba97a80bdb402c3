"""Claims about a step of a two-block model in bfloat16: under a recipe it is the step of its authors' own layers.

torchao's trainers and fouroversix run here as they are, where they are installed: every operand of every layer has the
bits of theirs, and products go through one BLAS on both sides. Transformer Engine's reference does not run without its
kernels, and its step was recorded. Stochastic rounding is off on both sides.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.nn import QuantizedLinear
from tests.recipes.two_blocks import cast, in_blocks, linears, model, step, tokens
from tests.recipes.vendor import Step, data, e2m1, e4m3, rule, slots, without_draws

INSTALL = "is not installed; see CONTRIBUTING.md"


class Seen(list[Tensor]):
    """The casts that a reference makes, as they are made, by functions of its that are watched."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.patch = patch

    def watch(self, owner: Any, name: str, value: Callable[..., Tensor]) -> None:
        """value: of what the function gave back, and of its first argument."""
        made_by = getattr(owner, name)

        def cast_and_seen(*arguments: Any, **options: Any) -> Any:
            found = made_by(*arguments, **options)
            self.append(value(found, arguments[0]).flatten(0, -2))
            return found

        self.patch.setattr(owner, name, staticmethod(cast_and_seen) if isinstance(owner, type) else cast_and_seen)

    def take(self, operand: Tensor) -> bool:
        """Whether that is one of them, as it is or transposed, which it is no longer after that."""
        like = (n for n, each in enumerate(self) if torch.equal(each, operand) or torch.equal(each.T, operand))
        at = next(like, None)
        if at is not None:
            del self[at]
        return at is not None


def torchao_float8(made: nn.Module, recipe: str, seen: Seen) -> None:
    """torchao's own conversion, with the products that it emulates."""
    float8 = pytest.importorskip("torchao.float8", reason=f"torchao {INSTALL}")
    from torchao.float8 import float8_linear

    name = {"torchao_rowwise_gw_hp": "rowwise_with_gw_hp"}.get(recipe, recipe.removeprefix("torchao_"))
    config = float8.Float8LinearConfig.from_recipe_name(name)
    object.__setattr__(config, "emulate", True)
    seen.watch(float8_linear, "hp_tensor_to_float8_dynamic", lambda found, _: found._data.float() / found._scale)
    float8.convert_to_float8_training(made, config=config, module_filter_fn=in_blocks)


def torchao_mxfp8(made: nn.Module, recipe: str, seen: Seen) -> None:
    mx = pytest.importorskip("torchao.prototype.moe_training.mxfp8_linear", reason=f"torchao {INSTALL}")

    class Layer(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            how = mx.KernelPreference.EMULATED, mx.ScaleCalculationMode.RCEIL
            product: Tensor = mx._to_mxfp8_then_scaled_mm(x, self.weight, *how)
            return product

    for owner, name in ((mx.MXTensor, "to_mx"), (mx, "_to_mxfp8_dim1_kernel_wrapper")):
        seen.watch(owner, name, lambda found, _: found.dequantize(torch.float32))
    for layer in linears(made).values():
        layer.__class__ = Layer


def torchao_int8(made: nn.Module, recipe: str, seen: Seen) -> None:
    int8 = pytest.importorskip("torchao.prototype.quantized_training.int8_mixed_precision", reason=f"torchao {INSTALL}")
    seen.watch(int8, "quantize_int8_rowwise", lambda found, _: found[0].float() * found[1].float().view(-1, 1))
    for layer in linears(made).values():
        layer.__class__, layer.config = int8.Int8MixedPrecisionTrainingLinear, int8.Int8MixedPrecisionTrainingConfig()


def fouroversix(made: nn.Module, recipe: str, seen: Seen) -> None:
    """Its layers and torch backends; the recipe's squares are `weight_scale_2d`."""
    package = pytest.importorskip("fouroversix", reason=f"fouroversix {INSTALL}")
    from fouroversix.matmul import pytorch
    from fouroversix.quantize.pytorch import backend

    config = package.ModelQuantizationConfig(
        quantize_backend="pytorch", matmul_backend="pytorch", keep_master_weights=True, weight_scale_2d=True,
        gradient_round_style="nearest", modules_to_not_convert=["head"],
    )  # fmt: skip
    matrix = backend.get_rht_matrix(device="cpu")  # its default is a GPU
    seen.patch.setattr(backend, "get_rht_matrix", lambda: matrix)
    dequantize = pytorch.dequantize

    def value(_: Tensor, codes: Any) -> Tensor:
        """Its own divides last, which is one rounding more; its codes times scales are exact in both."""
        scaled: Tensor = dequantize(dataclasses.replace(codes, amax=None), torch.float32)
        return scaled * (codes.amax / (6 * 256))

    seen.watch(pytorch, "dequantize", value)
    package.quantize_model(made, config)


REFERENCES: dict[str, Callable[[nn.Module, str, Seen], None]] = {
    "torchao_tensorwise": torchao_float8, "torchao_rowwise": torchao_float8, "torchao_rowwise_gw_hp": torchao_float8,
    "torchao_mxfp8": torchao_mxfp8, "torchao_int8": torchao_int8, "four_over_six": fouroversix,
}  # fmt: skip


TIES = {"four_over_six": 2}
"""Operands that may differ in a block of 16: 6 and 4 are as good to 4e-8 there, and sums of 16 squares decide."""
ANOTHER_ORDER = {"torchao_int8": (8.0, 0.05), "four_over_six": (0.5, 0.1)}
"""Units of the largest value's last place by which a product may differ, and the share of a gradient of the whole step;
all others are the same bits. A sum that is one step off moves a scale or a code of a cast that comes later."""


@pytest.mark.parametrize("recipe", REFERENCES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_step_of_a_package(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operand of each layer, given what went into theirs; its products; and all gradients of the whole step.

    int8 runs in float32, as its recipe says nothing of compute; its integer sums are rounded in another order.
    """
    dtype = torch.float32 if recipe == "torchao_int8" else torch.bfloat16
    width, length = (128, 128) if recipe == "four_over_six" else (64, 96)
    ours, theirs = (model(width, length).to(dtype) for _ in range(2))
    seen = Seen(monkeypatch)
    REFERENCES[recipe](theirs, recipe, seen)
    expected, layers = step(theirs, tokens(length))
    assert len(layers) == 8 and len(seen) == 8 * len(slots(recipe))
    (steps, share), missing = ANOTHER_ORDER.get(recipe, (0.0, 0.0)), 0
    for passed in layers.values():
        layer = Step(without_draws(rule(recipe)), **passed.given, dtype=dtype)
        tied = sum(not seen.take(layer.slots[slot]) for slot in slots(recipe))
        missing += tied
        layer.compare(**{key: value.float() for key, value in passed.made.items()}, steps=4.0 if tied else steps)
    assert missing == len(seen) <= TIES.get(recipe, 0)
    loss, _ = step(cast(ours, recipe), tokens(length))
    torch.testing.assert_close(loss, expected, rtol=share / 50, atol=0)
    for found, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert found.grad is not None and other.grad is not None
        assert (found.grad - other.grad).norm() <= share * other.grad.norm()


@pytest.mark.parametrize(("recipe", "blocks"), [("te_nvfp4", 1), ("te_nvfp4_4over6", 2)])
def test_the_step_of_transformer_engines_reference(recipe: str, blocks: int) -> None:
    """Of two blocks te_nvfp4 leaves the last one as it is. No operand differs, given what went into theirs; products
    and the step as a whole to the order of summation."""
    found = data("te_two_blocks")
    weights = {key: value for key, value in found.items() if key.startswith("model.")}
    made = model(32, 32)
    made.load_state_dict({key.removeprefix("model."): value for key, value in weights.items()})
    loss, passed = step(cast(made, recipe), found["ids"])
    torch.testing.assert_close(loss, found[f"{recipe}.loss"], rtol=1e-4, atol=0)
    layers = {name: layer for name, layer in linears(made).items() if isinstance(layer, QuantizedLinear)}
    assert list(layers) == list(linears(made))[: 4 * blocks]
    for name in layers:
        of = f"{recipe}.{name}"
        given = {"x": found[f"{of}.x"], "w": weights[f"model.{name}.weight"], "dy": found[f"{of}.dy"]}
        layer = Step(without_draws(rule(recipe)), **given, dtype=torch.bfloat16)
        for slot in slots(recipe):
            assert torch.equal(layer.slots[slot], te_operand(found, recipe, name, slot)), (name, slot)
        layer.compare(*(found[f"{of}.{key}"] for key in ("y", "dx", "dw")), steps=0.5)
        for key, whole in passed[name].made.items():
            assert (whole.float() - found[f"{of}.{key}"]).norm() <= 0.02 * found[f"{of}.{key}"].norm(), (name, key)


def te_operand(found: dict[str, Tensor], recipe: str, name: str, slot: str) -> Tensor:
    """(code . block scale) . (tensor amax / (6 . bound)); an operand that is summed over tokens lies transposed."""
    product, operand = slot.split(".")
    of = f"{recipe}.{name}.{'forward.weight' if operand == 'weight' else slot}"
    bound = 256 if recipe == "te_nvfp4_4over6" and operand != "grad_output" else 448
    values = e2m1(found[f"{of}.codes"]) * e4m3(found[f"{of}.scale"]).repeat_interleave(16, 1)
    whole = values * (found[f"{of}.amax"] / (6 * bound))
    return whole.T if product == "grad_weight" else whole
