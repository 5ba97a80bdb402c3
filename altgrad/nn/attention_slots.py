"""The slots of attention: what enters its six products, forward and backward.

    scores              s = scale * query @ key.T            slots query, key                 p = softmax(s)
    output              o = p @ value                        slots probabilities, value
    grad_value          dv = p.T @ grad_output               slots probabilities, grad_output
    grad_probabilities  dp = grad_output @ value.T           slots grad_output, value
    grad_query          dq = scale * ds @ key                slots grad_scores, key           ds = p (dp - sum of p dp)
    grad_key            dk = scale * ds.T @ query            slots grad_scores, query

Four operands of forward and two gradients, so there are six casts where each serves both its products (`shared`). Then
blocks and channels lie along the axis that the first of these products sums over: for a value that is forward's, the
tokens. With `per_product` each slot is cast along its own axis. The gradients of query, key and value themselves are
the `grad_output` of the layers in front, and are cast there.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import model_validator

from altgrad.nn.slots import CastSpec
from altgrad.quantize import QuantizerSpec
from altgrad.quantize.counted import Role
from altgrad.quantize.parts import Axis
from altgrad.spec import Spec

Slot = tuple[str, str]
AXES: Mapping[Slot, Axis] = {
    ("scores", "query"): "last", ("scores", "key"): "last",
    ("output", "probabilities"): "last", ("output", "value"): "first",
    ("grad_probabilities", "grad_output"): "last", ("grad_probabilities", "value"): "last",
    ("grad_value", "probabilities"): "first", ("grad_value", "grad_output"): "first",
    ("grad_query", "grad_scores"): "last", ("grad_query", "key"): "first",
    ("grad_key", "grad_scores"): "first", ("grad_key", "query"): "first",
}  # fmt: skip
"""Product and operand: the axis of the operand, [..., tokens, n], that the product sums over. `first` is the tokens."""
ROLES: Mapping[str, Role] = {
    "query": "input", "key": "input", "value": "input", "probabilities": "input", "grad_output": "grad_output",
    "grad_scores": "grad_output",
}  # fmt: skip
"""The six operands."""


class AttentionSpec(Spec):
    """What happens to the operands of the two products inside attention, and of their gradients' four."""

    query: CastSpec = None
    """The cast of the queries."""
    key: CastSpec = None
    """The cast of the keys."""
    value: CastSpec = None
    """The cast of the values."""
    probabilities: CastSpec = None
    """After softmax; its gradient is formed from the unrounded ones."""
    grad_output: CastSpec = None
    """The gradient of what attention gives."""
    grad_scores: CastSpec = None
    """The gradient of the scaled scores, which Transformer Engine calls dP."""
    operands: Literal["shared", "per_product"] = "shared"
    """shared: one cast of an operand serves both its products. per_product: each casts it along its reduced axis."""

    noun: ClassVar[str] = "the casts of attention"

    @model_validator(mode="after")
    def _of_operands(self) -> "AttentionSpec":
        for operand, spec in self.chosen().items():
            if (unfit := unfit_elsewhere(spec)) is not None:
                raise ValueError(f"attention.{operand} has {unfit}, which belongs to the slots of a Linear.")
            if operand.startswith("grad_") and spec.gradient.kind != "identity":
                raise ValueError(
                    f"gradient: {spec.gradient.kind} has no meaning for attention.{operand}, behind which no gradient "
                    "flows."
                )
        return self

    def chosen(self) -> dict[str, QuantizerSpec]:
        """The operands that are cast, and how."""
        found: dict[str, QuantizerSpec | None] = {operand: getattr(self, operand) for operand in ROLES}
        return {operand: spec for operand, spec in found.items() if spec is not None}

    def casts(self) -> dict[str, tuple[QuantizerSpec, list[Slot]]]:
        """The casts: name -> (spec, slots served); `value`, or `value.output` where each product has its own."""
        found: dict[str, tuple[QuantizerSpec, list[Slot]]] = {}
        chosen = self.chosen()
        for product, operand in AXES:
            if operand in chosen:
                name = operand if self.operands == "shared" else f"{operand}.{product}"
                found.setdefault(name, (chosen[operand], []))[1].append((product, operand))
        return found


def unfit_elsewhere(spec: QuantizerSpec) -> str | None:
    """The choice of a cast that has a meaning in a slot of a Linear alone, in words; None if it has none of these."""
    if spec.source != "original":
        return f"source: {spec.source}"
    if spec.correction != "none":
        return f"correction: {spec.correction}"
    if spec.outliers is not None:
        return f"outliers: {spec.outliers.kind}"
    return "rounding: toward_average" if spec.rounding == "toward_average" else None
