"""A step of a run as a spec says it: its number, or a percentage of the run's steps (`82%`), rounded down."""

from fractions import Fraction
from typing import Annotated, Any

from pydantic import PlainValidator

from altgrad.spec.messages import show


def step_of(said: int | str, steps: int) -> int:
    """The number of that step in a run of so many; 0 where a percentage of them is less than one."""
    return said if isinstance(said, int) else int(_share(said) * steps)


def _to_step(value: Any) -> int | str:
    """A percentage stays as it was written."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"{value} is not a step of a run; steps count from 1.")
        return value
    if not isinstance(value, str) or not value.endswith("%"):
        raise ValueError(f"{show(value)} is not a step of a run; use a number of steps, or a percentage such as 82%.")
    if not 0 < _share(value) < 1:
        raise ValueError(f"{value[:20]} is not a part of a run; use a percentage of the steps above 0% and below 100%.")
    return value


def _share(text: str) -> Fraction:
    try:
        return Fraction(text.removesuffix("%").strip()) / 100
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{show(text)} is not a percentage such as 82%.") from None


RunStep = Annotated[int | str, PlainValidator(_to_step)]
"""A number of steps, or a percentage of them as text."""
