"""A recipe as a spec names it, and as a stored spec remembers it.

    recipe: mx                                      asks for the recipe; as long as {name: mx}
    recipe: {name: mx, element: e3m2}               with a parameter
    recipe: {expanded: mx, element: e3m2}           a note: what the rest of this spec came from. It expands nothing

A run stores what the recipe said, so a note decides nothing: it is no part of fingerprint or run id, and reading it
needs no recipe.
"""

from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, model_validator

from altgrad.spec import Since, Spec
from altgrad.spec.annotations import plain
from altgrad.spec.messages import listed


class RecipeNote(Spec):
    """A recipe by name, with its parameters as further keys; or, in a stored spec, that it has been expanded."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str | None, Since(2)] = None
    """The recipe to expand: a name, an alias or a path."""
    expanded: Annotated[str | None, Since(2)] = None
    """The recipe that was expanded."""
    without: Annotated[tuple[str, ...], Since(2)] = ()
    """Of a note: what the recipe says of a run, too, and was not taken."""
    changed: Annotated[dict[str, Any], Since(2)] = Field(default_factory=dict)
    """Of a note: what was set otherwise, by path."""
    own_rules: Annotated[int, Since(2)] = 0
    """Of a note: how many rules stand before the recipe's."""

    noun: ClassVar[str] = "a recipe's name"

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_one(self) -> "RecipeNote":
        if (self.name is None) == (self.expanded is None):
            raise ValueError("recipe takes a name, such as recipe: mx or {name: mx, element: e3m2}.")
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """The recipe's parameters that were chosen."""
        found: dict[str, Any] = plain(self.model_extra or {})
        return found

    def tree(self) -> dict[str, Any]:
        return super().tree() | self.parameters

    def told(self, key: str) -> str | None:
        """What people should hear of a note at this key of a run; None for nothing."""
        if self.expanded is None or not self.without:
            return None
        what = listed(self.without, "and")
        if key == "precision":
            return f"precision: the casts of {self.expanded} alone; recipe: {self.expanded} would also set {what}"
        return f"recipe {self.expanded}: {what} as the spec says, not as the recipe does"
