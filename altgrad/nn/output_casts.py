"""What a module gives, and the gradient that comes back to it, on a grid: a forward hook.

    outputs: e4m3fn                               forward alone
    outputs: {forward: e4m3fn, backward: e5m2}

So the residual stream is cast (the outputs of blocks), an activation function that is a module, what a norm gives, or
logits. The hook belongs to a child of the module, `output_casts`, which holds the casts. `backward` casts the gradient
of what the module gave, as it arrives, before the module's own backward.
"""

import typing
from typing import Any, ClassVar

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from altgrad.nn.attention_slots import unfit_elsewhere
from altgrad.nn.products import as_matrix
from altgrad.nn.slots import CastSpec
from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.quantize.passes import backward_counts
from altgrad.quantize.traced import held, named_once
from altgrad.spec import Spec

CHILD = "output_casts"
"""The child of a module that casts what it gives."""
SITES = {"forward": "output", "backward": "output_gradient"}


class OutputsSpec(Spec):
    """What happens to a module's output. A cast alone stands for `{forward: cast}`."""

    forward: CastSpec = None
    """The cast of what the module returns."""
    backward: CastSpec = None
    """The cast of the gradient that arrives at the output."""

    noun: ClassVar[str] = "the casts of outputs"

    @model_validator(mode="before")
    @classmethod
    def _from_cast(cls, value: Any) -> Any:
        is_cast = isinstance(value, str | QuantizerSpec) or (isinstance(value, dict) and "format" in value)
        return {"forward": value} if is_cast else value

    @model_validator(mode="after")
    def _agree(self) -> "OutputsSpec":
        if not self.chosen():
            raise ValueError("outputs casts nothing; give it forward, backward or both.")
        for name, spec in self.chosen().items():
            if (unfit := unfit_elsewhere(spec)) is not None:
                raise ValueError(f"outputs.{name} has {unfit}, which belongs to the slots of a Linear.")
        if self.backward is not None and self.backward.gradient.kind != "identity":
            raise ValueError(
                f"gradient: {self.backward.gradient.kind} has no meaning for outputs.backward, behind which no "
                "gradient flows."
            )
        return self

    def chosen(self) -> dict[str, QuantizerSpec]:
        """What is cast, and how."""
        found = {name: getattr(self, name) for name in SITES}
        return {name: spec for name, spec in found.items() if spec is not None}


class QuantizedOutputs(nn.Module):
    """The casts of what one module gives. site: the module's name."""

    off = False
    """Whether outputs pass as they are; see `altgrad.nn.replay.casts_off`."""

    def __init__(self, spec: OutputsSpec, site: str, seed: int) -> None:
        super().__init__()
        self.spec = spec
        made: dict[str, nn.Module] = {}
        for name, cast in spec.chosen().items():
            role: Any = "input" if name == "forward" else "grad_output"
            try:
                made[SITES[name]] = Quantizer(cast, f"{site}/{SITES[name]}", role, seed=seed)
            except ValueError as error:
                raise ValueError(f"{site}, outputs.{name}: {error}") from None
        self.casts = nn.ModuleDict(made)

    def forward(self, x: Tensor) -> Tensor:
        """x on its grid, the gradient behind it on its own."""
        if self.off:
            return x
        if "output_gradient" in self.casts:
            quantizer: Any = self.casts["output_gradient"]
            x = typing.cast(Any, _CastGradient).apply(x, quantizer, backward_counts(quantizer))
        if "output" in self.casts:
            x = self.casts["output"](as_matrix(held(x))).reshape(x.shape)
        return x

    def hook(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """What the module gives, with its tensor, or the first of several, cast. ValueError where there is none."""
        if isinstance(output, Tensor):
            return self(output)
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return (self(output[0]), *output[1:])
        raise ValueError(f"{type(module).__name__} gives a {type(output).__name__}; outputs casts tensors alone.")


class _CastGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantizer: Quantizer, live: bool) -> Tensor:
        ctx.quantizer, ctx.live = quantizer, live
        return named_once(x.clone())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        g = grads[0]
        return ctx.quantizer.values(as_matrix(held(g)), ctx.live, g.dtype).reshape(g.shape), None, None


def check_outputs(module: nn.Module, spec: OutputsSpec, site: str, seed: int) -> QuantizedOutputs:
    """The casts of what a module gives. ValueError for a module that gives nothing, or whose children are its steps."""
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        raise ValueError(f"{site} is a {type(module).__name__}, which has no output of its own; name its members.")
    if CHILD in module._modules:
        raise ValueError(f"{site} has casts of its outputs already; dequantize_model it first.")
    return QuantizedOutputs(spec, site, seed)


def install_outputs(module: nn.Module, made: QuantizedOutputs) -> None:
    """Cast what a module gives from now on."""
    device = next((p.device for p in module.parameters()), None)
    module.add_module(CHILD, made.to(device).train(module.training))
    module.register_forward_hook(made.hook)


def take_outputs_off(module: nn.Module) -> None:
    """Undo `install_outputs`."""
    made = module._modules.pop(CHILD)
    for number in [n for n, hook in module._forward_hooks.items() if getattr(hook, "__self__", None) is made]:
        del module._forward_hooks[number]
