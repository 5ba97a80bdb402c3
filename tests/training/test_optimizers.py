"""Every legal optimizer x storage x format of the E + M = 7 family trains the quickstart and resumes to the same bits.

`make test` does 5 steps of the quickstart at a small size, each pair in one of the formats, `make test-long` in all
eight, and 50 steps of its own model with an eighth of its batch: 264 combinations, each trained straight through and in
pieces. With states in formats there are 1,848; 5 steps are a sample of them, 50 every pair with every cast of states.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from altgrad.optim import OptimizerSpec, Storage
from altgrad.quantize import round_to
from altgrad.spec import LocatedError
from altgrad.store import Run
from altgrad.training import RunSpec, train_run
from altgrad.training.state import TrainState
from tests.training.running import after

QUICKSTART = Path(__file__).resolve().parents[2] / "matrices" / "quickstart.yaml"
EIGHT = ("e0m7f", "e1m6f", "e2m5f", "e3m4f", "e4m3f", "e5m2f", "e6m1f", "e7m0f")
SMALL = ("model.layers=1", "model.width=16", "model.heads=2", "model.context=16", "data.batch_size=2")
OPTIMIZERS = {
    "adamw": "{kind: adamw, lr: 2e-3, weight_decay: 0.1}",
    "sgd": "{kind: sgd, lr: 0.1, momentum: 0.9}",
    "madam": "{kind: madam, lr: 1e-2}",
    "lion": "{kind: lion, lr: 1e-3}",
    "muon": "{kind: muon, lr: 1e-2, adam_rate: 0.2}",
    "manifold_adamw": "{kind: manifold_adamw, lr: 2e-3, weight_decay: 0.1}",
    "grid_optim": "{kind: grid_optim, lr: 30.0, weight_decay: 1e-3}",
    "grid_optim, index": "{kind: grid_optim, lr: 30.0, landing: index}",
}
STORAGES = ("master", "nearest", "stochastic", "kahan", "eco", "index")


def why_not(optimizer: str, storage: str) -> str | None:
    """The reason, as the program gives it, why a pair has no meaning; None for the legal ones."""
    if storage == "eco" and optimizer in ("madam", "lion", "muon"):
        return "puts its errors into the momentum buffer"
    if (storage == "index") != (optimizer == "grid_optim, index"):
        return "landing: index"
    return None


LEGAL = [(o, s) for o in OPTIMIZERS for s in STORAGES if why_not(o, s) is None]
ILLEGAL = [(o, s) for o in OPTIMIZERS for s in STORAGES if why_not(o, s) is not None]


def spec_of(optimizer: str, storage: str, fmt: str, *sets: str) -> RunSpec:
    # index storage takes whole rungs, and so does every parameter of the run
    match = "*" if storage == "index" else "blocks.*.weight"
    rules = [f"optimizer={OPTIMIZERS[optimizer]}", f"storage=[{{match: '{match}', kind: {storage}, format: {fmt}}}]"]
    common = ["threads=1", "engine=eager", "schedule.warmup=0", "project=tests", "evaluate_every=1000", "log_every=1"]
    return RunSpec.load(QUICKSTART, [*rules, *common, *sets])


@pytest.fixture(scope="module")
def dataset(short_data: Callable[..., Any]) -> Any:
    return short_data(spec_of("adamw", "master", "e4m3f", *SMALL), 2)


def told(run: Run) -> list[dict[str, str]]:
    return [{k: float(v).hex() for k, v in row.items() if not k.startswith("time/")} for row in run.metrics()]


def tensors(run: Run) -> dict[str, bytes]:
    newest = run.checkpoints.newest()
    assert newest is not None
    return {name: newest.file(name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")}


def trains_and_resumes(spec: RunSpec, dataset: Any, folder: Path, stop_after: int) -> None:
    """Straight through and stopped on the way: the same status, lines and bits; stored weights on their grids."""
    runs = []
    for name in ("whole", "stopped"):
        run = Run(folder / name).create(spec.to_yaml(), {"steps": spec.steps})
        if name == "stopped":
            # Two batches of evaluation come before the first step.
            first = train_run(spec, run, dataset, interrupted=after(2 + stop_after))
            assert first.status in ("interrupted", "diverged")
        outcome = train_run(spec, run, dataset)
        assert outcome.status == "completed" or (outcome.status == "diverged" and outcome.reason)
        runs.append((outcome.status, told(run), tensors(run)))
    assert runs[0] == runs[1]
    newest = Run(folder / "whole").checkpoints.newest()
    assert newest is not None
    kept, state = (load_file(newest.file(name)) for name in ("model.safetensors", "optimizer.safetensors"))
    scales = {name.removesuffix("/storage_scale"): s for name, s in state.items() if name.endswith("/storage_scale")}
    (rule,) = spec.storage
    assert bool(scales) == rule.on_grid
    for name, scale in scales.items():
        assert torch.equal(kept[name], round_to(kept[name], rule.tree()["format"], scale=scale)), name


def cases() -> Iterator[Any]:
    """Every pair in every format; daily one of them, another for the next pair."""
    for number, (optimizer, storage) in enumerate(LEGAL):
        for place, fmt in enumerate(EIGHT):
            daily = place == 3 * number % len(EIGHT)
            yield pytest.param(optimizer, storage, fmt, marks=[] if daily else pytest.mark.long)


@pytest.mark.parametrize(("optimizer", "storage", "fmt"), list(cases()))
def test_every_legal_combination_trains_and_resumes_bit_for_bit(
    tmp_path: Path, dataset: Any, optimizer: str, storage: str, fmt: str
) -> None:
    spec = spec_of(optimizer, storage, fmt, *SMALL, "steps=5", "checkpoint_every=3")
    trains_and_resumes(spec, dataset, tmp_path, 3)


@pytest.mark.long
@pytest.mark.parametrize("fmt", EIGHT)
@pytest.mark.parametrize(("optimizer", "storage"), LEGAL)
def test_fifty_steps_of_the_quickstart_model(
    tmp_path: Path, short_data: Callable[..., Any], optimizer: str, storage: str, fmt: str
) -> None:
    spec = spec_of(optimizer, storage, fmt, "data.batch_size=2", "steps=50", "checkpoint_every=25")
    trains_and_resumes(spec, short_data(spec, 2), tmp_path, 25)


@pytest.mark.parametrize(("optimizer", "storage"), ILLEGAL)
def test_every_other_combination_is_a_spec_error_that_says_why(dataset: Any, optimizer: str, storage: str) -> None:
    spec = spec_of(optimizer, storage, "e5m2f", *SMALL)
    reason = why_not(optimizer, storage)
    assert reason is not None
    with pytest.raises(LocatedError) as caught:
        TrainState.build(spec, dataset, torch.device("cpu"))
    assert reason in str(caught.value) and caught.value.location == ("optimizer",)


STATES = (
    "{format: e4m3fn, scaling: {kind: block, size: 128, scale: real}, packed: true}",
    "{format: e4m3fn, scaling: {kind: block, size: 32, scale: real}, expansion: true, packed: true}",
    "{format: dynamic8, scaling: {kind: block, size: 64, scale: real, target: 1.0070811}, rounding: stochastic}",
    "{format: bf16, scaling: unscaled, rounding: stochastic, packed: true}",
    "{format: e5m2, scaling: mx, step_takes: rounded}",
    "{format: e2m1, scaling: nvfp4, min_size: 256, packed: true}",
    "{format: e3m4, scaling: {kind: current, granularity: channel}, step_takes: rounded, rounding: stochastic}",
)


def with_states(optimizer: str, storage: str, fmt: str, states: Sequence[str], *sets: str) -> RunSpec:
    """A run whose optimizer casts each state it keeps, one as the first of `states` says, the next as the second."""
    plain = spec_of(optimizer, storage, fmt, *sets)
    names = type(plain.optimizer).product().keeps(dict(plain.optimizer))
    said = [(name, states[number % len(states)]) for number, name in enumerate(names)]
    unsigned = [
        (name, cast.replace("dynamic8,", "dynamic8_unsigned,") if "sq" in name else cast) for name, cast in said
    ]
    return spec_of(optimizer, storage, fmt, *sets, *(f"optimizer.states.{name}={cast}" for name, cast in unsigned))


SOME_STATES = st.lists(st.sampled_from(STATES), min_size=1, max_size=3)


@settings(max_examples=3, deadline=None, derandomize=True)
@given(st.tuples(st.sampled_from(LEGAL), st.sampled_from(EIGHT), SOME_STATES))
def test_every_legal_state_trains_and_resumes_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, dataset: Any, case: tuple[tuple[str, str], str, list[str]]
) -> None:
    pair, fmt, states = case
    spec = with_states(*pair, fmt, states, *SMALL, "steps=5", "checkpoint_every=3")
    trains_and_resumes(spec, dataset, tmp_path_factory.mktemp("states"), 3)


@pytest.mark.long
@pytest.mark.parametrize("states", range(len(STATES)))
@pytest.mark.parametrize(("optimizer", "storage"), LEGAL)
def test_fifty_steps_with_states(tmp_path: Path, dataset: Any, optimizer: str, storage: str, states: int) -> None:
    """Each pair with each cast of its states, in one of the formats, another for the next."""
    fmt = EIGHT[(3 * LEGAL.index((optimizer, storage)) + states) % len(EIGHT)]
    spec = with_states(optimizer, storage, fmt, [STATES[states]], *SMALL, "steps=50", "checkpoint_every=25")
    trains_and_resumes(spec, dataset, tmp_path, 25)


def test_the_lists_above_name_every_optimizer_and_storage() -> None:
    assert {name.partition(",")[0] for name in OPTIMIZERS} == set(OptimizerSpec.kinds())
    assert set(STORAGES) == set(Storage.kinds())


def test_e0m7_and_e1m6_storage_are_one_run(tmp_path: Path, dataset: Any) -> None:
    """Fact 1: with power-of-two scales the two grids are one, so every weight is the same at every step."""
    found = []
    for fmt in ("e0m7f", "e1m6f"):
        spec = spec_of("manifold_adamw", "stochastic", fmt, *SMALL, "steps=8", "checkpoint_every=8")
        run = Run(tmp_path / fmt).create(spec.to_yaml(), {"steps": spec.steps})
        assert train_run(spec, run, dataset).status == "completed"
        lines = [{k: v for k, v in row.items() if not k.startswith(("range/",))} for row in told(run)]
        found.append((lines, tensors(run)["model.safetensors"]))
    assert found[0] == found[1]
