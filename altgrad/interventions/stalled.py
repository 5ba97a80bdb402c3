"""Which stored parameters have stalled, window by window.

Of sums over a window of looks `altgrad.symptoms.is_stalled` decides; a parameter counts as stalled when it did in
`patience` windows in a row. The sums stay on the device until a window is full, and then come to the host in one
transfer.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from altgrad.measures import effective_update_sums, share, stall_counts
from altgrad.optim import Update
from altgrad.symptoms import is_stalled

LOSING = ("nearest", "kahan", "eco")
"""Storages that can lose updates for good or for long; the random ones realise the request on average."""


class Stalls:
    """Gathers looks at updates. `looking` says whether those shown now count."""

    def __init__(self, window: int, patience: int) -> None:
        self.window, self.patience = window, patience
        self.looking = False
        self.looks = 0
        self.sums: dict[str, Tensor] = {}
        self.held: dict[str, int] = {}

    def see(self, update: Update) -> None:
        """Take in what a step did to one parameter."""
        if not self.looking or update.grid is None or update.storage not in LOSING:
            return
        found = stall_counts(update.start, update.after, update.requested, update.grid.format, scale=update.grid.scale)
        found |= effective_update_sums(update.requested, update.after - update.before)
        row = torch.stack([found[name].to(torch.float64) for name in ("attempted", "stalls", "overlap", "energy")])
        self.sums[update.name] = self.sums[update.name] + row if update.name in self.sums else row

    def end_look(self) -> bool:
        """Close this step's look, if it was one; whether the window is now full. Once a step, after the update."""
        self.looks += self.looking
        self.looking = False
        return self.looks >= self.window

    def close(self) -> dict[str, float]:
        """Parameters that have been stalled for `patience` windows, with the share of updates lost in this one."""
        names = list(self.sums)
        rows = torch.stack([self.sums[name] for name in names]).tolist() if names else []
        self.looks, self.sums = 0, {}
        found = {}
        for name, (attempted, stalls, overlap, energy) in zip(names, rows, strict=True):
            stalled = is_stalled(share(stalls, attempted), share(overlap, energy))
            self.held[name] = self.held.get(name, 0) + 1 if stalled else 0
            if self.held[name] >= self.patience:
                found[name] = share(stalls, attempted)
        return found

    def forget(self) -> None:
        """Begin anew: what was seen was seen on other grids."""
        self.looks, self.sums, self.held = 0, {}, {}

    def plain(self) -> dict[str, Any]:
        """State that is plain data."""
        return {"looks": self.looks, "held": dict(self.held)}

    def tensors(self) -> dict[str, Tensor]:
        """State that is tensors."""
        return {f"sums/{name}": row for name, row in self.sums.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take both back, out of one mapping; plain data under `stalls`."""
        self.looks, self.held = int(state["stalls"]["looks"]), dict(state["stalls"]["held"])
        self.sums = {key.removeprefix("sums/"): row.clone() for key, row in state.items() if key.startswith("sums/")}
