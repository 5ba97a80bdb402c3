"""A recipe: what its authors cast and what they leave alone, whose it is, and what shows that we say the same.

    title: NVFP4 training as Transformer Engine has it
    aliases: [NVFP4BlockScaling]                  names that people use
    source: {arxiv: "2509.25149", authors: NVIDIA}
    reference: {repository: NVIDIA/TransformerEngine, version: "2.9", files: [...]}       or {package: torchao, ...}
    claim: what the authors report                stays_high: what they leave in BF16 or float32
    leaves_out: [{what: ..., matters: ...}]       what AltGrad does not do of it, and how that may matter
    parameters: {element: e4m3fn}                 "$element" below, where it is a whole value, is replaced by it
    precision: [{place: body, weight: ...}]       rules, as a run has them; other RUN_KEYS likewise
    phases: [{until: 95%}, {set: {forward: none}}]    when these rules hold, and what of them changes
    optimizer: muon                               the kind of optimizer, where it is part of what was published
    states: {exp_avg: ...}                        optimizer.states of the run
    proof: [tests/...::test_...]                  or `unproved: why`

A recipe is a document and nothing else: `expansion` is what a run's spec would say instead, and who reads that checks
it. A run stores the expansion, so a recipe may be changed without changing any run that was made from it.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr, model_validator

from altgrad.document import Document, Location
from altgrad.spec import LocatedError, Spec, did_you_mean
from altgrad.spec.annotations import plain
from altgrad.spec.messages import listed

RUN_KEYS = ("precision", "compute", "storage", "loss_scale", "gradients", "interventions")
"""The keys of a run that a recipe may say. One without rules says `precision: none`: that nothing is cast."""
OTHER_KEYS = ("phases", "optimizer", "states")
"""What else it may say of a run: of `precision`, and of `optimizer`."""


class RecipeSource(Spec):
    """Who published it, and where."""

    authors: str
    arxiv: str | None = None
    """The paper's identifier, such as 2509.25149."""
    url: str | None = None
    """Where it is described, if there is no paper."""

    noun: ClassVar[str] = "a recipe's source"


class RecipeReference(Spec):
    """The code that decides wherever words are vague: a repository or a package, and which version of it."""

    repository: str | None = None
    """Such as NVIDIA/TransformerEngine."""
    package: str | None = None
    """Its name on PyPI."""
    version: str | None = None
    commit: str | None = None
    files: tuple[str, ...] = ()
    """Where in it the casts are."""

    noun: ClassVar[str] = "a recipe's reference"

    @model_validator(mode="after")
    def _is_one(self) -> "RecipeReference":
        if (self.repository is None) == (self.package is None):
            raise ValueError("a reference has either a repository or a package.")
        return self


class LeftOut(Spec):
    """What AltGrad does not do of a recipe."""

    what: str
    matters: str
    """How that may matter."""

    noun: ClassVar[str] = "what a recipe leaves out"


class Recipe(Spec):
    """One recipe of the book, or of a file of one's own."""

    title: str
    aliases: tuple[str, ...] = ()
    """Other names, as people use them."""
    source: RecipeSource
    reference: RecipeReference | None = None
    """None where no code was published."""
    claim: str = ""
    """The headline, as the authors state it."""
    stays_high: str = ""
    """What is left in BF16 or float32, in a sentence."""
    leaves_out: tuple[LeftOut, ...] = ()
    parameters: dict[str, Any] = Field(default_factory=dict)
    """What can be chosen, with its default."""
    precision: tuple[dict[str, Any], ...] = ()
    """Rules, in order."""
    phases: tuple[dict[str, Any], ...] = ()
    """Phases of a run by this recipe: each has these rules with what its `set` changes, until its `until`."""
    compute: str | None = None
    storage: tuple[dict[str, Any], ...] = ()
    loss_scale: Any = None
    gradients: dict[str, Any] = Field(default_factory=dict)
    interventions: tuple[Any, ...] = ()
    optimizer: str | None = None
    """The kind of optimizer, where that is part of the recipe."""
    states: dict[str, Any] = Field(default_factory=dict)
    """What the optimizer's states are kept in: `optimizer.states` of the run."""
    proof: tuple[str, ...] = ()
    """The tests that compare it with its reference."""
    unproved: str | None = None
    """Why there are none."""

    noun: ClassVar[str] = "a recipe"

    _name: str = PrivateAttr(default="")
    _document: Document | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _agree(self) -> "Recipe":
        if bool(self.proof) == bool(self.unproved):
            raise ValueError("a recipe has either a proof or a reason why it is unproved.")
        if not (self.run_keys or self.optimizer or self.states):
            raise ValueError(f"a recipe says at least one of {listed((*RUN_KEYS, *OTHER_KEYS))}.")
        if self.phases and not self.precision:
            raise LocatedError(("phases",), "phases change the rules of precision, and there are none.")
        for location, word in _words(plain({key: getattr(self, key) for key in (*self.run_keys, *OTHER_KEYS)}), ()):
            if word.startswith("$") and word[1:] not in self.parameters:
                raise LocatedError(location, f"{word} is not among the recipe's parameters; declare it there.")
        return self

    @classmethod
    def read(cls, document: Document, name: str) -> "Recipe":
        """From its file. SpecError for what is no recipe."""
        found = cls.check(document)
        found._name, found._document = name, document
        return found

    @property
    def name(self) -> str:
        """What a spec calls it: its file's name, or the path of a file of one's own."""
        return self._name

    @property
    def run_keys(self) -> list[str]:
        """The keys of a run that are written in it."""
        return [key for key in RUN_KEYS if getattr(self, key)]

    def with_parameters(self, **parameters: Any) -> "Recipe":
        """The same recipe with other defaults. ValueError for a parameter that it does not have."""
        for name in parameters:
            if name not in self.parameters:
                has = f"It has {', '.join(self.parameters)}." if self.parameters else "It has none."
                hint = did_you_mean(name, self.parameters) or f" {has}"
                raise ValueError(f"'{name}' is not a parameter of the recipe {self.name}.{hint}")
        changed = self.model_copy(update={"parameters": {**self.parameters, **parameters}})
        changed._name, changed._document = self._name, self._document
        return changed

    def expansion(self, **parameters: Any) -> "Expansion":
        """What a run's spec would say instead of the name. ValueError for a parameter that it does not have."""
        chosen = self.with_parameters(**parameters).parameters
        said = {key: _replaced(plain(getattr(self, key)), chosen) for key in self.run_keys}
        written = {} if self._document is None else self._document.values
        places = {_in_run(at): place for at, place in written.items() if at and at[0] in (*said, *OTHER_KEYS)}
        said = {"precision": {"rules": said.pop("precision", [])}, **said}
        others = {key: _replaced(plain(getattr(self, key)), chosen) for key in OTHER_KEYS}
        return Expansion(self.name, plain(chosen), said, places, **others)


@dataclass(frozen=True)
class Expansion:
    """What a recipe says of a run, as plain data.

    parameters: those of the recipe, as chosen. run: keys of a run spec, precision with rules alone. places: where the
    recipe's file has each part. phases: of a run's precision, see Recipe. optimizer, states: what is under `optimizer`
    of the run.
    """

    recipe: str
    parameters: Mapping[str, Any]
    run: Mapping[str, Any]
    places: Mapping[Location, str]
    phases: Sequence[Mapping[str, Any]] = ()
    optimizer: str | None = None
    states: Mapping[str, Any] = field(default_factory=dict)

    @property
    def beside(self) -> list[str]:
        """What it says besides casts, as people call it."""
        parts = {"optimizer.kind": self.optimizer, "optimizer.states": self.states}
        return [*(key for key in self.run if key != "precision"), *(key for key, said in parts.items() if said)]


_INSIDE: Mapping[str, Location] = {
    "precision": ("precision", "rules"), "phases": ("precision", "phases"), "optimizer": ("optimizer", "kind"),
}  # fmt: skip


def _in_run(location: Location) -> Location:
    """Where a run has what a recipe has there."""
    first, *rest = location
    return (*_INSIDE.get(str(first), (first,)), *rest)


def _replaced(value: Any, parameters: Mapping[str, Any]) -> Any:
    """The value, in which parameters stand for themselves."""
    if isinstance(value, dict):
        return {key: _replaced(item, parameters) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, parameters) for item in value]
    is_parameter = isinstance(value, str) and value.startswith("$")
    return copy.deepcopy(plain(parameters[value[1:]])) if is_parameter else value


def _words(value: Any, at: Location) -> Iterator[tuple[Location, str]]:
    """Every text below a value, and where it stands."""
    if isinstance(value, str):
        yield at, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _words(item, (*at, key))
