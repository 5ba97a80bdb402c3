"""Claims about specs of the first edition: they still name the runs they named, whatever fields have come since.

A field that the first edition did not have is marked `Since(2)` and is left out of what a spec writes down while it is
at its default; so neither spec.yaml nor the fingerprint nor the run id changes by it.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import pytest

from altgrad.document import Document
from altgrad.matrix import Matrix, runs_of
from altgrad.spec import Since, Spec
from altgrad.store import run_id
from altgrad.training.run import RunSpec

HERE = Path(__file__).parent / "first_edition"
GOLDEN = json.loads((HERE / "run_ids.json").read_text())
LARGE = 100
"""Matrices of more runs are compared by `make test-long`."""


def identity(spec: RunSpec) -> str:
    resolved = spec.model_copy(update={"threads": 1, "engine": "eager"})
    return run_id(resolved.name, resolved.fingerprint(), resolved.seed)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.long] if len(ids) > LARGE else []) for n, ids in GOLDEN["matrices"].items()],
)
def test_every_run_of_a_shipped_matrix_keeps_its_id(name: str) -> None:
    file, _, smoke = name.partition(" ")
    document = Document.load(HERE / file)
    if "model" in document.data:
        found = [identity(RunSpec.check(document))]
    else:
        matrix = Matrix.check(document)
        found = [identity(spec) for _, spec in runs_of(matrix.smoked() if smoke else matrix, HERE, RunSpec)]
    assert found == GOLDEN["matrices"][name]


def test_generated_specs_keep_their_ids() -> None:
    found = [identity(RunSpec.check(Document(entry["spec"], "golden"))) for entry in GOLDEN["specs"]]
    assert len(found) == 50 and found == [entry["id"] for entry in GOLDEN["specs"]]


class Before(Spec):
    old: int = 1


class Later(Before):
    young: Annotated[int, Since(2)] = 7
    many: Annotated[tuple[int, ...], Since(2)] = ()


def test_a_young_field_shows_only_when_it_is_used() -> None:
    assert Later().tree() == Before().tree() and Later().fingerprint() == Before().fingerprint()
    assert Later(young=7).to_yaml() == Before().to_yaml()
    used: dict[str, Any] = {"old": 1, "young": 8}
    assert Later(young=8).tree() == used and Later(young=8).fingerprint() != Before().fingerprint()
    assert Later.parse(Later(young=8, many=(1,)).to_yaml()) == Later(young=8, many=(1,))
