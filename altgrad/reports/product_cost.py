"""What a policy spends on the three products of a layer: bits that are moved, and operations besides multiplying.

Every product reads two operands, so a weight is read twice in a step, by the products that make y and dx, and each
token's features four times:

    y = x W^T        dx = g W        dW = g^T x

    moved by a weight    bits, mean of forward.weight and grad_input.weight, shares of block scales included
    moved by a token     bits, mean of the other four slots: inputs and gradients
    extra operations     multiply-adds beside the products', over the products'

An extra operation is one that a policy with one cast for each operand and no transform would not do: a Hadamard matrix
of size k on runs of k is k multiply-adds an element (as kernels do it, on the tensor cores), a cast beyond an operand's
first is one an element, and so is each further maximum that a block tries (`choose`). They are told for a square layer
of `width` features on `tokens` tokens, whose three products take 3 tokens width^2: transforming an operand of tokens
costs k / width of a product, and one of weights k / tokens. What finds scales, and what one cast costs, is left out.
Where columns have a product of their own, grad_output is moved twice, once in each cast.

Rules are read as plain data, from a spec or from a recipe; those that cast nothing, which say what stays high, do not
count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from altgrad.recipes.card import slots_of
from altgrad.reports.arms import rules_said
from altgrad.reports.bits import WIDE, bits_of_cast

Slots = dict[tuple[str, str], Any]
"""The cast in each slot, by product and operand; None: not cast."""


@dataclass(frozen=True)
class ProductCost:
    """Bits of one element that enters a product, by what it is of; and operations over those of the products.

    transforms: sizes by product. casts: how many beyond one for each operand.
    """

    weight: float
    token: float
    operand: float
    transforms: Mapping[str, int]
    casts: int
    turned: float
    """Of transforms, multiply-adds over the products'; NaN where the layer's size is not known."""
    recast: float
    """The same of second casts."""

    @property
    def extra(self) -> float:
        """All extra operations over the products'."""
        return self.turned + self.recast


def product_cost(spec: Mapping[str, Any], width: float = float("nan"), tokens: float = float("nan")) -> ProductCost:
    """Of a run spec, or of whatever has its `precision` and `compute`: means over the rules that cast something."""
    wide = WIDE.get(str(spec.get("compute", "float32")), 32.0)
    rules = [rule for rule in rules_said(spec, "precision") if any(slots_of(rule).values())]
    each = [_cost(rule, wide, width, tokens) for rule in rules]
    if not each:
        return ProductCost(wide, wide, wide, {}, 0, 0.0, 0.0)
    return ProductCost(
        _mean([one.weight for one in each]), _mean([one.token for one in each]), _mean([one.operand for one in each]),
        {product: size for one in each for product, size in one.transforms.items()}, max(one.casts for one in each),
        _mean([one.turned for one in each]), _mean([one.recast for one in each]),
    )  # fmt: skip


def _cost(rule: Mapping[str, Any], wide: float, width: float, tokens: float) -> ProductCost:
    slots: Slots = {}
    for name, cast in slots_of(rule).items():
        product, _, operand = name.partition(".")
        slots[product, operand] = cast
    bits = {slot: bits_of_cast(cast, wide) for slot, cast in slots.items()}
    partner = _partner(slots)
    if partner != "same":
        bits["grad_weight", "grad_output"] += bits_of_cast(partner, wide)
    sizes = {
        product: int(turn.get("size", 16)) for product in ("forward", "grad_input", "grad_weight")
        if (turn := _transform(rule, product)) is not None
    }  # fmt: skip
    elements = {"weight": width * width, "input": tokens * width, "grad_output": tokens * width}
    products = 3 * tokens * width * width
    turned = sum(size * elements[operand] for (product, operand), size in _turned(slots, sizes))
    second = _second_casts(rule, slots, sizes)
    recast = sum(count * elements[operand] for operand, count in second.items())
    return ProductCost(
        _mean([one for (_, operand), one in bits.items() if operand == "weight"]),
        _mean([one for (_, operand), one in bits.items() if operand != "weight"]), _mean(list(bits.values())),
        sizes, sum(second.values()), turned / products if sizes else 0.0, recast / products if second else 0.0,
    )  # fmt: skip


def _transform(rule: Mapping[str, Any], product: str) -> Mapping[str, Any] | None:
    said = rule.get(product)
    turn = said.get("transform") if isinstance(said, Mapping) else None
    if turn in (None, "none"):
        return None
    return turn if isinstance(turn, Mapping) else {"kind": turn}


def _turned(slots: Slots, sizes: Mapping[str, int]) -> list[tuple[tuple[str, str], int]]:
    """Every time that an operand, or a result in its place, is turned, with the size of the matrix."""
    found = []
    for slot, cast in slots.items():
        product, operand = slot
        source = cast.get("source", "original") if isinstance(cast, Mapping) else "original"
        if product in sizes:
            found.append((slot, sizes[product]))
        if source == "forward" and "forward" in sizes:  # what forward's cast made is turned back first
            found.append((slot, sizes["forward"]))
        if source == "forward_rotated":  # the result is turned back: dx has the input's shape, dW the weight's
            found.append(((product, "input" if operand == "weight" else "weight"), sizes["forward"]))
    return found


def _second_casts(rule: Mapping[str, Any], slots: Slots, sizes: Mapping[str, int]) -> dict[str, int]:
    """How often more than once each operand is cast.

    One cast serves both products of an operand where they say the same of it, neither turns it, and either its scales
    do not depend on the axis that is summed over or the rule has it shared.
    """
    found: dict[str, int] = {}
    for operand in ("weight", "input", "grad_output"):
        casts = {product: cast for (product, its), cast in slots.items() if its == operand and cast is not None}
        made = list(casts.values())
        alike = not sizes.keys() & casts.keys() and all(cast == made[0] for cast in made)
        if alike and (rule.get("operands") != "per_product" or all(map(_lies_either_way, made))):
            made = made[:1]
        if operand == "grad_output" and _partner(slots) not in ("same", None):
            made.append(_partner(slots))
        count = sum(max(1, len(_scaling(cast).get("choose") or ())) for cast in made) - 1
        if count > 0:
            found[operand] = count
    return found


def _partner(slots: Slots) -> Any:
    """What casts grad_output where columns have a product of their own; `same` where none have."""
    cast = slots.get(("grad_weight", "input"))
    outliers = cast.get("outliers") if isinstance(cast, Mapping) else None
    partner = outliers.get("grad_output", "same") if isinstance(outliers, Mapping) else "same"
    return None if partner == "none" else partner


def _lies_either_way(cast: Any) -> bool:
    """Whether the cast of a matrix is that of its transpose."""
    scaling = _scaling(cast)
    if scaling.get("kind", "current") in ("mx", "nvfp4", "block"):
        return bool(scaling.get("shape") == "square")
    return bool(scaling.get("granularity", "tensor") != "channel")


def _scaling(cast: Any) -> Mapping[str, Any]:
    scaling = cast.get("scaling") if isinstance(cast, Mapping) else None
    return scaling if isinstance(scaling, Mapping) else {"kind": scaling or "current"}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
