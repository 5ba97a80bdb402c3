"""The book: recipes by name, alias or path (`altgrad.recipes.catalogue`), read and checked."""

import functools
from pathlib import Path
from typing import Any

from altgrad.document import Document
from altgrad.recipes.catalogue import called, is_path, names, recipe_document
from altgrad.recipes.recipe import Recipe


def recipes() -> list[Recipe]:
    """All recipes of the package, by name."""
    return list(map(_packaged, names()))


def find(name: str) -> Recipe:
    """The recipe of that name, alias or path. ValueError, in one line, where there is none or more than one."""
    return Recipe.read(Document.load(Path(name)), name) if is_path(name) else _packaged(called(name))


def recipe(name: str, **parameters: Any) -> Recipe:
    """A published recipe by name, with its parameters chosen: `recipe("mx", element="e3m2")`.

    `quantize_model` takes it, or its name, as a policy. ValueError for a name or a parameter that does not exist.
    """
    return find(name).with_parameters(**parameters)


@functools.cache
def _packaged(name: str) -> Recipe:
    return Recipe.read(recipe_document(name), name)
