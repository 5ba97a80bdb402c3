"""What is measured of each gradient and of each update, in one pass over it.

A monitor asks one thing, and most of what it does to answer is done by others too: the codes before and after, the
spacing, the request in grid units. Each on its own reads a parameter a dozen times. Under the compiled engine all due
measures of a parameter are traced into one graph, which computes what they share once, reads each tensor once, writes
nothing the size of a parameter but what is kept, and gives one vector of results. What sorts a sample stays outside,
and what casts count has a graph of its own: in one graph both take 1.7 times as long, for want of registers.
The measures are the same functions under both engines: counts agree, sums to rounding.

One graph serves all parameters of one format and storage, and there is one for each set of monitors due together. What
can vary within it (sizes, scales, all tensors) is its input; what decides its shape is constant (`Form`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.monitors.monitor import CastMonitor, Found, GradientMonitor, Monitor, UpdateMonitor
from altgrad.optim import Update, whole_tensor
from altgrad.quantize import Cast, Grid, Rounding
from altgrad.quantize.counted import Role
from altgrad.quantize.engine import Engine, known_options, ready_compiler
from altgrad.quantize.grid import grid_units, round_units
from altgrad.watching.cast_tables import cast_on

INLINED = {"realize_opcount_threshold": 100}
"""How many operations a number may take to be computed anew by each that asks, instead of being kept for them: here all
ask in one loop, where it is computed once, and a bool is written to memory one at a time."""
ROLES: tuple[Role, Role] = ("requested", "stored")
TENSORS = ("before", "requested", "after", "undecayed", "moved", "gradient", "draw")

Name = tuple[str, str, str]
"""Kind, role (of a cast; else empty), and the name of a result."""
Seen = tuple[Tensor, tuple[Name, ...]]
"""Results of one parameter, float64 [n], and their names."""


class Form(NamedTuple):
    """What is constant in the graph of an update."""

    kinds: tuple[str, ...]
    casts: tuple[str, ...]
    format: NumberFormat | None
    storage: str


class CompiledPass:
    """Shows gradients and updates to the monitors of those sorts; cast monitors see requests and weights on a grid."""

    def __init__(self, monitors: Mapping[str, Monitor], engine: Engine = "eager") -> None:
        self.monitors, self.engine = monitors, engine
        self.kept: dict[str, dict[str, Found]] = {}
        """What update monitors keep, by kind and parameter."""
        self.coming: dict[str, dict[str, Found]] = {}
        """What they will keep once it is known that the update was one."""
        self.graphs: dict[tuple[str, ...] | Form, Callable[..., Any]] = {}

    def gradient(self, gradient: Tensor, kinds: tuple[str, ...]) -> Seen:
        """What these gradient monitors measure of one."""
        if kinds not in self.graphs:
            self.graphs[kinds] = self._made(self._of_gradient(kinds))
        gradient = whole_tensor(gradient)
        flat = self.engine == "compiled" and gradient.numel() > 1 and gradient.is_contiguous()
        seen: Seen = self.graphs[kinds](gradient.view(-1) if flat else gradient)
        return seen

    def update(self, update: Update, kinds: tuple[str, ...], casts: tuple[str, ...], *, deferred: bool = False) -> Seen:
        """What these update and cast monitors measure of one.

        deferred: whether it was one will be known later, and what they keep waits for `taken` or `left_out`.
        """
        grid, kept, lookers = update.grid, dict[str, Found](), self._of_updates(kinds)
        for kind, monitor in lookers:
            held = self.kept.setdefault(kind, {}).get(update.name)
            kept[kind] = monitor.start(update) if held is None else held
        tensors = {name: whole_tensor(t) for name in TENSORS if (t := getattr(update, name)) is not None}
        scale, fmt = (None, None) if grid is None else (grid.scale, grid.format)
        given = kept
        if self.engine == "compiled":
            tensors, scale, given = _flat(tensors, scale, kept)
        parts: list[Seen] = []
        whole = tuple(kind for kind, monitor in lookers if type(monitor).measure is not UpdateMonitor.measure)
        for some, looking in ((whole, ()), ((), casts if grid is not None else ())):
            form = Form(some, looking, fmt, update.storage)
            if not form.kinds and not form.casts:
                continue
            if form not in self.graphs:
                self.graphs[form] = self._made(self._of_update(form))
            found, now = self.graphs[form](tensors, scale, {kind: given[kind] for kind in some})
            parts.append(found)
            for kind, tensors_now in now.items():
                kept[kind] = {name: x.view(kept[kind][name].shape) for name, x in tensors_now.items()}
        for kind, found_now in kept.items():
            self.coming.setdefault(kind, {})[update.name] = found_now
        if not deferred:
            self.taken()
        shown = _update_of(tensors, fmt, scale, update.storage)
        drawn = {(kind, "", name): x for kind, monitor in lookers for name, x in monitor.sample(shown).items()}
        parts.append(_stacked(drawn, update.before))
        return torch.cat([found for found, _ in parts]), sum((names for _, names in parts), ())

    def taken(self) -> None:
        """The updates that were looked at were updates."""
        for kind, parameters in self.coming.items():
            self.kept[kind] |= parameters
        self.coming.clear()

    def left_out(self) -> None:
        """They were none."""
        self.coming.clear()

    def state(self, kind: str) -> Found:
        """What a monitor keeps, by `<parameter>/<name>`."""
        kept = self.kept.get(kind, {}).items()
        return {f"{parameter}/{name}": tensor for parameter, found in kept for name, tensor in found.items()}

    def restore(self, kind: str, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave, from among other entries."""
        if not isinstance(self.monitors[kind], UpdateMonitor):
            return
        self.kept[kind] = {}
        for key, value in state.items():
            if isinstance(value, Tensor):
                parameter, _, name = key.rpartition("/")
                self.kept[kind].setdefault(parameter, {})[name] = value.clone()

    def _of_updates(self, kinds: tuple[str, ...]) -> list[tuple[str, UpdateMonitor]]:
        return [(kind, monitor) for kind in kinds if isinstance(monitor := self.monitors[kind], UpdateMonitor)]

    def _of_gradient(self, kinds: tuple[str, ...]) -> Callable[[Tensor], Seen]:
        at_work = [(k, monitor) for k in kinds if isinstance(monitor := self.monitors[k], GradientMonitor)]

        def run(gradient: Tensor) -> Seen:
            return _stacked({(k, "", name): x for k, m in at_work for name, x in m.measure(gradient).items()}, gradient)

        return run

    def _of_update(self, form: Form) -> Callable[..., tuple[Seen, dict[str, Found]]]:
        at_work = self._of_updates(form.kinds)
        lookers = [(k, monitor) for k in form.casts if isinstance(monitor := self.monitors[k], CastMonitor)]

        def run(
            tensors: dict[str, Tensor], scale: Tensor | None, kept: dict[str, Found]
        ) -> tuple[Seen, dict[str, Found]]:
            update = _update_of(tensors, form.format, scale, form.storage)
            now = {kind: {name: tensor.clone() for name, tensor in held.items()} for kind, held in kept.items()}
            found = {(k, "", name): x for k, m in at_work for name, x in m.measure(update, now[k]).items()}
            if (grid := update.grid) is not None:
                casts = cast_on(grid, update.requested, ROLES[0], ROLES[0]), stored_cast(update, grid)
                for role, made in zip(ROLES, casts, strict=True):
                    shown = replace(made, draw=update.draw)
                    found |= {(k, role, name): x for k, m in lookers for name, x in m.measure(shown).items()}
            return _stacked(found, update.before), now

        return run

    def _made(self, run: Callable[..., Any]) -> Callable[..., Any]:
        if self.engine == "eager":
            return run
        ready_compiler()
        made = torch.compile(run, dynamic=True, fullgraph=True, options=known_options(INLINED))

        def constant(*given: Any) -> Any:
            # Else a format's numbers are inputs of the graph, and powers of two are computed again for each vector.
            with torch._dynamo.config.patch(specialize_int=True):
                return made(*given)

        return constant


def stored_cast(update: Update, grid: Grid) -> Cast:
    """What storage did to a weight, as a cast: w~ = before + requested enters, and the stored weight comes out.

    Looked at after storage has bounded it, nothing could ever lie beyond the largest value. Rounding is to nearest, as
    for all counts of saturation. A master is looked at as it is now: what its next cast will make of it.
    """
    if update.storage == "master":
        return replace(cast_on(grid, update.after, "stored", "stored"), clips=False)
    exact = grid_units(update.before.to(torch.float32) + update.requested, grid.scale)
    unbounded = round_units(exact, grid.format, Rounding.nearest_even)
    return Cast("stored", "stored", grid.format, grid.scale, exact, unbounded, grid_units(update.after, grid.scale))


def share_out(
    results: Mapping[str, dict[str, dict[str, float]]], seen: Mapping[str, Seen], lists: Sequence[Sequence[float]]
) -> None:
    """Put the results of looks, which were fetched, where they belong: by kind and site."""
    for (parameter, (_, names)), values in zip(seen.items(), lists, strict=True):
        for (kind, role, name), value in zip(names, values, strict=True):
            results[kind].setdefault(f"{parameter}/{role}" if role else parameter, {})[name] = value


def _update_of(tensors: dict[str, Tensor], fmt: NumberFormat | None, scale: Tensor | None, storage: str) -> Update:
    return Update(name="", grid=None if fmt is None else Grid(fmt, scale), storage=storage, **tensors)


def _stacked(found: Mapping[Name, Tensor], like: Tensor) -> Seen:
    values = [value.to(torch.float64) for value in found.values()]
    return torch.stack(values) if values else like.new_empty(0, dtype=torch.float64), tuple(found)


def _flat(
    tensors: dict[str, Tensor], scale: Tensor | None, kept: dict[str, Found]
) -> tuple[dict[str, Tensor], Tensor | None, dict[str, Found]]:
    """The same with one axis, where one scale serves the whole tensor: so all shapes share a graph."""
    inside = [tensor for each in kept.values() for tensor in each.values()]
    whole = scale is None or scale.numel() == 1
    size = tensors["before"].numel()
    if not whole or size < 2 or not all(t.is_contiguous() for t in (*tensors.values(), *inside)):
        return tensors, scale, kept
    flat = {name: tensor.view(-1) for name, tensor in tensors.items()}
    lines = {
        kind: {name: t.view(-1) if t.numel() == size else t for name, t in each.items()} for kind, each in kept.items()
    }
    return flat, None if scale is None else scale.reshape(()), lines
