"""What cast monitors gather in the course of a step: one float64 table each, a row for each site, written in place.

This is the only part of watching that is traced into the graph of a compiled model, so shapes are fixed and no buffer
is ever rebound. Every cast monitor measures whenever any is due: a look at which are due would be one more graph for
each of their combinations. float64 holds counts exactly up to 2^53.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from altgrad.monitors.monitor import CastMonitor, Found
from altgrad.quantize import Cast, Grid, Rounding
from altgrad.quantize.grid import bound_units, grid_units, round_units
from altgrad.quantize.quantizer import Role


class CastTables:
    """The tables of these monitors over these sites."""

    def __init__(self, monitors: Mapping[str, CastMonitor], sites: Sequence[str], device: torch.device) -> None:
        self.monitors = monitors
        self.rows = {site: row for row, site in enumerate(sites)}
        self.tables = {
            kind: torch.zeros(len(sites), len(monitor.sums) + len(monitor.maxima), dtype=torch.float64, device=device)
            for kind, monitor in monitors.items()
        }

    def see(self, cast: Cast) -> None:
        """Add what every monitor measures of a cast to the row of its site."""
        for kind, monitor in self.monitors.items():
            found = monitor.measure(cast)
            row = self.tables[kind][self.rows[cast.site]]
            if monitor.sums:
                sums = torch.stack([found[name].to(torch.float64) for name in monitor.sums])
                row[: len(sums)] += sums
            if monitor.maxima:
                first = len(monitor.sums)
                maxima = torch.stack([found[name].to(torch.float64) for name in monitor.maxima])
                row[first:] = torch.maximum(row[first:], maxima)

    def clear(self) -> None:
        """Forget the step."""
        for table in self.tables.values():
            table.zero_()

    def sites(self, kind: str, values: Sequence[float]) -> Iterator[tuple[str, dict[str, float]]]:
        """Results by site, from a table that was fetched."""
        names = self.monitors[kind].sums + self.monitors[kind].maxima
        for site, row in self.rows.items():
            yield site, dict(zip(names, values[row * len(names) :], strict=False))


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
