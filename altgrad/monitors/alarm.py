"""Alarm: what a monitor raises, as data; English is made where one is shown. AlarmLatch: when one is raised.

An alarm is raised once at each site, when its condition has held for some observations in a row. The metric tells how
it goes on; an event every step would only bury the first, which is what one looks for. What was raised stays raised
for the run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from altgrad.symptoms import Phase


@dataclass(frozen=True)
class Alarm:
    """A quantity beyond its limit, at a site and a step; `str` gives a sentence.

    site: of a cast, else a parameter, a layer, or `loss`. quantity: as in the monitor's metrics. phase: the side of the
    step it is about. sentence: how it reads, a format string of these fields and of `details`.
    """

    site: str
    quantity: str
    value: float
    limit: float
    phase: Phase
    step: int
    sentence: str = field(repr=False)
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        words = self.quantity.replace("_", " ")
        return self.sentence.format(site=self.site, words=words, value=self.value, limit=self.limit, **self.details)

    def fields(self) -> dict[str, Any]:
        """What an event has beside the sentence, plain JSON data."""
        return {name: getattr(self, name) for name in ("site", "quantity", "value", "limit", "phase")}


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
