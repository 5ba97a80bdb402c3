"""An arm of a claim: the bench run with the casts of a recipe, changed in what the claim is about.

    nearest: {recipe: te_nvfp4, set: {grad_output.rounding: nearest_even}, purpose: ...}

    recipe    of the book, or the path of one of one's own; its casts alone, since all arms compute in bfloat16
    set       of its casts, as `precision: {recipe: ..., set: ...}` takes it
    high      places or names inside the blocks that stay uncast, instead of those that the recipe leaves uncast there
    states    the formats of the optimizer's moments that a recipe has, `expansion` set apart
    finish    from that share of the steps on, casts with another `set`: to the bit a branch of the run until then
    run       any other value of the run, by path
    like      trained at the rate of that arm, without a tuning of its own

A recipe that is not proved makes no arm of ours; a reader's own is marked so on the page.
"""

from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from altgrad.document import Document
from altgrad.recipes.book import find
from altgrad.spec import LocatedError, Spec
from altgrad.spec.annotations import plain
from altgrad.training import RunSpec

HERE = Path(__file__).resolve().parent
BENCH, ARMS = HERE / "bench.yaml", HERE / "arms.yaml"
PLACES = ("body.", "attention.", "mlp.")


class Finish(Spec):
    """What changes near the end."""

    at: str
    """Such as 80%, of the steps."""
    set: dict[str, Any]

    noun: ClassVar[str] = "a finish"


class Arm(Spec):
    """One way to train the bench run."""

    purpose: str
    recipe: str | dict[str, Any] | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    high: tuple[str, ...] | None = None
    states: dict[str, Any] = Field(default_factory=dict)
    finish: Finish | None = None
    run: dict[str, Any] = Field(default_factory=dict)
    like: str | None = None

    noun: ClassVar[str] = "an arm"

    @model_validator(mode="after")
    def _agree(self) -> "Arm":
        if self.recipe is None and (self.set or self.high is not None or self.finish):
            raise LocatedError(("recipe",), "set, high and finish change the casts of a recipe; name one.")
        if self.finish is not None and self.high is not None:
            raise LocatedError(("finish",), "an arm has finish or high, not both.")
        return self

    @property
    def recipes(self) -> list[str]:
        """The names of the recipes in it."""
        said = [self.recipe, self.states.get("recipe")]
        return [str(each["name"] if isinstance(each, dict) else each) for each in said if each is not None]

    @property
    def unproved(self) -> str | None:
        """Why one of its recipes is unproved; None where all are proved."""
        return next((why for name in self.recipes if (why := find(name).unproved) is not None), None)

    def spec(self, name: str, rate: float, seed: int, **changes: Any) -> RunSpec:
        """The run of this arm. changes: further values by path, `data__source` for data.source."""
        tree = plain(Document.load(BENCH).data)
        tree |= {"name": name, "seed": seed}
        tree["optimizer"]["lr"] = rate
        if self.states:
            tree["optimizer"]["states"] = self._states()
        if self.recipe is not None:
            tree["precision"] = self._precision(tree)
            tree["compile"] = "blocks"
        said = {**self.run, **{path.replace("__", "."): value for path, value in changes.items()}}
        for path, value in said.items():
            *way, last = path.split(".")
            place = tree
            for step in way:
                place = place.setdefault(step, {})
            place[last] = plain(value)
        return RunSpec.made_from(tree)

    def _precision(self, tree: dict[str, Any]) -> dict[str, Any]:
        asked = plain({"recipe": self.recipe, "set": self.set})
        if self.finish is not None:
            last = plain({"recipe": self.recipe, "set": {**self.set, **self.finish.set}})
            return {"phases": [{"until": self.finish.at, **asked}, last]}
        if self.high is None:
            return asked
        rules = RunSpec.made_from({**tree, "precision": asked}).tree()["precision"]["rules"]
        own = [{"place" if each.startswith(PLACES) else "match": each} for each in self.high]
        return plain({"rules": [*own, *(rule for rule in rules if _casts(rule))]})

    def _states(self) -> dict[str, Any]:
        """The moments' formats of the recipe that `states` names."""
        own = {key: value for key, value in self.states.items() if key != "recipe"}
        return {state: {**spec, **own} for state, spec in find(str(self.states["recipe"])).expansion().states.items()}


def _casts(rule: dict[str, Any]) -> bool:
    return any(rule.get(operand) is not None for operand in ("weight", "input", "grad_output"))


@cache
def arms() -> dict[str, Arm]:
    """The arms of arms.yaml, in its order."""
    document = Document.load(ARMS)
    return {name: Arm.check(document.part(name)) for name in document.data}


def add(name: str, arm: Arm) -> None:
    """Know an arm of a reader's own, in this process. ValueError for a name that is taken."""
    if name in arms():
        raise ValueError(f"{name} is an arm of claims/arms.yaml; give the file another name.")
    arms()[name] = arm
