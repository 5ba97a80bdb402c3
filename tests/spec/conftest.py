"""A small family and a spec around it, with one field of every sort that specs use; no torch."""

import sys
import types
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field, model_validator

from altgrad.formats import Rounding
from altgrad.spec import Format, Kind, LocatedError, RoundingMode, Spec

package = types.ModuleType("shapes_of_tests")
sys.modules[package.__name__] = package


class Shape(Kind, family="shape", package="shapes_of_tests"):
    """The root."""

    every: Annotated[int, Field(ge=1)] = 10


class Circle(Shape):
    """Round.

    More of it.
    """

    kind: ClassVar[str] = "circle"
    radius: Annotated[float, Field(gt=0)] = 1.0
    """In metres."""


class Square(Shape):
    """Not round."""

    kind: ClassVar[str] = "square"
    side: float
    inner: Shape | None = None


class Cast(Spec):
    """A format and how to round to it."""

    format: Format
    rounding: RoundingMode = Rounding.nearest_even

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"format": value} if isinstance(value, str) else value

    noun: ClassVar[str] = "a cast"


class Drawing(Spec):
    """Everything at once."""

    name: str = "drawing"
    label: Annotated[str, Field(min_length=1)] | None = None
    count: Annotated[int, Field(ge=0, lt=2**31)] = 0
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    offset: float = 0.0
    margin: Annotated[int, Field(ge=-16, le=16)] = 0
    steps: Annotated[int, Field(ge=1)]
    bright: bool = False
    mode: Literal["fast", "slow"] = "fast"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    shape: Shape = Shape.of("circle")
    shapes: tuple[Shape, ...] = (Shape.of("circle"),)
    cast: Cast | None = None
    axes: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    size: int | Literal["all"] = "all"

    @model_validator(mode="after")
    def _agree(self) -> "Drawing":
        if self.offset > self.steps:
            raise LocatedError(("offset",), f"offset {self.offset} is beyond {self.steps} steps; shorten it.")
        return self

    noun: ClassVar[str] = "a drawing"


@pytest.fixture(scope="session")
def drawing() -> type[Drawing]:
    """The class; a YAML text needs `steps: 1` to be one."""
    return Drawing
