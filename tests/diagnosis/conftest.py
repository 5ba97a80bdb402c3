"""A small run that every question is asked about."""

from collections.abc import Callable
from pathlib import Path

import pytest

from altgrad.store import Run, RunStore, run_id
from altgrad.training import RunSpec, train_run

TINY = """
project: tests
name: tiny
model: {kind: gpt, layers: 2, width: 16, heads: 2, context: 16}
data: {kind: text, batch_size: 4}
optimizer: {kind: adamw, lr: 2e-4}
storage: [{match: "blocks.*.mlp.*.weight", kind: nearest, format: e4m3fn}]
steps: 24
threads: 1
engine: eager
evaluate_every: 1000
checkpoint_every: 12
monitors: [{kind: range, every: 2}, finite, {kind: stall, every: 2}, {kind: updates, every: 2}]
precision:
  rules:
  - {match: "blocks.*", weight: e4m3fn, input: e4m3fn, grad_output: e5m2}
"""


def made(folder: Path, *sets: str) -> Run:
    """A run of the spec above with some values changed, trained to its end."""
    spec = RunSpec.parse(TINY, "tiny.yaml", sets)
    run = RunStore(folder).run(spec.project, run_id(spec.name, spec.fingerprint(), spec.seed))
    run.create(spec.to_yaml(), {"steps": spec.steps})
    dataset = spec.data.build(spec.seed, spec.model.context)
    whole = dataset.evaluation
    dataset.evaluation = lambda split: list(whole(split))[:2]  # type: ignore[method-assign]
    train_run(spec, run, dataset)
    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run, completed."""
    return made(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def make() -> Callable[..., Run]:
    """`made`, for tests that want a run of their own."""
    return made
