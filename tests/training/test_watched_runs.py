"""Claims about monitors in a run: every one resumes to the same numbers, every key is described."""

import math
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch

from altgrad.monitors import MonitorSpec, describing
from altgrad.nn import Processes
from altgrad.store import Run, RunStore, run_id
from altgrad.training import RunSpec, train_run
from altgrad.training.fitting import fit
from altgrad.training.loop import LOG_KEYS
from altgrad.training.micro_batches import Gradients
from altgrad.watching import MonitorSet
from tests.training.running import after, lines

TINY = """
project: tests
model: {kind: gpt, layers: 1, width: 16, heads: 2, context: 16, dropout: 0.1}
data: {kind: text, batch_size: 2}
optimizer: {kind: manifold_adamw, lr: 3e-3, weight_decay: 0.1}
storage:
- {match: "blocks.*.mlp.*", kind: stochastic, format: e4m3fn, scale: tracked}
steps: 8
accumulate: 4
threads: 1
engine: eager
evaluate_every: 1000
checkpoint_every: 4
precision:
  rules:
  - weight: {format: e4m3fn, scaling: delayed}
    input: {format: e4m3fn, rounding: stochastic}
    grad_output: {format: e5m2, outliers: {kind: elements, quantile: 0.9}}
    forward: {accumulator: hopper_promote_128}
"""
MODELS = {
    "gpt": (),
    "llama": (
        "model={kind: llama, layers: 1, width: 16, heads: 2, kv_heads: 1, context: 16, hidden: 32, qk_norm: true}",
    ),
    "mixture": (
        "model={kind: llama, layers: 1, width: 16, heads: 2, context: 16, hidden: 16, experts: 3, active: 2}",
        "storage.0.match=blocks.*.experts.*",
    ),
}
CAST_KINDS = [{"kind": kind, "every": 1} for kind in ("range", "amax", "codes", "updates", "finite")]
ALL = [{"kind": kind, "every": 1 if kind == "finite" else 3} for kind in MonitorSpec.kinds()]


@pytest.fixture(scope="module")
def dataset() -> Any:
    spec = RunSpec.parse(TINY)
    found = spec.data.build(spec.seed, spec.model.context)
    whole = found.evaluation
    found.evaluation = lambda split: (batch for number, batch in enumerate(whole(split)) if number < 3)  # type: ignore[method-assign]
    return found


def start(folder: Path, monitors: Any, *sets: str) -> tuple[RunSpec, Run]:
    spec = RunSpec.parse(TINY, "tiny.yaml", sets)
    spec = spec.model_copy(update={"monitors": tuple(MonitorSpec.of(monitor) for monitor in monitors)})
    run = RunStore(folder).run(spec.project, run_id(spec.name, spec.fingerprint(), spec.seed))
    return spec, run if run.exists else run.create(spec.to_yaml(), {"steps": spec.steps})


def weights(run: Run, *names: str) -> list[bytes]:
    newest = run.checkpoints.newest()
    assert newest is not None
    return [newest.file(f"{name}.safetensors").read_bytes() for name in names]


@pytest.mark.parametrize(
    "model", ["gpt", pytest.param("llama", marks=pytest.mark.long), pytest.param("mixture", marks=pytest.mark.long)]
)
def test_a_run_with_every_monitor_resumes_to_the_same_numbers_and_one_without_has_the_same_weights(
    model: str, tmp_path: Path, dataset: Any
) -> None:
    spec, whole = start(tmp_path / "whole", ALL, *MODELS[model])
    assert train_run(spec, whole, dataset).status == "completed"
    for step in (2, 6) if model == "gpt" else (6,):
        spec, stopped = start(tmp_path / f"stopped-{step}", ALL, *MODELS[model])
        assert train_run(spec, stopped, dataset, interrupted=after(3 + step)).status == "interrupted"
        assert train_run(spec, stopped, dataset).status == "completed"
        assert lines(stopped) == lines(whole)
        kept = ("model", "optimizer", "monitors")
        assert weights(stopped, *kept) == weights(whole, *kept)
    spec, bare = start(tmp_path / "bare", [], *MODELS[model])
    train_run(spec, bare, dataset)
    assert weights(bare, "model", "optimizer") == weights(whole, "model", "optimizer")


@pytest.mark.parametrize("model", ["gpt", pytest.param("llama", marks=pytest.mark.long), "mixture"])
def test_every_key_of_a_run_is_described(model: str, tmp_path: Path, dataset: Any) -> None:
    spec, run = start(tmp_path, ALL, *MODELS[model], *(["steps=3", "accumulate=2"] if model == "mixture" else []))
    train_run(spec, run, dataset)
    kinds = MonitorSpec.kinds()
    seen = set()
    for key in {key for row in run.metrics() for key in row if key != "step"}:
        kind, _, rest = key.partition("/")
        if kind in kinds:
            seen.add(kind)
            assert describing(kinds[kind].metrics, rest.rpartition("/")[2]), key
        else:
            assert any(fnmatchcase(key, metric.quantity) for metric in LOG_KEYS), key
    assert seen == set(kinds) - {"finite"}
    if model == "mixture":
        keys = {key for row in run.metrics() for key in row}
        assert {"range/blocks.0.experts.up.2/input/underflow_rate", "dead/blocks.0.experts.down.0/dead_share"} <= keys
        assert {
            "products/blocks.0.experts.gate.1/forward_sqnr_db",
            "stall/blocks.0.experts.gate.weight/stall_ratio",
        } <= keys


@pytest.mark.parametrize(
    "model", ["gpt", pytest.param("llama", marks=pytest.mark.long), pytest.param("mixture", marks=pytest.mark.long)]
)
def test_blocks_that_run_again_in_backward_change_no_bit_and_count_once(
    model: str, tmp_path: Path, dataset: Any
) -> None:
    """Dropout, random bits, delayed scales and what monitors count: of the pass, and of no repetition."""
    kinds = CAST_KINDS if model != "mixture" else ALL
    made = []
    for recompute in ("none", "blocks"):
        sets = (*MODELS[model], "model.layers=2", f"recompute={recompute}", "steps=3", "accumulate=2")
        spec, run = start(tmp_path / recompute, kinds, *sets)
        assert train_run(spec, run, dataset).status == "completed"
        made.append(run)
    plain, again = made
    assert plain.id != again.id and lines(plain) == lines(again)
    assert any(key.startswith("range/blocks.1") for row in plain.metrics() for key in row)
    assert weights(plain, "model", "optimizer") == weights(again, "model", "optimizer")


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (("recompute=blocks",), "repeats no block; leave recompute out"),
        (("recompute=blocks", "compile=model", "model.layers=2"), "leave out one of them"),
    ],
)
def test_recompute_is_refused_where_it_means_nothing(sets: tuple[str, ...], says: str) -> None:
    def prepared() -> object:
        spec = RunSpec.parse(TINY, "tiny.yaml", sets)
        return fit(spec, spec.data.build(spec.seed, spec.model.context), Processes())

    with pytest.raises(ValueError, match=says):
        prepared()


def test_the_shadow_of_a_run_without_casts_is_its_gradient(tmp_path: Path, dataset: Any) -> None:
    """Micro-batches, dropout and the loss scale included, the step that is run again is the step."""
    for scale in ("1", "1024"):
        sets = ("precision=none", f"loss_scale={scale}", "steps=1", "optimizer={kind: adamw}", "storage=[]")
        spec, run = start(tmp_path, [{"kind": "shadow", "every": 1}], *sets)
        train_run(spec, run, dataset)
        cosines = [v for row in run.metrics(["shadow/*/cosine"]) for k, v in row.items() if k != "step"]
        assert cosines and all(value > 1 - 1e-12 for value in cosines)


@pytest.mark.long
@pytest.mark.needs("c++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
def test_a_run_that_leaves_its_updates_to_the_device_is_the_run_whose_host_decides(
    tmp_path: Path, dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With gradients that are not finite at the first step, at one on its own and at two in a row."""
    backward, bad, deferred = Gradients.backward, (1, 4, 6, 7), []

    def poisoned(self: Gradients) -> torch.Tensor:
        loss = backward(self)
        if self.state.step + 1 in bad:
            grad = next(p.grad for p in self.state.model.parameters() if p.grad is not None)
            grad.view(-1)[3] = math.inf
        return loss

    def watched(self: MonitorSet) -> bool:
        deferred.append(defer(self))
        return deferred[-1]

    defer = MonitorSet.defer
    monkeypatch.setattr(Gradients, "backward", poisoned)
    made = []
    for name, method in (("device", watched), ("host", lambda self: False)):
        monkeypatch.setattr(MonitorSet, "defer", method)
        monitors = [{**monitor, "patience": 9} if monitor["kind"] == "finite" else monitor for monitor in ALL]
        storage = "storage=[{match: 'blocks.*.mlp.*', kind: stochastic, format: e4m3f}]"
        spec, run = start(tmp_path / name, monitors, "engine=compiled", storage)
        assert train_run(spec, run, dataset).status == "completed"
        made.append(run)
    device, host = made
    assert deferred == [True] * 8
    assert lines(device) == lines(host)
    kept = ("model", "optimizer", "monitors")
    assert weights(device, *kept) == weights(host, *kept)
    alarms = [[row for row in run.events() if row["event"] == "alarm"] for run in made]
    told = [[(row["step"], row["message"]) for row in rows] for rows in alarms]
    assert told[0] == told[1] and {step for step, message in told[0] if "not applied" in message} == set(bad)
