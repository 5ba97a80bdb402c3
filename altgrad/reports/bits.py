"""How many bits an arm spends: on a stored weight, and on each number that enters a product, scales included.

A scale is shared by a block and costs its own bits divided by the block: mx 8 / 32, nvfp4 8 / 16 (a tensor's, a row's
or a channel's costs next to nothing and is not counted). Columns that are carried apart cost their own cast's bits;
elements beyond a quantile add theirs, without what says where they lie. Where rules differ the arm spends several
amounts.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from altgrad.formats import parse_format
from altgrad.reports.arms import OPERANDS, rules_said

WIDE = {"float32": 32.0, "bfloat16": 16.0}


def operand_bits(spec: Mapping[str, Any], operand: str) -> list[float]:
    """The bits of one operand of the products, by rule; those of the compute dtype where nothing is cast."""
    wide = WIDE.get(str(spec.get("compute", "float32")), 32.0)
    return _unique(bits_of_cast(rule.get(operand), wide) for rule in rules_said(spec, "precision")) or [wide]


def stored_bits(spec: Mapping[str, Any]) -> list[float]:
    """The bits of a weight between steps, by rule; float32 masters have 32."""
    rules = [rule for rule in rules_said(spec, "storage") if rule.get("kind") not in (None, "master")]
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
        fmt = parse_format(name if isinstance(name, Mapping) else str(name))
    except ValueError:
        return wide
    if not isinstance(cast, Mapping):
        return float(fmt.bits)
    return _with_outliers(fmt.bits + _scale_bits(cast.get("scaling")), cast.get("outliers"), wide)


def bits_text(bits: Iterable[float]) -> str:
    """`8`, `4.25`, `4.5 / 8`."""
    return " / ".join(f"{each:g}" for each in bits)


_SCALES = {"mx": "e8m0", "nvfp4": "e4m3fn", "block": "power_of_two"}
"""What a block's scale is where nothing else is said, by kind of scaling."""


def _scale_bits(scaling: Any) -> float:
    """A number's share of its block's scale."""
    facts = scaling if isinstance(scaling, Mapping) else {"kind": scaling}
    kind = str(facts.get("kind"))
    size = facts.get("size") or {"mx": 32, "nvfp4": 16, "block": 128}.get(kind)
    if kind not in _SCALES or not isinstance(size, int):
        return 0.0
    scale = str(facts.get("scale") or _SCALES[kind])
    bits = {"real": 32.0, "power_of_two": 8.0, "e8m0": 8.0}.get(scale) or bits_of_cast(scale, 32.0)
    return bits / (size * size if facts.get("shape") == "square" else size)


def _with_outliers(bits: float, outliers: Any, wide: float) -> float:
    """The mean over a tensor of which a part is carried apart."""
    if not isinstance(outliers, Mapping):
        return bits
    apart = bits_of_cast(outliers.get("cast"), wide)
    if outliers.get("kind") == "columns":
        share = outliers.get("largest", 0.1)
        return bits + share * (apart - bits) if isinstance(share, float) else bits  # a number of columns: of any width
    quantile = outliers.get("quantile", 0.99)
    return bits + (1 - quantile) * apart if isinstance(quantile, float) else bits


def _unique(bits: Iterable[float]) -> list[float]:
    return sorted(set(bits))
