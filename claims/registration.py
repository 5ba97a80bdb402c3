"""A claim as it is registered: one file of registry/, committed before any of its runs.

    title: ...                              source: {arxiv: "2509.25149"}
    sentence: what the source says, in our words
    tests:
      - {name: loss, measure: loss, contrast: {nearest: 1, te_nvfp4: -1}, expect: above, margin: 0.02, sd: 0.0154,
         n: 10, power: 0.90, why: ...}
    controls: [...]    refuted_by: ...    scale: what no small model can say of it    cost_hours: of one core

A test is a contrast of arms, paired by seed: the sum of their values, weighted; the weights add up to 0. `expect`
says where the source puts it: above 0, below 0, or inside the margin. Its power is the chance, at the registered sd
and n, that

    above, below      the interval leaves 0 out on that side, if the true contrast is the margin
    inside            the interval lies within the margin, if the true contrast is 0

and below 0.8 it must be `descriptive`: shown, never judged. The judged tests of a claim are its family: their
intervals cover together (Bonferroni). n is the cap, FIRST the first stage (PLAN.md, How many pairs).
"""

import math
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from altgrad.document import Document
from altgrad.spec import LocatedError, Spec
from altgrad.statistics.distributions import student_cdf, student_quantile
from altgrad.statistics.power import POWER, equivalence_chance
from claims.arms import Arm, arms

REGISTRY = Path(__file__).resolve().parent / "registry"
FIRST = 8
LOSS, WEIGHTS = "loss", "weight_sqnr_db"
PROBES = ("sqnr_db", "sqnr_backward", "cosine", "bias", "bias_backward", "unguarded", "update_ratio")
LEVEL = 0.95
Positive = Annotated[float, Field(gt=0)]


class ClaimSource(Spec):
    """Who says it."""

    arxiv: str | None = None
    url: str | None = None
    also: tuple[str, ...] = ()
    """Further papers that say it."""

    noun: ClassVar[str] = "a claim's source"

    @model_validator(mode="after")
    def _is_named(self) -> "ClaimSource":
        if self.arxiv is None and self.url is None:
            raise ValueError("a source has arxiv or url.")
        return self


class ClaimTest(Spec):
    """One contrast of arms, with what the source lets expect of it."""

    name: str
    measure: Literal[
        "loss",
        "sqnr_db",
        "sqnr_backward",
        "cosine",
        "bias",
        "bias_backward",
        "unguarded",
        "update_ratio",
        "weight_sqnr_db",
    ]
    contrast: dict[str, float]
    expect: Literal["above", "below", "inside"]
    margin: Positive
    sd: Positive
    """Of one seed's contrast, as assumed before its runs."""
    n: Annotated[int, Field(ge=2)]
    """Seeds at most; matrices, where weights are what is measured."""
    power: Annotated[float, Field(ge=0, le=1)]
    """To two digits, as `power_of` has it."""
    descriptive: bool = False
    draws: bool = False
    """The arms of negative weight are a sample of draws, a random effect besides that of seeds."""
    share_of: dict[str, float] | None = None
    """A gap of losses, of which the contrast's share is told where it is known well enough."""
    why: str = ""

    noun: ClassVar[str] = "a test"

    @model_validator(mode="after")
    def _agree(self) -> "ClaimTest":
        for at, contrast in (("contrast", self.contrast), ("share_of", self.share_of or {})):
            if abs(math.fsum(contrast.values())) > 1e-9:
                raise LocatedError(
                    (at,), f"the weights of a contrast add up to 0, not {math.fsum(contrast.values()):g}."
                )
        if self.measure in ("bias", "bias_backward") and self.expect == "inside" and not self.descriptive:
            raise LocatedError(("expect",), "a bias has no equivalence margin; use above or below.")
        return self

    @property
    def needs(self) -> list[str]:
        """The arms that it takes."""
        return list(dict.fromkeys([*self.contrast, *(self.share_of or {})]))


class Claim(Spec):
    """One claim of the literature."""

    title: str
    source: ClaimSource
    sentence: str
    tests: Annotated[tuple[ClaimTest, ...], Field(min_length=1)]
    controls: tuple[str, ...] = ()
    refuted_by: str
    scale: str
    """What a model of this size and so few tokens cannot say of the claim."""
    cost_hours: Positive
    """Of one core, all its own arms; what claims share is counted in each."""

    noun: ClassVar[str] = "a claim"

    @property
    def arms(self) -> list[str]:
        """All arms that it takes."""
        return list(dict.fromkeys(name for test in self.tests for name in test.needs))

    @property
    def size(self) -> int:
        """Its family: the judged tests, whose intervals cover together."""
        return max(1, sum(not test.descriptive for test in self.tests))

    @property
    def loss_tests(self) -> list[ClaimTest]:
        return [test for test in self.tests if test.measure == LOSS]


def power_of(test: ClaimTest, size: int, n: int | None = None, sd: float | None = None) -> float:
    """The chance of the head of this file. size: tests that share the level. n, sd: other than registered."""
    n, sd = test.n if n is None else n, test.sd if sd is None else sd
    if sd == 0:
        return 1.0
    if test.expect == "inside":
        return equivalence_chance(n, sd, margin=test.margin, formats=size)
    return student_cdf(math.sqrt(n) * test.margin / sd - critical(n, size), n - 1)


def critical(n: int, size: int) -> float:
    """Student's quantile, two-sided, by Bonferroni for so many tests."""
    return student_quantile(1 - (1 - LEVEL) / (2 * size), n - 1)


@cache
def registered(folder: Path = REGISTRY) -> dict[str, Claim]:
    """Every claim by its file's name; checked against the arms and against each other."""
    claims = {path.stem: Claim.load(path) for path in sorted(folder.glob("*.yaml"))}
    for name, claim in claims.items():
        for fault in faults(claim, arms()):
            raise ValueError(f"{folder.name}/{name}.yaml: {fault}")
    return claims


def faults(claim: Claim, known: dict[str, Arm]) -> list[str]:
    """What is wrong with a registration, in lines."""
    found = list[str]()
    for arm in claim.arms:
        if arm not in known:
            found.append(f"there is no arm {arm}.")
        elif (why := known[arm].unproved) is not None:
            found.append(f"arm {arm} has an unproved recipe: {why}")
    for test in claim.tests:
        power = power_of(test, claim.size)
        if abs(power - test.power) > 0.005 + 1e-9:
            found.append(f"{test.name} says power {test.power}, not {power:.2f}.")
        if power < POWER and not test.descriptive:
            found.append(f"{test.name} has a power of {power:.2f}; below {POWER} it is descriptive.")
    return found


@cache
def settings() -> dict[str, Any]:
    """Seeds and rates of the bench (settings.yaml)."""
    data: dict[str, Any] = Document.load(REGISTRY.parent / "settings.yaml").data
    return data
