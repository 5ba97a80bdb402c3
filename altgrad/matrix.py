"""A matrix of runs: one base spec, axes that vary some of its values, and seeds.

    base: quickstart.yaml                                   # beside the matrix
    axes:
      precision.rules.0.weight.format: [e4m3fn, e5m2, e3m4]
      optimizer.lr: [1e-3, 3e-3]
      name: [low, high]
    zip: [[optimizer.lr, name]]                             # these go together, in step
    exclude: [{precision.rules.0.weight.format: e5m2, name: high}]
    include: [{precision: none, name: baseline}]
    seeds: [0, 1, 2]

Every combination of the axes, those zipped counting as one, less what an `exclude` entry matches in all it names, plus
the `include` entries as they are; each with every seed. An axis is a dotted path, as in `--set`. What the runs are is
decided by the class they are validated with, so this file knows neither models nor tensors.
"""

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, model_validator

from altgrad.document import Document, SpecError
from altgrad.spec import LocatedError, Spec, did_you_mean
from altgrad.spec.assignment import put

Cell = dict[str, Any]
Run = TypeVar("Run", bound=Spec)


class Matrix(Spec):
    """Base x axes x seeds. Values of axes, `include` and `exclude` are whatever the run spec takes at their paths."""

    base: Annotated[str, Field(min_length=1)]
    """Path of the run spec that is varied, from the folder of the matrix."""
    axes: dict[str, Any] = Field(default_factory=dict)
    """Dotted path -> list of values."""
    zip: tuple[tuple[str, ...], ...] = ()
    """Groups of axes that advance together."""
    include: tuple[dict[str, Any], ...] = ()
    """More cells, each a mapping of path -> value."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Cells to leave out: those that agree with an entry in everything it names."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)

    @classmethod
    def noun(cls) -> str:
        """See Spec."""
        return "a matrix"

    @model_validator(mode="after")
    def _agree(self) -> "Matrix":
        for path, values in self.axes.items():
            if not isinstance(values, list | tuple) or not values:
                raise LocatedError(("axes", path), f"{path} is {values!r}; an axis is a list of one value or more.")
        grouped = [path for group in self.zip for path in group]
        for number, group in enumerate(self.zip):
            for path in group:
                if path not in self.axes:
                    hint = did_you_mean(path, self.axes)
                    raise LocatedError(("zip", number), f"zip names '{path}', which is not an axis.{hint}")
                if grouped.count(path) > 1:
                    raise LocatedError(("zip", number), f"zip names '{path}' twice; an axis advances once.")
            lengths = {path: len(self.axes[path]) for path in group}
            if len(set(lengths.values())) > 1:
                told = ", ".join(f"{path} has {length}" for path, length in lengths.items())
                raise LocatedError(("zip", number), f"zipped axes must be equally long: {told}.")
        for number, entry in enumerate(self.exclude):
            if unknown := next((path for path in entry if path not in self.axes), None):
                message = f"exclude names '{unknown}', which is not an axis.{did_you_mean(unknown, self.axes)}"
                raise LocatedError(("exclude", number), message)
        if twice := next((seed for seed in self.seeds if self.seeds.count(seed) > 1), None):
            raise LocatedError(("seeds",), f"seed {twice} stands there twice; each seed is one run.")
        return self

    def cells(self) -> list[Cell]:
        """The combinations, without seeds, in the order written: the first axis varies slowest."""
        grouped = {path: group for group in self.zip for path in group}
        groups = list(dict.fromkeys(grouped.get(path, (path,)) for path in self.axes))
        steps = [[dict(zip(group, values, strict=True)) for values in self._together(group)] for group in groups]
        product = [
            {path: value for part in parts for path, value in part.items()} for parts in itertools.product(*steps)
        ]
        kept = [cell for cell in product if not any(_agrees(cell, entry) for entry in self.exclude)]
        return kept * bool(self.axes) + [dict(entry) for entry in self.include] or [{}]

    def _together(self, group: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
        return zip(*(self.axes[path] for path in group), strict=True)


def _agrees(cell: Cell, entry: Cell) -> bool:
    return all(cell[path] == value for path, value in entry.items())


def runs(matrix: Matrix, folder: Path, cls: type[Run]) -> list[tuple[Cell, Run]]:
    """Every run of the matrix, validated as a `cls`: its cell with the seed, and its spec.

    folder: where the matrix lies. Raises SpecError for a base that cannot be read, a value that does not fit
    (naming the cell), and two cells that come to the same run.
    """
    base = Document.load(folder / matrix.base)
    found: list[tuple[Cell, Run]] = []
    known: dict[str, Cell] = {}
    for cell, seed in itertools.product(matrix.cells(), matrix.seeds):
        chosen = {**cell, "seed": seed}
        document = copy.deepcopy(base)
        origin = ", ".join(f"{path}={value}" for path, value in chosen.items())
        for path, value in chosen.items():
            put(document, cls, path.split("."), copy.deepcopy(value), f"{base.name} with {origin}"[:160])
        spec = cls.check(document)
        earlier = known.setdefault(spec.fingerprint(), chosen)
        if earlier is not chosen:
            raise SpecError(base.name, f"two cells come to the same run: {earlier} and {chosen}; leave one out.")
        found.append((chosen, spec))
    return found
