"""What a layer's casts mean, slot by slot, so that two ways of saying the same are found to be the same.

A target states what it runs as a rule of ours, and a policy is expressible where the two mean the same bits. Said
differently, they still do where

    mx and nvfp4 are the blocks that they are presets of
    a scale is a power of two: every order of operations divides by it exactly
    a cast has no axis (a scale for the tensor, squares) and draws nothing: shared by both products or made twice

and where a floor under amax is at most `LEAST`: only tensors that small differ, which `floors_differ` tells. All else
is compared field by field, so what this file does not know is refused, never passed over.
"""

from collections.abc import Mapping
from typing import Any

from altgrad.nn.layer_casts import Slot
from altgrad.nn.rule import Rule
from altgrad.nn.slots import SLOTS, LayerPrecision, reduced_axis
from altgrad.quantize import QuantizerSpec
from altgrad.spec.annotations import plain

LEAST = 1e-10
MOST = 4
"""Fields of a slot that are named where it differs."""


def precision_of(rule: Mapping[str, Any]) -> LayerPrecision:
    """The six slots of a rule that is written as plain data."""
    return Rule.made_from({"match": "*", **rule}).layer()


def differing_slots(one: LayerPrecision, other: LayerPrecision) -> list[Slot]:
    """The slots in which two precisions do not mean the same."""
    ours, theirs = _meanings(one), _meanings(other)
    return [slot for slot in SLOTS if ours[slot] != theirs[slot]]


def floors_differ(one: LayerPrecision, other: LayerPrecision) -> bool:
    """Whether the least amax of a slot is another, which matters for tensors below `LEAST` alone."""
    return any(_floor(one.slots[slot]) != _floor(other.slots[slot]) for slot in SLOTS)


def distance(one: LayerPrecision, other: LayerPrecision) -> int:
    """How far two precisions are from each other: slots that differ, most of all in format, then in scaling."""
    total = 0
    for slot in differing_slots(one, other):
        ours, theirs = one.slots[slot], other.slots[slot]
        total += 1
        if ours is None or theirs is None:
            total += 8
        else:
            total += 8 * (ours.format != theirs.format) + 4 * (_kind(ours) != _kind(theirs))
    return total


def differing_words(wanted: LayerPrecision, offered: LayerPrecision, slot: Slot) -> str:
    """What the one offered has in a slot that is not what is wanted there, as a rule would say it."""
    want, offer, product = wanted.slots[slot], offered.slots[slot], slot[0]
    if want is None or offer is None:
        return offered.text(slot) if offer is not None else "no cast"
    ours, theirs = _fields(want), _fields(offer)
    found = {name: theirs[name] for name in theirs if name != "scaling" and ours[name] != theirs[name]}
    if _kind(want) != _kind(offer):
        found["scaling"] = offer.scaling.kind
    else:
        inner, outer = ours["scaling"], theirs["scaling"]
        found |= {f"scaling.{name}": outer[name] for name in outer if inner.get(name) != outer[name]}
    if _meanings(wanted)[slot][1:3] != _meanings(offered)[slot][1:3]:
        found["operands"] = "per_product" if offered.per_product else "shared"
    for name, parts in (("transform", "transforms"), ("accumulator", "accumulators")):
        ours, theirs = getattr(wanted, parts).get(product), getattr(offered, parts).get(product)
        if ours != theirs:
            found[f"{product}.{name}"] = "none" if theirs is None else theirs.text
    words = [f"{name}: {_word(value)}" for name, value in found.items()]
    return ", ".join(words[:MOST]) + (", ..." if len(words) > MOST else "")


def _word(value: Any) -> str:
    said = plain(value)
    return str(said.get("kind") if isinstance(said, dict) else said if said not in (None, []) else "none")


def _meanings(precision: LayerPrecision) -> dict[Slot, Any]:
    found: dict[Slot, Any] = {}
    for slot in SLOTS:
        spec, product = precision.slots[slot], slot[0]
        if spec is None:
            found[slot] = None
            continue
        axis = None if _is_without_axis(spec) else _axis(precision, slot)
        together = sorted(_served(precision, slot)) if spec.draws else None
        transform, accumulator = precision.transforms.get(product), precision.accumulators.get(product)
        found[slot] = (
            _fields(spec), axis, together, None if transform is None else transform.tree(),
            None if accumulator is None else accumulator.tree(),
        )  # fmt: skip
    return found


def _served(precision: LayerPrecision, slot: Slot) -> list[Slot]:
    """The slots that share this one's cast."""
    return next(slots for _, slots in precision.casts().values() if slot in slots)


def _axis(precision: LayerPrecision, slot: Slot) -> str:
    return reduced_axis(_served(precision, slot))


def _fields(spec: QuantizerSpec) -> dict[str, Any]:
    """A cast's fields and its scaling's, without those that change no bit of it."""
    own = {name: getattr(spec, name) for name in type(spec).model_fields if name != "scaling"}
    scaling = {name: getattr(spec.scaling, name) for name in type(spec.scaling).model_fields}
    scaling["kind"] = _kind(spec)
    if scaling.get("scale") in ("power_of_two", "e8m0") and scaling.get("mode", "rceil") != "even":
        scaling.pop("arithmetic", None)
    if "floor" in scaling and scaling["floor"] <= LEAST:
        scaling["floor"] = 0.0
    return {**own, "scaling": scaling}


def _kind(spec: QuantizerSpec) -> str:
    """That of its scaling; presets of blocks are blocks."""
    return "block" if hasattr(spec.scaling, "size") else spec.scaling.kind


def _floor(spec: QuantizerSpec | None) -> float:
    return float(getattr(spec.scaling, "floor", 0.0)) if spec is not None else 0.0


def _is_without_axis(spec: QuantizerSpec) -> bool:
    """Whether a matrix and its transpose are cast alike."""
    if spec.draws or spec.correction != "none" or spec.outliers is not None:
        return False
    scaling = spec.scaling
    if getattr(scaling, "size", None) is not None:
        return bool(
            getattr(scaling, "shape", "row") == "square"
            and getattr(scaling, "statistic", "amax") == "amax"
            and not getattr(scaling, "choose", ())
        )
    return getattr(scaling, "granularity", "tensor") == "tensor"
