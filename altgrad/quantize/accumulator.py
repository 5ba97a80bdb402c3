"""What a product adds up in: the arithmetic of matrix units, exactly, and its definition in float64.

A tensor core does not round after each addition. One instruction takes `chunk` terms and the accumulator c, aligns
all to the largest exponent, cuts off what lies `bits` below it, and adds exactly (MMA-Sim, arXiv 2511.10909, found so
by probing the chips; DeepSeek-V3, arXiv 2412.19437, section 3.5.2, tells of the highest 14 bits of Hopper's products):

    e_i   = e(a_i) + e(b_i) + e(s_a) + e(s_b)      the *sum* of the operands' exponents, not that of the product; a
                                                   sub-normal has its format's e_min; a zero has none
    top   = max(e_i, e(c), -126)
    t_i   = trunc(a_i b_i s_a s_b 2^(bits - top))  towards zero; of c likewise
    d     = (c + sum t_i) 2^(top - bits)           truncated to `result_bits` fraction bits (below 2^-126 in steps of
                                                   2^(-126 - result_bits)), inf from 2^128 on; a zero is +0

and d is the c of the next instruction, in increasing k; a last chunk that is not full is filled up with zeros. The
order within a chunk is of no consequence, that of the chunks is.

    hopper_fast          bits 13, chunk 32, result_bits 13     wgmma, FP8: k = 32, float32 registers of 13 bits
    hopper_promote_128   the same, promoted every 128          CUTLASS without fast accumulation, DeepGEMM
    ada                  bits 13, chunk 16, result_bits 13     mma m16n8k32: two halves of 16, one after the other
    blackwell            bits 25, chunk 32, result_bits 23     tcgen05 kind::f8f6f4, mxf8f6f4
    blackwell_fp4        bits 35, chunk 64, result_bits 23     tcgen05 kind::mxf4nvf4: `group` of 16 summed exactly

A group's sum is a fixed-point number: its exponent is that of its scales, e(s_a) + e(s_b), whatever the sum; its
significand is the sum times the significands of the scales. A group whose scale is 0 is left out.

Scales. What the instruction takes, it takes `within`: powers of two for each chunk (MX), numbers of e4m3 or e8m0 for
each group (NVFP4, MXFP4). All others come after: `promote` adds c into a float32 number every so many terms and begins
c anew at 0; where scales change along k, by a fused multiply-add, as DeepGEMM and CUTLASS have it,

    total = fma(fl(s_a s_b), c, total)      else      total = fl(total + c)

and what is one scale for the whole sum (of a tensor, a row, NVFP4's outer level) multiplies the end: fl(d fl(s_a s_b)).

NaN and infinities follow IEEE as if all terms were added at once: NaN where a term or c is NaN, where 0 meets infinity
and where infinities of both signs meet, else the infinity. That is the published model; nothing is recorded.

Why float64 is exact: a term has |t_i| < 2^(bits + 2) and is an integer, so a chunk's sum has at most
bits + 2 + log2(chunk + 1) bits, which a spec keeps to 52; a product of two float32 operands has 48.
"""

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from altgrad.formats import FloatFormat, NumberFormat
from altgrad.quantize.traced import repeated
from altgrad.spec import Spec

FP8, NARROW = ("e4m3fn", "e5m2"), ("e4m3fn", "e5m2", "e3m2", "e2m3", "e2m1")
FLOAT32_E_MIN, NONE = -126, -100_000
"""The accumulator's least exponent, and an exponent below all others."""
_TILE = 1 << 20
"""Products that are looked at together."""

INSTRUCTIONS: dict[str, dict[str, Any]] = {
    "hopper_fast": {"bits": 13, "result_bits": 13, "formats": FP8},
    "hopper_promote_128": {"bits": 13, "result_bits": 13, "promote": 128, "formats": FP8},
    "ada": {"bits": 13, "chunk": 16, "result_bits": 13, "formats": FP8},
    "blackwell": {"bits": 25, "scales": "within", "formats": NARROW},
    "blackwell_fp4": {"bits": 35, "chunk": 64, "group": 16, "scales": "within", "formats": ("e2m1",)},
}


Instruction = Literal["float32", "hopper_fast", "hopper_promote_128", "ada", "blackwell", "blackwell_fp4"]


class AccumulatorSpec(Spec):
    """How the terms of a product's sums are added up: an instruction's name, or its numbers."""

    instruction: Instruction | None = None
    """Where the numbers come from that are not given; float32 is not an accumulator of its own."""
    bits: Annotated[int, Field(ge=1, le=48)] = 23
    """Fraction bits that terms keep below the largest exponent."""
    chunk: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Terms that one instruction adds; Ada's 32 are two halves of 16, one after the other: 16."""
    group: Annotated[int, Field(ge=1, le=1024)] = 1
    """Terms summed exactly before they are aligned."""
    alignment: Literal["exponents", "product"] = "exponents"
    """A term's exponent: the sum of its operands' exponents, or that of the product itself."""
    rounding: Literal["toward_zero", "nearest_even"] = "toward_zero"
    """How terms and results lose their bits."""
    result_bits: Annotated[int, Field(ge=1, le=23)] = 23
    """Fraction bits of what an instruction gives; 23 is float32."""
    promote: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    """Terms after which the sum is added into float32 and begun again."""
    scales: Literal["within", "after"] = "after"
    """Whether the instruction takes the scales of blocks along the sum."""
    formats: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """The formats that the instruction takes; any without."""

    noun: ClassVar[str] = "an accumulator"

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        fields = {"instruction": value} if isinstance(value, str) else value
        if not isinstance(fields, dict) or not isinstance(name := fields.get("instruction"), str):
            return fields
        return INSTRUCTIONS.get(name, {}) | fields

    @model_validator(mode="after")
    def _fits(self) -> "AccumulatorSpec":
        if self.instruction == "float32":
            raise ValueError("float32 is what torch's own products add up in; leave out the accumulator.")
        if self.chunk % self.group:
            raise ValueError(f"group: {self.group} does not divide chunk: {self.chunk}; use a divisor.")
        if self.promote is not None and self.promote % self.chunk:
            raise ValueError(
                f"promote: {self.promote} is not a multiple of chunk: {self.chunk}, and an instruction adds a whole "
                f"chunk; use {max(1, self.promote // self.chunk) * self.chunk}."
            )
        if self.group > 1 and self.alignment != "exponents":
            raise ValueError("alignment: product is for single terms; use group: 1, or alignment: exponents.")
        if self.group > 1 and (self.scales != "within" or self.formats != ("e2m1",)):
            raise ValueError("group sums fixed-point numbers of e2m1; use scales: within and formats: [e2m1].")
        needed = self.bits + self.term_bits + math.ceil(math.log2(self.chunk // self.group + 1))
        if needed > 52:
            raise ValueError(
                f"bits: {self.bits} with chunk: {self.chunk} needs sums of {needed} bits, and at most 52 are exact; "
                f"use bits: {self.bits - needed + 52} or fewer."
            )
        return self

    @classmethod
    def unless_float32(cls, value: Any) -> "AccumulatorSpec | None":
        """What `value` names; None for float32, which torch's own products add up in."""
        named = value["instruction"] if isinstance(value, dict) and list(value) == ["instruction"] else value
        return None if named in (None, "none", "float32") else cls.model_validate(value)

    @property
    def term_bits(self) -> int:
        """log2 of what a term's significand stays below: 4, or 36 for each of a group times 4 of its scales."""
        return 2 if self.group == 1 else 2 + math.ceil(math.log2(36 * self.group))

    @property
    def own(self) -> dict[str, Any]:
        """The fields that are not those of its instruction, or not defaults, as plain data."""
        fields = {name: info.default for name, info in type(self).model_fields.items()}
        usual = fields | (INSTRUCTIONS[self.instruction] if self.instruction else {})
        return {name: item for name, item in super().tree().items() if getattr(self, name) != usual[name]}

    @cached_property
    def text(self) -> str:
        """In a few characters, for tables: `hopper_fast`, `hopper_fast (promote 64)`, `bits 9, chunk 24`."""
        own = {name: item for name, item in self.own.items() if name != "instruction"}
        told = ", ".join(f"{name} {item}" for name, item in own.items())
        return told or "bits 23" if self.instruction is None else self.instruction + (f" ({told})" if told else "")

    def tree(self) -> dict[str, Any]:
        """Its instruction, and what it has otherwise."""
        return self.own if self.instruction is None else {"instruction": self.instruction} | self.own

    def require(self, what: str, fmt: NumberFormat) -> None:
        """ValueError for an operand, named `what`, that the instruction does not take."""
        if not isinstance(fmt, FloatFormat):
            raise ValueError(f"{what} is cast to a table, and accumulator: {self.text} adds products of floats.")
        if self.formats and fmt.short_name not in self.formats:
            raise ValueError(
                f"accumulator: {self.text} takes {', '.join(self.formats)}, and {what} is {fmt.short_name}; cast it to "
                "one of these, or give an accumulator by its bits."
            )


class Digits(NamedTuple):
    """What alignment asks of a format: its fraction bits, the exponents of its sub-normals and of its largest value."""

    fraction: int
    lowest: int
    highest: int

    @classmethod
    def of(cls, fmt: NumberFormat) -> "Digits":
        """Of an ExMy."""
        assert isinstance(fmt, FloatFormat)
        return cls(fmt.mantissa_bits, fmt.e_min, max(fmt.e_min, fmt.max_binade))


class Factor(NamedTuple):
    """One operand of a product, summed along its last axis: x ~ units * within * after.

    units: float32 [rows, k], on the grid of its format. within: float32 [rows or 1, n], each entry for `within_block`
    elements of k, or None. after: float32, without axes or [rows or 1, n], each entry for `after_block` elements, or
    for all (0).
    """

    units: Tensor
    digits: Digits
    within: Tensor | None = None
    within_block: int = 0
    after: Tensor | None = None
    after_block: int = 0


class Terms(NamedTuple):
    """A Factor whose scales are spread out by steps: within [rows, steps] or None, after [rows, promotions] or None."""

    units: Tensor
    lowest: int
    within: Tensor | None
    after: Tensor | None

    @classmethod
    def of(cls, factor: Factor, spec: AccumulatorSpec) -> "Terms":
        """Steps are chunks, or groups; promotions are the whole sum where no scale changes."""
        rows, k = factor.units.shape
        step = spec.chunk if spec.group == 1 else spec.group
        within = after = None
        if factor.within is not None:
            within = spread(factor.within, factor.within_block, step, rows, k)
        if factor.after is not None:
            after = spread(factor.after, factor.after_block, spec.promote or max(k, 1), rows, k)
        return cls(factor.units, factor.digits.lowest, within, after)

    @classmethod
    def pair(cls, a: Factor, b: Factor, spec: AccumulatorSpec) -> "tuple[Terms, Terms]":
        """Both operands', contiguous, alike in what they have: steps or none, and as many promotions where scaled."""
        both = cls.of(a, spec), cls.of(b, spec)
        steps = max((each.within.shape[-1] for each in both if each.within is not None), default=0)
        promotions = max((each.after.shape[-1] for each in both if each.after is not None), default=1)
        made = []
        for each in both:
            within = each.units.new_ones(len(each.units), steps) if steps and each.within is None else each.within
            after = None if each.after is None else each.after.expand(-1, promotions).contiguous()
            made.append(cls(each.units.contiguous(), each.lowest, within, after))
        return made[0], made[1]


def spread(scale: Tensor, block: int, step: int, rows: int, k: int) -> Tensor:
    """Scales of blocks as [rows, ceil(k / step)], or [rows, 1] of one for all."""
    if block == 0:
        return scale.reshape(-1, 1).expand(rows, 1).contiguous()
    if block % step:
        raise ValueError(f"scales change every {block} terms of the sum, which is not a multiple of {step}.")
    return repeated(scale.expand(rows, scale.shape[-1]), block // step, -1, -(-k // step)).contiguous()


def exponent(x: Tensor, lowest: int) -> Tensor:
    """floor(log2|x|), at least `lowest`, int64; NONE for a zero. x float64, finite."""
    found = torch.frexp(x).exponent.to(torch.int64).sub_(1).clamp_(min=lowest)
    return torch.where(x == 0, NONE, found)


def _power(k: Tensor) -> Tensor:
    """2^k, float64; beyond its normal numbers the nearest of them."""
    return ((k.clamp(-1022, 1023) + 1023) << 52).view(torch.float64)


class _Sum:
    """The sums of one tile, [rows, columns], instruction after instruction."""

    def __init__(self, spec: AccumulatorSpec, a: Terms, b: Terms) -> None:
        self.spec, self.a, self.b = spec, a, b
        self.cut: Callable[[Tensor], Tensor] = torch.trunc if spec.rounding == "toward_zero" else torch.round
        self.terms = self.lost = 0

    def add(self, c: Tensor, start: int, stop: int) -> Tensor:
        """d for the accumulator c, float64, and the terms start to stop."""
        value, scale, at = self._terms(start, stop)
        top = torch.maximum(at.amax(-1), exponent(c, FLOAT32_E_MIN)).clamp_(min=FLOAT32_E_MIN)
        aligned = self.cut(value * _power(self.spec.bits - top[..., None] + scale))
        self.terms += int(torch.count_nonzero(value))
        self.lost += int(torch.count_nonzero((aligned == 0) & (value != 0)))
        total = aligned.sum(-1) + self.cut(c * _power(self.spec.bits - top))
        total = total * _power(top - self.spec.bits)
        last = exponent(total, FLOAT32_E_MIN).clamp_(min=FLOAT32_E_MIN)
        d = self.cut(total * _power(self.spec.result_bits - last)) * _power(last - self.spec.result_bits) + 0.0
        d = torch.where(d.abs() >= 2.0**128, d.sign() * math.inf, d)
        return torch.where(c.isinf(), c, d)

    def _terms(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Terms as value 2^scale, with the exponents `at` which they are aligned: [rows, columns, terms]."""
        a, b, spec = self.a, self.b, self.spec
        x, w = a.units[:, None, start:stop].double(), b.units[None, :, start:stop].double()
        step = spec.chunk if spec.group == 1 else spec.group
        steps = slice(start // step, -(-stop // step))
        scale = torch.zeros((), dtype=torch.int64, device=x.device)
        significand: Tensor | float = 1.0
        for part, axis in ((a.within, 1), (b.within, 0)):
            if part is not None:
                number = part[:, steps].double().unsqueeze(axis)
                scale = scale + exponent(number, FLOAT32_E_MIN - 23)
                significand = significand * number * _power(-exponent(number, FLOAT32_E_MIN - 23))
        if spec.group == 1:
            value = x * w
            at = (
                exponent(x, a.lowest) + exponent(w, b.lowest)
                if spec.alignment == "exponents"
                else exponent(value, -1000)
            )
            return value, scale, torch.where(value == 0, NONE, at + scale)
        pad = -x.shape[-1] % step
        x, w = (torch.nn.functional.pad(each, (0, pad)) for each in (x, w))
        x, w = (each.reshape(*each.shape[:-1], -1, step) for each in (x, w))
        value = torch.einsum("iagk,bjgk->ijg", x, w) * significand
        return value, scale, scale.expand(value.shape)


def by_definition(
    a: Factor, b: Factor, spec: AccumulatorSpec, start: Tensor | None = None, lost: list[int] | None = None
) -> Tensor:
    """a b^T, float32 [m, n], as this accumulator adds it up; a tile at a time, in float64.

    start: what the accumulator holds at first, float32 [m, n]. lost: gets how many terms (of a chunk, non-zero) there
    were, and how many of them the alignment truncated away.
    """
    x, w = Terms.of(a, spec), Terms.of(b, spec)
    rows, columns = len(x.units), len(w.units)
    height = max(1, _TILE // max(1, columns * (spec.chunk // spec.group)))
    found = torch.zeros(rows, columns, dtype=torch.float32, device=x.units.device)
    for first in range(0, rows, height):
        part = slice(first, first + height)
        tile = Terms(x.units[part], x.lowest, *(None if each is None else each[part] for each in x[2:]))
        c = torch.zeros_like(found[part], dtype=torch.float64) if start is None else start[part].double()
        adding = _Sum(spec, tile, w)
        found[part] = _added(adding, c)
        if lost is not None:
            lost += [adding.terms, adding.lost]
    return with_nonfinite(found, a, b, start)


def _added(adding: _Sum, c: Tensor) -> Tensor:
    """The sums of a tile, from their first to their last term."""
    spec, scale = adding.spec, _after(adding.a.after, adding.b.after)
    k = adding.a.units.shape[-1]
    changes = scale is not None and scale.shape[-1] > 1
    total: Tensor | None = None
    for number, (first, last) in enumerate(spans(k, spec.promote)):
        for start, stop in spans(last, spec.chunk, first):
            c = adding.add(c, start, stop)
        if spec.promote is not None:
            begun = torch.zeros_like(c) if total is None else total
            total = fused(scale[..., number] if scale is not None and changes else None, c, begun)
            c = torch.zeros_like(c)
    found = (c if total is None else total).float()
    return found if scale is None or changes else found * scale[..., 0]


def _after(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """fl(s_a s_b), float32 [rows, columns, promotions]."""
    if a is None or b is None:
        return b[None] if a is None and b is not None else None if a is None else a[:, None]
    return a[:, None] * b[None]


def spans(stop: int, step: int | None, start: int = 0) -> Iterator[tuple[int, int]]:
    """Where each `step` elements begin and end, of those from start to stop; all in one without a step."""
    for first in range(start, stop, step or max(1, stop - start)):
        yield first, min(first + (step or stop), stop)


def fused(scale: Tensor | None, c: Tensor, total: Tensor) -> Tensor:
    """fl32(scale c + total), rounded once; float64 tensors of float32 numbers, and so is the result."""
    x = c if scale is None else c * scale.double()  # 24 + 24 bits: exact
    found = x + total
    part = found - x
    error = (x - (found - part)) + (total - part)  # what the sum lost, exactly (Knuth)
    bits = found.view(torch.int64)
    # To the odd neighbour where it lost something: then float32's own rounding sees on which side of a tie it lay.
    odd = bits + torch.where((error > 0) == (found > 0), 1, -1)
    found = torch.where((error != 0) & (bits & 1 == 0) & found.isfinite(), odd, bits).view(torch.float64)
    return found.float().double()


def with_nonfinite(found: Tensor, a: Factor, b: Factor, start: Tensor | None) -> Tensor:
    """The sums with NaN and infinities where IEEE has them, if there are any in the operands."""
    parts = [each for each in (a.units, b.units, a.within, b.within, a.after, b.after, start) if each is not None]
    if all(_is_finite(each) for each in parts):
        return found
    ieee = torch.zeros_like(found, dtype=torch.float64) if start is None else start.double()
    ieee = ieee + _marked(a) @ _marked(b).T
    return torch.where(ieee.isfinite(), found, ieee.float())


def _is_finite(x: Tensor) -> bool:
    """Whether x has neither NaN nor infinities, without memory of its size."""
    return not x.numel() or all(math.isfinite(end) for end in torch.stack(torch.aminmax(x)).tolist())


def _marked(factor: Factor) -> Tensor:
    """The units, float64, and NaN or infinities throughout each block whose scale is one."""
    x = factor.units.double()
    for scale, block in ((factor.within, factor.within_block), (factor.after, factor.after_block)):
        if scale is not None:
            each = spread(scale, block, 1, *x.shape)
            x = torch.where(each.isfinite(), x, x * each)
    return x
