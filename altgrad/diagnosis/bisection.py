"""The casts that make two runs diverge which should agree; from which step, `altgrad.diagnosis.departure` says.

By replay: one step from the last checkpoint before the departure (or the beginning), on the suspect's weights and
batch, with the suspect's casts at a set S of operands and the reference's at all others. S explains the difference if
it makes at least 60 % of what all of them make together, measured as the squared relative errors of the gradient,
summed over parameters: `dev(S) >= 0.6 dev(all)`. Errors of sound casts add up like noise; that of a broken one stands
out, also where it touches a single small tensor. (A second fault that makes much less than the first shows once the
first is removed.) Replays run in the suspect's `compute` and with its loss scale.

The set is found as in delta debugging (Zeller and Hildebrandt 2002), in its order for few culprits: bisect for the
shortest prefix of the operands that explains, together with what has been found; its last operand is needed, since
without it the prefix does not explain; go on in front of it until what has been found explains alone. With n operands
and k culprits that takes 2 + k (ceil(log2 n) + 1) replays: 8 for one culprit among 24 sites, 14 for two. That
adding a cast never undoes another's error is assumed for the search, and checked for the answer: the set returned has
been replayed by itself.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from altgrad.diagnosis.sites import Slot, quantised_layers, slots_as
from altgrad.diagnosis.variants import TakenStep, take_step
from altgrad.nn import QuantizedLayer
from altgrad.nn.layer_casts import make_casts, make_transforms
from altgrad.nn.layers import is_plain
from altgrad.nn.library_experts import layer_at
from altgrad.nn.slots import LayerPrecision, Product
from altgrad.nn.surgery import install
from altgrad.progress import progress
from altgrad.quantize import Quantizer
from altgrad.quantize.transform import Transform
from altgrad.store import Run, RunStore
from altgrad.training import RunSpec
from altgrad.training.restore import Restored, restore

MOST = 0.6
_FEW = 4
_FREE = ("precision", "name", "project", "engine", "threads", "monitors", "log_every", "checkpoint_every", "keep",
         "evaluate_every", "evaluate_with", "compile", "compute", "recipe")  # fmt: skip


@dataclass(frozen=True)
class Bisection:
    """sites: the operands found, `<layer>/<operand>`; empty where the replay does not show a difference.

    replayed_step: finished steps of the checkpoint. deviation: squared relative error of the gradient with all of the
    suspect's casts, and `explained` with those found alone, as a share of it. of: how many operands differ.
    """

    sites: list[str]
    of: int
    replays: int
    replayed_step: int
    deviation: float
    explained: float
    loss_difference: float
    note: str = ""


def siblings_of(run: Run) -> list[Run]:
    """Runs of the project whose specs are its own but for the seed, itself among them; ValueError if it is no run."""
    own = _seedless(run)
    return [other for other in RunStore(run.path.parent.parent).runs(run.project) if _seedless(other) == own]


def _seedless(run: Run) -> Any:
    return {k: v for k, v in RunSpec.parse(run.spec_text(), str(run.path)).tree().items() if k not in ("seed", "name")}


def bisect(reference: Run, suspect: Run, before: int | None) -> Bisection:
    """The casts by which the suspect's step differs from the reference's, replayed from before step `before`.

    before None: from the newest checkpoint. ValueError for runs that differ in more than their precision.
    """
    known = [step for step in suspect.checkpoints.steps() if before is None or step < before]
    restored = restore(suspect, max(known, default=0))
    other = RunSpec.parse(reference.spec_text(), str(reference.path / "spec.yaml"))
    require_alike(other, restored.spec)
    return search(restored, other.at(restored.step))


def require_alike(a: RunSpec, b: RunSpec) -> None:
    """ValueError, naming the fields, for specs that differ in what a replay of casts cannot tell apart."""
    one, two = a.tree(), b.tree()
    differing = [key for key in one if key not in _FREE and one[key] != two.get(key)]
    if differing:
        raise ValueError(
            f"the runs differ in {', '.join(differing)}, which no replay of casts can tell apart; "
            "compare runs that differ in precision alone."
        )


def search(restored: Restored, reference: RunSpec) -> Bisection:
    """As `bisect`, of a run taken up already."""
    replay = _Replay(restored, reference)
    sites = replay.differing
    if not sites:
        return Bisection([], 0, 0, restored.step, 0.0, 0.0, 0.0, "their casts are the same")
    sound = replay.taken(())
    everything = replay.taken(sites)
    whole = replay.deviation(everything, sound)
    difference = everything.loss - sound.loss
    if whole == 0:
        note = f"the step after {restored.step} is the same under both; replay from nearer the departure"
        return Bisection([], len(sites), replay.count, restored.step, 0.0, 0.0, difference, note)

    def explains(chosen: Sequence[str]) -> bool:
        found = replay.deviation(replay.taken(chosen), sound)
        shares[tuple(chosen)] = share = found / whole if math.isfinite(whole) else float(not math.isfinite(found))
        return not share < MOST

    shares: dict[tuple[str, ...], float] = {}
    found = smallest_set(sites, explains)
    explained = shares.get(tuple(found), 1.0)
    note = "spread over many casts, as the errors of sound ones are" if len(found) > _FEW else ""
    return Bisection(found, len(sites), replay.count, restored.step, whole, explained, difference, note)


def smallest_set(items: Sequence[str], explains: Callable[[Sequence[str]], bool]) -> list[str]:
    """Items that explain together, by bisecting prefixes (see the head). All of them explain, none of them do not.

    The last question asked is whether the answer explains, unless it is all of the items.
    """
    found: list[str] = []
    end = len(items)
    while True:
        low, high = 1, end
        while low < high:
            middle = (low + high) // 2
            if explains([*found, *items[:middle]]):
                high = middle
            else:
                low = middle + 1
        found.append(items[high - 1])
        end = high - 1
        if end == 0 or explains(found):
            return found


class _Replay:
    """The step under a mixture of two precisions."""

    def __init__(self, restored: Restored, reference: RunSpec) -> None:
        self.restored, self.count = restored, 0
        model, seed = restored.model, restored.spec.bits_seed
        precisions = {d.name: d.precision for d in reference.precision.decide(model) if d.precision is not None}
        for name, precision in precisions.items():
            layer = layer_at(model, name, keep=bool(precision.casts()))
            if precision.casts() and is_plain(layer):
                install(layer, LayerPrecision(dict.fromkeys(precision.slots)), name, seed)
        self._reference: dict[str, dict[Slot, Quantizer]] = {}
        self._turning: dict[str, dict[Product, Transform]] = {}
        differing: dict[str, None] = {}
        for name, layer in quantised_layers(model).items():
            theirs = precisions.get(name) or LayerPrecision({})
            made = make_casts(layer, theirs, name, seed)
            self._reference[name] = {slot: q.train() for q, slots in made.values() for slot in slots}
            self._turning[name] = make_transforms(layer, theirs, name, seed)
            for slot, spec in layer.precision.slots.items():
                turned, instead = (each.transforms.get(slot[0]) for each in (layer.precision, theirs))
                if spec != theirs.slots.get(slot) or turned != instead:
                    differing[f"{name}/{slot[1]}"] = None
        self.differing = list(differing)

    def taken(self, sites: Sequence[str]) -> TakenStep:
        """The step with the suspect's casts at these operands; counts as one replay.

        A product whose transforms differ has the suspect's as soon as one of its operands has.
        """
        self.count += 1
        progress("replaying the step with other casts", self.count)
        chosen = set(sites)

        def slots(name: str, layer: QuantizedLayer) -> dict[Slot, Any]:
            theirs = {s: q for s, q in self._reference[name].items() if f"{name}/{s[1]}" not in chosen}
            return theirs | {s: q for s, q in layer.slot_casts.items() if f"{name}/{s[1]}" in chosen}

        def turning(name: str, layer: QuantizedLayer) -> dict[Product, Transform]:
            own = {its for its, operand in layer.precision.slots if f"{name}/{operand}" in chosen}
            theirs = {its: turns for its, turns in self._turning[name].items() if its not in own}
            return theirs | {its: turns for its, turns in layer.transforms.items() if its in own}

        with slots_as(self.restored.model, slots, turning):
            return take_step(self.restored)

    def deviation(self, taken: TakenStep, sound: TakenStep) -> float:
        """Squared relative errors of the gradient, summed over parameters; inf where one is not finite."""
        total = 0.0
        for name, gradient in sound.gradients.items():
            size = float(gradient.double().square().sum())
            if size > 0:
                total += float((taken.gradients[name] - gradient).double().square().sum()) / size
        return total if math.isfinite(total) else math.inf
