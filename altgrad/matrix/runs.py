"""The runs of a matrix: its base, changed for each cell, validated for each seed."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from altgrad.document import ASSIGNED, Document, SpecError
from altgrad.matrix.matrix import Matrix, MatrixPlace
from altgrad.spec import Spec
from altgrad.spec.assignment import put

Run = TypeVar("Run", bound=Spec)


def runs_of(
    matrix: Matrix, folder: Path, cls: type[Run], sets: Iterable[str] = (), document: Document | None = None
) -> list[tuple[MatrixPlace, Run]]:
    """Every run of the matrix, validated as a `cls`: its place, and its spec.

    folder: where the matrix lies. sets: `path=value` for every run, after all else. document: the matrix's own, which
    knows where a base that is spelt out in it was written. Raises SpecError for a base that cannot be read, a value
    that does not fit (naming the cell), and two cells that come to the same run.
    """
    sets = list(sets)
    if seed_set := next((each for each in sets if each.partition("=")[0].strip() == "seed"), None):
        raise SpecError(f"{ASSIGNED}{seed_set}", "the matrix says which seeds there are; change its `seeds`.")
    base, known = _base(matrix, folder, document), dict[str, MatrixPlace]()
    found: list[tuple[MatrixPlace, Run]] = []
    for cell in matrix.cells():
        document = _changed(base, cls, cell)
        for name, seeds in matrix.seed_sets().items():
            for seed in seeds:
                place = MatrixPlace(cell.arm, cell.axes, cell.changes, seed, name)
                put(document, cls, ["seed"], seed, f"{base.name} with {place}"[:160])
                try:
                    # Of its own, since checking replaces a document's data where the run names a recipe.
                    own = Document(document.data, document.name, document.values, document.keys)
                    spec = cls.check(own, sets)
                except SpecError as error:
                    known_place = " with " in error.where or error.where.startswith(ASSIGNED)
                    raise (error if known_place else error.noting(f"with {place}")) from None
                earlier = known.setdefault(spec.fingerprint(), place)
                if earlier is not place:
                    raise SpecError(base.name, f"two cells come to the same run: {earlier} and {place}; leave one out.")
                found.append((place, spec))
    return found


def _base(matrix: Matrix, folder: Path, document: Document | None) -> Document:
    if isinstance(matrix.base, str):
        return Document.load(folder / matrix.base)
    return Document.of(_plain(matrix.base), "base") if document is None else document.part("base")


def _changed(base: Document, cls: type[Spec], cell: MatrixPlace) -> Document:
    """The base with a cell's changes, not validated yet."""
    # Where things were written is text by place, never changed in place: it is shared, and only the data is copied.
    document = Document(copy.deepcopy(base.data), base.name, dict(base.values), dict(base.keys))
    changes = dict(cell.changes)
    if cell.arm and "name" in cls.model_fields:
        changes.setdefault("name", cell.arm)
    for path, value in changes.items():
        put(document, cls, path.split("."), _plain(copy.deepcopy(value)), f"{base.name} with {cell}"[:160])
    return document


def _plain(value: Any) -> Any:
    """Tuples, as specs hold lists, back as lists: a path may lead into them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
