"""What a person watching a run wants to know, gathered from its stream of metrics and events; no drawing here.

The same object stands behind the panel of `altgrad train`, the panel of `altgrad watch` and the plain lines in a
pipe, so the three cannot disagree. It believes nothing about the stream: keys may be missing, numbers may be NaN,
steps may go back (a run resumed from a checkpoint repeats some), a run may have no step at all.

Taking in a line costs one `dict.update`, however many sites report; which site is worst is worked out only when drawn.
"""

from __future__ import annotations

import heapq
import math
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from altgrad.cli.curves import KeptCurve
from altgrad.display import clean
from altgrad.store.scores import TEXT_SCORES

# Where numerics go wrong in the order of a step: each row of the table of worst sites, with the pass it belongs to.
SLOTS = {
    "input": "forward",
    "weight": "forward",
    "grad_output": "backward",
    "requested": "optimizer",
    "stored": "optimizer",
}
PROMINENT = ("alarm", "intervention")
SPEED_WINDOW = 100
KINDS_OF_ALARM = 200
# A number that stands alone; the one in `blocks.3.mlp` is part of a name.
NUMERAL = re.compile(r"(?<![\w.])[-+]?\d[\d.,]*(e[-+]?\d+)?%?(?!\w)")


@dataclass(frozen=True)
class Worst:
    """A site (without its slot) and its rate, between 0 and 1."""

    site: str
    rate: float


@dataclass(frozen=True)
class Happening:
    """An event, or all alarms (or deeds) that say the same: the step it first happened, how often, and when last."""

    first: int
    event: str
    message: str
    times: int
    last: int


def in_words(score: str) -> str:
    """`bits_per_byte` as `bits per byte`."""
    return score.replace("_", " ")


def in_short(score: str) -> str:
    """`bits_per_byte` as `bits/byte`; other scores have no shorter name."""
    return "bits/byte" if score == "bits_per_byte" else in_words(score)


@lru_cache(maxsize=65536)
def _range_key(key: str) -> tuple[str, str, str] | None:
    """(site, slot, quantity) of `range/<site>/<slot>/<quantity>`, else None; a site may hold further slashes."""
    parts = key.split("/")
    return ("/".join(parts[1:-2]), parts[-2], parts[-1]) if parts[0] == "range" and len(parts) >= 4 else None


@lru_cache(maxsize=65536)
def _layer_key(key: str) -> tuple[str, str] | None:
    """(`<group>/<quantity>`, site) of `<group>/<site>/<quantity>`, else None."""
    group, _, rest = key.partition("/")
    site, _, quantity = rest.rpartition("/")
    return (f"{group}/{quantity}", site) if site else None


def _key(group: str, site: str) -> str:
    kind, _, quantity = group.partition("/")
    return f"{kind}/{site}/{quantity}"


class Watched:
    """A run as seen from outside.

    `worse` says of quantities, by `<group>/<quantity>`, whether `higher` or `lower` is worse: those are compared
    between layers. `clock` gives seconds and only ever measures silence and what has passed since.
    """

    def __init__(
        self,
        title: str,
        steps: int,
        references: Mapping[str, float] | None = None,
        worse: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        scores: Sequence[str] = TEXT_SCORES,
    ) -> None:
        self.title = clean(title)
        self.steps = max(0, steps)
        self.references = {clean(name): value for name, value in (references or {}).items()}
        self.worse = {key: way for key, way in (worse or {}).items() if way in ("higher", "lower")}
        self.scores = tuple(clean(name) for name in scores)
        """What the validation split is judged by beside the loss, the main number first."""
        self.step = 0
        self.status = "running"
        self.train = KeptCurve()
        self.validation = KeptCurve()
        self.latest: dict[str, float] = {}
        self.checkpoint: int | None = None
        self._clock = clock
        self._heard = clock()
        self._speed: deque[tuple[int, float]] = deque(maxlen=SPEED_WINDOW)
        self._alarms: dict[str, Happening] = {}
        self._notices: deque[Happening] = deque(maxlen=50)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a finished step; several calls may bring the same step."""
        self._heard = self._clock()
        if step < self.step:
            self._speed.clear()
        self.step = step
        self.latest.update(values)
        for key, curve in (("train/loss", self.train), ("validation/loss", self.validation)):
            if key in values:
                curve.add(step, values[key])
        wall = values.get("time/wall_seconds", math.nan)
        if math.isfinite(wall):
            if self._speed and wall < self._speed[-1][1]:
                self._speed.clear()
            self._speed.append((step, wall))

    def event(self, step: int, event: str, message: str, **details: object) -> None:
        """Something happened. Alarms of one monitor that say the same but for their numbers count as one, and so do
        deeds of an intervention.
        """
        self._heard = self._clock()
        message = clean(message)
        if event == "checkpoint":
            self.checkpoint = step
        elif event in PROMINENT:
            places = ("monitor", "intervention", "site")
            key = " ".join(str(details.get(name, "")) for name in places) + " " + NUMERAL.sub("#", message)
            known = self._alarms.get(key)
            if known is not None:
                self._alarms[key] = Happening(known.first, event, known.message, known.times + 1, step)
            elif len(self._alarms) < KINDS_OF_ALARM:
                self._alarms[key] = Happening(step, event, message, 1, step)
        else:
            self._notices.append(Happening(step, event, message, 1, step))
        if event in ("started", "resumed"):
            self.status = "running"
            self._speed.clear()
        elif event == "stopped":
            self.status = clean(str(details.get("status", details.get("reason", "stopped"))))

    def happenings(self) -> list[Happening]:
        """Alarms and interventions, latest first fired first, then everything else worth a line, latest first."""
        return [*sorted(self._alarms.values(), key=lambda alarm: -alarm.first), *reversed(self._notices)]

    def worst(self, quantity: str, count: int = 1) -> dict[str, list[Worst]]:
        """For each slot that reports `quantity`, its `count` worst sites now, worst first; rates of NaN or 0 are
        none.
        """
        found: dict[str, list[tuple[float, str]]] = {}
        for key, value in self.latest.items():
            parsed = _range_key(key)
            if parsed is not None and parsed[2] == quantity and parsed[1] in SLOTS:
                found.setdefault(parsed[1], [])
                if value > 0:
                    found[parsed[1]].append((value, parsed[0]))
        best = {slot: heapq.nsmallest(count, rows, key=lambda row: (-row[0], row[1])) for slot, rows in found.items()}
        return {slot: [Worst(clean(site), rate) for rate, site in rows] for slot, rows in best.items()}

    def worst_layers(self, count: int = 1) -> dict[str, list[Worst]]:
        """For each quantity of `worse` that is reported, its `count` worst sites or parameters now, worst first."""
        found: dict[str, list[tuple[float, str]]] = {}
        for key, value in self.latest.items():
            parts = _layer_key(key)
            way = None if parts is None else self.worse.get(parts[0])
            if parts is not None and way is not None and not math.isnan(value):
                found.setdefault(parts[0], []).append((-value if way == "higher" else value, parts[1]))
        return {
            group: [Worst(clean(site), self.latest[_key(group, site)]) for _, site in heapq.nsmallest(count, rows)]
            for group in self.worse
            if (rows := found.get(group))
        }

    def number(self, key: str) -> float | None:
        """The last value of a metric, None if there never was one."""
        return self.latest.get(key)

    def silence(self) -> float:
        """Seconds since the run last said anything."""
        return max(0.0, self._clock() - self._heard)

    def hush(self, seconds: float) -> None:
        """The last word is `seconds` old already: how an onlooker who came late sets the clock right."""
        self._heard = self._clock() - seconds

    def elapsed(self) -> float | None:
        """Seconds of training, by the run's own clock, with the time since its last word while it runs."""
        wall = self.latest.get("time/wall_seconds")
        if wall is None or not math.isfinite(wall):
            return None
        return wall + self.silence() if self.status == "running" else wall

    def remaining(self) -> float | None:
        """Seconds until the last step at the pace of late, evaluation and checkpoints included; None while unknown."""
        if self.step >= self.steps:
            return 0.0
        if len(self._speed) < 2:
            return None
        (step, wall), (last_step, last_wall) = self._speed[0], self._speed[-1]
        if last_step <= step:
            return None
        return (self.steps - self.step) * (last_wall - wall) / (last_step - step)

    def share(self) -> float:
        """How much of the run is done, 0 to 1; a run of no steps is done."""
        return min(1.0, max(0.0, self.step / self.steps)) if self.steps else 1.0
