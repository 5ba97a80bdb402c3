"""Quantizer: the one place where a tensor enters a number format.

Its spec is a product of independent axes: format x rounding x scaling (x overflow x what becomes of infinities x what
the gradient does). It gives back `rounded * scale`, values of the grid in the tensor's own dtype, so everything
downstream is ordinary arithmetic.
Autograd never meets an 8-bit dtype: a native round trip through one casts the *gradient* to it, unscaled.

Where float16 cannot hold such a value it becomes the largest of the grid that float16 holds: 65504 enters e4m3fn as 240
times its scale of 256, since 256 times that is 65536. To stop at 65504 would leave the grid, and inf would make a
diverged run of one large activation. float32 and bfloat16 have that edge at 2^128: there a value that rounds up to it
becomes inf, and no pass over every tensor is spent on preventing that.

An inf that enters leaves as inf, so that a loss scaler, a monitor or the loss sees it: a step whose overflow was hidden
is a wrong step, and nobody knows. `nonfinite: saturate` makes it the largest value, as satfinite conversions of
hardware do.

When `watching`, each live cast is shown to the quantizer's observers as a `Cast`. They write fixed-shape buffers in
place; nothing is copied to the host, no Python object outlives the pass, and with watching off none of it runs.
"""

import copy
import itertools
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from altgrad.formats import FloatFormat, Rounding
from altgrad.quantize.apart import numbered, watched_cast
from altgrad.quantize.block_scale import SmallScale
from altgrad.quantize.engine import Engine, cast_values, serves
from altgrad.quantize.grid import (
    Grid,
    Nonfinite,
    Overflow,
    bound_units,
    grid_units,
    in_float32,
    keep_infinite,
    require_castable,
    round_units,
)
from altgrad.quantize.noise import counted_bits, fold, site_key
from altgrad.quantize.passes import counts, inside_backward, keep_key, process_key, refuse_transforms, repeated_key
from altgrad.quantize.scaling import CastState, CurrentSpec, ScalingSpec
from altgrad.spec import Format, RoundingMode, Since, Spec

Role = Literal["weight", "input", "grad_output", "grad_weight", "requested", "stored", "optimizer_state"]

Axis = Literal["last", "first"]


class QuantizerSpec(Spec):
    """How a tensor enters a format. A bare format name stands for `{format: name}` with the defaults below."""

    format: Format
    rounding: RoundingMode = Rounding.nearest_even
    scaling: ScalingSpec = CurrentSpec()
    overflow: Overflow = "saturate"
    gradient: Literal["identity", "clipped"] = "identity"
    """Straight-through estimator: the gradient passes as it is, or is 0 where the value lay outside the range."""
    random_bits: Annotated[int, Field(ge=1, le=24)] | None = None
    nonfinite: Annotated[Nonfinite, Since(2)] = "keep"
    """An inf that enters: it stays inf, or becomes the largest value. NaN stays NaN."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"format": value} if isinstance(value, str | FloatFormat) else value

    @model_validator(mode="after")
    def _agree(self) -> "QuantizerSpec":
        self.format.require_tensor_domain()
        if self.overflow == "inf" and not (self.format.has_inf or self.format.has_nan):
            raise ValueError(
                f"{self.format} has neither inf nor NaN for an overflow to become; use overflow: saturate."
            )
        if self.random_bits is not None and self.rounding is not Rounding.stochastic:
            raise ValueError(f"random_bits belongs to rounding: stochastic, not {self.rounding}.")
        return self

    noun: ClassVar[str] = "a cast"


@dataclass(frozen=True)
class Cast:
    """One entry of a tensor into a format, in grid units: x ~ rounded * scale.

    exact: x / scale, float32. unbounded: rounded as if the grid had no end. rounded: after the overflow rule.
    scale: None for 1, else broadcastable with x. clamped: how many scales (of the tensor, its channels or blocks) an
    amax would have beyond their range, an int64 scalar; only casts that are watched count it. site: empty in a compiled
    graph, which serves many.
    """

    site: str
    role: Role
    format: FloatFormat
    scale: Tensor | None
    exact: Tensor
    unbounded: Tensor
    rounded: Tensor
    clamped: Tensor | None = None

    def values(self, dtype: torch.dtype) -> Tensor:
        """rounded * scale in the given dtype; for float16, see the head of this file."""
        values = self.rounded if self.scale is None else _scaled_back(self.rounded, self.scale)
        return _held(values, self.format, self.scale, dtype)


@dataclass(frozen=True, eq=False)
class Observer:
    """Adds what it makes of a cast to its rows, or to what is given in their place, and leaves no other trace."""

    add: Callable[[Sequence[Tensor], Cast], None]
    rows: Sequence[Tensor]

    def __call__(self, cast: Cast) -> None:
        self.add(self.rows, cast)


_unnamed = itertools.count()


def unnamed_site(kind: str) -> str:
    """A site for what was given none, `<kind>.<number>`: no two of a process are equal."""
    return f"{kind}.{next(_unnamed)}"


class Quantizer(CastState):
    """Casts tensors at one site. Calling it is differentiable as its spec's `gradient` says, any number of times.

    spec: a QuantizerSpec, or whatever one can be made from (`"e4m3fn"`); SpecError for what is none. site: a stable
    name, `<module>/<operand>`, which with `seed` keys the random bits; without one it gets a name of its own, and so
    does a copy of it. reduced: the axis that the coming product sums over, along which channels and blocks lie;
    `first` needs matrices. rows: how many slices lie along it, where that is fixed.
    A live pass feeds delayed scaling, advances the random bits, and is watched; what counts as one stands in
    `altgrad.quantize.passes`. Call `commit()` once after each optimizer step. A copy is not watched.
    """

    counter: Tensor
    recording = True
    """Whether training passes count; see `altgrad.nn.replay.unrecorded`."""
    uncounted = False
    apart = False
    """Whether compiled graphs leave casts on a CPU, where `Observer`s alone watch them, to `altgrad.quantize.apart`."""
    dealt = False
    """Whether the processes that train together share out the passes of a step, whose numbers `seek` then sets."""

    def __init__(
        self,
        spec: QuantizerSpec | str,
        site: str | None = None,
        role: Role = "input",
        *,
        seed: int = 0,
        rows: int | None = None,
        reduced: Axis = "last",
    ) -> None:
        super().__init__()
        self.role, self.reduced, self.rows, self.seed = role, reduced, rows, seed
        self.named = site is not None
        """Whether the site was given, by the user or a model; if not, a copy gets another."""
        self._name(site)
        self.number = numbered(self)
        self._last_key: Tensor | None = None
        self.observers: list[Callable[[Cast], None]] = []
        self.watching = False
        self.engine: Engine = "eager"
        self._adopt(QuantizerSpec.made_from(spec, site or ""))
        if self.spec.rounding is Rounding.stochastic:
            # High bits: optimizer steps committed. Low 16: live casts since, that is, micro-batches.
            self.register_buffer("counter", torch.zeros((), dtype=torch.int64))

    def _name(self, site: str | None) -> None:
        self.site = unnamed_site("quantizer") if site is None else site
        # A tensor, since one graph serves all layers of a shape, and no buffer: averages of models round those. It lies
        # on the host whatever the model does, even where models are made without memory.
        self.key = torch.tensor(site_key(self.seed, self.site), dtype=torch.int64, device="cpu")

    def __deepcopy__(self, memo: dict[int, Any]) -> "Quantizer":
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        own = {**self.__dict__, "observers": [], "watching": False}
        made.__dict__.update(copy.deepcopy(own, memo))
        made.number = numbered(made)
        if not self.named:
            layer, slash, operand = self.site.partition("/")
            made._name(unnamed_site(layer.partition(".")[0]) + slash + operand)
        return made

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.number = numbered(self)

    def _adopt(self, spec: QuantizerSpec) -> None:
        self.spec = spec
        self.scaling = spec.scaling.build(spec.format, self.rows)
        self.short = (
            serves(self.spec.format, self.spec.rounding)
            and self.spec.overflow == "saturate"
            and self.spec.random_bits is None
        )

    def enter(self, fmt: FloatFormat) -> None:
        """Cast to another format from now on. The scaling begins anew, without history; random bits go on.

        SpecError if the rest of the spec does not go together with it.
        """
        device = next((buffer.device for buffer in self.buffers()), None)
        self._adopt(type(self.spec).made_from(self.spec.tree() | {"format": str(fmt)}, self.site))
        if device is not None:
            self.scaling.to(device)

    def forward(self, x: Tensor) -> Tensor:
        """x on the grid, in x's dtype. RuntimeError under transforms of torch.func and in forward-mode AD."""
        refuse_transforms("a Quantizer")
        require_castable(x)
        return typing.cast(Tensor, _StraightThrough.apply(x, self, self.live))

    @property
    def live(self) -> bool:
        """Whether a forward now is a pass that counts."""
        return counts(self)

    def values(self, x: Tensor, live: bool, dtype: torch.dtype) -> Tensor:
        """`cast(x, live).values(dtype)`, without keeping what only observers look at."""
        if live and self.watching:
            if self.apart and x.device.type == "cpu" and torch.compiler.is_compiling():
                seen = [observe for observe in self.observers if isinstance(observe, Observer)]
                if len(seen) == len(self.observers):
                    written = [self.counter] if self.spec.rounding is Rounding.stochastic else []
                    written += [row for observer in seen for row in observer.rows]
                    return watched_cast(x.detach(), self.number, written, dtype)
            return self.cast(x, live).values(dtype)
        if self.short:
            spec, found = self.spec, self.find_scale(x, live)
            seen, scale = (x, None) if found is None else found.meet(x)
            key = self._key(live)
            values = cast_values(
                seen, scale, spec.format, spec.rounding,
                exact_reciprocal=spec.scaling.power_of_two, zeros=spec.scaling.zero_scales, nonfinite=spec.nonfinite,
                key=key, engine=self.engine,
            )  # fmt: skip
            return _held(values, spec.format, scale, dtype).view(x.shape)
        exact = self._units(x, scale := self._scale(x, live))
        unbounded = self._round(exact, live)
        rounded = self._bound(x, unbounded, in_place=True)
        values = rounded if scale is None else _scaled_back(rounded, scale)
        return _held(values, self.spec.format, scale, dtype)

    def cast(self, x: Tensor, live: bool) -> Cast:
        """The cast itself, outside autograd; a live one is shown to the observers while `watching`."""
        made = self._cast(x, live, self.role)
        if live and self.watching:
            for observe in self.observers:
                observe(made)
        return made

    def cast_into(self, x: Tensor, written: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The values of a live pass that is watched, where the counter and all rows are `written`, in this order.
        Observers are told one role for all passes: those of weights, inputs and gradients can share a graph."""
        left = list(written)
        counter = left.pop(0) if self.spec.rounding is Rounding.stochastic else None
        made = self._cast(x, True, "input", counter)
        for observer in self.observers:
            assert isinstance(observer, Observer)
            observer.add([left.pop(0) for _ in observer.rows], made)
        return made.values(dtype)

    def _cast(self, x: Tensor, live: bool, role: Role, counter: Tensor | None = None) -> Cast:
        found = self.find_scale(x, live, count=live and self.watching)
        scale = None if found is None else found.spread(tuple(x.shape))
        exact = self._units(x, scale)
        rounded = self._bound(x, unbounded := self._round(exact, live, counter))
        clamped = None if found is None else found.clamped
        site = "" if torch.compiler.is_compiling() else self.site
        return Cast(site, role, self.spec.format, scale, exact, unbounded, rounded, clamped)

    def find_scale(self, x: Tensor, live: bool = False, *, count: bool = False) -> SmallScale | None:
        """The scale for casting x, along the axis that this quantizer reduces; see Scaling.find."""
        if self.reduced == "last":
            return self.scaling.find((x,), live=live, count=count)
        found = self.scaling.find((x.mT,), live=live, count=count)
        return None if found is None else found.turned

    def _scale(self, x: Tensor, live: bool) -> Tensor | None:
        found = self.find_scale(x, live)
        return None if found is None else found.spread(tuple(x.shape))

    def _units(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """x in grid units."""
        if scale is None or not self.spec.scaling.zero_scales:
            return grid_units(x, scale)
        # A scale of 0 (a block that NVFP4 gives up) makes zeros: anything finite times 0, divided by 1 meanwhile.
        return grid_units(x, torch.where(scale == 0, 1.0, scale))

    def _key(self, live: bool, counter: Tensor | None = None) -> Tensor | None:
        """The key of this pass's random bits, if it draws any. A live pass uses it up, and so does that of a replay,
        whose traces are taken away; what repeats a pass takes that pass's. counter: instead of the cast's own."""
        if self.spec.rounding is not Rounding.stochastic:
            return None
        traced = torch.compiler.is_compiling()
        if not (live or traced) and self.training and inside_backward():
            repeated = repeated_key(self)
            if repeated is None and self.recording:
                repeated = self._last_key
            if repeated is not None:
                return repeated
        counter = self.counter if counter is None else counter
        key = fold(self.key if self.dealt else process_key(self.key, self.role), counter)
        if live or (self.training and not self.recording):
            if not traced:
                keep_key(self, key)
                self._last_key = key
            counter.add_(1)
        return key

    def _bound(self, x: Tensor, unbounded: Tensor, *, in_place: bool = False) -> Tensor:
        """What rounding gave, after the rules for overflow and infinities; in grid units."""
        bounded = bound_units(unbounded, self.spec.format, self.spec.overflow, in_place=in_place)
        return bounded if self.spec.nonfinite == "saturate" else keep_infinite(in_float32(x), bounded)

    def _round(self, exact: Tensor, live: bool, counter: Tensor | None = None) -> Tensor:
        """Rounded as if the grid had no end."""
        spec, key = self.spec, self._key(live, counter)
        noise = None if key is None else counted_bits(exact.shape, key, device=exact.device)
        return round_units(exact, spec.format, spec.rounding, noise, spec.random_bits)

    def grid(self, x: Tensor) -> Grid:
        """The grid that x would enter now; records nothing."""
        return Grid(self.spec.format, self._scale(x, live=False))

    def values_and_mask(self, x: Tensor, live: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The values, and where the gradient passes; None for everywhere."""
        if self.spec.gradient == "identity":
            return self.values(x, live, dtype), None
        made = self.cast(x, live)
        return made.values(dtype), made.exact.abs() <= float(self.spec.format.max)

    def reset_parameters(self) -> None:
        """Start over: no amax was seen and no random bits were used."""
        self.scaling.reset_parameters()
        if self.spec.rounding is Rounding.stochastic:
            self.counter.zero_()

    def commit(self) -> None:
        """Close an optimizer step; see Scaling.commit."""
        self.scaling.commit()
        if self.spec.rounding is Rounding.stochastic:
            self.counter.bitwise_right_shift_(16).add_(1).bitwise_left_shift_(16)

    def seek(self, pass_: int) -> None:
        """Have the next live pass be number `pass_` of the optimizer step (from 0) to the random bits.

        The number is then that of the whole step, whichever process takes it.
        """
        self.dealt = True
        self.rewind()
        if self.spec.rounding is Rounding.stochastic:
            self.counter.add_(pass_)

    def rewind(self) -> None:
        """Have the passes of this optimizer step come again, from the first one on, to the random bits."""
        if self.spec.rounding is Rounding.stochastic:
            self.counter.bitwise_right_shift_(16).bitwise_left_shift_(16)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"{self.spec.format}, {self.spec.rounding}, {self.spec.scaling.kind}"


def _scaled_back(rounded: Tensor, scale: Tensor) -> Tensor:
    """rounded * scale, but that an infinity stays one where its block has the scale 0."""
    return keep_infinite(rounded, rounded * scale)


def _held(values: Tensor, fmt: FloatFormat, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Values of the grid `scale * fmt` (float32) in dtype; what is finite stays finite in float16."""
    if dtype != torch.float16:
        return values.to(dtype)
    top = torch.full((), torch.finfo(dtype).max, device=values.device)
    units = top if scale is None else top / scale
    limit = bound_units(round_units(units, fmt, Rounding.toward_zero), fmt)
    limit = limit if scale is None else limit * scale
    return torch.where(values.isinf(), values, values.clamp(-limit, limit)).to(dtype)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantizer: Quantizer, live: bool) -> Tensor:
        values, ctx.mask = quantizer.values_and_mask(x, live, x.dtype)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] if ctx.mask is None else torch.where(ctx.mask, grads[0], 0), None, None
