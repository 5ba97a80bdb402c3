"""Latch: an alarm is raised once at each site, when its condition has held for some observations in a row.

The metric tells how it goes on; an event every step would only bury the first, which is what one looks for. What was
raised stays raised for the run.
"""

from collections.abc import Mapping
from typing import Any


class AlarmLatch:
    """Remembers, by site, how long a condition has held and whether it was raised."""

    def __init__(self, patience: int = 1) -> None:
        self.patience = patience
        self.held: dict[str, int] = {}
        self.raised: set[str] = set()

    def see(self, site: str, bad: bool) -> bool:
        """Take one observation; true if the alarm is to be raised now."""
        if not bad:
            self.held.pop(site, None)
            return False
        self.held[site] = self.held.get(site, 0) + 1
        if self.held[site] < self.patience or site in self.raised:
            return False
        self.raised.add(site)
        return True

    def state(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {"held": dict(self.held), "raised": sorted(self.raised)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self.held, self.raised = dict(state["held"]), set(state["raised"])
