"""Transformer Engine: a recipe object for each way of casting that a policy has; a Python file.

Its five recipes, with what can be chosen in them, are those of the book's `te_*`, which are compared with its
references in float32; the objects were never made here, since the package wants a GPU. A recipe holds in an autocast,
so each layer gets one of its own. Delayed scaling closes a step at the end of an autocast, which therefore spans the
whole model, and stands alone.

What the scales of Float8CurrentScaling and Float8BlockScaling are is read from environment variables as the package is
imported, into attributes that are no arguments; `with_scales` sets them.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

from altgrad.conversion.policies.policy_target import (
    LEAVE,
    Expressible,
    NotExpressible,
    Offer,
    PolicyTarget,
    first_cast,
    python_file,
    scaling_choice,
    with_sums,
)
from altgrad.nn.slots import PRODUCTS, LayerPrecision

COMMIT = "d0067d0da6cb01811b8072a7d304f0e00344ce2b"
SHARED = {
    "shared": "its weight is shared, and te.Linear has one of its own",
    "repeated": "the model has it twice, and te.Linear would be two layers",
}
GEMMS = {"forward": "fp8_gemm_fprop", "grad_input": "fp8_gemm_dgrad", "grad_weight": "fp8_gemm_wgrad"}
SPLIT = {"hopper_fast": False, "hopper_promote_128": True}
"""Accumulators that `use_split_accumulator` chooses, in recipes that let it be chosen."""
AS_IT_IS = {"forward": "hopper_fast", "grad_input": "hopper_promote_128", "grad_weight": "hopper_promote_128"}
"""What it is in FP8 without being chosen."""
WITH_SCALES = '''

def with_scales(made: recipe.Recipe, *, power_of_two: bool) -> recipe.Recipe:
    """The recipe with scales that are powers of two, or any float32, whatever the environment says."""
    for tensor in ("fp8_quant_fwd_inp", "fp8_quant_fwd_weight", "fp8_quant_bwd_grad"):
        setattr(made, tensor, dataclasses.replace(getattr(made, tensor), power_2_scale=power_of_two))
    return made

'''
EXCHANGE = '''

def convert(model: nn.Module) -> nn.Module:
    """Exchange the Linears in LAYERS for te.Linear, each under its recipe, and no others; returns the model."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, key in LAYERS.items():
        old = modules.get(name)
        if not isinstance(old, nn.Linear):
            raise ValueError(f"{name} is not an nn.Linear of this model; write the policy for it.")
        new = te.Linear(
            old.in_features, old.out_features, bias=old.bias is not None, params_dtype=old.weight.dtype,
            device=old.weight.device,
        )
        with torch.no_grad():
            new.weight.copy_(old.weight)
            if old.bias is not None:
                new.bias.copy_(old.bias)
'''
EACH = """\
        new.forward = under(RECIPES[key], new.forward)
        setattr(modules[name.rpartition(".")[0]], name.rpartition(".")[2], new)
    return model
"""
WHOLE = """\
        setattr(modules[name.rpartition(".")[0]], name.rpartition(".")[2], new)
    (made,) = RECIPES.values()
    model.forward = under(made, model.forward)
    return model
"""
UNDER = '''

def under(made, forward):
    """A forward in an autocast with this recipe."""

    def run(*inputs, **named):
        with te.autocast(enabled=True, recipe=made):
            return forward(*inputs, **named)

    return run
'''


class TransformerEngineTarget(PolicyTarget):
    """Transformer Engine's recipe objects."""

    name: ClassVar[str] = "te"
    page: ClassVar[str] = (
        f"https://github.com/NVIDIA/TransformerEngine/blob/{COMMIT}/transformer_engine/common/recipe/__init__.py"
    )

    def offers(self, wanted: LayerPrecision) -> Iterable[Offer]:
        return te_offers(wanted)

    def text(self, expressible: Expressible) -> str:
        keys = expressible.keys
        delayed = [c for c in expressible.choices if c.offer is not None and c.offer.name == "delayed"]
        if delayed and len(keys) > 1:
            other = next(key for made, key in keys.items() if not made.startswith("recipe.DelayedScaling"))
            why = f"delayed scaling closes a step at the end of an autocast, and {other} would have another"
            raise NotExpressible(delayed[0].decided, f"{why}; {LEAVE}")
        made = "".join(f"    {key!r}: {made},\n" for made, key in keys.items())
        parts = [WITH_SCALES] if "with_scales" in made else []
        imports = ["import dataclasses\n"] if parts else []
        parts.append(f"RECIPES = {{\n{made}}}\n")
        if expressible.blocks is not None and made:
            imports += ["import torch", "from torch import nn", "from transformer_engine import pytorch as te"]
            parts += [UNDER, EXCHANGE + (WHOLE if delayed else EACH)]
        return python_file(expressible, [*imports, "from transformer_engine.common import recipe"], parts)


def te_offers(wanted: LayerPrecision) -> list[Offer]:
    """What Transformer Engine runs that comes nearest, one for each of its recipes."""
    return [_delayed(wanted), _current(wanted), _block(wanted), _mxfp8(wanted), _nvfp4(wanted)]


def _hybrid(wanted: LayerPrecision) -> bool:
    """Whether gradients have more range than the rest."""
    spec = first_cast(wanted, "grad_output")
    return spec is not None and str(spec.format) == "e5m2"


def _format(wanted: LayerPrecision) -> str:
    return f"fp8_format=recipe.Format.{'HYBRID' if _hybrid(wanted) else 'E4M3'}"


def _backward(wanted: LayerPrecision, arguments: list[str]) -> dict[str, Any]:
    """Nothing; or, where no operand of the backward pass is cast, the argument and the part of the rule for that."""
    if any(spec for (product, _), spec in wanted.slots.items() if product != "forward"):
        return {}
    arguments.append("backward_override='high_precision'")
    return {"grad_input": "none", "grad_weight": "none"}


def _fp8(wanted: LayerPrecision, scaling: dict[str, Any], **weight: Any) -> dict[str, Any]:
    """A rule of one scaling, in the formats that are wanted."""
    gradients = "e5m2" if _hybrid(wanted) else "e4m3fn"
    return {
        "weight": {"format": "e4m3fn", "scaling": {**scaling, **weight}},
        "input": {"format": "e4m3fn", "scaling": scaling},
        "grad_output": {"format": gradients, "scaling": scaling}, "operands": "per_product",
    }  # fmt: skip


def _delayed(wanted: LayerPrecision) -> Offer:
    own = {"history": 1024, "reduce": "max", "margin": 0}
    own = {name: scaling_choice(wanted, name, default) for name, default in own.items()}
    rule = with_sums(_fp8(wanted, {"kind": "delayed", "scale": "real", "arithmetic": "te", **own}), wanted, AS_IT_IS)
    made = (
        f"recipe.DelayedScaling({_format(wanted)}, amax_history_len={own['history']}, "
        f"amax_compute_algo={own['reduce']!r}, margin={own['margin']})"
    )
    note = "delayed begins with a scale of 1, and with the first step's own amax in AltGrad."
    return Offer("delayed", made, rule, 16, SHARED, note=note)


def _current(wanted: LayerPrecision) -> Offer:
    power = scaling_choice(wanted, "scale", "real") == "power_of_two"
    scaling = {"kind": "current", "scale": "power_of_two" if power else "real", "arithmetic": "te"}
    arguments = [_format(wanted), f"use_power_2_scales={power}"]
    sums: dict[str, str] = {product: how.text for product, how in wanted.accumulators.items() if how.text in SPLIT}
    arguments += [
        f"{GEMMS[product]}=recipe.MMParams(use_split_accumulator={SPLIT[text]})"
        for product, text in sums.items()
        if text != AS_IT_IS[product]
    ]
    rule = with_sums(_fp8(wanted, scaling), wanted, sums) | _backward(wanted, arguments)
    made = f"with_scales(recipe.Float8CurrentScaling({', '.join(arguments)}), power_of_two={power})"
    return Offer("current", made, rule, 16, SHARED)


def _block(wanted: LayerPrecision) -> Offer:
    power = scaling_choice(wanted, "scale", "power_of_two") == "power_of_two"
    scaling = {"kind": "block", "scale": "power_of_two" if power else "real", "arithmetic": "te"}
    rule, dimensions = _fp8(wanted, scaling), []
    for operand, name in (("input", "x"), ("weight", "w"), ("grad_output", "grad")):
        square = scaling_choice(wanted, "shape", "square" if operand == "weight" else "row", operand) == "square"
        rule[operand] = {**rule[operand], "scaling": {**scaling, "shape": "square" if square else "row"}}
        dimensions.append((f"{name}_block_scaling_dim", 2 if square else 1))
    squares = sum(size == 2 for _, size in dimensions)
    arguments = [_format(wanted), f"use_f32_scales={not power}", *(f"{name}={size}" for name, size in dimensions)]
    rule = with_sums(rule, wanted, dict.fromkeys(PRODUCTS, "hopper_promote_128")) | _backward(wanted, arguments)
    made = f"with_scales(recipe.Float8BlockScaling({', '.join(arguments)}), power_of_two={power})"
    never = "two of its operands have square blocks, and Float8BlockScaling takes one" if squares > 1 else ""
    return Offer("block", made, rule, 16, SHARED, never=never)


def _mxfp8(wanted: LayerPrecision) -> Offer:
    square = scaling_choice(wanted, "shape", "row", "weight") == "square"
    rule = _fp8(wanted, {"kind": "mx", "mode": "rceil"}, shape="square" if square else "row")
    arguments = [_format(wanted), f"enable_2d_quantization={square}"]
    rule = with_sums(rule, wanted, dict.fromkeys(PRODUCTS, "blackwell")) | _backward(wanted, arguments)
    made = f"recipe.MXFP8BlockScaling({', '.join(arguments)})"
    return Offer("mxfp8", made, rule, 32, SHARED)


def _nvfp4(wanted: LayerPrecision) -> Offer:
    turned = wanted.transforms.get("grad_weight") is not None
    gradient = first_cast(wanted, "grad_output")
    drawn = gradient is None or gradient.rounding == "stochastic"
    square = scaling_choice(wanted, "shape", "square", "weight") == "square"
    tried = [name for name in ("weight", "input") if scaling_choice(wanted, "choose", (), name)]
    one = tried[0] if tried else ""
    by = "mse" if scaling_choice(wanted, "by", "mae", one) == "mse" else "mae"
    narrow = scaling_choice(wanted, "scale_max", None, one) is not None
    four_over_six = {"choose": [6, 4], "by": by, **({"scale_max": 256.0} if narrow else {})}
    scaling = {"kind": "nvfp4", "arithmetic": "te"}
    shape = {"shape": "square"} if square else {}
    rule: dict[str, Any] = {
        "weight": {"format": "e2m1", "scaling": {**scaling, **shape, **(four_over_six if "weight" in tried else {})}},
        "input": {"format": "e2m1", "scaling": {**scaling, **(four_over_six if "input" in tried else {})}},
        "grad_output": {"format": "e2m1", "scaling": scaling, **({"rounding": "stochastic"} if drawn else {})},
        "operands": "per_product",
    }  # fmt: skip
    if turned:
        transform = {"kind": "hadamard", "size": 16, "signs": "fixed", "dtype": "bfloat16"}
        rule["grad_weight"] = {"transform": transform}
    scope = {(): "none", ("weight",): "weights", ("input",): "activations"}.get(tuple(tried), "all")
    arguments = [
        f"disable_rht={not turned}", f"disable_stochastic_rounding={not drawn}",
        f"disable_2d_quantization={not square}", f"nvfp4_4over6={scope!r}",
    ]  # fmt: skip
    if tried:
        arguments += [
            f"nvfp4_4over6_e4m3_use_256={scope if narrow else 'none'!r}",
            f"nvfp4_4over6_err_mode={by.upper()!r}",
        ]
    rule = with_sums(rule, wanted, dict.fromkeys(PRODUCTS, "blackwell_fp4")) | _backward(wanted, arguments)
    never = "Transformer Engine tries 4 and 6 without Hadamard transforms alone" if tried and turned else ""
    return Offer("nvfp4", f"recipe.NVFP4BlockScaling({', '.join(arguments)})", rule, 16, SHARED, never=never)
