"""What draws random bits by the pass, and counts them: a site with a key, and a counter of steps and passes.

Stochastic rounding draws bits for its elements, a transform draws signs. Both take them from a key that is folded with
a counter: the high bits of it number the optimizer steps committed, the low 16 the passes since (the micro-batches).
What counts as a pass, and whose key a repetition takes, stands in `altgrad.quantize.passes`.
"""

import copy
import itertools
from typing import Any, Literal

import torch
from torch import Tensor

from altgrad.quantize.cast_state import CastState
from altgrad.quantize.noise import fold, site_key
from altgrad.quantize.passes import counts, inside_backward, keep_key, process_key, repeated_key

Role = Literal["weight", "input", "grad_output", "grad_weight", "requested", "stored", "optimizer_state"]

_unnamed = itertools.count()


def unnamed_site(kind: str) -> str:
    """A site for what was given none, `<kind>.<number>`: no two of a process are equal."""
    return f"{kind}.{next(_unnamed)}"


class Counted(CastState):
    """A site that can draw random bits, keyed by its name and a seed.

    site: a stable name; without one it gets a name of its own, and so does a copy of it. role: process by process other
    bits are drawn for what differs between them (see `process_key`). draws: whether it ever does; if so it has the
    buffer `counter`.
    """

    counter: Tensor
    recording = True
    """Whether training passes count; see `altgrad.nn.replay.unrecorded`."""
    uncounted = False
    is_part = False
    """Whether it carries the outliers of a cast, which commits it and is watched for both."""
    dealt = False
    """Whether the processes that train together share out the passes of a step, whose numbers `seek` then sets."""

    def __init__(self, site: str | None, role: Role, seed: int, kind: str) -> None:
        super().__init__()
        self.role, self.seed = role, seed
        self.named = site is not None
        """Whether the site was given, by the user or a model; if not, a copy gets another."""
        self._name(unnamed_site(kind) if site is None else site)
        self._last_key: Tensor | None = None

    def count_passes(self) -> None:
        """Have a counter from now on."""
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64))

    @property
    def draws(self) -> bool:
        """Whether it draws random bits."""
        return "counter" in self._buffers

    @property
    def draws_each_pass(self) -> bool:
        """Whether it draws other bits in each pass of a step."""
        return self.draws

    def _name(self, site: str) -> None:
        self.site = site
        # A tensor, since one graph serves all layers of a shape, and no buffer: averages of models round those. It lies
        # on the host whatever the model does, even where models are made without memory.
        self.key = torch.tensor(site_key(self.seed, self.site), dtype=torch.int64, device="cpu")

    def __deepcopy__(self, memo: dict[int, Any]) -> "Counted":
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy({**self.__dict__, **self._fresh()}, memo))
        if not self.named:
            layer, slash, operand = self.site.partition("/")
            made._name(unnamed_site(layer.partition(".")[0]) + slash + operand)
        return made

    def _fresh(self) -> dict[str, Any]:
        """Attributes that a copy does not take over, with what it has instead."""
        return {}

    @property
    def live(self) -> bool:
        """Whether a forward now is a pass that counts."""
        return counts(self)

    def key_of_pass(self, live: bool) -> Tensor:
        """The key of this pass's random bits. A live pass uses it up, and so does that of a replay, whose traces are
        taken away; what repeats a pass takes that pass's."""
        traced = torch.compiler.is_compiling()
        if not (live or traced) and self.training and inside_backward():
            repeated = repeated_key(self)
            if repeated is None and self.recording:
                repeated = self._last_key
            if repeated is not None:
                return repeated
        key = fold(self.key if self.dealt else process_key(self.key, self.role), self.counter)
        if live or (self.training and not self.recording):
            if not traced:
                keep_key(self, key)
                self._last_key = key
            self.counter.add_(1)
        return key

    @property
    def needs_commit(self) -> bool:
        """Whether passes go wrong unless each step is closed by `commit`."""
        return self.draws

    def passed(self) -> list[Tensor]:
        """What passes of the step leave here, to be changed in place."""
        return [self.counter] if self.draws else []

    def reset_parameters(self) -> None:
        if self.draws:
            self.counter.zero_()

    def commit(self) -> None:
        """Close an optimizer step."""
        if self.draws:
            self.counter.bitwise_right_shift_(16).add_(1).bitwise_left_shift_(16)

    def seek(self, pass_: int) -> None:
        """Have the next live pass be number `pass_` of the optimizer step (from 0) to the random bits.

        The number is then that of the whole step, whichever process takes it.
        """
        self.dealt = True
        self.rewind()
        if self.draws:
            self.counter.add_(pass_)

    def rewind(self) -> None:
        """Have the passes of this optimizer step come again, from the first one on, to the random bits."""
        if self.draws:
            self.counter.bitwise_right_shift_(16).bitwise_left_shift_(16)
