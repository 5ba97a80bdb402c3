"""Experts in one 3-D weight: a layer for each, so that whatever is known of layers is known of experts.

    y[r] = x[r] W_e^T        for rows r of expert e; weight [experts, out, in], rows sorted by expert

A mixture keeps the weights of its experts in one parameter, since kernels, optimizers and sharding want it so. What is
cast, scaled and watched is one expert: its tokens have an amax of their own. So the stack has a child for each expert,
a layer without a parameter, whose weight is its slice. Rules find it by name (`blocks.0.experts.gate.3`), surgery gives
it the six slots, scales and random bits of every other layer, and a quantised stack *is* a loop of quantised Linears,
to the last bit and with any routing. An expert without a token does not run: nothing of it is cast, noted or drawn.
Those of transformers, whose modules multiply by such parameters themselves, are in `altgrad.nn.library_experts`.

Where no expert is cast or watched the whole is one `torch._grouped_mm`, which has the bits of the loop. A cast that
knows of groups (amaxes by segment, blocks that end with an expert's tokens) was the road not taken: every scaling,
rounding and transform would exist twice.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["ExpertHolder", "ExpertLinear", "StackedLinear", "sorted_by_expert"]


class ExpertLinear(nn.Module):
    """y = x W_e^T (+ b_e) of one expert. Its weight is a slice of a parameter of its holder, which alone has any.

    parameter, biases: the holder's, by name. turned: whether slices lie as [in, out].
    """

    def __init__(
        self, holder: "ExpertHolder", parameter: str, number: int, *, biases: str | None = None, turned: bool = False
    ) -> None:
        super().__init__()
        self.parameter, self.number, self.biases, self.turned = parameter, number, biases, turned
        self._holder = (holder,)  # in a tuple, since a parent is no child
        self._slice: Tensor | None = None

    @property
    def holder(self) -> "ExpertHolder":
        """The module that has the parameters."""
        return self._holder[0]

    @property
    def whole(self) -> Tensor:
        """The weights of all experts."""
        weight: Tensor = getattr(self.holder, self.parameter)
        return weight

    @property
    def weight(self) -> Tensor:
        """[out, in], or [in, out] if `turned`."""
        return self.whole[self.number] if self._slice is None else self._slice

    @property
    def bias(self) -> Tensor | None:
        """[out], or None."""
        if self.biases is None:
            return None
        bias: Tensor = getattr(self.holder, self.biases)[self.number]
        return bias

    @contextmanager
    def holding(self, weight: Tensor) -> Iterator[None]:
        """For the length of a block, take this for the weight: one `unbind` serves all experts' gradients, where each
        slice would have a gradient as large as the stack."""
        self._slice = weight
        try:
            yield
        finally:
            self._slice = None

    def forward(self, input: Tensor) -> Tensor:
        """y [rows, out] of x [rows, in]."""
        return functional.linear(input, self.weight.mT if self.turned else self.weight, self.bias)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        outputs, inputs = self.whole.shape[1:][:: -1 if self.turned else 1]
        return f"in_features={inputs}, out_features={outputs}"


class ExpertHolder(nn.Module, ABC):
    """A module with parameters that have a matrix for each of several experts, and a layer for each matrix."""

    @property
    @abstractmethod
    def stacked(self) -> tuple[str, ...]:
        """The names of these parameters."""

    @abstractmethod
    def expert_layers(self, parameter: str) -> list[ExpertLinear]:
        """The layers whose weights are the slices of one of them, in order."""

    @property
    def is_one_product(self) -> bool:
        """Whether nothing is lost where the experts' layers themselves are not called; no graph can be made of them."""
        return all(_is_bare(layer) for parameter in self.stacked for layer in self.expert_layers(parameter))

    def expert_product(self, parameter: str, x: Tensor, counts: Tensor) -> Tensor:
        """y [rows, out] of x [rows, in], sorted by expert. counts: int64, how many rows each expert has."""
        layers = self.expert_layers(parameter)
        if x.is_meta or not len(x):  # there are no counts on meta: shapes, and the products of every row
            return ExpertLinear.forward(layers[0], x)
        if all(map(_is_bare, layers)):
            return _grouped(layers[0], x, counts)
        one_by_one = _between_graphs if torch.compiler.is_compiling() else _one_by_one
        return one_by_one(self, parameter, x, counts)


class StackedLinear(ExpertHolder):
    """y[r] = x[r] W_e^T for the rows of each expert e; its children `0`, `1`, ... are the experts' layers."""

    stacked = ("weight",)

    def __init__(self, experts: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, out_features, in_features))
        for number in range(experts):
            self.add_module(str(number), ExpertLinear(self, "weight", number))

    def expert_layers(self, parameter: str) -> list[ExpertLinear]:
        return list(cast(Iterator[ExpertLinear], self.children()))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """y [rows, out] of x [rows, in], sorted by expert. counts: int64, how many rows each expert has."""
        return self.expert_product("weight", x, counts)


def sorted_by_expert(x: Tensor, chosen: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows that experts are sent of x [tokens, width], those of the first before those of the second; how many each
    gets; and where the results of each token are, to be taken from them in the order of `chosen` [tokens, active]."""
    tokens, active = chosen.shape
    order = chosen.flatten().argsort(stable=True)
    counts = (chosen.flatten()[:, None] == torch.arange(experts, device=x.device)).sum(dim=0)
    sent = x[:, None].expand(tokens, active, x.shape[-1]).reshape(tokens * active, x.shape[-1])[order]
    return sent, counts, order.argsort()


def _one_by_one(holder: ExpertHolder, parameter: str, x: Tensor, counts: Tensor) -> Tensor:
    made, layers = [], holder.expert_layers(parameter)
    for layer, weight, own in zip(layers, layers[0].whole.unbind(0), torch.split(x, counts.tolist()), strict=True):
        if len(own):
            with layer.holding(weight):
                made.append(layer(own))
    return torch.cat(made)


_between_graphs: Callable[[ExpertHolder, str, Tensor, Tensor], Tensor] = _disable_dynamo(_one_by_one)
"""A graph has fixed shapes, and how many rows an expert gets is known when it runs. (`torch.compiler.disable` would
load torch's compiler with this file, for two seconds.)"""


def _is_bare(expert: nn.Module) -> bool:
    """Whether nothing is lost where the expert itself is not called."""
    own = expert._forward_pre_hooks or expert._forward_hooks or "forward" in vars(expert)
    return type(expert) is ExpertLinear and not own


def _grouped(layer: ExpertLinear, x: Tensor, counts: Tensor) -> Tensor:
    """The product of all experts, of which one layer is given."""
    device, weight = x.device.type, layer.whole.mT if layer.turned else layer.whole
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
    made: Tensor = _GroupedProduct.apply(x, weight, counts.cumsum(0).to(torch.int32))
    if layer.biases is None:
        return made
    biases: Tensor = getattr(layer.holder, layer.biases)
    return made + biases.to(made.dtype).repeat_interleave(counts, dim=0, output_size=len(x))


@torch.library.custom_op("altgrad::grouped", mutates_args=())
def _product(a: Tensor, b: Tensor, ends: Tensor, turned: bool) -> Tensor:
    """Rows of a with the matrix of their group, b[e] or its transpose; of two matrices the product of each group's
    rows, a_e^T b_e. An operator, since torch's own can be traced in bfloat16 alone."""
    a = a.contiguous()
    try:
        if b.ndim == 3:
            return torch._grouped_mm(a, b.mT if turned else b, offs=ends)
        return torch._grouped_mm(a.mT, b.contiguous(), offs=ends)
    except RuntimeError:  # a width that is no multiple of 16 bytes, a device or a dtype that it is not made for
        sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
        groups = torch.split(a, sizes)
        if b.ndim == 2:
            return torch.stack([one.mT @ other for one, other in zip(groups, torch.split(b, sizes), strict=True)])
        return torch.cat([one @ (each.mT if turned else each) for one, each in zip(groups, b, strict=True)])


@_product.register_fake
def _(a: Tensor, b: Tensor, ends: Tensor, turned: bool) -> Tensor:
    if b.ndim == 3:
        return a.new_empty(a.shape[0], b.shape[1 if turned else 2])
    return a.new_empty(ends.shape[0], a.shape[1], b.shape[1])


class _GroupedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, ends)
        made: Tensor = _product(x, weight, ends, True)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, ends = ctx.saved_tensors
        dx = _product(grads[0], weight, ends, False) if ctx.needs_input_grad[0] else None
        dw = _product(grads[0], x, ends, False) if ctx.needs_input_grad[1] else None
        return dx, dw, None
