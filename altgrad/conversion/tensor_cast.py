"""How a tensor of a model is cast at rest: a matrix, a norm's weight as one row, or a stack of experts' matrices, each
with a scale of its own and the random bits that it has as a layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.quantize.parts import Axis
from altgrad.training.weights import StoredTensor

CASTABLE = ("F32", "BF16", "F16")
WHOLE = -1
"""Instead of an expert's number: all of the tensor."""


@dataclass(frozen=True)
class TensorCast:
    """How one tensor is cast. reduced: the axis its product sums over, which for a Conv1D weight [in, out] is first.

    own: the quantizer that casts it already, of a model that is quantised. experts: of a 3-D tensor, the cast of each
    expert's matrix, alike but for the module.
    """

    module: str
    spec: QuantizerSpec
    reduced: Axis
    own: Quantizer | None = None
    experts: "tuple[TensorCast, ...]" = ()

    def quantizer(self, shape: Sequence[int]) -> Quantizer:
        """What casts a matrix (or vector) of this shape."""
        if self.own is not None:
            return self.own
        rows = None if len(shape) == 1 else shape[0 if self.reduced == "last" else 1]
        return Quantizer(
            self.spec, f"{self.module}/weight", "weight", rows=rows, reduced=self.reduced, shape=tuple(shape)
        )

    @classmethod
    def of_parts(cls, tensor: StoredTensor, casts: "Mapping[int, TensorCast]") -> "TensorCast":
        """The cast of a tensor. casts: its own, as WHOLE, or those of its experts, by number. ValueError for a tensor
        that cannot be cast, and unless all experts are cast alike."""
        one = next(iter(casts.values()))
        require_stored_castable(tensor, experts=WHOLE not in casts)
        if WHOLE in casts:
            return one
        if len(casts) < tensor.shape[0] or any(each.spec != one.spec for each in casts.values()):
            raise ValueError(
                f"{tensor.name} is 3-D {list(tensor.shape)}, the weights of experts, and the rules do not cast all of "
                "them alike; at rest they have one cast: let one rule match them all."
            )
        parts = tuple(casts[number] for number in sorted(casts))
        return cls(tensor.name.removesuffix(".weight"), one.spec, one.reduced, None, parts)

    def tensors(self, tensor: StoredTensor) -> "list[tuple[TensorCast, StoredTensor]]":
        """A tensor with its cast; of a stack, the matrix of each expert with its own."""
        if not self.experts:
            return [(self, tensor)]
        x, shape = tensor.load(), tensor.shape[1:]
        return [
            (cast, replace(tensor, name=f"{tensor.name}.{number}", shape=shape, held=x[number]))
            for number, cast in enumerate(self.experts)
        ]

    def matrices(self, x: Tensor) -> "list[tuple[Tensor, Quantizer]]":
        """What of a tensor is cast on its own, each with what casts it: the matrix, a vector as one row, or the matrix
        of each expert."""
        parts = zip(x, self.experts, strict=True) if self.experts else [(x, self)]
        return [(part[None] if part.ndim == 1 else part, cast.quantizer(part.shape)) for part, cast in parts]


def require_stored_castable(tensor: StoredTensor, *, experts: bool = False) -> None:
    """ValueError for a tensor that cannot be cast. experts: it is known for a stack of experts' matrices."""
    if len(tensor.shape) == 3 and not experts:
        raise ValueError(
            f"{tensor.name} is 3-D {list(tensor.shape)}, as the weights of experts are; only matrices are cast; leave "
            "it out by match, split it into one matrix per expert (as `altgrad export RUN` does), or give "
            "save_quantized the model itself."
        )
    if tensor.dtype not in CASTABLE:
        remedy = "convert it to F32 first" if tensor.dtype == "F64" else "start from the model before it was quantised"
        raise ValueError(f"{tensor.name} is {tensor.dtype}; casts take {', '.join(CASTABLE)}: {remedy}.")
