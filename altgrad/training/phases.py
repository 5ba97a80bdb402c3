"""Precision in time: a run's casts, and if it says so its storage, change at given steps.

    precision:
      phases:
        - {until: 82%, recipe: te_nvfp4}                       steps 1 to 0.82 * steps
        - {recipe: te_nvfp4, set: {forward: none}}             from there to the end
        - {rules: [...], storage: [], states: {}}              a phase may have storage and states of its own

Phase n covers the steps after the end of phase n - 1 up to its own end, a percentage of the run's steps or a number of
steps. A run of several phases is, to the bit, the splice of runs of one each: at a boundary the state is carried over
(`altgrad.training.carry`) just as a branch takes over the state of a checkpoint.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Annotated, Any, ClassVar

from pydantic import PlainValidator, model_validator

from altgrad.nn import PrecisionPolicy
from altgrad.optim import Storage
from altgrad.optim.states import StateSpec
from altgrad.spec import LocatedError, Since
from altgrad.spec.messages import show


def _to_end(value: Any) -> int | str:
    """A number of steps, or a percentage as it was written."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"until is {value}; a phase ends after step 1 or later.")
        return value
    if not isinstance(value, str) or not value.endswith("%"):
        raise ValueError(f"{show(value)} is not an end of a phase; use a number of steps, or a percentage such as 82%.")
    if not 0 < _share(value) < 1:
        raise ValueError(f"until is {value[:20]}; use a percentage of the steps above 0% and below 100%.")
    return value


def _share(text: str) -> Fraction:
    try:
        return Fraction(text.removesuffix("%").strip()) / 100
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{show(text)} is not a percentage such as 82%.") from None


End = Annotated[int | str, PlainValidator(_to_end)]
"""A number of steps, or a percentage of them as text."""


class Phase(PrecisionPolicy):
    """The casts of a part of the run, which ends after `until`, the last one with the run."""

    until: Annotated[End | None, Since(2)] = None
    """Its last step: a number of steps, or a percentage of the run's steps, rounded down."""
    storage: Annotated[tuple[Storage, ...] | None, Since(2)] = None
    """Storage rules of its own; null: those of the run."""
    states: Annotated[dict[str, StateSpec] | None, Since(2)] = None
    """Formats of the optimizer's states of its own; null: those of the run."""

    noun: ClassVar[str] = "a phase"

    def deciding(self) -> dict[str, Any]:
        said = {key: value for key, value in self.tree().items() if key in ("until", "storage", "states")}
        return {**super().deciding(), **said}

    def end(self, steps: int) -> int:
        """Its last step in a run of so many."""
        if self.until is None:
            return steps
        return self.until if isinstance(self.until, int) else int(_share(self.until) * steps)


class Precision(PrecisionPolicy):
    """The precision of a run: ordered rules, or phases that each have their own."""

    phases: Annotated[tuple[Phase, ...], Since(2)] = ()
    """Instead of rules: what holds one after the other."""

    @model_validator(mode="before")
    @classmethod
    def _from_policy(cls, value: Any) -> Any:
        if isinstance(value, PrecisionPolicy) and not isinstance(value, cls):
            return {name: getattr(value, name) for name in PrecisionPolicy.model_fields}
        return value

    @model_validator(mode="after")
    def _one_after_the_other(self) -> "Precision":
        if not self.phases:
            return self
        if self.rules or self.recipe is not None:
            raise LocatedError(
                ("phases",), "a precision has rules or phases, and this one has both; put the rules into the phases."
            )
        *before, last = self.phases
        for number, phase in enumerate(before):
            if phase.until is None:
                raise LocatedError(
                    ("phases", number), "only the last phase may be without until; say where this one ends."
                )
        if last.until is not None:
            raise LocatedError(
                ("phases", len(before), "until"),
                f"the last phase has until: {last.until}, and nothing says what comes then; leave it out.",
            )
        return self

    def deciding(self) -> dict[str, Any]:
        return {"phases": [phase.deciding() for phase in self.phases]} if self.phases else super().deciding()

    @property
    def policies(self) -> tuple[PrecisionPolicy, ...]:
        """The rules of each phase; of a run without phases its own."""
        return self.phases or (self,)

    @property
    def by_share(self) -> bool:
        """Whether a phase ends at a percentage, so that runs of other lengths have other casts at one step."""
        return any(isinstance(phase.until, str) for phase in self.phases)

    def ends(self, steps: int) -> list[int]:
        """The last step of each phase. LocatedError for one that would be over before it begins."""
        ends: list[int] = []
        for number, phase in enumerate(self.phases):
            end, begun = phase.end(steps), ends[-1] if ends else 0
            if end <= begun or (phase.until is not None and end >= steps):
                where = f"step {end}, where the one before it ends at {begun}" if end <= begun else f"step {end}"
                raise LocatedError(
                    ("phases", number, "until") if phase.until is not None else ("phases", number),
                    f"phase {number} would end at {where}, in a run of {steps} steps; phases end one after the other, "
                    "and the last with the run.",
                )
            ends.append(end)
        return ends or [steps]


@contextmanager
def blamed_on_phase(number: int, phase: Phase | None) -> Iterator[None]:
    """In the block, what is wrong with a phase's precision or storage is placed there; None: of a run without."""
    try:
        yield
    except LocatedError as error:
        if phase is None:
            raise
        first, *rest = error.location or ("",)
        own = {"precision": True, "storage": phase.storage is not None, "optimizer": phase.states is not None}
        if not own.get(str(first)):
            raise
        inner = error.location if first == "storage" else tuple(rest)
        raise LocatedError(("precision", "phases", number, *inner), str(error)) from None
