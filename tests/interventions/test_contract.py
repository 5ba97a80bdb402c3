"""Claims about every discovered intervention: documented, in the docs, through YAML, and all its keys described."""

import json
from collections.abc import Callable

import pytest

from altgrad.interventions import InterventionSpec
from altgrad.measures.metric import describing
from altgrad.spec import SpecError
from altgrad.training import RunSpec

from .conftest import SMALL, Trial

KINDS = list(InterventionSpec.kinds())


def test_there_are_four() -> None:
    assert KINDS == ["change_precision", "mantissa_shift", "oscillation_reset", "partition_clip"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_intervention_survives_yaml_and_is_documented(kind: str) -> None:
    spec = InterventionSpec.of(kind)
    assert InterventionSpec.of(spec.tree()) == spec and type(spec).__doc__
    for metric in spec.metrics:
        assert metric.unit and metric.meaning and metric.formula


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_described_and_the_state_is_in_the_checkpoint(kind: str, trial: Callable[..., Trial]) -> None:
    stored = "storage=[{match: 'blocks.*.mlp.*.weight', kind: nearest, format: e4m3fn}]"
    made = trial("run", f"interventions=[{kind}]", stored, "precision.rules.0.weight=e4m3fn", "steps=4")
    for row in made.run.metrics([f"{kind}/*"]):
        for key in row.keys() - {"step"}:
            assert describing(InterventionSpec.of(kind).metrics, key.rpartition("/")[2]), key
    newest = made.run.checkpoints.newest()
    assert newest is not None and json.loads(newest.file("state.json").read_text())["interventions"][kind]


def test_runs_have_none_unless_they_ask_and_not_one_twice() -> None:
    assert RunSpec.parse(SMALL).interventions == ()
    with pytest.raises(SpecError, match="interventions names partition_clip twice; one of each is enough"):
        RunSpec.parse(SMALL, "s", ["interventions=[partition_clip, {kind: partition_clip, mode: norm}]"])
    with pytest.raises(SpecError, match="'mantisa_shift' is not an intervention. Did you mean 'mantissa_shift'?"):
        RunSpec.parse(SMALL, "s", ["interventions=[mantisa_shift]"])
