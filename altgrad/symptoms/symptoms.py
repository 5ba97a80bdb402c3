"""Failure modes as data: what to look for in what a run logged, for how long, and what to try.

A symptom names keys of metrics by pattern (`range/*/grad_output*/underflow_rate`), a threshold and the side of it that
is bad, and how many observations in a row make it a finding: one bad batch is none. It may ask a second key of the same
place to be bad in the same row (`beside`): a stall ratio of 0.95 under float32 masters is healthy, and beside an
effective update ratio near 0 it is not. Some are not of one threshold: a loss is held against the median of its own
last observations (`against: past`), since nobody knows what it should be.

The monitors raise alarms of their own while a run goes; those are live and few, these look back at everything and say
what to do. Where both say the same, they say it by the constants here. No tensors and no files: rows of metrics go in,
findings come out, and `altgrad diagnose`, the report and the panel read the same list. Thresholds are where to look,
not where training fails: sources are the definitions of the measures and what pilots have shown, and each finding
carries its evidence.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Literal, get_args

from altgrad.metric_keys import split_key

Phase = Literal["forward", "backward", "optimizer", "training"]
"""The sides of a step that something can go wrong on; `training` is the loss."""
PHASES: tuple[Phase, ...] = get_args(Phase)
SLOTS: Mapping[str, Phase] = {
    "input": "forward", "weight": "forward", "grad_output": "backward", "requested": "optimizer", "stored": "optimizer",
}  # fmt: skip
"""What a site of a layer's casts ends in, in the order of a step, with its phase."""
_ELSEWHERE: Mapping[str, Phase] = {
    "query": "forward", "key": "forward", "value": "forward", "probabilities": "forward", "grad_scores": "backward",
    "output_gradient": "backward", "output": "forward",
}  # fmt: skip
"""The same of attention's casts and of a module's outputs."""
Worse = Literal["above", "below"]

LOST, APPLIED = 0.9, 0.1
MOSTLY_DEAD = 0.5
_PAST = 20


def is_stalled(lost: float, applied: float) -> bool:
    """Whether storage rounds a parameter's updates away. Neither number alone says so.

    lost: the stall ratio, updates that left no trace in the code over those attempted. applied: the effective update
    ratio, <requested, realised> / |requested|^2.
    """
    return lost > LOST and applied < APPLIED


def phase_of_site(site: str) -> Phase | None:
    """The phase of a cast's site, `<layer>/<operand>`; None for a parameter."""
    _, slash, slot = site.rpartition("/")
    known = {**SLOTS, **_ELSEWHERE}.items()
    return next((phase for name, phase in known if slash and slot.startswith(name)), None)


@dataclass(frozen=True)
class Symptom:
    """One failure mode. `name` is a word to refer to it by; `title` what is said of it; `where` its phase.

    keys: shell patterns of metric keys. A value worse than `threshold`, `lasting` observations in a row, is a finding;
    NaN is no observation, but for `nonfinite_counts`. against: `past` compares to threshold times the median of the
    key's own last 20 observations. beside: (quantity at the same place, `<group>/<quantity>` in another group; side;
    threshold) that must hold in the same row. why: the mechanism. remedy: what to try, the likeliest first.
    """

    name: str
    title: str
    where: Phase
    keys: tuple[str, ...]
    worse: Worse
    threshold: float
    lasting: int
    why: str
    remedy: str
    against: Literal["number", "past"] = "number"
    beside: tuple[str, Worse, float] | None = None
    nonfinite_counts: bool = False


@dataclass
class Finding:
    """A symptom at a place: a site, a parameter, or the run itself (empty).

    first: the step at which it had lasted long enough. last: the last step at which it was there. steps: observations
    of it in all, of `observed`. value: the worst one. lasts: whether it was there at the end.
    """

    symptom: Symptom
    place: str
    first: int
    last: int
    steps: int
    observed: int
    value: float
    lasts: bool

    @property
    def evidence(self) -> str:
        """The numbers in one line."""
        side = "times the past at most" if self.symptom.against == "past" else self.symptom.worse
        when = f"from step {self.first}" + ("" if self.lasts else f" to {self.last}")
        if math.isinf(self.symptom.threshold):
            return f"{self.value:.3g} {when}, {self.steps} of {self.observed} observations"
        limit = f"{side} {self.symptom.threshold:g}" if side in ("above", "below") else f"{self.symptom.threshold:g}x"
        return f"{self.value:.3g} at worst, {limit} {when}, {self.steps} of {self.observed} observations"

    def event(self) -> dict[str, Any]:
        """The finding in the form of an alarm's event."""
        symptom = self.symptom
        return {
            "event": "symptom", "step": self.first, "message": f"{symptom.title}: {self.evidence}", "site": self.place,
            "quantity": symptom.name, "value": self.value, "limit": symptom.threshold, "phase": symptom.where,
        }  # fmt: skip


@dataclass
class _Course:
    """How one key goes under one symptom."""

    symptom: Symptom
    place: str
    beside: str
    row: int = 0
    """Bad observations in a row."""
    first: int | None = None
    last: int = 0
    steps: int = 0
    observed: int = 0
    value: float = math.nan
    past: deque[float] = field(default_factory=lambda: deque(maxlen=_PAST))

    def see(self, step: int, value: float, row: Mapping[str, float]) -> None:
        symptom = self.symptom
        if math.isnan(value) and not symptom.nonfinite_counts:
            return
        self.observed += 1
        beside = symptom.beside is None or _is_worse(row.get(self.beside, math.nan), *symptom.beside[1:])
        if beside and self._bad(value):
            self.row += 1
            self.steps += 1
            self.last = step
            worst = max if symptom.worse == "above" else min
            self.value = value if math.isnan(self.value) else worst(self.value, value)
            if self.row >= symptom.lasting and self.first is None:
                self.first = step
        else:
            self.row = 0
        if symptom.against == "past" and math.isfinite(value):
            self.past.append(value)

    def _bad(self, value: float) -> bool:
        symptom = self.symptom
        if not math.isfinite(value) and symptom.nonfinite_counts:
            return True
        limit = symptom.threshold
        if symptom.against == "past":
            if len(self.past) < _PAST // 2:
                return False
            limit *= statistics.median(self.past)
        return _is_worse(value, symptom.worse, limit)


def _is_worse(value: float, side: Worse, limit: float) -> bool:
    return value > limit if side == "above" else value < limit


class Examination:
    """Looks for symptoms in rows, which `see` takes in their order."""

    def __init__(self, symptoms: Sequence[Symptom] | None = None) -> None:
        self.symptoms = SYMPTOMS if symptoms is None else symptoms
        self._courses: dict[str, list[_Course]] = {}

    def see(self, row: Mapping[str, float]) -> None:
        """Take in one row, with its `step`."""
        step = int(row.get("step", 0))
        for key, value in row.items():
            courses = self._courses.get(key)
            if courses is None:
                courses = self._courses[key] = self._begun(key)
            for course in courses:
                course.see(step, value, row)

    def findings(self) -> list[Finding]:
        """What the rows so far show: the earliest first, and at one step the longest."""
        found = [
            Finding(c.symptom, c.place, c.first, c.last, c.steps, c.observed, c.value, c.row > 0)
            for courses in self._courses.values()
            for c in courses
            if c.first is not None
        ]
        return sorted(found, key=lambda finding: (finding.first, -finding.steps, finding.symptom.name, finding.place))

    def _begun(self, key: str) -> list[_Course]:
        group, place, _ = split_key(key)
        courses = []
        for symptom in self.symptoms:
            if any(fnmatchcase(key, pattern) for pattern in symptom.keys):
                other, _, quantity = ("" if symptom.beside is None else symptom.beside[0]).rpartition("/")
                courses.append(_Course(symptom, place, f"{other or group}/{place}/{quantity}"))
        return courses


def findings(rows: Iterable[Mapping[str, float]], symptoms: Sequence[Symptom] | None = None) -> list[Finding]:
    """What the rows show, each with `step`, in their order."""
    examination = Examination(symptoms)
    for row in rows:
        examination.see(row)
    return examination.findings()


def grouped(found: Iterable[Finding]) -> Iterator[tuple[Symptom, list[Finding]]]:
    """Findings of one symptom together, in the order in which the symptoms first appear."""
    groups: dict[str, list[Finding]] = {}
    for finding in found:
        groups.setdefault(finding.symptom.name, []).append(finding)
    for group in groups.values():
        yield group[0].symptom, group


@cache
def _limits(key: str) -> tuple[tuple[Worse, float], ...]:
    return tuple(
        (symptom.worse, symptom.threshold)
        for symptom in SYMPTOMS
        if symptom.against == "number"
        and symptom.beside is None
        and any(fnmatchcase(key, each) for each in symptom.keys)
    )


def is_suspicious(key: str, value: float) -> bool:
    """Whether a metric's value is one that makes a symptom if it lasts; those that need more than it alone aside."""
    return any(_is_worse(value, *limit) for limit in _limits(key))


SYMPTOMS: tuple[Symptom, ...] = (
    Symptom(
        "divergence", "the loss or the gradient is not finite", "training",
        ("train/loss", "train/gradient_norm"), "above", math.inf, 1,
        "a value passed the range of float32 or became NaN, and everything after it is lost",
        "halve lr or lengthen the warm-up; look at saturation and at the first bad site before this step",
        nonfinite_counts=True,
    ),
    Symptom(
        "nonfinite_operand", "inf or NaN enters a cast", "forward",
        ("range/*/nonfinite_count",), "above", 0, 1,
        "a cast saturates infinities silently, so the fault began before this site",
        "clip_norm: 1.0; a smaller lr; no cast on the layer before it",
    ),
    Symptom(
        "loss_spike", "the loss jumps", "training", ("train/loss",), "above", 1.5, 1,
        "steps too large for the curvature, or one operand beyond its delayed scale",
        "lower lr or a longer warm-up; clip_norm: 1.0; scaling: current where saturation rose at the same step",
        against="past",
    ),
    Symptom(
        "gradient_explosion", "the gradient norm jumps", "backward", ("train/gradient_norm",), "above", 10, 1,
        "the step is clipped, but Adam's second moment remembers it for 1 / (1 - beta2) steps",
        "lower lr or a longer warm-up; more exponent bits for grad_output where it saturates",
        against="past",
    ),
    Symptom(
        "activation_saturation", "activations are clipped at the largest value", "forward",
        ("range/*/input*/saturation_rate",), "above", 1e-3, 3,
        "outliers beyond the scale: with delayed scaling the amax outgrew its history",
        "scaling: current; scaling: delayed with margin: 1; more exponent bits",
    ),
    Symptom(
        "weight_saturation", "weights are clipped at the largest value", "forward",
        ("range/*/weight*/saturation_rate", "range/*/stored/saturation_rate"), "above", 1e-3, 3,
        "weights have grown out of a fixed scale",
        "scale: tracked for the storage; a larger margin of the storage's scaling; weight decay",
    ),
    Symptom(
        "gradient_saturation", "gradients are clipped at the largest value", "backward",
        ("range/*/grad_output*/saturation_rate",), "above", 1e-3, 3,
        "a burst beyond the scale of earlier steps: clipped gradients are biased",
        "scaling: current; a wider format (e5m2); scaling: delayed with margin: 1",
    ),
    Symptom(
        "gradient_underflow", "gradients underflow to zero", "backward",
        ("range/*/grad_output*/underflow_rate",), "above", 0.2, 3,
        "the range from amax to the smallest value is shorter than the gradient's own",
        "scaling: current, since this cast has no scale; a wider format (e5m2); block scaling; granularity: channel; "
        "no cast in the first layer",
    ),
    Symptom(
        "activation_underflow", "activations underflow to zero", "forward",
        ("range/*/input*/underflow_rate",), "above", 0.2, 3,
        "an outlier sets the scale and the bulk of the values falls below the smallest",
        "scaling: current, since this cast has no scale; block scaling; more exponent bits",
    ),
    Symptom(
        "weight_underflow", "weights underflow to zero", "forward",
        ("range/*/weight*/underflow_rate",), "above", 0.1, 3,
        "a few large weights set the scale of the whole tensor",
        "scaling: current, since this cast has no scale; granularity: channel; block scaling; scaling: mse; "
        "more exponent bits",
    ),
    Symptom(
        "clamped_scale", "a scale is clamped at the end of its range", "forward",
        ("range/*/clamped_scale_count",), "above", 0, 3,
        "the tensor is all but zero (2^-126) or has outgrown float32 (2^127)",
        "no cast at this site; look for a dead layer above it",
    ),
    Symptom(
        "stalled_storage", "updates are rounded away (weights do not change)", "optimizer",
        ("stall/*/stall_ratio",), "above", LOST, 3,
        "steps are below half a gap of the stored grid and nearest rounding drops them all",
        "storage: stochastic; storage: kahan; storage: master; a larger lr; manifold_adamw, whose steps are in gaps",
        beside=("updates/effective_update_ratio", "below", APPLIED),
    ),
    Symptom(
        "ineffective_update", "little of the requested change is applied", "optimizer",
        ("updates/*/effective_update_ratio",), "below", APPLIED, 3,
        "storage drops what is below half a gap; on average stochastic storage drops nothing",
        "storage: stochastic; storage: kahan; storage: master",
        beside=("zero_update_fraction", "above", 0.9),
    ),
    Symptom(
        "frozen_parameter", "a parameter does not move at all", "optimizer",
        ("updates/*/zero_update_fraction",), "above", 0.9999, 5,
        "no gradient, a zero learning rate, or steps that are all below half a gap",
        "its learning rate in `groups`; its gradient norm; storage: stochastic",
    ),
    Symptom(
        "frozen_signs", "weights move and none changes its sign", "optimizer",
        ("flips/*/sign_flip_rate",), "below", 1e-6, 5,
        "steps in proportion to the weight never cross zero",
        "a larger kappa for manifold_adamw",
        beside=("flip_rate", "above", 0.05),
    ),
    Symptom(
        "oscillation", "weights jump back and forth between two values", "optimizer",
        ("flips/*/reversal_average",), "above", 0.5, 3,
        "the optimum is between two grid values and each step crosses the whole gap",
        "a smaller lr; more mantissa bits; storage: master",
    ),
    Symptom(
        "few_codes", "most codes of the format are unused", "forward",
        ("codes/*/utilisation",), "below", 0.4, 3,
        "the scale leaves the values in a few binades, or few values are left",
        "scaling: mse; granularity: channel; fewer exponent bits",
    ),
    Symptom(
        "untrue_gradient", "the gradient points elsewhere than without casts", "backward",
        ("shadow/*/cosine",), "below", 0.7, 2,
        "noise of the casts outweighs the gradient of this parameter",
        "`altgrad diagnose RUN --replay` names the casts that cause it; leave those out",
    ),
    Symptom(
        "biased_gradient", "a constant share of the gradient is missing", "backward",
        ("shadow/*/bias_coefficient",), "below", 0.8, 2,
        "clipping or underflow takes from one side only, which no averaging removes",
        "look at saturation and underflow of grad_output; rounding: stochastic",
    ),
    Symptom(
        "dead_features", "features are zero for every token", "forward",
        ("dead/*/cast_dead_share",), "above", MOSTLY_DEAD, 3,
        "units that never fire, or that fire below the smallest value of their cast",
        "a smaller lr; compare dead_share before the cast: only where the cast kills them is it to blame",
    ),
    Symptom(
        "dead_rows", "rows of a weight get no gradient", "backward",
        ("dead/*/grad_dead_share",), "above", MOSTLY_DEAD, 3,
        "gradients underflow in their cast, or the units are dead",
        "scaling: current, since this cast has no scale; more exponent bits; block scaling",
    ),
)  # fmt: skip
"""All that is looked for."""
