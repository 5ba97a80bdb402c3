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

State that casts keep (amax histories, counters of random bits), with the manners of a torch module's own state.

torch moves, copies, averages and loads the buffers of any module, but it knows of parameters alone how they begin:
`reset_parameters`. What casts keep begins without data, so it can begin whenever there is none: when it is reset, when
memory is allotted for a model that was made on meta, and when a state dict has weights trained without casts.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from altgrad.formats import NumberFormat
from altgrad.quantize.block_scale import SmallScale
from altgrad.quantize.traced import held
from altgrad.spec import Kind

LOGGER = logging.getLogger("altgrad")
_said: Any = None


class CastState(nn.Module):
    """A module of casts. See the head of this file; that a state dict has none of its state is logged, once a load."""

    def reset_parameters(self) -> None:
        """Start over, without history."""
        return

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        unmade = [name for name, buffer in self._buffers.items() if buffer is not None and buffer.is_meta]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if any(not cast(Tensor, self._buffers[name]).is_meta for name in unmade):
            self.reset_parameters()
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        own = [f"{prefix}{name}" for name in self._buffers]
        if not own or any(name in state_dict for name in own):
            super()._load_from_state_dict(state_dict, prefix, *rest)
            return
        self.reset_parameters()
        _say_once(rest[2])


def _say_once(load: Any) -> None:
    """Log, once for a load, that casts start over. load: what is one object during a load and not another's."""
    global _said
    if load is not _said:
        _said = load
        LOGGER.warning("The loaded state lacks that of the model's casts; their scales and random bits start over.")


MIN_SCALE, MAX_SCALE = 2.0**-126, 2.0**127
Granularity = Literal["tensor", "channel"]


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


def scale_of(amax: Tensor, fmt: NumberFormat, *, power_of_two: bool = True, margin: int = 0) -> Tensor:
    """The scale that puts `amax` at the format's largest value, times 2^margin; where amax is 0, it is 1.

    amax: float32, any shape, finite and not negative. Same shape out. Clamped to [2^-126, 2^127].
    """
    if power_of_two:
        # Built from the exponent field: exact everywhere, where exp2 and ldexp need not be.
        exponent = _scale_exponent(amax, fmt, margin)
        scale = ((exponent.clamp(-126, 127) + 127) << 23).to(torch.int32).view(torch.float32)
    else:
        scale = _quotient(amax, fmt, margin).clamp(MIN_SCALE, MAX_SCALE)
    return torch.where(amax > 0, scale, 1.0)


def beyond_range(amax: Tensor, fmt: NumberFormat, *, power_of_two: bool = True, margin: int = 0) -> Tensor:
    """Where `scale_of` clamps: the amax would have a scale below 2^-126 or above 2^127. bool, same shape."""
    if power_of_two:
        exponent = _scale_exponent(amax, fmt, margin)
        outside = (exponent < -126) | (exponent > 127)
    else:
        quotient = _quotient(amax, fmt, margin)
        outside = (quotient < MIN_SCALE) | (quotient > MAX_SCALE)
    return outside & (amax > 0)


def _scale_exponent(amax: Tensor, fmt: NumberFormat, margin: int) -> Tensor:
    top, top_exponent = math.frexp(float(fmt.max))
    mantissa, exponent = split_amax(amax, least=margin - top_exponent + 2)
    return exponent + (mantissa > top).to(torch.int32) + (margin - top_exponent)


def split_amax(amax: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Mantissa in [0.5, 1) and exponent (int32) of amaxes, as torch.frexp gives them; whatever for 0 and NaN.

    Read from the bits, which takes sub-normals for numbers of the lowest binade. least: at most 0 where that cannot
    matter, since what they ask for is clamped, and counts as clamped, either way; else frexp splits them.
    """
    if least > 0:
        return torch.frexp(amax)
    bits = amax.view(torch.int32)
    return ((bits & 0x7FFFFF) | 0x3F000000).view(torch.float32), (bits >> 23) - 126


def _quotient(amax: Tensor, fmt: NumberFormat, margin: int) -> Tensor:
    # A tensor divides it, since by a number CUDA multiplies with the rounded reciprocal.
    return amax / torch.full_like(amax, float(fmt.max)) * 2.0**margin


class Scaling(CastState, ABC):
    """State of one scaling at one site. Buffers are written in place, and stay float32 whatever the model becomes.

    In a pass they are never rebound; only moving the module to another device does that.
    """

    def __init__(self, spec: Any, fmt: NumberFormat, rows: int | None = None) -> None:
        super().__init__()
        self.spec, self.format = spec, fmt

    @abstractmethod
    def find(self, slabs: Sequence[Tensor], *, live: bool = False, count: bool = False) -> SmallScale | None:
        """The scale for casting the tensor whose rows these slabs are, one after the other; None for none.

        slabs: pieces of one tensor along its first axis; where it is cut does not change the scale. live: this is a
        training pass, to be recorded. count: say, too, how many scales were clamped (`SmallScale.clamped`).
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `.to`, `.half` and `.cuda` do. A scale rounded to bf16 is another scale, so only devices change."""

        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        return super()._apply(moved, recurse)


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


class UnscaledSpec(ScalingSpec):
    """x meets the grid as it is."""

    kind: ClassVar[str] = "unscaled"


class Unscaled(Scaling):
    def find(self, slabs: Sequence[Tensor], *, live: bool = False, count: bool = False) -> SmallScale | None:
        return None


class AmaxScalingSpec(ScalingSpec):
    """What scalings by amax share: it goes to the format's largest value, less a margin."""

    scale: Literal["power_of_two", "real"] = "power_of_two"
    """Whether scales are powers of two or any float32."""
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

    def small(self, amax: Tensor, fmt: NumberFormat, block: tuple[int, ...], count: bool) -> SmallScale:
        """The scales for these amaxes, each for a block of elements, and if asked how many were clamped."""
        clamped = torch.count_nonzero(self.beyond_range(amax, fmt)) if count else None
        scale = self.scale_of(amax, fmt)
        return SmallScale(held(scale) if max(block, default=1) > 1 else scale, block, clamped)


class CurrentSpec(AmaxScalingSpec):
    """The scale comes from this tensor's own amax; `channel` takes one for each row."""

    kind: ClassVar[str] = "current"
    granularity: Granularity = "tensor"
    """A scale for the tensor, or one for each row."""


class Current(Scaling):
    spec: CurrentSpec

    def find(self, slabs: Sequence[Tensor], *, live: bool = False, count: bool = False) -> SmallScale | None:
        amax = slab_amax(slabs, self.spec.granularity)
        return self.spec.small(amax, self.format, (1,) * amax.ndim, count)


class DelayedSpec(AmaxScalingSpec):
    """The scale comes from the amaxes of the last `history` steps before this one.

    Before the first step has been committed there is no history, and the tensor's own amax is used (Transformer Engine
    starts from a scale of 1 instead). `reduce: max` takes the largest of the history, `most_recent` the last.
    """

    kind: ClassVar[str] = "delayed"
    granularity: Granularity = "tensor"
    """A scale for the tensor, or one for each row (weights only)."""
    history: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Steps whose amaxes are kept."""
    reduce: Literal["max", "most_recent"] = "max"
    """max: the largest of the history; most_recent: the last."""

    def build(self, fmt: NumberFormat, rows: int | None) -> Scaling:
        """Raises ValueError for `channel` where the number of rows varies."""
        if self.granularity == "channel" and rows is None:
            raise ValueError(
                "delayed scaling by channel needs a fixed number of rows, which only weights have; "
                "use scaling: current, or granularity: tensor."
            )
        return super().build(fmt, rows)


class Delayed(Scaling):
    amax_now: Tensor
    amax_history: Tensor
    committed: Tensor
    ready: Tensor

    def __init__(self, spec: DelayedSpec, fmt: NumberFormat, rows: int | None = None) -> None:
        super().__init__(spec, fmt)
        shape = () if spec.granularity == "tensor" else (cast(int, rows), 1)
        self.register_buffer("amax_now", torch.zeros(shape))
        self.register_buffer("amax_history", torch.zeros(spec.history, *shape))
        self.register_buffer("committed", torch.ones(shape))
        # A whole number, since averages of models (torch's AveragedModel) subtract and truncate: so what began without
        # a history stays without.
        self.register_buffer("ready", torch.zeros(shape, dtype=torch.int64))

    def find(self, slabs: Sequence[Tensor], *, live: bool = False, count: bool = False) -> SmallScale | None:
        amax = slab_amax(slabs, self.spec.granularity)
        if live:
            self.amax_now.copy_(torch.maximum(self.amax_now, amax))
        clamped = None
        if count:
            # A scale kept for want of an amax is not clamped: nothing in the history asks for one beyond.
            clamped = torch.count_nonzero(
                self.spec.beyond_range(torch.where(self.ready > 0, self._recorded(), amax), self.format)
            )
        scale = torch.where(self.ready > 0, self._committed(), self.spec.scale_of(amax, self.format))
        return SmallScale(scale, (1,) * scale.ndim, clamped)

    def _committed(self) -> Tensor:
        """The committed scale; of an averaged model, whose scale may be no power of two, the next one above."""
        if not self.spec.power_of_two:
            return self.committed
        return ((self.committed.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)

    def commit(self) -> None:
        self.amax_history.copy_(torch.cat((self.amax_now[None], self.amax_history[:-1])))
        self.amax_now.zero_()
        amax = self._recorded()
        known = (amax > 0) & (amax < math.inf)
        self.committed.copy_(torch.where(known, self.spec.scale_of(amax, self.format), self.committed))
        self.ready.copy_((self.ready > 0) | known)

    def reset_parameters(self) -> None:
        for buffer in (self.amax_now, self.amax_history, self.ready):
            buffer.zero_()
        self.committed.fill_(1.0)

    def recorded(self) -> Sequence[Tensor]:
        return (self.amax_now,)

    def _recorded(self) -> Tensor:
        """The amax that the history comes to."""
        return self.amax_history.amax(0) if self.spec.reduce == "max" else self.amax_history[0]
