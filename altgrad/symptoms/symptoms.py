"""Failure modes as data: what to look for in what a run logged, for how long, and what to try.

A symptom names keys of metrics by pattern (`range/*/grad_output*/underflow_rate`), a threshold and the side of it that
is bad, and how many observations in a row make it a finding: one bad batch is none. It may ask a second key of the same
place to be bad in the same row (`beside`): a stall ratio of 0.95 under float32 masters is healthy, and beside an
effective update ratio near 0 it is not. Some are not of one threshold: a loss is held against the median of its own
last observations (`against: past`), since nobody knows what it should be.

The monitors raise alarms of their own while a run goes; those are live and few, these look back at everything and say
what to do. Here are no tensors and no files: rows of metrics go in, findings come out, and both `altgrad diagnose` and
the report read the same list. Thresholds are where to look, not where training fails: sources are the definitions of
the measures and what pilots have shown, and each finding carries its evidence.
"""

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

Where = Literal["forward", "backward", "optimizer", "training"]
Worse = Literal["above", "below"]

_PAST = 20


@dataclass(frozen=True)
class Symptom:
    """One failure mode. `name` is a word to refer to it by; `title` what is said of it.

    keys: shell patterns of metric keys. A value worse than `threshold`, `lasting` observations in a row, is a finding;
    NaN is no observation, but for `nonfinite_counts`. against: `past` compares to threshold times the median of the
    key's own last 20 observations. beside: (last part of a key at the same place, side, threshold) that must hold in
    the same row. why: the mechanism. remedy: what to try, the likeliest first.
    """

    name: str
    title: str
    where: Where
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
        limit = f"{side} {self.symptom.threshold:g}" if side in ("above", "below") else f"{self.symptom.threshold:g}x"
        return f"{self.value:.3g} at worst, {limit} {when}, {self.steps} of {self.observed} observations"


@dataclass
class _Watch:
    """What is known of one key under one symptom."""

    row: int = 0
    """Bad observations in a row."""
    first: int | None = None
    last: int = 0
    steps: int = 0
    observed: int = 0
    value: float = math.nan
    past: deque[float] = field(default_factory=lambda: deque(maxlen=_PAST))

    def see(self, symptom: Symptom, step: int, value: float, row: Mapping[str, float], place: str, kind: str) -> None:
        if math.isnan(value) and not symptom.nonfinite_counts:
            return
        self.observed += 1
        if self._bad(symptom, value) and _beside(symptom, row, place, kind):
            self.row += 1
            self.steps += 1
            self.last = step
            worst = max if symptom.worse == "above" else min
            self.value = value if math.isnan(self.value) else worst(self.value, value)
            if self.row >= symptom.lasting and self.first is None:
                self.first = step
        else:
            self.row = 0
        if math.isfinite(value):
            self.past.append(value)

    def _bad(self, symptom: Symptom, value: float) -> bool:
        if not math.isfinite(value) and symptom.nonfinite_counts:
            return True
        limit = symptom.threshold
        if symptom.against == "past":
            if len(self.past) < _PAST // 2:
                return False
            limit *= statistics.median(self.past)
        return value > limit if symptom.worse == "above" else value < limit


def findings(rows: Iterable[Mapping[str, float]], symptoms: Sequence[Symptom] | None = None) -> list[Finding]:
    """What the rows show, each with `step`, in their order: the earliest first, and at one step the longest."""
    chosen = SYMPTOMS if symptoms is None else symptoms
    watches: dict[tuple[int, str], _Watch] = defaultdict(_Watch)
    matching: dict[str, list[int]] = {}
    for row in rows:
        step = int(row.get("step", 0))
        for key, value in row.items():
            if key not in matching:
                matching[key] = [n for n, s in enumerate(chosen) if any(fnmatchcase(key, p) for p in s.keys)]
            for number in matching[key]:
                kind, place, _ = split_key(key)
                watches[number, key].see(chosen[number], step, value, row, place, kind)
    found = [
        Finding(chosen[n], split_key(key)[1], w.first, w.last, w.steps, w.observed, w.value, w.row > 0)
        for (n, key), w in watches.items()
        if w.first is not None
    ]
    return sorted(found, key=lambda finding: (finding.first, -finding.steps, finding.symptom.name, finding.place))


def split_key(key: str) -> tuple[str, str, str]:
    """Group, place and quantity of a metric key; the place of `train/loss` is empty."""
    kind, _, rest = key.partition("/")
    place, _, quantity = rest.rpartition("/")
    return kind, place, quantity


def grouped(found: Iterable[Finding]) -> Iterator[tuple[Symptom, list[Finding]]]:
    """Findings of one symptom together, in the order in which the symptoms first appear."""
    groups: dict[str, list[Finding]] = {}
    for finding in found:
        groups.setdefault(finding.symptom.name, []).append(finding)
    for group in groups.values():
        yield group[0].symptom, group


def _beside(symptom: Symptom, row: Mapping[str, float], place: str, kind: str) -> bool:
    """Whether the second key holds too; by `<group>/<quantity>` in another group, else in the same one."""
    if symptom.beside is None:
        return True
    quantity, side, threshold = symptom.beside
    group, slash, last = quantity.partition("/")
    value = row.get(f"{group}/{place}/{last}" if slash else f"{kind}/{place}/{quantity}", math.nan)
    return value > threshold if side == "above" else value < threshold


SYMPTOMS: tuple[Symptom, ...] = (
    Symptom(
        "divergence", "the loss or the gradient is not finite", "training",
        ("train/loss", "train/gradient_norm", "finite/*/nonfinite_count"), "above", math.inf, 1,
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
        "gradient_underflow", "gradients vanish in their cast", "backward",
        ("range/*/grad_output*/underflow_rate",), "above", 0.2, 3,
        "the range from amax to the smallest value is shorter than the gradient's own",
        "a wider format (e5m2); block scaling; granularity: channel; no cast in the first layer",
    ),
    Symptom(
        "activation_underflow", "activations vanish in their cast", "forward",
        ("range/*/input*/underflow_rate",), "above", 0.2, 3,
        "an outlier sets the scale and the bulk of the values falls below the smallest",
        "block scaling; more exponent bits",
    ),
    Symptom(
        "weight_underflow", "weights become zero in their cast", "forward",
        ("range/*/weight*/underflow_rate",), "above", 0.1, 3,
        "a few large weights set the scale of the whole tensor",
        "granularity: channel; block scaling; scaling: mse; more exponent bits",
    ),
    Symptom(
        "clamped_scale", "a scale is held at the end of its range", "forward",
        ("range/*/clamped_scale_count",), "above", 0, 3,
        "the tensor is all but zero (2^-126) or has outgrown float32 (2^127)",
        "no cast at this site; look for a dead layer above it",
    ),
    Symptom(
        "stalled_storage", "steps are lost: requested, and the stored weight stays", "optimizer",
        ("stall/*/stall_ratio",), "above", 0.9, 3,
        "steps are below half a gap of the stored grid and nearest rounding drops them all",
        "storage: stochastic; storage: kahan; storage: master; a larger lr; manifold_adamw, whose steps are in gaps",
        beside=("updates/effective_update_ratio", "below", 0.1),
    ),
    Symptom(
        "ineffective_update", "little of the requested step reaches the weight", "optimizer",
        ("updates/*/effective_update_ratio",), "below", 0.1, 3,
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
        "the optimum lies between two grid values and each step crosses the whole gap",
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
        "`altgrad diagnose RUN --replay` names the casts it is owed to; leave those out",
    ),
    Symptom(
        "biased_gradient", "a constant share of the gradient is missing", "backward",
        ("shadow/*/bias_coefficient",), "below", 0.8, 2,
        "clipping or underflow takes from one side only, which no averaging mends",
        "look at saturation and underflow of grad_output; rounding: stochastic",
    ),
    Symptom(
        "dead_features", "features are zero for every token", "forward",
        ("dead/*/cast_dead_share",), "above", 0.5, 3,
        "units that never fire, or that fire below the smallest value of their cast",
        "a smaller lr; compare dead_share before the cast: only where the cast kills them is it to blame",
    ),
    Symptom(
        "dead_rows", "rows of a weight get no gradient", "backward",
        ("dead/*/grad_dead_share",), "above", 0.5, 3,
        "gradients underflow in their cast, or the units are dead",
        "more exponent bits; block scaling",
    ),
)  # fmt: skip
"""All that is looked for."""
