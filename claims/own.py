"""Add your recipe: an arm of a reader's own, beside BF16 and te_nvfp4 on the bench of the claims.

    python -m claims.run --arm my.yaml

my.yaml is an arm as claims/arms.yaml has them, such as `{recipe: ./my_recipe.yaml, purpose: ...}`. It is tuned at
the common rates on the tuning seeds and run at its own on eight of the pair seeds; rows of the references that are
committed are used. Nothing of it is registered, so the answer is described, not judged.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from altgrad.document import Document
from claims import arms
from claims.judged import judge
from claims.plan import Rows
from claims.registration import Claim

REFERENCES = ("bf16", "te_nvfp4")


def claim_of(path: Path) -> dict[str, Claim]:
    """The arm of a file as a claim that is described. SpecError for what is no arm, ValueError for a taken name."""
    name, arm = path.stem, arms.Arm.check(Document.load(path))
    arms.add(name, arm)
    tests = [
        {"name": f"against {reference}", "measure": "loss", "contrast": {name: 1.0, reference: -1.0}, "expect": "above",
         "margin": 0.02, "sd": 0.0154, "n": 8, "power": 0.0, "descriptive": True}
        for reference in REFERENCES
    ]  # fmt: skip
    said = {
        "title": name, "source": {"url": str(path)}, "sentence": arm.purpose, "tests": tests,
        "refuted_by": "nothing: it is described", "scale": "see claims/PLAN.md", "cost_hours": 1.0,
    }  # fmt: skip
    return {name: Claim.model_validate(said)}


def answer(claims: Mapping[str, Claim], frame: pd.DataFrame) -> str:
    """What rows say of claims, in lines; for those who look for themselves, so no verdicts."""
    rows, lines = Rows(frame), list[str]()
    for name, claim in claims.items():
        lines.append(f"{name}: {claim.sentence.strip()}")
        if name in arms.arms() and (why := arms.arms()[name].unproved) is not None:
            lines.append(f"its recipe is unproved: {why}")
        lines += [f"{test.name} ({test.measure}): {judge(test, claim, rows).told}" for test in claim.tests]
    return "\n".join(lines)
