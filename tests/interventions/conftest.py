"""Small real runs with faults planted in them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from altgrad.store import Run, RunStore
from altgrad.training import Outcome, RunSpec, train_run
from altgrad.training.state import TrainState

SMALL = """
project: tests
model: {kind: gpt, layers: 1, width: 32, heads: 2, context: 32}
data: {kind: text, batch_size: 8}
optimizer: {kind: adamw, lr: 3e-3}
schedule: {kind: constant}
steps: 40
threads: 1
engine: eager
evaluate_every: 1000
checkpoint_every: 1000
clip_norm: null
precision:
  rules:
  - {match: "blocks.*", input: e4m3fn, grad_output: e5m2}
monitors: [finite]
"""


@dataclass
class Trial:
    """A run that has ended, with what it said."""

    run: Run
    outcome: Outcome

    @property
    def losses(self) -> list[float]:
        return [row["train/loss"] for row in self.run.metrics(["train/loss"])]

    @property
    def validation(self) -> float:
        return self.outcome.validation["validation/loss"]

    @property
    def actions(self) -> list[dict[str, Any]]:
        return [event for event in self.run.events() if event["event"] == "intervention"]

    @property
    def lines(self) -> list[dict[str, str]]:
        rows = ({k: float(v).hex() for k, v in row.items() if not k.startswith("time/")} for row in self.run.metrics())
        return [row for row in rows if len(row) > 1]

    def files(self, *names: str) -> list[bytes]:
        newest = self.run.checkpoints.newest()
        assert newest is not None
        return [newest.file(f"{name}.safetensors").read_bytes() for name in names]

    def weights(self) -> list[bytes]:
        return self.files("model", "optimizer")


@pytest.fixture(scope="session")
def dataset(short_data: Callable[..., Any]) -> Any:
    return short_data(RunSpec.parse(SMALL))


@pytest.fixture
def trial(tmp_path: Path, dataset: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trial]:
    """trial(name, *sets): trains, or goes on with, the run of that name.

    plant: called with the state whenever one is built, at its step. stop: the number of the step before which this
    sitting ends.
    """
    built = TrainState.build

    def make(name: str, *sets: str, plant: Callable[[TrainState], None] | None = None, stop: int = 0) -> Trial:
        spec = RunSpec.parse(SMALL, "small.yaml", sets)
        run = RunStore(tmp_path).run("tests", name)
        run = run if run.exists else run.create(spec.to_yaml(), {"steps": spec.steps})
        states: list[TrainState] = []

        def build(*given: Any, **options: Any) -> TrainState:
            states.append(built(*given, **options))
            if plant is not None:
                plant(states[-1])
            return states[-1]

        monkeypatch.setattr(TrainState, "build", build)
        outcome = train_run(spec, run, dataset, interrupted=lambda: bool(stop) and states[-1].step + 1 == stop)
        return Trial(run, outcome)

    return make


def after_backward(state: TrainState, name: str, change: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    """Let every gradient of a parameter pass through `change`, which is told the step it belongs to."""
    dict(state.model.named_parameters())[name].register_hook(lambda g: change(g, state.step + 1))
