"""mantissa_shift: when a run fails for its format, a bit moves between exponent and mantissa, at a constant total.

Two failures are looked for, and the counters say which way the bit goes:

    not finite   loss or gradients, `bad_steps` times in a row. The failing step is run again with every cast in view
                 (`range_look`). Casts that saturate or underflow, and stored weights that pile up at the top code, get
                 range (+E -M). If there are none, those that can spare it get resolution (+M -E).
    stalled      a parameter stored in anything but master: more than 90 % of its updates left no trace *and* less than
                 10 % of the request was realised, in each of `patience` windows of `window` looks, `every` steps apart.
                 It gets resolution, if at most `loss` of its weights would become zero; never range. A forward cast of
                 the weight in the same format moves along. Stochastic (and index) storage is never found stalled: what
                 it realises is the request on average, and a small tensor's ratio is chance.

After numbers that are not finite, weights and optimizer go back to the last good state, at most `good_every` steps old
(`rollback`), and every amax history begins anew. The step number does not go back: logs only grow, and the batch that
broke the run is not drawn again. While it has a remedy, the run is not ended by a monitor. Weights stored on a grid are
put on the new one from what is stored (with what kahan owes); casts of masters see the masters anyway.

Hysteresis: a place that was given range never gets resolution later, nor the other way round; after a shift no stall
counts for `cooldown` steps; and there are at most `most` shifts in a run.

The last good state: a copy of weights and optimizer state from which loss and gradients were seen to be finite.

It is taken between backward and the update, when both are known to be finite and the weights are still those that made
them so. Buffers of the model that are not a cast's (the running statistics of a BatchNorm) belong to it; what casts
keep does not, since their histories begin anew whenever a run goes back.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from altgrad.formats import FloatFormat, NumberFormat
from altgrad.formats.neighbour import neighbour
from altgrad.interventions.intervention import Action, Answer, Intervention, InterventionSpec, Moment, Subject
from altgrad.interventions.range_probe import look_at_casts
from altgrad.interventions.stalled import LOSING, Stalls
from altgrad.nn import change_formats, counted_sites, quantizers, weight_quantizers
from altgrad.optim import Optimizer
from altgrad.optim.format_change import change_storage_format, gridded
from altgrad.symptoms import APPLIED, LOST

Copy = dict[str, Tensor]
"""`weight/<name>`, `buffer/<name>` and `state/<parameter>/<entry>`."""


@torch.no_grad()
def take(model: nn.Module, optimizer: Optimizer) -> Copy:
    """A copy of what is there now."""
    found = {f"{sort}/{name}": tensor.detach().clone() for sort, name, tensor in _kept(model)}
    for p, parameter in optimizer.names.items():
        states = optimizer.state[p].items()
        found |= {f"state/{parameter}/{entry}": t.clone() for entry, t in states if isinstance(t, Tensor)}
    return found


@torch.no_grad()
def go_back(model: nn.Module, optimizer: Optimizer, copy: Copy) -> None:
    """Write a copy back, in place. State that did not exist when it was taken is removed."""
    for sort, name, tensor in _kept(model):
        tensor.copy_(copy[f"{sort}/{name}"])
    for p, parameter in optimizer.names.items():
        state = optimizer.state[p]
        for entry in [entry for entry, value in state.items() if isinstance(value, Tensor)]:
            kept = copy.get(f"state/{parameter}/{entry}")
            if kept is None:
                del state[entry]
            else:
                state[entry].copy_(kept)


def _kept(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    for name, p in model.named_parameters():
        yield "weight", name, p
    casts = {id(buffer) for site in counted_sites(model) for buffer in site.buffers()}
    for name, buffer in model.named_buffers():
        if id(buffer) not in casts:
            yield "buffer", name, buffer


Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class MantissaShiftSpec(InterventionSpec):
    """Move a bit between exponent and mantissa when numbers stop being finite, after going back, or storage stalls."""

    kind: ClassVar[str] = "mantissa_shift"
    changes_formats: ClassVar[bool] = True
    bad_steps: Count = 2
    """Steps in a row that are not finite before it goes back."""
    good_every: Count = 20
    """Steps between two copies of the last good state."""
    saturation: Rate = 0.01
    """The saturation rate (0 to 1) above which a cast needs more range."""
    underflow: Rate = 0.5
    """The underflow rate (0 to 1) above which it does, too."""
    loss: Rate = 0.01
    """The largest share of values (0 to 1) that may be lost where a cast or a storage gives range away."""
    every: Count = 5
    """Steps between two observations of updates."""
    window: Count = 4
    """Observations that are summed."""
    patience: Count = 3
    """Stalled windows in a row before a storage gets more mantissa."""
    cooldown: Annotated[int, Field(ge=0)] = 50
    """Steps after a shift in which nothing is shifted."""
    most: Count = 4
    """Shifts in all; then the run ends."""


class MantissaShift(Intervention):
    """Keeps the last good state, counts of stalls, and which formats it has changed."""

    def __init__(self, spec: MantissaShiftSpec, subject: Subject) -> None:
        self.spec, self.subject = spec, subject
        if not quantizers(subject.model) and not any(gridded(subject.optimizer)):
            raise ValueError("mantissa_shift changes formats, and nothing in this run has one; leave it out.")
        self.bad = 0
        self.shifts = 0
        self.last_shift = -math.inf
        self.good: Copy = {}
        self.good_step: int | None = None
        self.casts: dict[str, str] = {}
        self.stored: dict[str, str] = {}
        self.towards: dict[str, int] = {}
        """+1 for places (sites of casts, parameters) that were given range, -1 for those given resolution."""
        self.refused: set[str] = set()
        self.stalls = Stalls(spec.window, spec.patience)
        subject.optimizer.observers.append(self.stalls.see)

    def begin(self, step: int) -> None:
        self.step = step
        due = step % self.spec.every == 0
        self.stalls.looking = due and any(kept.kind in LOSING for _, _, kept in gridded(self.subject.optimizer))

    @property
    def watches_updates(self) -> bool:
        return self.stalls.looking

    def gradients(self, moment: Moment) -> Answer:
        model, optimizer = self.subject.model, self.subject.optimizer
        if math.isfinite(moment.loss) and math.isfinite(moment.norm):
            self.bad = 0
            due = self.good_step is None or self.step - self.good_step >= self.spec.good_every
            if due and not moment.skipped:
                self.good, self.good_step = take(model, optimizer), self.step
            return Answer()
        self.bad += 1
        if self.shifts >= self.spec.most:
            return Answer()
        if self.bad < self.spec.bad_steps:
            return Answer(skip=True, carry_on=True)
        return self._rescue(moment)

    def finish(self) -> Answer:
        if not self.stalls.end_look():
            return Answer()
        found = self.stalls.close()
        if self.shifts >= self.spec.most or self.step - self.last_shift <= self.spec.cooldown:
            return Answer()
        moves: dict[str, tuple[FloatFormat, str]] = {}
        actions = []
        for name, p, storage in list(gridded(self.subject.optimizer)):
            if name not in found:
                continue
            why = f"{found[name]:.1%} of its updates lost in {self.spec.patience} windows"
            finer = self._finer_storage(name, p, storage)
            if finer is not None:
                moves[name] = finer, why
            elif name not in self.refused:
                self.refused.add(name)
                message = f"{name}: {why}, and no finer format than {storage.format} has the range it needs."
                actions.append(Action(message, {"parameter": name}, done=False))
        if not moves:
            return Answer(actions=actions)
        self._shift({}, moves, -1)
        # The copy is of weights on the grid they have left: the next finite step takes another.
        self.good, self.good_step = {}, None
        cause = f"stored weights stalled: more than {LOST:.0%} of updates lost, less than {APPLIED:.0%} realised"
        return Answer(actions=[*actions, self._action(cause, moves)], recast=True)

    def _rescue(self, moment: Moment) -> Answer:
        """After `bad_steps` bad steps: find out what is short of what, go back, shift."""
        model, optimizer = self.subject.model, self.subject.optimizer
        looks = look_at_casts(model, moment.losses)
        top = {name: _top_share(p, storage, optimizer.state[p]) for name, p, storage in gridded(optimizer)}
        back = "" if self.good_step is None else f", back to the weights before step {self.good_step}"
        if self.good:
            go_back(model, optimizer, self.good)
        known = {quantizer.site: quantizer.spec.format for quantizer in quantizers(model)}
        casts: dict[str, tuple[FloatFormat, str]] = {}
        stored: dict[str, tuple[FloatFormat, str]] = {}
        for site, look in looks.items():
            wider = self._allowed(site, known[site], 1)
            if wider is not None and look.needs_range(self.spec.saturation, self.spec.underflow):
                casts[site] = wider, f"{look.saturation:.2%} saturated, {look.underflow:.2%} underflowed"
        for name, _, storage in gridded(optimizer):
            wider = self._allowed(name, storage.format, 1)
            if wider is not None and top[name] > self.spec.saturation:
                stored[name] = wider, f"{top[name]:.2%} of it at the largest value"
        towards = 1
        if not casts and not stored:
            towards = -1
            for site, look in looks.items():
                finer = self._allowed(site, known[site], -1)
                if finer is not None and look.spares_range(self.spec.loss):
                    casts[site] = finer, "its range has room to spare"
            for name, p, storage in gridded(optimizer):
                if (finer := self._finer_storage(name, p, storage)) is not None:
                    stored[name] = finer, "its range has room to spare"
        for quantizer in quantizers(model):
            quantizer.enter(quantizer.spec.format)
        cause = f"loss or gradients were not finite {self.bad} steps in a row{back}"
        self.bad = 0
        if not casts and not stored:
            self.shifts = self.spec.most
            return Answer(actions=[Action(f"No format could be changed: {cause}.", done=False)], skip=True, recast=True)
        self._shift(casts, stored, towards)
        self.good, self.good_step = take(model, optimizer), self.step
        return Answer(actions=[self._action(cause, casts | stored)], skip=True, carry_on=True, recast=True)

    def _shift(
        self, casts: Mapping[str, tuple[FloatFormat, str]], stored: Mapping[str, tuple[FloatFormat, str]], towards: int
    ) -> None:
        model, optimizer = self.subject.model, self.subject.optimizer
        entered = {site: fmt for site, (fmt, _) in casts.items()}
        forward = weight_quantizers(model)
        kept = {name: storage.format for name, _, storage in gridded(optimizer)}
        for name, (fmt, _) in stored.items():
            change_storage_format(optimizer, name, fmt)
            self.stored[name] = str(fmt)
            if name in forward and forward[name].spec.format == kept[name]:
                for site in forward[name].sites:
                    entered.setdefault(site, fmt)
        change_formats(model, entered)
        self.casts |= {site: str(fmt) for site, fmt in entered.items()}
        self.towards |= dict.fromkeys([*entered, *stored], towards)
        self.shifts, self.last_shift = self.shifts + 1, self.step
        self.stalls.forget()

    def _allowed(self, place: str, fmt: NumberFormat, towards: int) -> FloatFormat | None:
        """The neighbouring format, if there is one for casts and the place was not moved the other way before."""
        found = neighbour(fmt, towards)
        if found is None or not found.in_tensor_domain or self.towards.get(place, towards) != towards:
            return None
        exact = self.subject.compute == "float32" or found.mantissa_bits <= 7
        return found if exact else None

    def _finer_storage(self, name: str, p: Tensor, storage: Any) -> FloatFormat | None:
        """The format with one more mantissa bit for a stored parameter, if the range that its weights need fits."""
        finer = self._allowed(name, storage.format, -1)
        if finer is None:
            return None
        state = {key: t.clone() for key, t in self.subject.optimizer.state[p].items() if isinstance(t, Tensor)}
        moved = p.detach().clone()
        type(storage).made_from(storage.tree() | {"format": str(finer)}).convert(moved, state)
        lost = torch.count_nonzero((p != 0) & (moved == 0))
        return finer if float(lost) <= self.spec.loss * p.numel() else None

    def _action(self, cause: str, moves: Mapping[str, tuple[FloatFormat, str]]) -> Action:
        first, (fmt, why) = next(iter(moves.items()))
        others = ("", ", and one other place", f", and {len(moves) - 1} other places")[min(len(moves), 3) - 1]
        message = f"{first} is now {fmt} ({why}){others}: {cause}."
        details = {"formats": {place: str(fmt) for place, (fmt, _) in moves.items()}, "shift": self.shifts}
        return Action(message, details)

    def state(self) -> dict[str, Any]:
        last = None if self.last_shift == -math.inf else self.last_shift
        plain = {
            "bad": self.bad, "shifts": self.shifts, "last_shift": last, "good_step": self.good_step,
            "casts": self.casts, "stored": self.stored, "towards": self.towards, "refused": sorted(self.refused),
            "stalls": self.stalls.plain(),
        }  # fmt: skip
        return plain | {f"good/{key}": t for key, t in self.good.items()} | self.stalls.tensors()

    def prepare(self, state: Mapping[str, Any]) -> None:
        self.casts, self.stored = dict(state["casts"]), dict(state["stored"])
        for name, fmt in self.stored.items():
            change_storage_format(self.subject.optimizer, name, FloatFormat.parse(fmt), convert=False)
        change_formats(self.subject.model, {site: FloatFormat.parse(fmt) for site, fmt in self.casts.items()})

    def restore(self, state: Mapping[str, Any]) -> None:
        self.bad, self.shifts, self.good_step = int(state["bad"]), int(state["shifts"]), state["good_step"]
        self.last_shift = -math.inf if state["last_shift"] is None else int(state["last_shift"])
        self.towards, self.refused = dict(state["towards"]), set(state["refused"])
        self.good = {key.removeprefix("good/"): t.clone() for key, t in state.items() if key.startswith("good/")}
        self.stalls.restore(state)


@torch.no_grad()
def _top_share(p: Tensor, storage: Any, state: dict[str, Any]) -> float:
    """The share of a stored parameter at the largest value of its grid."""
    largest = state["storage_scale"] * float(storage.format.max)
    return float(torch.count_nonzero(p.abs() >= largest)) / max(1, p.numel())
