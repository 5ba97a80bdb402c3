"""How a weight is kept between steps: storage alone writes weights, optimizers only request.

    master       the weight as it is; forward passes cast it as the precision rules say
    nearest      Q(w~) after every step, w~ the requested weight: what is smaller than half a gap is lost
    stochastic   P(up) = the share of the gap passed, so E[Q(w~)] = w~ inside the range; 24 counted bits a weight
    kahan, eco   what rounding lost is kept: beside the weight, or in the momentum (`altgrad.optim.compensated`)
    index        whole rungs, floor(r + u): GridOptim's `landing: index` alone; biased in value (docs/SCIENCE.md, 6)

Everything but master keeps w on a grid: after a step every stored weight *is* a grid value. Scales are powers of two,
`fixed` or `tracked` (`altgrad.optim.stored_scale`); what a change of scale alone moves is counted as `rescale_flips`.
Whatever a storage on a grid computes is float32, of a bfloat16 or float16 parameter, too: in their own arithmetic w +
step would lose the step. Under master such a parameter is stepped as torch.optim does it, in its dtype.

State, by parameter: `storage_scale`, `storage_step` (keys the counted bits; on the device), `compensation` (kahan),
`rescale_flips` (tracked). The weights are put on their grid when the optimizer is made.
"""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from altgrad.formats import Rounding
from altgrad.optim.request import Request
from altgrad.optim.stored_scale import check_dtype, first_scale, own_grid, scale_range, snug, tracked_scale
from altgrad.optim.whole_tensor import whole_tensor
from altgrad.quantize import CurrentSpec, Grid, ScalingSpec, at_rung, round_to, rung
from altgrad.quantize.engine import Engine, cast_values, serves
from altgrad.quantize.noise import counted_bits, fold
from altgrad.spec import Format, Kind, Since

State = dict[str, Any]
_STEPS = 24


class Storage(Kind, family="storage", package="altgrad.optim"):
    """How the parameters whose name matches are kept. `match` as in precision rules, on parameter names."""

    match: Annotated[str, Field(min_length=1)] = "*"
    """A pattern of parameter names."""

    @property
    def on_grid(self) -> bool:
        """Whether stored weights are grid values."""
        return True

    @property
    def takes_shards(self) -> bool:
        """Whether it writes each element by itself, and so the part of a DTensor that a process holds."""
        return False

    @property
    def tracks(self) -> bool:
        """Whether its scale follows the weight by the rule of `tracked_scale`."""
        return False

    @property
    def wants_momentum(self) -> bool:
        """Whether only optimizers with a momentum buffer will do."""
        return False

    def grid(self, w: Tensor, state: State) -> Grid | None:
        """The grid that w is on; None for float32."""
        return None

    def admit(self, w: Tensor, name: str) -> None:
        """ValueError, in one line, for a parameter that cannot be kept so."""
        return

    @abstractmethod
    def adopt(self, w: Tensor, state: State) -> None:
        """Make the state, and put w on its grid, in place."""

    def whole(self, w: Tensor, state: State) -> Tensor:
        """The weight with what is owed to it: what another storage would take over."""
        return w

    @abstractmethod
    def write(
        self, params: list[Tensor], states: list[State], keys: list[int], request: Request, engine: Engine = "eager"
    ) -> None:
        """Do what is asked to the weights, in place. keys: the run's seed and the parameter's name, hashed."""


class Master(Storage):
    """The weight as it is. `format` names the grid that geometry-aware optimizers see where no rule casts it."""

    kind: ClassVar[str] = "master"
    format: Format | None = None
    """The grid that geometry-aware optimizers see where no rule casts the weight; null: none."""
    scale: Annotated[Literal["current", "tracked"], Since(2)] = "current"
    """The scale of that grid: the weight's own at each step, or as a tracked storage would have it."""

    @model_validator(mode="after")
    def _scales_a_format(self) -> "Master":
        if self.tracks and self.format is None:
            raise ValueError("storage master: scale: tracked is that of a grid, and no format is named; add a format.")
        return self

    @property
    def on_grid(self) -> bool:
        return False

    @property
    def takes_shards(self) -> bool:
        return self.format is None

    @property
    def tracks(self) -> bool:
        return self.scale == "tracked"

    def grid(self, w: Tensor, state: State) -> Grid | None:
        """The grid at its power-of-two scale, see `scale`; None without a format."""
        if self.format is None:
            return None
        return Grid(self.format, state["storage_scale"]) if self.tracks else own_grid(whole_tensor(w), self.format)

    def adopt(self, w: Tensor, state: State) -> None:
        if self.format is not None and self.tracks:
            state["storage_scale"] = first_scale(CurrentSpec(), self.format, w).clone()

    def write(
        self, params: list[Tensor], states: list[State], keys: list[int], request: Request, engine: Engine = "eager"
    ) -> None:
        request.apply(params)
        if self.format is not None and self.tracks:
            for w, state in zip(params, states, strict=True):
                held = state["storage_scale"]
                held.copy_(tracked_scale(CurrentSpec(), self.format, held, w.detach().to(torch.float32)))


class GridStorage(Storage):
    """What the storages on a grid share: the format, the scale, and how the scale moves."""

    format: Format
    """The format whose values stored weights are."""
    scaling: ScalingSpec = CurrentSpec(margin=1)
    """Power-of-two scaling of the weights; the default leaves a fixed scale a binade of headroom."""
    scale: Literal["fixed", "tracked"] = "fixed"
    """tracked: no headroom, whatever the margin; grows before anything is clipped, halves when there is room."""

    @model_validator(mode="after")
    def _agree(self) -> "GridStorage":
        self.format.require_tensor_domain()
        scaling = self.scaling
        if not scaling.power_of_two or scaling.zero_scales:
            raise ValueError(
                f"storage {self.kind} wants power-of-two scales and {scaling.kind} has others: with those a stored "
                "value need not come back to its code. Use scaling: {kind: current, margin: 1}."
            )
        if (statistic := getattr(scaling, "statistic", "amax")) != "amax":
            raise ValueError(f"storage {self.kind} must not clip weights, and statistic: {statistic} does; use amax.")
        if scaling.kind == "delayed":
            raise ValueError(f"storage {self.kind} keeps its own scale; use scaling: current with scale: tracked.")
        return self

    @property
    def tracks(self) -> bool:
        return self.scale == "tracked"

    def grid(self, w: Tensor, state: State) -> Grid:
        return Grid(self.format, state["storage_scale"])

    def admit(self, w: Tensor, name: str) -> None:
        check_dtype(self.kind, self.format, self._first_scaling, w, name)

    def adopt(self, w: Tensor, state: State) -> None:
        state["storage_scale"] = first_scale(self._first_scaling, self.format, w).clone()
        state["storage_step"] = torch.zeros((), dtype=torch.int64, device=w.device)
        if self.tracks:
            state["rescale_flips"] = torch.zeros((), dtype=torch.int64, device=w.device)
        if not w.is_meta:  # a shape alone has nothing to round, and a large model has hundreds
            w.copy_(round_to(w, self.format, scale=state["storage_scale"]))

    def convert(self, w: Tensor, state: State) -> None:
        """Take over, in place, a weight that was kept so in another format: a scale of its own, then the grid."""
        state["storage_scale"].copy_(first_scale(self._first_scaling, self.format, w))
        w.copy_(round_to(w, self.format, scale=state["storage_scale"]))

    def write(
        self, params: list[Tensor], states: list[State], keys: list[int], request: Request, engine: Engine = "eager"
    ) -> None:
        for index, (w, state, key) in enumerate(zip(params, states, keys, strict=True)):
            one = request.one(index)
            (step,) = one.steps()
            old = w.detach().to(torch.float32)
            wanted = torch.add(old * one.keep if one.keep != 1 else old, step)
            if self.tracks:
                self._rescale(w, wanted, state)
            w.copy_(self.land(wanted, state, key, one, engine))
            state["storage_step"].add_(1)

    @abstractmethod
    def land(self, wanted: Tensor, state: State, key: int, request: Request, engine: Engine) -> Tensor:
        """The stored weight for a wanted one: a grid value. key: the parameter's; `_bits` has that of the step."""

    def _bits(self, state: State, key: int) -> Tensor:
        """The key of this step's random bits. Only who rounds by them asks: it takes as long as the rest of a step."""
        return fold(key, state["storage_step"])

    @property
    def _first_scaling(self) -> ScalingSpec:
        return snug(self.scaling) if self.tracks else self.scaling

    def _rescale(self, w: Tensor, wanted: Tensor, state: State) -> None:
        """Move the scale to where `wanted` fits, by the rule of `tracked_scale`."""
        held = state["storage_scale"]
        now = tracked_scale(self.scaling, self.format, held, wanted)
        if w.dtype != torch.float32:
            now = now.clamp(*scale_range(self.format, w.dtype))
        moved = round_to(w, self.format, scale=now)
        state["rescale_flips"].add_(torch.count_nonzero(moved != w))
        held.copy_(now)


class Nearest(GridStorage):
    """Ties to even, nothing kept of what is lost."""

    kind: ClassVar[str] = "nearest"

    def land(self, wanted: Tensor, state: State, key: int, request: Request, engine: Engine) -> Tensor:
        return on_grid(wanted, self.grid(wanted, state), engine=engine)


class Stochastic(GridStorage):
    """Unbiased: a weight moves by a gap with the probability that makes its mean right."""

    kind: ClassVar[str] = "stochastic"

    def land(self, wanted: Tensor, state: State, key: int, request: Request, engine: Engine) -> Tensor:
        return on_grid(wanted, self.grid(wanted, state), Rounding.stochastic, self._bits(state, key), engine)


class Index(GridStorage):
    """GridOptim's walk on grid positions: floor(r + u) rungs a step."""

    kind: ClassVar[str] = "index"

    def write(
        self, params: list[Tensor], states: list[State], keys: list[int], request: Request, engine: Engine = "eager"
    ) -> None:
        """The request counts rungs; decay is taken in value and rounded to rungs with the rest."""
        assert request.in_rungs
        for index, (w, state, key) in enumerate(zip(params, states, keys, strict=True)):
            (steps,) = request.one(index).steps()
            grid = self.grid(w, state)
            position = rung(w, grid.format, scale=grid.scale)
            if request.keep != 1:
                steps = steps + (request.keep - 1) * position
            bits = counted_bits(w.shape, fold(key, state["storage_step"]), device=w.device)
            whole = (steps + bits.to(torch.float32) * 2.0**-_STEPS).floor().to(torch.int32)
            w.copy_(at_rung(position + whole, grid.format, scale=grid.scale))
            state["storage_step"].add_(1)

    def land(self, wanted: Tensor, state: State, key: int, request: Request, engine: Engine) -> Tensor:
        """Never asked: rungs land where they are."""
        raise AssertionError("index storage lands on rungs")


def on_grid(
    wanted: Tensor,
    grid: Grid,
    rounding: Rounding = Rounding.nearest_even,
    key: Tensor | None = None,
    engine: Engine = "eager",
) -> Tensor:
    """`wanted` on the grid, saturated; float32; the same bits under both engines."""
    fmt = grid.format
    if serves(fmt, rounding):
        return cast_values(wanted, grid.scale, fmt, rounding, exact_reciprocal=True, key=key, engine=engine)
    return round_to(wanted, fmt, rounding, scale=grid.scale, key=key)
