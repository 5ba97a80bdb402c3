"""A recipe as a spec names it, and as a stored spec remembers it.

    recipe: mx                                      asks for the recipe; as long as {name: mx}
    recipe: {name: mx, element: e3m2}               with a parameter
    recipe: {expanded: mx, element: e3m2}           a note: what the rest of this spec came from. It expands nothing

A run stores what the recipe said, so a note decides nothing: it is no part of fingerprint or run id, and reading it
needs no recipe.
"""

from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, model_validator

from altgrad.recipes.catalogue import names
from altgrad.spec import Since, Spec
from altgrad.spec.annotations import Known, plain
from altgrad.spec.messages import listed


class RecipeNote(Spec):
    """A recipe by name, with its parameters as further keys; or, in a stored spec, that it has been expanded."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str | None, Since(2), Known(names())] = None
    """The recipe to expand: a name, an alias or a path."""
    expanded: Annotated[str | None, Since(2)] = None
    """The recipe that was expanded."""
    without: Annotated[tuple[str, ...], Since(2)] = ()
    """Of a note: what the recipe says of a run, too, and was not taken."""
    besides: Annotated[tuple[str, ...], Since(2)] = ()
    """Of a note: keys of which the recipe says nothing and the spec something."""
    replaced: Annotated[tuple[str, ...], Since(2)] = ()
    """Of a note: keys of the spec's file that the recipe, which was named outside of it, took the place of."""
    changed: Annotated[dict[str, Any], Since(2)] = Field(default_factory=dict)
    """Of a note: what was set otherwise, by path."""
    own_rules: Annotated[int, Since(2)] = 0
    """Of a note: how many rules come before the recipe's."""

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

    def told(self, key: str) -> list[str]:
        """What people should hear of a note at this key of a run, in lines."""
        if self.expanded is None:
            return []
        name, alone = self.expanded, key != "recipe"
        without, besides, replaced = (
            listed(each, "and") if each else "" for each in (self.without, self.besides, self.replaced)
        )
        said = []
        if without and alone:
            said.append(f"{key}: the casts of {name} alone; recipe: {name} would also set {without}")
        elif without:
            said.append(f"recipe {name}: {without} as the spec says, not as the recipe does")
        if besides:
            said.append(f"recipe {name}: {besides} as the spec says; the recipe says nothing of that")
        if replaced:
            said.append(f"recipe {name}: {replaced} as the recipe says; what the spec's file says of that is not used")
        if self.changed:
            changes = ", ".join(f"{path} {value}" for path, value in self.changed.items())
            said.append(f"{key} {name}: changed by the spec: {changes}")
        return said
