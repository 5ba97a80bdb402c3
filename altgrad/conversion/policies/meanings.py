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
MOST = 3
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
    """How far two precisions are from each other: by formats most of all, then by kinds of scaling, then by fields."""
    total = 0
    for slot in differing_slots(one, other):
        ours, theirs = one.slots[slot], other.slots[slot]
        if ours is None or theirs is None:
            total += 100
        else:
            names = _differing_fields(ours, theirs)
            total += 100 * ("format" in names) + 50 * ("scaling" in names) + len(names) + 1
    return total


def differing_words(wanted: LayerPrecision, offered: LayerPrecision, slot: Slot) -> str:
    """What the one offered has in a slot that is not what is wanted there, as a rule would say it."""
    want, offer, product = wanted.slots[slot], offered.slots[slot], slot[0]
    if want is None or offer is None:
        return offered.text(slot) if offer is not None else "no cast"
    found = _differing_fields(want, offer)
    (_, axis, together, *_), (_, other_axis, other_together, *_) = (_meanings(each)[slot] for each in (wanted, offered))
    if axis != other_axis or (together and other_together and together != other_together):
        found["operands"] = ("shared", "per_product") if offered.per_product else ("per_product", "shared")
    for name in ("transform", "accumulator"):
        ours, theirs = (getattr(each, f"{name}s").get(product) for each in (wanted, offered))
        if ours != theirs:
            found[f"{product}.{name}"] = (getattr(ours, "text", None), getattr(theirs, "text", None))
    words = [f"{name}: {_word(theirs)} instead of {_word(ours)}" for name, (ours, theirs) in found.items()]
    return ", ".join(words[:MOST]) + (", ..." if len(words) > MOST else "")


def _differing_fields(one: QuantizerSpec, other: QuantizerSpec) -> dict[str, tuple[Any, Any]]:
    """The fields of a cast that matter and differ, as a rule names them, with both values."""
    ours, theirs = _fields(one), _fields(other)
    inner, outer = ours.pop("scaling"), theirs.pop("scaling")
    found = {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}
    if inner["kind"] != outer["kind"]:
        return found | {"scaling": (one.scaling.kind, other.scaling.kind)}
    both = [name for name in inner if name in outer and inner[name] != outer[name]]
    return found | {f"scaling.{name}": (getattr(one.scaling, name), getattr(other.scaling, name)) for name in both}


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
