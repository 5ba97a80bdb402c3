"""A matrix of runs: one base spec, axes that vary some of its values, named arms, and seeds.

    base: study.yaml                                        # beside the matrix; or the run spec itself, as a mapping
    set: {project: ablation}                                # for every run
    arms:                                                   # named ways to run it, each with a reason
      adamw: {purpose: the baseline}
      manifold: {set: {optimizer.kind: manifold_adamw}, purpose: steps in spacings, expect: no worse}
      madam: {set: {optimizer.kind: madam}, axes: {optimizer.lr: [1e-2]}, purpose: relative steps}
    twin: bf16                                              # one more arm: nothing cast, bfloat16 products
    axes:
      storage.0.format: [e4m3fn, e5m2, e3m4]
      optimizer.lr: [1e-3, 3e-3]
    zip: [[optimizer.lr, steps]]                            # axes that go together, in step
    exclude: [{arm: manifold, storage.0.format: e5m2}]
    include: [{arm: frozen, optimizer.lr: 1e-12}]
    seeds: {tuning: [0, 1, 2], confirmation: [10, 11]}      # or a plain list
    smoke: {set: {steps: 5}, seeds: [0]}                    # the same in minutes: `--smoke`

Every arm with every combination of the axes, those zipped counting as one, less what an `exclude` entry matches in all
it names, plus the `include` entries as they are; each with every seed. An axis is a dotted path, as in `--set`. What an
arm sets itself is not varied for it: an arm with `precision: none` passes over the axes below `precision`, so a control
runs once where the others run once for each format; a part that it spells out as a mapping can still be varied below.
The arm's name is the run's.

What the runs are is decided by the class they are validated with, so nothing here knows models or tensors.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from altgrad.document import Location
from altgrad.spec import LocatedError, Spec, did_you_mean

Cell = dict[str, Any]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]

ARM = "arm"
TWINS: Mapping[str, Cell] = {
    "bf16": {"recipe": None, "precision": "none", "storage": (), "compute": "bfloat16"},
    "fp32": {"recipe": None, "precision": "none", "storage": (), "compute": "float32"},
}


class MatrixArm(Spec):
    """One named way to run the matrix: what it sets, why it is there, and what is expected of it."""

    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted path -> value."""
    axes: dict[str, Any] = Field(default_factory=dict)
    """Axes of its own, in place of the matrix's of the same path: learning rates of another optimizer, say."""
    purpose: str = ""
    """Why the arm is there, in words."""
    expect: str = ""
    """What is expected of it, in words."""

    noun: ClassVar[str] = "an arm"


class Smoke(Spec):
    """What to change so that a matrix takes minutes: further settings, shorter axes, fewer arms and seeds."""

    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted path -> value, for every run of the smoke variant."""
    axes: dict[str, Any] = Field(default_factory=dict)
    """Replaces the axes that it names; an arm's own of such a path keeps its first value."""
    arms: tuple[str, ...] | None = None
    """The arms that stay, the twin's name among them; null: all."""
    seeds: Seeds | None = None
    """The seeds that are run; null: those of the matrix."""

    noun: ClassVar[str] = "a smoke variant"


class Matrix(Spec):
    """Base x arms x axes x seeds. Values of axes, `set`, `include` and `exclude` are what the run spec takes there."""

    base: Annotated[str, Field(min_length=1)] | dict[str, Any]
    """The run spec that is varied: its path from the folder of the matrix, or the spec itself."""
    purpose: str = ""
    """What the matrix is to find out."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted path -> value, for every run."""
    arms: dict[str, MatrixArm] = Field(default_factory=dict)
    """What is compared: a name for each way to run, with what it sets."""
    twin: Literal["bf16", "fp32"] | None = None
    """An arm of this name in which nothing is cast, to compare with."""
    axes: dict[str, Any] = Field(default_factory=dict)
    """Dotted path -> list of values."""
    zip: tuple[tuple[str, ...], ...] = ()
    """Groups of axes that advance together."""
    include: tuple[dict[str, Any], ...] = ()
    """More cells, each a mapping of path -> value; `arm` names one."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Cells to leave out: those that agree with an entry in everything it names, `arm` among it."""
    expect: dict[str, str] = Field(default_factory=dict)
    """What is expected wherever an axis has this value, in words."""
    seeds: Seeds | dict[str, Seeds] = (0,)
    """Seeds, or named sets of them: `tuning` ones choose, `confirmation` ones judge."""
    smoke: Smoke | None = None
    """What `--smoke` changes, so that the matrix takes minutes."""

    noun: ClassVar[str] = "a matrix"

    @model_validator(mode="after")
    def _agree(self) -> "Matrix":
        _check_axes(self.axes, ("axes",))
        self._check_zip()
        zipped = {path for group in self.zip for path in group}
        for name, arm in self.arms.items():
            _check_axes(arm.axes, ("arms", name, "axes"))
            if both := next((path for path in arm.axes if path in zipped), None):
                raise LocatedError(("arms", name, "axes", both), f"{both} is zipped, so no arm has its own.")
        for number, entry in enumerate(self.exclude):
            known = {**self.axes, ARM: None}
            if unknown := next((path for path in entry if path not in known), None):
                message = f"exclude names '{unknown}', which is not an axis.{did_you_mean(unknown, known)}"
                raise LocatedError(("exclude", number), message)
        if self.twin in self.arms:
            raise LocatedError(("twin",), f"twin makes an arm '{self.twin}', and there is one; rename that.")
        seeds = [seed for seeds in self.seed_sets().values() for seed in seeds]
        if twice := next((seed for seed in seeds if seeds.count(seed) > 1), None):
            raise LocatedError(("seeds",), f"seed {twice} is there twice; each seed is one run.")
        if self.smoke is not None:
            self._check_smoke(self.smoke)
        return self

    def _check_zip(self) -> None:
        grouped = [path for group in self.zip for path in group]
        for number, group in enumerate(self.zip):
            for path in group:
                if path not in self.axes:
                    message = f"zip names '{path}', which is not an axis.{did_you_mean(path, self.axes)}"
                    raise LocatedError(("zip", number), message)
                if grouped.count(path) > 1:
                    raise LocatedError(("zip", number), f"zip names '{path}' twice; an axis advances once.")
            lengths = {path: len(self.axes[path]) for path in group}
            if len(set(lengths.values())) > 1:
                told = ", ".join(f"{path} has {length}" for path, length in lengths.items())
                raise LocatedError(("zip", number), f"zipped axes must be equally long: {told}.")

    def _check_smoke(self, smoke: Smoke) -> None:
        axes = self.axes.keys() | {path for arm in self.arms.values() for path in arm.axes}
        for what, known in (("axes", axes), ("arms", self.all_arms())):
            for name in getattr(smoke, what) or ():
                if name not in known:
                    message = f"smoke names '{name}', which is not among the {what}.{did_you_mean(name, known)}"
                    raise LocatedError(("smoke", what), message)

    def all_arms(self) -> dict[str, MatrixArm]:
        """The arms in the order written, the twin last; one without a name where there are none."""
        if self.twin is None:
            return dict(self.arms) or {"": MatrixArm()}
        twin = MatrixArm(set=dict(TWINS[self.twin]), purpose=f"the {self.twin} twin: nothing is cast")
        return (dict(self.arms) or {"": MatrixArm()}) | {self.twin: twin}

    def seed_sets(self) -> dict[str, tuple[int, ...]]:
        """Seeds by the name of their set; a plain list is the set without a name."""
        return self.seeds if isinstance(self.seeds, dict) else {"": self.seeds}

    def smoked(self) -> "Matrix":
        """The smoke variant as a matrix of its own; ValueError where the matrix has none."""
        smoke = self.smoke
        if smoke is None:
            raise ValueError("this matrix has no `smoke:`; run it whole, or write one.")
        arms, twin = {name: self._smoked(arm, smoke) for name, arm in self.arms.items()}, self.twin
        if smoke.arms is not None:
            arms = {name: arm for name, arm in arms.items() if name in smoke.arms}
            twin = twin if twin in smoke.arms else None
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        axes = {path: smoke.axes.get(path, values) for path, values in self.axes.items()}
        fields |= {"set": {**self.set, **smoke.set}, "axes": axes, "arms": arms, "twin": twin}
        return Matrix(**fields | {"seeds": smoke.seeds or self.seeds, "smoke": None})

    def _smoked(self, arm: MatrixArm, smoke: Smoke) -> MatrixArm:
        """Where the smoke variant names an axis that arm and matrix share, its values are the matrix's."""
        axes = {
            path: values[:1] if path in smoke.axes and path in self.axes else smoke.axes.get(path, values)
            for path, values in arm.axes.items()
        }
        return arm.model_copy(update={"axes": axes})

    def cells(self) -> list["MatrixPlace"]:
        """The combinations, without seeds, in the order written: arms vary slowest, then the first axis."""
        found = []
        for name, arm in self.all_arms().items():
            if not name and self.include and not self.axes:
                continue  # nothing is varied and something is listed: the list is meant
            for cell in self._combinations(arm):
                if not any(_agrees({**cell, ARM: name}, entry) for entry in self.exclude):
                    found.append(MatrixPlace(name, cell, {**self.set, **arm.set, **cell}))
        for entry in self.include:
            cell = {path: value for path, value in entry.items() if path != ARM}
            name = str(entry.get(ARM, ""))
            chosen = self.arms[name].set if name in self.arms else {}
            found.append(MatrixPlace(name, cell, {**self.set, **chosen, **cell}))
        return found

    def _combinations(self, arm: MatrixArm) -> Iterator[Cell]:
        axes = {path: values for path, values in self.axes.items() if not _decides(arm.set, path)} | arm.axes
        grouped = {path: tuple(other for other in group if other in axes) for group in self.zip for path in group}
        groups = list(dict.fromkeys(grouped.get(path, (path,)) for path in axes))
        rows = [zip(*(axes[path] for path in group), strict=True) for group in groups]
        steps = [[dict(zip(group, row, strict=True)) for row in own] for group, own in zip(groups, rows, strict=True)]
        for parts in itertools.product(*steps):
            yield {path: value for part in parts for path, value in part.items()}


@dataclass(frozen=True)
class MatrixPlace:
    """Where a run stands in its matrix: its arm, its values on the axes, all that was changed of the base, its seed."""

    arm: str
    axes: Cell
    changes: Cell
    seed: int = 0
    seeds: str = ""
    """The name of the seed's set."""

    @property
    def labels(self) -> dict[str, str]:
        """What it can be picked by: arm, seed, set, and every axis by its path."""
        axes = {path: str(value) for path, value in self.axes.items()}
        return {ARM: self.arm, "seed": str(self.seed), "set": self.seeds, **axes}

    def __str__(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.labels.items() if value)


def _check_axes(axes: Cell, where: Location) -> None:
    for path, values in axes.items():
        if not isinstance(values, list | tuple) or not values:
            raise LocatedError((*where, path), f"{path} is {values!r}; an axis is a list of one value or more.")


def _decides(settings: Cell, path: str) -> bool:
    """Whether these settings leave nothing of the axis: they set it, part of it, or what it lies in (but see above)."""
    return any(
        path == own or own.startswith(f"{path}.") or (path.startswith(f"{own}.") and not isinstance(value, dict))
        for own, value in settings.items()
    )


def _agrees(cell: Cell, entry: Cell) -> bool:
    return all(path in cell and cell[path] == value for path, value in entry.items())
