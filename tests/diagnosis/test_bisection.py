"""Claims about bisection: planted faults are found in few replays, and a departure where it was planted."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest

from altgrad.diagnosis.bisection import Bisection, require_alike, search, siblings_of, smallest_set
from altgrad.diagnosis.sites import quantised_layers
from altgrad.nn import PrecisionPolicy, dequantize_model, quantize_model
from altgrad.store import Run
from altgrad.training import RunSpec
from altgrad.training.restore import Restored, restore

LAYERS = [
    f"blocks.{block}.{leaf}" for block in (0, 1) for leaf in ("attention.qkv", "attention.proj", "mlp.up", "mlp.down")
]
FAULTS: Mapping[str, Any] = {
    "coarse": "e0m2",
    "too small a scale": {"format": "e4m3fn", "scaling": {"kind": "current", "margin": -7}},
    "unscaled": {"format": "e2m1", "scaling": "unscaled"},
}
SOUND = {"weight": "e4m3fn", "input": "e4m3fn", "grad_output": "e5m2"}


PLACES = [f"{layer}/{operand}" for layer in LAYERS for operand in SOUND]
MOST_REPLAYS = {culprits: 2 + culprits * (math.ceil(math.log2(24)) + 1) for culprits in (1, 2)}
"""As the search promises; which of the 24 it meets first is a matter of sizes."""
MLP_WEIGHTS = [place for place in PLACES if ".mlp." in place and place.endswith("/weight")]


@pytest.fixture(scope="module")
def runs(tiny: Run) -> tuple[Restored, RunSpec]:
    return restore(tiny), RunSpec.parse(tiny.spec_text())


@pytest.mark.parametrize("number", [n if n < 3 else pytest.param(n, marks=pytest.mark.long) for n in range(20)])
def test_a_planted_fault_is_found_in_few_replays(runs: tuple[Restored, RunSpec], tiny: Run, number: int) -> None:
    place = PLACES[number * 7 % 24]
    found = against_uncast(tiny, runs[1], [place], list(FAULTS)[number % 3])
    assert found.of == 24 and found.replays <= MOST_REPLAYS[1]
    assert found.sites == [place] and found.explained >= 0.6


def test_two_faults_of_like_size_are_found_together(runs: tuple[Restored, RunSpec], tiny: Run) -> None:
    """Like size is measured: which weights that are depends on seed and processor. The closest of four differ by 9 % at
    most in eight seeds, and above 1.5 to 1 the larger would explain the difference alone."""
    size = {place: against_uncast(tiny, runs[1], [place], "coarse").deviation for place in MLP_WEIGHTS}
    ordered = sorted(size, key=size.__getitem__)
    pair = list(min(pairwise(ordered), key=lambda two: size[two[1]] / size[two[0]]))
    found = against_uncast(tiny, runs[1], pair, "coarse")
    assert sorted(found.sites) == sorted(pair) and found.replays <= MOST_REPLAYS[2]


def against_uncast(run: Run, spec: RunSpec, places: Sequence[str], fault: str) -> Bisection:
    """A policy of sound casts but for the fault at these places, against no casts."""
    rules = []
    for layer in LAYERS:
        casts = {o: FAULTS[fault] if f"{layer}/{o}" in places else good for o, good in SOUND.items()}
        rules.append({"match": layer, **casts})
    broken = spec.model_copy(update={"precision": PrecisionPolicy.made_from({"rules": tuple(rules)})})
    return search(with_precision(run, broken), spec.model_copy(update={"precision": PrecisionPolicy()}))


def with_precision(run: Run, spec: RunSpec) -> Restored:
    """The run's weights and data under another precision."""
    restored = restore(run)
    quantize_model(dequantize_model(restored.model), spec.precision).train()
    return Restored(run, spec, restored.dataset, restored.state)


def test_runs_whose_casts_agree_have_nothing_to_bisect(runs: tuple[Restored, RunSpec]) -> None:
    found = search(*runs)
    assert found.sites == [] and found.replays == 0 and "same" in found.note


def test_casts_of_the_reference_alone_are_found_too(tiny: Run) -> None:
    """The suspect casts nothing; what differs are the reference's casts, and one of them is broken."""
    spec = RunSpec.parse(tiny.spec_text())
    restored = with_precision(tiny, spec.model_copy(update={"precision": PrecisionPolicy()}))
    assert not quantised_layers(restored.model)
    rules = ({"match": "blocks.1.mlp.up", **SOUND, "input": "e0m2"}, {"match": "*.mlp.*", **SOUND})
    reference = spec.model_copy(update={"precision": PrecisionPolicy.made_from({"rules": rules})})
    found = search(restored, reference)
    assert found.sites == ["blocks.1.mlp.up/input"] and found.of == 12


@pytest.mark.parametrize("size", [1, 2, 3, 24, 100, 672])
def test_the_search_keeps_to_its_number_of_questions(size: int) -> None:
    items = [str(n) for n in range(size)]
    for guilty in [(n,) for n in range(0, size, 1 + size // 20)] + [(a, size - 1) for a in range(0, size - 1, 5)]:
        asked: list[Sequence[str]] = []

        def explains(chosen: Sequence[str], guilty: tuple[int, ...] = guilty, asked: Any = asked) -> bool:
            asked.append(chosen)
            return {str(n) for n in guilty} <= set(chosen)

        assert sorted(smallest_set(items, explains)) == sorted(str(n) for n in guilty)
        assert len(asked) <= len(guilty) * (math.ceil(math.log2(size)) + 1)


def test_runs_that_differ_in_more_than_precision_are_refused(tiny: Run) -> None:
    spec = RunSpec.parse(tiny.spec_text())
    with pytest.raises(ValueError, match="differ in seed, steps"):
        require_alike(spec, spec.model_copy(update={"seed": 1, "steps": 9}))
    require_alike(spec, spec.model_copy(update={"precision": PrecisionPolicy(), "name": "twin"}))
    assert [run.id for run in siblings_of(tiny)] == [tiny.id]
