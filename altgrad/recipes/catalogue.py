"""The files of the book: which recipes there are, and which of them a name means. Loads nothing but YAML.

te_nvfp4                 a recipe of the package: altgrad/recipes/te_nvfp4.yaml
TE-NVFP4                 the same: case, '-' and '_' are alike
NVFP4BlockScaling        the same, by an alias
nvfp4                    two recipes' alias: an error that names both
./mine.yaml              a recipe of one's own: whatever has a '/' or ends in .yaml
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from altgrad.document import Document
from altgrad.formats.meant import meant

_FOLDER = Path(__file__).parent
LONGEST = 60


@functools.cache
def names() -> tuple[str, ...]:
    """The recipes of the package, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


@functools.cache
def recipe_document(name: str) -> Document:
    """A recipe of the package, as it is written. Shared: to be read only."""
    path = _FOLDER / f"{name}.yaml"
    return Document.recorded(path.read_text(encoding="utf-8"), f"recipes/{path.name}")


def facts(name: str) -> Mapping[str, Any]:
    """The same as plain data."""
    found: Mapping[str, Any] = recipe_document(name).data
    return found


def is_path(name: str) -> bool:
    """Whether a recipe is named by its file."""
    return "/" in name or name.endswith((".yaml", ".yml"))


def called(name: str) -> str:
    """The recipe of the package that a name or an alias means. ValueError, in one line, where that is not one."""
    known = {_folded(each): each for each in names()}
    if (exact := known.get(_folded(name))) is not None:
        return exact
    words = [(alias, each) for each in names() for alias in facts(each).get("aliases", ())]
    found = list(dict.fromkeys(each for alias, each in words if _folded(alias) == _folded(name)))
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"'{name}' may be {' or '.join(found)}; name one of them.")
    near = meant(name, dict.fromkeys([*names(), *(alias for alias, _ in words)]))
    begun = [each for each in names() if len(name) > 2 and _folded(each).startswith(_folded(name))]
    hint = f"The book has {len(names())}; altgrad recipes list names them."
    if near or begun:
        hint = f"Did you mean {' or '.join(repr(each) for each in ([near] if near else begun[:4]))}?"
    raise ValueError(f"'{name[:LONGEST]}' is not a recipe. {hint}")


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()
