"""torchao's trainers: Float8LinearConfig, MXFP8TrainingOpConfig, Int8MixedPrecisionTrainingConfig, NVFP4TrainingConfig,
Float8BlockwiseLinearConfig; a Python file whose `convert(model)` applies them to the layers that it lists.

What each casts is that of the recipes `torchao_*`, which are compared with torchao's own code. The tests run what is
written here: which layers become torchao's, and their y, dx and dW beside ours. The last two want a GPU.

torchao 0.18.0's MXFP8 passes over the bias of a Linear, so one with a bias is refused; it and INT8 in its default form
put another Parameter in the place of a weight, which unties what is tied (INT8 is written as `module_swap`, which does
not).
"""

import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from altgrad.conversion.policies.policy_target import (
    Expressible,
    Offer,
    PolicyTarget,
    first_cast,
    python_file,
    scaling_choice,
    with_sums,
)
from altgrad.nn.slots import PRODUCTS, SLOTS, LayerPrecision

FLOAT8 = {"e4m3fn": "torch.float8_e4m3fn", "e5m2": "torch.float8_e5m2"}
FLOOR = 1e-12
FAST = {"hopper_fast": True, "hopper_promote_128": False}
"""Accumulators that `use_fast_accum` chooses; without one it is torchao's own choice."""
MODULES = {
    "torch": ("nn",),
    "torchao.float8": (
        "CastConfig", "Float8GemmConfig", "Float8LinearConfig", "ScalingGranularity", "ScalingType",
        "convert_to_float8_training",
    ),
    "torchao.prototype.blockwise_fp8_training.linear": ("Float8BlockwiseLinearConfig",),
    "torchao.prototype.moe_training.config": ("MXFP8TrainingOpConfig",),
    "torchao.prototype.moe_training.nvfp4_training.nvfp4_training": ("NVFP4TrainingConfig",),
    "torchao.prototype.mx_formats.config": ("ScaleCalculationMode",),
    "torchao.prototype.quantized_training": ("Int8MixedPrecisionTrainingConfig",),
    "torchao.quantization": ("quantize_",),
    "torchao.quantization.quantize_.common": ("KernelPreference",),
}  # fmt: skip
"""Where what a file uses is imported from."""
BEGIN = '''\
def configs(emulate: bool = False) -> dict:
    """torchao's own objects, by name."""
    return '''
CONVERT = '''

def convert(model: nn.Module, *, emulate: bool = False) -> nn.Module:
    """Convert the Linears in LAYERS, in place, and no others; returns the model.

    emulate: compute float8 and MXFP8 products in float32, on any device.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in LAYERS:
        if not isinstance(modules.get(name), nn.Linear):
            raise ValueError(f"{name} is not an nn.Linear of this model; write the policy for it.")
    for key, config in configs(emulate).items():
        names = {name for name, its in LAYERS.items() if its == key}
'''
BY_FILTER = "        quantize_(model, config, filter_fn=lambda _, name, names=names: name in names)\n"
BY_FLOAT8 = """\
        model = convert_to_float8_training(
            model, config=config, module_filter_fn=lambda _, name, names=names: name in names
        )
"""


class TorchaoTarget(PolicyTarget):
    """torchao's trainers."""

    name: ClassVar[str] = "torchao"
    page: ClassVar[str] = "https://github.com/pytorch/ao/tree/v0.18.0/torchao"
    proved: ClassVar[str] = "torchao 0.18.0, emulated on a CPU"

    def offers(self, wanted: LayerPrecision) -> Iterable[Offer]:
        yield _float8(wanted)
        yield _mxfp8(wanted)
        yield _int8(wanted)
        yield _nvfp4(wanted)
        yield _blockwise(wanted)

    def text(self, expressible: Expressible) -> str:
        made = "".join(f"        {key!r}: {made},\n" for made, key in expressible.keys.items())
        parts = [f"{BEGIN}{{\n{made}    }}"]
        if expressible.blocks is not None and made:
            parts.append(_convert(list(expressible.keys)))
        lines = ["import torch"] if "torch.float8_" in made else []
        for module, names in MODULES.items():
            used = [name for name in names if any(re.search(rf"\b{name}\b", part) for part in parts)]
            lines += [f"from {module} import {', '.join(used)}"] if len(used) in (1, 2) else []
            lines += [f"from {module} import (\n    {', '.join(used)},\n)"] if len(used) > 2 else []
        return python_file(expressible, lines, parts)


def _convert(made: list[str]) -> str:
    """The function that converts, with as much as these configs take."""
    are_float8 = [each.startswith("Float8LinearConfig") for each in made]
    if all(are_float8):
        return f"{CONVERT}{BY_FLOAT8}    return model\n"
    if not any(are_float8):
        return f"{CONVERT}{BY_FILTER}    return model\n"
    float8, others = (textwrap.indent(part, "    ") for part in (BY_FLOAT8, BY_FILTER))
    choose = "        if isinstance(config, Float8LinearConfig):\n"
    return f"{CONVERT}{choose}{float8}        else:\n{others}    return model\n"


def _cast_products(wanted: LayerPrecision) -> list[str]:
    """The products of which an operand is cast."""
    return [each for each in PRODUCTS if any(spec for (product, _), spec in wanted.slots.items() if product == each)]


def _rule(wanted: LayerPrecision, cast: Mapping[str, Any], products: list[str], **operands: Any) -> dict[str, Any]:
    """One cast for all operands, or another for some, in these products alone."""
    short = {operand: operands.get(operand, cast) for operand in ("weight", "input", "grad_output")}
    without: dict[str, Any] = {product: "none" for product in PRODUCTS if product not in products}
    return {**short, "operands": "per_product", **without}


def _float8(wanted: LayerPrecision) -> Offer:
    """Float8LinearConfig: a scale for the tensor or for each row, chosen by the slot; one format for an operand."""
    power = scaling_choice(wanted, "scale", "real") == "power_of_two"
    products = _cast_products(wanted)
    rule: dict[str, Any] = {"operands": "per_product", **{product: {} for product in PRODUCTS}}
    arguments, formats = [], {}
    for product, operand in SLOTS:
        first = first_cast(wanted, operand)
        formats[operand] = str(first.format) if first is not None and str(first.format) in FLOAT8 else "e4m3fn"
        spec = wanted.slots[product, operand]
        by_row = spec is not None and getattr(spec.scaling, "granularity", "tensor") == "channel"
        scaling = {
            "kind": "current", "granularity": "channel" if by_row else "tensor", "arithmetic": "torchao",
            "scale": "power_of_two" if power else "real", "floor": FLOOR,
        }  # fmt: skip
        used = product in products
        rule[product][operand] = {"format": formats[operand], "scaling": scaling} if used else "none"
        of = "AXISWISE" if by_row and used else "TENSORWISE"
        how = [f"ScalingType.{'DYNAMIC' if used else 'DISABLED'}", f"ScalingGranularity.{of}", FLOAT8[formats[operand]]]
        arguments.append(f"cast_config_{_argument(product, operand)}=CastConfig({', '.join(how)}),")
    for product, name in zip(PRODUCTS, ("output", "grad_input", "grad_weight"), strict=True):
        accumulator = wanted.accumulators.get(product)
        if accumulator is not None and accumulator.text in FAST and product in products:
            rule[product]["accumulator"] = accumulator.text
            arguments.append(f"gemm_config_{name}=Float8GemmConfig(use_fast_accum={FAST[accumulator.text]}),")
    arguments += [f"round_scales_to_power_of_2={power},", "emulate=emulate,"]
    inner = "".join(f"            {argument}\n" for argument in arguments)
    both = [p for p in products if {formats[operand] for product, operand in SLOTS if product == p} == {"e5m2"}]
    never = f"both operands of {both[0]} are e5m2, which torch._scaled_mm does not multiply" if both else ""
    return Offer("float8", f"Float8LinearConfig(\n{inner}        )", rule, 16, never=never)


def _argument(product: str, operand: str) -> str:
    """What Float8LinearConfig calls a slot: the first of an operand by the operand alone."""
    first = next(its for its, name in SLOTS if name == operand)
    return operand if product == first else f"{operand}_for_{product}"


def _mxfp8(wanted: LayerPrecision) -> Offer:
    mode = "floor" if scaling_choice(wanted, "mode", "rceil") == "floor" else "rceil"  # its kernels have no other
    products = _cast_products(wanted)
    high = "grad_weight" not in products
    cast = {"format": "e4m3fn", "scaling": {"kind": "mx", "mode": mode, "arithmetic": "torchao"}}
    rule = _rule(wanted, cast, ["forward", "grad_input", *([] if high else ["grad_weight"])])
    rule = with_sums(rule, wanted, dict.fromkeys(PRODUCTS, "blackwell"))
    inner = (
        "            kernel_preference=KernelPreference.EMULATED if emulate else KernelPreference.AUTO,\n"
        f"            scale_calculation_mode=ScaleCalculationMode.{mode.upper()},\n"
        f"            wgrad_with_hp={high},\n"
    )
    refuses = {
        "bias": "it has a bias, which MXFP8 of torchao 0.18.0 passes over",
        "shared": "its weight is shared, and MXFP8 of torchao puts another Parameter in its place",
    }
    return Offer("mxfp8", f"MXFP8TrainingOpConfig(\n{inner}        )", rule, 32, refuses)


def _int8(wanted: LayerPrecision) -> Offer:
    products = _cast_products(wanted)
    scale = str(scaling_choice(wanted, "scale", "real"))
    cast: dict[str, Any] = {
        "format": "e0m7",
        "scaling": {
            "kind": "current", "granularity": "channel", "arithmetic": "reciprocal",
            "scale": "bf16" if scale in ("bf16", "e8m7") else "real",
        },
    }  # fmt: skip
    flags = ", ".join(
        f"{name}={product in products}"
        for product, name in zip(PRODUCTS, ("output", "grad_input", "grad_weight"), strict=True)
    )
    dtype = "bfloat16" if cast["scaling"]["scale"] == "bf16" else "float32"
    note = f"int8 keeps scales in the dtype of the tensors, so these casts are those of a model in {dtype}."
    made = f"Int8MixedPrecisionTrainingConfig({flags}, module_swap=True)"
    return Offer("int8", made, _rule(wanted, cast, products), note=note)


def _nvfp4(wanted: LayerPrecision) -> Offer:
    scaling = {"kind": "nvfp4", "arithmetic": "fouroversix", "least": 0.015625, "outer": "tensor"}
    cast = {"format": "e2m1", "scaling": scaling}
    rule = _rule(
        wanted, cast, list(PRODUCTS), weight={"format": "e2m1", "scaling": {**scaling, "shape": "square"}},
        grad_output={**cast, "rounding": "stochastic"},
    )  # fmt: skip
    rule["grad_weight"] = {"transform": {"kind": "hadamard", "size": 16, "signs": "layer", "dtype": "bfloat16"}}
    rule = with_sums(rule, wanted, dict.fromkeys(PRODUCTS, "blackwell_fp4"))
    unproved = "its Triton kernels want a GPU; the casts are those recorded of them"
    return Offer("nvfp4", "NVFP4TrainingConfig()", rule, 128, unproved=unproved)


def _blockwise(wanted: LayerPrecision) -> Offer:
    scaling = {"kind": "block", "scale": "real", "arithmetic": "torchao", "floor": FLOOR}
    cast = {"format": "e4m3fn", "scaling": scaling}
    square = {"format": "e4m3fn", "scaling": {**scaling, "shape": "square"}}
    rule = _rule(wanted, cast, list(PRODUCTS), weight=square)
    rule = with_sums(rule, wanted, dict.fromkeys(PRODUCTS, "hopper_promote_128"))
    return Offer(
        "blockwise", "Float8BlockwiseLinearConfig()", rule, 128, {"bias": "it has a bias, which torchao refuses there"},
        unproved="it wants a GPU of compute capability 9.0; the casts are those recorded of its kernels",
    )  # fmt: skip
