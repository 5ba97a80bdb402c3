"""What a person watching a run wants to know, gathered from its stream of metrics and events; no drawing here.

The same object stands behind the panel of `altgrad train`, the panel of `altgrad watch` and the plain lines in a
pipe, so the three cannot disagree. It believes nothing about the stream: keys may be missing, numbers may be NaN,
steps may go back (a run resumed from a checkpoint repeats some), a run may have no step at all.

Taking in a line costs one `dict.update` and a look for symptoms; which site is worst is worked out only when drawn.
"""

from __future__ import annotations

import heapq
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from altgrad.cli.curves import KeptCurve
from altgrad.display import clean
from altgrad.metric_keys import split_key
from altgrad.numerals import count_text
from altgrad.store.runs import TEXT_SCORES
from altgrad.symptoms import SLOTS, Examination, grouped

PROMINENT = ("alarm", "intervention", "symptom")
SPEED_WINDOW = 100
PACE, LATE, SLOWED = 40, 5, 0.5
"""The rows whose speeds are compared, how many of them are the latest, and to what share of the others' these fell."""
KINDS_OF_ALARM = 200


@dataclass(frozen=True)
class Worst:
    """A site (without its slot) and its rate, between 0 and 1."""

    site: str
    rate: float


@dataclass(frozen=True)
class Happening:
    """An event, all alarms (or actions) of one thing at one site, or a symptom: the step it first happened, how often,
    and when last.
    """

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


class Watched:
    """A run as seen from outside.

    `worse` says of quantities, by `<group>/<quantity>`, whether `higher` or `lower` is worse: those are compared
    between layers. `clock` gives seconds and only ever measures silence and what has passed since.
    """

    crowd: Callable[[], str | None] | None = None
    """Says what a run that is at work here, and has slowed down, has to share the machine with; set by whoever trains.
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
        """The last step that brought numbers."""
        self.at = 0
        """Finished steps, as far as is known."""
        self.status = "running"
        self.train = KeptCurve()
        self.validation = KeptCurve()
        self.twin = {"train": KeptCurve(), "validation": KeptCurve()}
        """The losses of the run's twin, where it has one."""
        self.doing: tuple[str, int, int] | None = None
        """What the run does beside training, and how far it is with it: as `altgrad.progress` says."""
        self.stopping = False
        self.evaluate_every = 0
        """Steps between two evaluations, for onlookers whom nobody tells what the run is doing; 0: unknown."""
        self.latest: dict[str, float] = {}
        self.checkpoint: int | None = None
        self._clock = clock
        self._heard = clock()
        self._speed: deque[tuple[int, float]] = deque(maxlen=SPEED_WINDOW)
        self._alarms: dict[tuple[str, ...], Happening] = {}
        self._notices: deque[Happening] = deque(maxlen=50)
        self._examination = Examination()
        self._pace: deque[float] = deque(maxlen=PACE)
        self.slowed: Happening | None = None
        """That the run lost more than half of its speed while others used the machine; once."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a finished step; several calls may bring the same step."""
        self._heard = self._clock()
        if step < self.step:
            self._begin_anew()
        self.step = self.at = step
        self.latest.update(values)
        self._examination.see({"step": step, **values})
        for part, curve in (("train", self.train), ("validation", self.validation)):
            if (loss := values.get(f"{part}/loss")) is not None:
                curve.add(step, loss)
                if (above := values.get(f"twin/{part}_loss_difference")) is not None:
                    self.twin[part].add(step, loss - above)
        wall = values.get("time/wall_seconds", math.nan)
        if math.isfinite(wall):
            if self._speed and wall < self._speed[-1][1]:
                self._speed.clear()
            self._speed.append((step, wall))
        self._keep_pace(step, values.get("time/tokens_per_second", math.nan))

    def _begin_anew(self) -> None:
        self._speed.clear()
        self._pace.clear()

    def _keep_pace(self, step: int, speed: float) -> None:
        """Note the speed of a step, and whether the last few fell far below those before."""
        if not math.isfinite(speed) or self.crowd is None or self.slowed is not None:
            return
        self._pace.append(speed)
        if len(self._pace) < PACE:
            return
        paces = list(self._pace)
        usual, now = statistics.median(paces[:-LATE]), statistics.median(paces[-LATE:])
        why = self.crowd() if now < SLOWED * usual else None
        if why is not None:
            fell = f"speed fell from {count_text(usual)} to {count_text(now)} tokens/s. {why}"
            self.slowed = Happening(step, "notice", fell, 1, step)
            self._notices.append(self.slowed)

    def event(self, step: int, event: str, message: str, **details: object) -> None:
        """Something happened. Alarms of one quantity at one site count as one, and so do actions of an intervention;
        where neither says its site (as the first edition's alarms), those with the same message.
        """
        self._heard = self._clock()
        message = clean(message)
        if event == "checkpoint":
            self.checkpoint = step
        elif event in PROMINENT:
            names = ("monitor", "intervention", "site", "quantity")
            key = (*(str(details.get(name, "")) for name in names), "" if details.get("site") else message)
            known = self._alarms.get(key)
            if known is not None:
                self._alarms[key] = Happening(known.first, event, known.message, known.times + 1, step)
            elif len(self._alarms) < KINDS_OF_ALARM:
                self._alarms[key] = Happening(step, event, message, 1, step)
        else:
            self._notices.append(Happening(step, event, message, 1, step))
        if event in ("started", "resumed"):
            self.status = "running"
            self._begin_anew()
        elif event == "stopped":
            self.status, self.doing = clean(str(details.get("status", details.get("reason", "stopped")))), None

    def progress(self, phase: str, done: int, total: int) -> None:
        """What the run is doing; a listener of `altgrad.progress`."""
        self._heard = self._clock()
        self.doing = None if phase == "training" else (clean(phase), done, total)
        if phase == "training":
            self.at = done

    def happenings(self) -> list[Happening]:
        """Alarms and interventions, latest first fired first; then symptoms, and everything else worth a line."""
        symptoms = []
        for symptom, (first, *others) in grouped(self._examination.findings()):
            more = f" and {len(others)} more" if others else ""
            message = clean(f"{symptom.title}{': ' if first.place else ''}{first.place}{more}")
            symptoms.append(Happening(first.first, "symptom", message, 1, first.last))
        return [
            *sorted(self._alarms.values(), key=lambda alarm: -alarm.first),
            *reversed(symptoms),
            *reversed(self._notices),
        ]

    def worst(self, quantity: str, count: int = 1) -> dict[str, list[Worst]]:
        """For each slot that reports `quantity`, its `count` worst sites now, worst first; rates of NaN or 0 are
        none.
        """
        found: dict[str, list[tuple[float, str]]] = {}
        for key, value in self.latest.items():
            group, place, named = split_key(key)
            site, _, slot = place.rpartition("/")
            if group == "range" and named == quantity and site and slot in SLOTS:
                found.setdefault(slot, [])
                if value > 0:
                    found[slot].append((value, site))
        best = {slot: heapq.nsmallest(count, rows, key=lambda row: (-row[0], row[1])) for slot, rows in found.items()}
        return {slot: [Worst(clean(site), rate) for rate, site in rows] for slot, rows in best.items()}

    def worst_layers(self, count: int = 1) -> dict[str, list[Worst]]:
        """For each quantity of `worse` that is reported, its `count` worst sites or parameters now, worst first."""
        found: dict[str, list[tuple[float, str, float]]] = {name: [] for name in self.worse}
        for key, value in self.latest.items():
            group, site, quantity = split_key(key)
            name = f"{group}/{quantity}"
            if site and name in found and not math.isnan(value):
                found[name].append((-value if self.worse[name] == "higher" else value, site, value))
        return {
            name: [Worst(clean(site), value) for _, site, value in heapq.nsmallest(count, rows)]
            for name, rows in found.items()
            if rows
        }

    def silence(self) -> float:
        """Seconds since the run last said anything."""
        return max(0.0, self._clock() - self._heard)

    def is_validating(self) -> bool:
        """Whether the run is likely to, by what an onlooker knows: the step is one of those, and its loss not there."""
        due = self.status == "running" and self.evaluate_every > 0 and self.step % self.evaluate_every == 0
        return (
            due and (not self.validation.points or self.validation.points[-1].last < self.step) and self.silence() > 1
        )

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
        return min(1.0, max(0.0, self.at / self.steps)) if self.steps else 1.0
