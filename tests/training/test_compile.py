"""Claims about compiled runs: one graph without breaks, watched and unwatched, and the same run within rounding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from altgrad.nn import commit
from altgrad.store import Run
from altgrad.training import RunSpec, train_run
from altgrad.training.state import TrainState

# torch.compile warns of what it does itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")

SPEC = """
project: tests
model: {kind: gpt, layers: 1, width: 16, heads: 2, context: 16}
data: {kind: text, batch_size: 2}
optimizer: {kind: adamw, lr: 3e-3}
steps: 6
threads: 1
engine: eager
evaluate_every: 1000
checkpoint_every: 1000
precision:
  rules:
  - weight: {format: e4m3fn, scaling: delayed}
    input: {format: e4m3fn, rounding: stochastic}
    grad_output: {format: e5m2, scaling: delayed}
monitors: [{kind: range, every: 3}, finite]
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "monitors",
    ["[{kind: range, every: 3}, finite]", "[{kind: range, every: 3}, {kind: amax, every: 2}, updates, dead]"],
)
def test_the_whole_quantised_model_is_two_graphs_without_breaks(monitors: str) -> None:
    """Traced forward and backward, buffers and monitors included; the backend only runs what was traced.

    Whatever the cadences: every cast monitor measures whenever one is due.
    """
    torch._dynamo.reset()
    counters.clear()
    spec = RunSpec.parse(SPEC, sets=[f"monitors={monitors}"])
    data = spec.data.build(spec.seed, spec.model.context)
    losses = []
    for compiled in (False, True):
        state = TrainState.build(spec, data, torch.device("cpu"))
        model = torch.compile(state.model, backend="aot_eager", fullgraph=True) if compiled else state.model
        for step in range(1, 7):
            state.watch.begin(step)
            batch = data.batch(step)
            loss = data.loss(model(batch.inputs), batch)
            loss.backward()
            state.optimizer.step()
            state.optimizer.zero_grad()
            commit(state.model)
            losses.append((loss.item(), state.watch.finish()))
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    for plain, traced in zip(losses[:6], losses[6:], strict=True):
        assert traced[0] == pytest.approx(plain[0], rel=1e-5)
        assert traced[1].keys() == plain[1].keys()
    assert losses[8][1]["range"].metrics["blocks.0.mlp.up/input/amax"] > 0


@pytest.mark.long
@pytest.mark.needs("c++")
@pytest.mark.parametrize(("choice", "graphs"), [("model", 2), ("blocks", 3)])
def test_compiled_by_inductor_a_run_is_the_same_within_rounding(
    tmp_path: Path, short_data: Callable[..., Any], choice: str, graphs: int
) -> None:
    """By blocks evaluation is compiled, too. Interrupted and resumed it is the same bit for bit."""
    torch._dynamo.reset()
    counters.clear()
    found = {}
    for name, compile_, until in (("plain", "false", [None]), ("whole", choice, [None]), ("parts", choice, [3, None])):
        spec = RunSpec.parse(SPEC, sets=[f"compile={compile_}", "model.layers=2"])
        data = short_data(spec)
        run = Run(tmp_path / "tests" / name).create(spec.to_yaml(), {"steps": spec.steps})
        for each in until:
            outcome = train_run(spec, run, data, until=each)
        assert outcome.status == "completed"
        found[name] = list(run.metrics())
        if name == "whole":
            # And one behind the operator for each sort of watched cast: weights, inputs, gradients.
            assert counters["stats"]["unique_graphs"] == graphs + 3 and not counters["graph_break"]
            said = [event["message"] for event in run.events() if "compiling" in event]
            assert len(said) == 1 and said[0].startswith("Compiling takes about ")
    for plain, compiled, again in zip(found["plain"], found["whole"], found["parts"], strict=True):
        for key, value in plain.items():
            if key.startswith("time/"):
                continue
            # Rates of a few thousand elements may differ by one whose value moved by a float32 ulp.
            loose = key.startswith("range/")
            assert compiled[key] == pytest.approx(
                value, rel=1e-2 if loose else 1e-4, abs=2e-3 if loose else 0, nan_ok=True
            )
            assert repr(again[key]) == repr(compiled[key]), key
