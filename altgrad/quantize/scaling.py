"""Scales: what a tensor is divided by before it meets a grid (x ~ q * scale).

A scaling is a member of the family `scaling`: a frozen spec that builds a module holding the state. The names are those
of Transformer Engine: `current` takes the scale from this tensor's largest magnitude (amax), `delayed` from the amaxes
of the steps before (Micikevicius et al., FP8 Formats for Deep Learning, arXiv 2209.05433, section 3.1). By default
scales are powers of two: dividing by them is exact, so all rounding happens on the grid.

    amax = m_a 2^e_a,  max = m_x 2^e_x (frexp)  ->  scale = 2^(e_a - e_x + [m_a > m_x])

is the smallest power of two under which nothing saturates, found without a division or a logarithm. A real scale is
amax / max. Scales stay within [2^-126, 2^127]; those that an amax would have beyond are clamped, and counted for
whoever watches. Entries that are inf or NaN never enter an amax; an amax of zero (or one that overflowed) leaves the
scale as it was.

A scaling finds the scale of a whole tensor from slabs of its rows, one of which may be the whole. So a large tensor
needs little memory beside it, and there is one definition for both.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.quantize.arithmetic import ENCODES, LEAST_FACTOR, Arithmetic, encoder, one_level, raised
from altgrad.quantize.block_scale import SmallScale
from altgrad.quantize.cast_state import CastState
from altgrad.quantize.traced import held
from altgrad.spec import Format, Kind, Since

MIN_SCALE, MAX_SCALE = 2.0**-126, 2.0**127
Granularity = Literal["tensor", "channel"]
Statistic = Literal["amax", "std", "absmean"]


def finite_magnitude(x: Tensor) -> Tensor:
    """|x| as float32, same shape, with inf and NaN as 0; detached from autograd."""
    magnitude = x.detach().to(torch.float32).abs()
    return torch.where(magnitude < math.inf, magnitude, 0)


def finite_amax(x: Tensor, granularity: Granularity = "tensor") -> Tensor:
    """Largest finite magnitude, float32: a scalar, or for `channel` one per row (last axis reduced, kept).

    inf and NaN count as 0, as does an empty tensor.
    """
    if x.numel() == 0:
        return x.new_zeros((*x.shape[:-1], 1) if granularity == "channel" else (), dtype=torch.float32)
    if granularity == "channel":
        return finite_magnitude(x).amax(dim=-1, keepdim=True)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # One pass instead of three, and looking at the result costs nothing on the host.
        low, high = torch.aminmax(x.detach())
        found = torch.maximum(low.neg(), high).to(torch.float32)
        if found < math.inf:
            return found
    return finite_magnitude(x).amax()


def slab_amax(slabs: Sequence[Tensor], granularity: Granularity = "tensor") -> Tensor:
    """`finite_amax` of the tensor whose rows these slabs are."""
    found = [finite_amax(slab, granularity) for slab in slabs]
    if len(found) == 1:
        return found[0]
    return torch.cat(found) if granularity == "channel" else torch.stack(found).amax()


def statistic_of(slabs: Sequence[Tensor], statistic: Statistic, granularity: Granularity = "tensor") -> Tensor:
    """The statistic of the finite entries of the tensor whose rows these slabs are, of the shape of `slab_amax`."""
    if statistic == "amax":
        return slab_amax(slabs, granularity)
    axis, keep = (-1, True) if granularity == "channel" else (None, False)
    parts = zip(*(sums(slab, statistic) for slab in slabs), strict=True)
    totals = [[part.sum(axis, keepdim=keep) for part in column] for column in parts]
    if granularity == "channel":
        return from_sums([torch.cat(column) for column in totals], statistic)
    return from_sums([torch.stack(column).sum() for column in totals], statistic)


def sums(x: Tensor, statistic: Statistic) -> list[Tensor]:
    """What `from_sums` takes once it is added up: float64, of the shape of x; the first counts its entries."""
    x = x.detach()
    values = torch.where(x.abs() < math.inf, x, 0).to(torch.float64)
    return [torch.ones_like(values), *([values.abs()] if statistic == "absmean" else [values, values.square()])]


def from_sums(totals: Sequence[Tensor], statistic: Statistic) -> Tensor:
    """The statistic, float32, of entries whose `sums` were added up."""
    count, *rest = totals
    means = [total / count.clamp(min=1) for total in rest]
    found = means[0] if statistic == "absmean" else (means[1] - means[0].square()).clamp(min=0).sqrt()
    return found.to(torch.float32)


def std_scale(std: Tensor, fmt: NumberFormat) -> Tensor:
    """The scale that puts 2.92247856 standard deviations, and 1e-8, at the largest value; float32, same shape."""
    return std * (2.92247856 / float(fmt.max)) + 1e-8


def scale_of(
    amax: Tensor, fmt: NumberFormat, *, power_of_two: bool = True, margin: int = 0, top: float | None = None
) -> Tensor:
    """The scale that puts `amax` at the format's largest value (or at `top`), times 2^margin; where amax is 0, it is 1.

    amax: float32, any shape, finite and not negative. Same shape out. Clamped to [2^-126, 2^127].
    """
    if power_of_two:
        exponent = scale_exponent(amax, float(fmt.max) if top is None else top, margin)
        scale = power_of_two_scale(exponent.clamp(-126, 127))
    else:
        scale = _quotient(amax, float(fmt.max) if top is None else top, margin).clamp(MIN_SCALE, MAX_SCALE)
    return torch.where(amax > 0, scale, 1.0)


def beyond_range(
    amax: Tensor, fmt: NumberFormat, *, power_of_two: bool = True, margin: int = 0, top: float | None = None
) -> Tensor:
    """Where `scale_of` clamps: the amax would have a scale below 2^-126 or above 2^127. bool, same shape."""
    top = float(fmt.max) if top is None else top
    if power_of_two:
        exponent = scale_exponent(amax, top, margin)
        outside = (exponent < -126) | (exponent > 127)
    else:
        quotient = _quotient(amax, top, margin)
        outside = (quotient < MIN_SCALE) | (quotient > MAX_SCALE)
    return outside & (amax > 0)


def scale_exponent(amax: Tensor, top: float, margin: int = 0, lowest: int = -126) -> Tensor:
    """The exponent of the smallest power of two under which `amax` does not exceed `top`, plus margin; int32.

    Whatever for 0 and NaN. lowest: the least exponent a scale can have.
    """
    mantissa_top, top_exponent = math.frexp(top)
    mantissa, exponent = split_amax(amax, least=margin - top_exponent - lowest - 124)
    return exponent + (mantissa > mantissa_top).to(torch.int32) + (margin - top_exponent)


def power_of_two_scale(exponent: Tensor) -> Tensor:
    """2^exponent, float32, for int32 exponents from -126 to 127.

    Built from the exponent field: exact everywhere, where exp2 and ldexp need not be.
    """
    return ((exponent + 127) << 23).to(torch.int32).view(torch.float32)


def split_amax(amax: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Mantissa in [0.5, 1) and exponent (int32) of amaxes, as torch.frexp gives them; whatever for 0 and NaN.

    Read from the bits, which takes sub-normals for numbers of the lowest binade. least: at most 0 where that cannot
    matter, since what they ask for is clamped, and counts as clamped, either way; else frexp splits them.
    """
    if least > 0:
        return torch.frexp(amax)
    bits = amax.view(torch.int32)
    return ((bits & 0x7FFFFF) | 0x3F000000).view(torch.float32), (bits >> 23) - 126


def _quotient(amax: Tensor, top: float, margin: int) -> Tensor:
    # A tensor divides it, since by a number CUDA multiplies with the rounded reciprocal.
    return amax / torch.full_like(amax, top) * 2.0**margin


class Scaling(CastState, ABC):
    """State of one scaling at one site. Buffers are written in place, and stay float32 whatever the model becomes.

    In a pass they are never rebound; only moving the module to another device does that.
    """

    keeps_outer = False
    """Whether `SmallScale.outer` is wanted of scales on two levels, for a cast that corrects the inner ones."""

    turned = False
    """Whether `find` sees transposes of the tensors whose elements the cast counts random bits for."""

    def __init__(self, spec: Any, fmt: NumberFormat, rows: int | None = None) -> None:
        super().__init__()
        self.spec, self.format = spec, fmt

    @property
    def either_way(self) -> bool:
        """Whether a matrix has the scales of its transpose."""
        return False

    @abstractmethod
    def find(
        self, slabs: Sequence[Tensor], *, live: bool = False, count: bool = False, key: Tensor | None = None
    ) -> SmallScale | None:
        """The scale for casting the tensor whose rows these slabs are, one after the other; None for none.

        slabs: pieces of one tensor along its first axis; where it is cut does not change the scale. live: this is a
        training pass, to be recorded. count: say, too, how many scales were clamped (`SmallScale.clamped`). key: of
        the pass's random bits, for scales that are drawn; without one they are rounded to nearest.
        """

    def scale(self, x: Tensor, live: bool) -> Tensor | None:
        """The scale for casting x, broadcastable with it; None for none. Only a `live` (training) pass is recorded."""
        found = self.find((x,), live=live)
        return None if found is None else found.spread(tuple(x.shape))

    def commit(self) -> None:
        """Close an optimizer step: what its live passes recorded becomes history."""
        return

    def recorded(self) -> Sequence[Tensor]:
        """What live passes have recorded since the last commit; of several processes the largest counts, in place."""
        return ()


class ScalingSpec(Kind, family="scaling", package="altgrad.quantize"):
    """How a site finds its scale."""

    def build(self, fmt: NumberFormat, rows: int | None) -> Scaling:
        """The state for one site. rows: how many rows (channels) its tensors have, None if that varies."""
        made: Scaling = self.product()(self, fmt, rows)
        return made

    @property
    def power_of_two(self) -> bool:
        """Whether every scale is a power of two, so that scaling a grid value is exact in any float type."""
        return True

    @property
    def zero_scales(self) -> bool:
        """Whether a scale can be 0."""
        return False

    @property
    def draws(self) -> bool:
        """Whether scales are rounded stochastically."""
        return False

    @property
    def chosen(self) -> dict[str, Any]:
        """The choices that are younger than the first edition and not at their defaults."""
        fields = type(self).model_fields
        young = [name for name, info in fields.items() if any(isinstance(item, Since) for item in info.metadata)]
        return {name: value for name, value in self.tree().items() if name in young}

    @property
    def measures(self) -> bool:
        """Whether scales follow the tensor, so that a common factor of all its entries changes nothing."""
        return True

    @property
    def is_plain(self) -> bool:
        """Whether values are q * scale, so that codes and scales are all of a tensor."""
        return True


class UnscaledSpec(ScalingSpec):
    """x meets the grid as it is."""

    kind: ClassVar[str] = "unscaled"

    @property
    def measures(self) -> bool:
        return False


class Unscaled(Scaling):
    def find(
        self, slabs: Sequence[Tensor], *, live: bool = False, count: bool = False, key: Tensor | None = None
    ) -> SmallScale | None:
        return None


class AmaxScalingSpec(ScalingSpec):
    """What scalings by amax share: it goes to the format's largest value, less a margin."""

    scale: Literal["power_of_two", "real", "e8m0"] | Format = "power_of_two"
    """Whether scales are powers of two, any float32, or of a format."""
    margin: Annotated[int, Field(ge=-16, le=16)] = 0
    """Binades left free above amax."""

    @property
    def power_of_two(self) -> bool:
        return self.scale == "power_of_two"

    def scale_of(self, amax: Tensor, fmt: NumberFormat) -> Tensor:
        """The scale for an amax under this spec."""
        return scale_of(amax, fmt, power_of_two=self.power_of_two, margin=self.margin)

    def beyond_range(self, amax: Tensor, fmt: NumberFormat) -> Tensor:
        """Where `scale_of` clamps."""
        return beyond_range(amax, fmt, power_of_two=self.power_of_two, margin=self.margin)


class StatisticSpec(AmaxScalingSpec):
    """What scalings by a statistic of the tensor, its channels or blocks share: every choice about the number itself.

    std puts 2.92 standard deviations at the largest value, as QuEST does: 2^floor(log2(0.48707976 std + 1e-8)) for
    e2m1, std = sqrt(mean x^2 - (mean x)^2). Sums are float64, so that neither engines nor slabs change them.
    """

    statistic: Annotated[Statistic, Since(2)] = "amax"
    """What the scale is taken from: the largest magnitude, the standard deviation or the mean magnitude."""
    target: Annotated[float, Field(gt=0, le=16), Since(2)] = 1.0
    """The statistic goes to this times the largest value; for scales that are no powers of two."""
    prescale: Annotated[float, Field(gt=0, le=16), Since(2)] = 1.0
    """x is multiplied by it before it is rounded, and values are divided by it; for powers of two."""
    floor: Annotated[float, Field(ge=0, le=1e30), Since(2)] = 0.0
    """The least that the statistic counts as."""
    arithmetic: Annotated[Arithmetic, Since(2)] = "divide"
    """The order of operations, which decides last bits: whose reference the cast equals."""

    @model_validator(mode="after")
    def _apart(self) -> Self:
        mode = type(self).model_fields.get("mode")
        if self.target != 1 and self.scales_by_powers:
            raise ValueError(f"target: {self.target} needs scale: real or a format; a power of two takes prescale.")
        if self.prescale != 1 and not self.scales_by_powers:
            raise ValueError(f"prescale: {self.prescale} needs scale: power_of_two or e8m0; others take target.")
        own = {"margin": 0, "target": 1, "floor": 0, **({"mode": mode.default} if mode else {})}
        given = [name for name, default in own.items() if getattr(self, name) != default]
        if self.statistic == "std" and given:
            raise ValueError(f"statistic: std has a rule of its own; leave out {' and '.join(given)}.")
        return self

    @property
    def scales_by_powers(self) -> bool:
        """Whether a scale is a power of two before `prescale` is divided out of it."""
        return self.scale in ("power_of_two", "e8m0")

    @property
    def power_of_two(self) -> bool:
        return self.scales_by_powers and self.prescale == 1

    @property
    def is_plain(self) -> bool:
        return self.power_of_two or self.arithmetic != "torchao"

    def top(self, fmt: NumberFormat) -> float:
        """The grid value that the statistic goes to, but for a margin."""
        return float(fmt.max) * self.target

    def number(self, statistic: Tensor, fmt: NumberFormat, top: float) -> Tensor:
        """The scale for a statistic, or the factor where the arithmetic is of those that find it."""
        if self.statistic == "std":
            scale = std_scale(statistic, fmt)
            if self.scales_by_powers:  # the next one below
                scale = (scale.view(torch.int32) & 0x7F800000).view(torch.float32)
            scale = scale.clamp(MIN_SCALE, MAX_SCALE)
            return scale.reciprocal() if self.arithmetic in ENCODES else scale
        if self.arithmetic in ENCODES:
            top = top * 2.0**-self.margin
            return encoder(statistic, top, self.floor, self.arithmetic, power_of_two=self.scales_by_powers)
        amax = raised(statistic, self.floor)
        return scale_of(amax, fmt, power_of_two=self.scales_by_powers, margin=self.margin, top=top)

    def clamps(self, statistic: Tensor, fmt: NumberFormat, top: float) -> Tensor:
        """Where `number` is clamped, bool of the same shape."""
        amax = raised(statistic, self.floor)
        if self.arithmetic in ENCODES:
            factor = torch.full_like(amax, top * 2.0**-self.margin) / amax
            return (amax > 0) & ((factor == math.inf) | (factor < LEAST_FACTOR))
        return beyond_range(amax, fmt, power_of_two=self.scales_by_powers, margin=self.margin, top=top)

    def small(
        self, statistic: Tensor, fmt: NumberFormat, block: tuple[int, ...], count: bool, top: float | None = None
    ) -> SmallScale:
        """The scales for these statistics, each for a block of elements, and if asked how many were clamped."""
        top = self.top(fmt) if top is None else top
        clamped = torch.count_nonzero(self.clamps(statistic, fmt, top)) if count else None
        scales = one_level(self.number(statistic, fmt, top), self.arithmetic, self.prescale)
        return SmallScale.of(scales.each(held) if max(block, default=1) > 1 else scales, block, clamped)
