"""What cast monitors gather in the course of a step: a row for each site, in two float64 tables.

`sums` begins with how many passes a site had, which decides whether there is anything to say of it: of a layer that no
token reached, of a step without a forward, nothing is reported, where a row of zeros would be taken for counts. A pass
of no rows is a pass: its rates are NaN. Then come each monitor's own sums; `maxima` has their maxima.

This is the only part of watching that runs within the graph of a compiled model (traced into it, or behind the operator
of `altgrad.quantize.apart`), so shapes are fixed and no buffer is ever rebound. A site writes into rows of its own,
which are tensors by themselves until the step is over: so one graph serves all sites, and the backward of one layer may
write while that of another still holds what it read. Every cast monitor measures whenever any is due: a look at which
are due would be one more graph for each of their combinations. float64 holds counts exactly up to 2^53.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from altgrad.monitors.monitor import CastMonitor, Found, Values
from altgrad.quantize import Cast, Grid, Rounding
from altgrad.quantize.cast import Observer
from altgrad.quantize.counted import Role
from altgrad.quantize.grid import bound_units, grid_units, round_units

NO_DRAWS: Mapping[str, Tensor] = MappingProxyType({})


class CastTables:
    """The tables of these monitors over these sites.

    always: those among them that also measure while the others do not, where a cast is watched for their sake alone.
    draws: keys by site, for those that sample.
    """

    def __init__(
        self, monitors: Mapping[str, CastMonitor], sites: Sequence[str], device: torch.device, *,
        always: Sequence[str] = (), draws: Mapping[str, Tensor] = NO_DRAWS,
    ) -> None:  # fmt: skip
        self.monitors, self.always, self.draws = dict(monitors), set(always), draws
        self.whole = False
        """Whether all of them measure."""
        self.rows = {site: row for row, site in enumerate(sites if monitors else ())}
        widths = 1 + sum(len(m.sums) for m in monitors.values()), sum(len(m.maxima) for m in monitors.values())
        self.written: list[tuple[Tensor, ...]] = [
            tuple(torch.zeros(width, dtype=torch.float64, device=device) for width in widths) for _ in self.rows
        ]
        self.sums, self.maxima = (torch.zeros(0, width, dtype=torch.float64, device=device) for width in widths)
        self.before: tuple[Tensor, Tensor] | None = None
        """What `closed` gave, to be the step's after all if no pass comes before `settle`."""

    def observer(self, site: str) -> Observer:
        """What adds the casts of a site to its rows."""
        draw = (self.draws[site],) if site in self.draws else ()
        return Observer(self.see, (*self.written[self.rows[site]], *draw) if self.rows else ())

    def see(self, rows: Sequence[Tensor], cast: Cast) -> None:
        """Add what the monitors measure of a cast to a site's rows, if it has any; the key of a draw is behind them."""
        if not rows:
            return
        if len(rows) > 2:
            cast = replace(cast, draw=rows[2])
        found = {k: m.measure(cast) for k, m in self.monitors.items() if self.whole or k in self.always}
        one, nothing = rows[0].new_ones(()), rows[0].new_zeros(())
        for row, add in zip(rows[:2], (True, False), strict=True):
            parts = [one] if add else []
            for kind, monitor in self.monitors.items():
                names = monitor.sums if add else monitor.maxima
                parts += [found[kind][name].to(torch.float64) if kind in found else nothing for name in names]
            if parts:
                part = torch.stack(parts)
                row.add_(part) if add else row.copy_(torch.maximum(row, part))

    def clear(self) -> None:
        """Forget the step."""
        self.before = None
        if self.written:
            torch._foreach_zero_([row for rows in self.written for row in rows])

    def closed(self) -> tuple[Tensor, Tensor]:
        """A copy of what was gathered."""
        self.gather()
        return self.sums, self.maxima

    def gather(self) -> None:
        """Bring what was written so far together in `sums` and `maxima`."""
        if self.written:
            self.sums, self.maxima = (torch.stack(rows) for rows in zip(*self.written, strict=True))

    def settle(self) -> None:
        """The step's gradients are there: what was gathered of it is what came last."""
        self.gather()
        if self.before is not None:
            none = self.sums[:, 0].sum() == 0
            for number, closed in enumerate(self.before):
                for rows, row in zip(self.written, closed, strict=True):
                    rows[number].copy_(torch.where(none, row, rows[number]))
            self.before = None
            self.gather()

    def rows_of(self, kind: str, sums: Sequence[float], maxima: Sequence[float]) -> Iterator[tuple[str, Values]]:
        """A monitor's results at each site that had a pass, from both tables as they were fetched."""
        before = list(self.monitors)[: list(self.monitors).index(kind)]
        monitor = self.monitors[kind]
        places = (
            (monitor.sums, sums, 1 + sum(len(self.monitors[k].sums) for k in before), self.sums.shape[1]),
            (monitor.maxima, maxima, sum(len(self.monitors[k].maxima) for k in before), self.maxima.shape[1]),
        )
        for site, row in self.rows.items():
            if sums[row * self.sums.shape[1]]:
                yield (
                    site,
                    {
                        name: table[row * width + first + number]
                        for names, table, first, width in places
                        for number, name in enumerate(names)
                    },
                )


def cast_on(grid: Grid, x: Tensor, site: str, role: Role) -> Cast:
    """x as it would enter a grid, rounded to nearest: how requests and stored weights are shown to cast monitors."""
    exact = grid_units(x, grid.scale)
    unbounded = round_units(exact, grid.format, Rounding.nearest_even)
    return Cast(site, role, grid.format, grid.scale, exact, unbounded, bound_units(unbounded, grid.format))


def fetch(tensors: Sequence[Tensor], scalars: Sequence[Tensor] = ()) -> tuple[list[list[float]], list[float]]:
    """The values of all tensors, flattened, and of all scalars, by way of one transfer."""
    parts = [tensor.reshape(-1).to(torch.float64) for tensor in tensors]
    if scalars:
        parts.append(torch.stack([scalar.reshape(()).to(torch.float64) for scalar in scalars]))
    if not parts:
        return [], []
    flat = torch.cat(parts).tolist()
    lists = []
    for tensor in tensors:
        lists.append(flat[: tensor.numel()])
        flat = flat[tensor.numel() :]
    return lists, flat


def fetch_found(
    tables: Sequence[Tensor], found: Mapping[str, Mapping[str, Found]]
) -> tuple[list[list[float]], dict[str, dict[str, dict[str, float]]]]:
    """Tables and scalars by kind, site and name, by way of one transfer."""
    scalars = [scalar for sites in found.values() for names in sites.values() for scalar in names.values()]
    lists, numbers = fetch(tables, scalars)
    left = iter(numbers)
    return lists, {
        kind: {site: {name: next(left) for name in names} for site, names in sites.items()}
        for kind, sites in found.items()
    }
