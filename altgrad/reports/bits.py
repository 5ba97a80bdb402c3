"""How many bits an arm spends: on a stored weight, and on each number that enters a product, scales included.

A scale is shared by a block and costs its own bits divided by the block: mx 8 / 32, nvfp4 8 / 16 (a tensor's, a row's
or a channel's costs next to nothing and is not counted). Where rules differ the arm spends several amounts.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from altgrad.formats import FloatFormat
from altgrad.reports.arms import OPERANDS

WIDE = {"float32": 32.0, "bfloat16": 16.0}


def operand_bits(spec: Mapping[str, Any], operand: str) -> list[float]:
    """The bits of one operand of the products, by rule; those of the compute dtype where nothing is cast."""
    wide = WIDE.get(str(spec.get("compute", "float32")), 32.0)
    return _unique(bits_of_cast(rule.get(operand), wide) for rule in _rules(spec, "precision")) or [wide]


def stored_bits(spec: Mapping[str, Any]) -> list[float]:
    """The bits of a weight between steps, by rule; float32 masters have 32."""
    rules = [rule for rule in _rules(spec, "storage") if rule.get("kind") not in (None, "master")]
    return _unique(bits_of_cast(rule, 32.0) for rule in rules) or [32.0]


def least_first(spec: Mapping[str, Any]) -> float:
    """A key by which the least quantised spec comes first: minus the bits of all operands and of storage."""
    means = [operand_bits(spec, operand) for operand in OPERANDS] + [stored_bits(spec)]
    return -sum(sum(bits) / len(bits) for bits in means)


def bits_of_cast(cast: Any, wide: float) -> float:
    """Of a cast as a spec has it: a format's name, a mapping, or nothing."""
    name = cast.get("format") if isinstance(cast, Mapping) else cast
    if name in (None, "none", ""):
        return wide
    try:
        fmt = FloatFormat.parse(str(name))
    except ValueError:
        return wide
    scale = _scale_bits(cast.get("scaling")) if isinstance(cast, Mapping) else 0.0
    return 1.0 + fmt.exponent_bits + fmt.mantissa_bits + scale


def bits_text(bits: Iterable[float]) -> str:
    """`8`, `4.25`, `4.5 / 8`."""
    return " / ".join(f"{each:g}" for each in bits)


def _scale_bits(scaling: Any) -> float:
    """A number's share of its block's scale."""
    kind = scaling.get("kind") if isinstance(scaling, Mapping) else scaling
    size = (scaling.get("size") if isinstance(scaling, Mapping) else None) or {"mx": 32, "nvfp4": 16}.get(str(kind), 0)
    if kind not in ("mx", "nvfp4", "block") or not isinstance(size, int):
        return 0.0
    square = isinstance(scaling, Mapping) and scaling.get("shape") == "square"
    real = isinstance(scaling, Mapping) and scaling.get("scale") == "real"
    return (32.0 if real else 8.0) / (size * size if square else size)


def _rules(spec: Mapping[str, Any], part: str) -> list[Mapping[str, Any]]:
    found = spec.get(part)
    rules = found.get("rules") if isinstance(found, Mapping) else found
    return [rule for rule in rules if isinstance(rule, Mapping)] if isinstance(rules, list | tuple) else []


def _unique(bits: Iterable[float]) -> list[float]:
    return sorted(set(bits))
