"""The learning rate over a run, as a multiplier of its peak.

    constant   m = 1
    cosine     m = floor + (1 - floor) * (1 + cos(pi * p)) / 2      p from 0 after the warm-up to 1 at the end
    wsd        m = 1, then over the last `decay` of all steps linearly down to `floor`

All three start with a linear warm-up, m = (step + 1) / (warmup + 1). A run of `warmup` steps or fewer is too short for
it and warms up over a tenth of its steps, so that `--set steps=20` tries any spec. Cosine is Loshchilov and Hutter
(arXiv 1608.03983); warmup-stable-decay is Hu et al. (MiniCPM, arXiv 2404.06395) with the linear decay of Haegele et al.
(arXiv 2405.18392).

A multiplier and not a rate, because groups of parameters have rates of their own; a pure function of the step and not a
`torch.optim.lr_scheduler`, because that holds state which a resume would have to restore. One spec with three kinds and
not a family of files: the kinds share every field, and a fourth is one line.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from altgrad.spec import Spec

__all__ = ["Schedule"]

_Share = Annotated[float, Field(ge=0, le=1)]


class Schedule(Spec):
    """YAML says `cosine` or `{kind: cosine, warmup: 100}`.

    Fields that a kind does not use are ignored, so that a matrix may vary `kind`.
    """

    kind: Literal["constant", "cosine", "wsd"] = "cosine"
    """The curve after the warm-up: constant, cosine, or wsd (constant, then down to floor)."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps before the peak; a tenth of the run where it is no longer than that."""
    floor: _Share = 0.1
    """The multiplier of the peak rate (0 to 1) at the end of the run (cosine, wsd)."""
    decay: _Share = 0.2
    """The share of all steps (0 to 1) spent going down (wsd)."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    noun: ClassVar[str] = "schedule"

    def warmup_of(self, steps: int) -> int:
        """The warm-up of a run of so many steps."""
        return self.warmup if self.warmup < steps else steps // 10

    def at(self, step: int, steps: int) -> float:
        """The multiplier, in (0, 1] unless `floor` is 0, of the 0-based `step` about to be taken, of `steps` in all.

        The floor is what step number `steps` would get, one beyond the last: so a run with floor 0 wastes no step on a
        rate of zero, and the last step is a little above the floor. A wsd decay that would begin inside the warm-up
        begins after it.
        """
        assert 0 <= step <= steps
        warmup = self.warmup_of(steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.kind == "constant":
            return 1.0
        start = warmup if self.kind == "cosine" else max(warmup, steps - round(self.decay * steps))
        if step <= start:
            return 1.0
        progress = (step - start) / (steps - start)
        remaining = (1 + math.cos(math.pi * progress)) / 2 if self.kind == "cosine" else 1 - progress
        return self.floor + (1 - self.floor) * remaining


SCHEDULES = {
    "constant": ("The peak throughout, after the warm-up.", Schedule),
    "cosine": ("Half a cosine from the peak down to the floor.", Schedule),
    "wsd": ("The peak, then over the last `decay` of all steps linearly down to the floor.", Schedule),
}
"""The kinds, with a sentence and the fields they share."""
