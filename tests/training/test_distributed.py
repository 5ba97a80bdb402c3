"""Claims about several ranks: two are one that takes their micro-batches in turn; over gloo."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from altgrad.monitors import Context
from altgrad.nn import PrecisionPolicy, Processes, check_passes, commit, quantize_model, quantizers
from altgrad.spec import LocatedError
from altgrad.store import Run, RunStore
from altgrad.training import RunSpec, train_run
from altgrad.watching import MonitorSet
from tests.training.rank_job import TINY, run_case

ROOT = Path(__file__).resolve().parents[2]
JOB = Path(__file__).with_name("rank_job.py")

DELAYED = "{format: e4m3fn, scaling: {kind: delayed, history: 3}}"
REAL = "{format: e4m3fn, scaling: {kind: current, scale: real}}"
EVERY_MONITOR = (
    "[{kind: range, every: 1}, {kind: amax, every: 1}, finite, {kind: gradient, every: 1}, {kind: gsnr, every: 5}, "
    "{kind: shadow, every: 5}, {kind: dead, every: 5, window: 2}, {kind: stall, every: 5}, {kind: flips, every: 5}]"
)
CASES: dict[str, list[str]] = {
    "plain": ["precision=none"],
    "unscaled": ["precision.rules=[{weight: {format: e4m3fn, scaling: unscaled}, "
                 "input: {format: e4m3fn, scaling: unscaled}}]"],
    "delayed": [f"precision.rules=[{{weight: {DELAYED}, input: {DELAYED}, "
                "grad_output: {format: e5m2, scaling: delayed}}]"],
    "current": [f"precision.rules=[{{weight: e4m3fn, input: {REAL}, grad_output: e5m2}}]"],
    "stochastic": ["precision.rules=[{weight: e4m3fn, input: {format: e4m3fn, rounding: stochastic}, "
                   "grad_output: {format: e5m2, rounding: stochastic}}]",
                   "storage=[{match: blocks.*.weight, kind: stochastic, format: e3m4}]"],
    "phased": [f"precision={{phases: [{{until: 50%, rules: [{{weight: {DELAYED}, input: {DELAYED}}}]}}, "
               "{rules: [{weight: e4m3fn, input: {format: e4m3fn, rounding: stochastic}}]}]}"],
    "watched": [f"precision.rules=[{{weight: {DELAYED}, input: {DELAYED}, grad_output: e5m2}}]", "accumulate=6",
                f"monitors={EVERY_MONITOR}", "steps=10"],
    "reduced": ["precision=none", "accumulate=4",
                "gradients.micro_batch={format: bf16, scaling: unscaled, rounding: stochastic, sums: rounded}",
                "gradients.reduce={format: e4m3fn, processes: 2, factor: auto}"],
    "clipped": ["precision.rules=[{grad_output: {format: e5m2, scaling: delayed}}]",
                "interventions=[{kind: partition_clip, margin: -4, saturation: 0, every: 1}]"],
    "attention": [f"precision.rules=[{{place: attention, attention: {{query: {DELAYED}, key: {DELAYED}, "
                  f"value: {DELAYED}, probabilities: {{format: e4m3fn, rounding: stochastic, scaling: delayed}}, "
                  f"grad_output: {DELAYED}, grad_scores: {DELAYED}}}}}, {{weight: {DELAYED}, input: {DELAYED}}}]",
                  "model.dropout=0", "monitors=[{kind: range, every: 1}, {kind: amax, every: 1}]"],
    "reset": ["precision.rules=[{weight: {format: e2m1, scaling: mx}}]",
              "interventions=[{kind: oscillation_reset, window: 3, every: 5, ratio: 1.5}]"],
}  # fmt: skip


Cases = dict[str, tuple[list[str], int | None] | tuple[list[str], int | None, str]]
"""What `rank_job` trains."""


def together(ranks: int, folder: Path, cases: Cases) -> None:
    """Starts the ranks as torchrun would, without its own process, which imports torch once more."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    command = [sys.executable, str(JOB), str(folder), json.dumps(cases)]
    started = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    said = [process.communicate()[1] for process in started]
    assert not any(process.returncode for process in started), "".join(said)[-3000:]


Both = Callable[[str], tuple[Run, Run]]


def on_one_and_two(folder: Path, names: list[str]) -> Both:
    """Each case by two ranks and by one; `moved` by two for its first 7 steps, and `sharded` by two that share it."""
    cases: Cases = {name: (CASES[name], None) for name in names}
    if "delayed" in names:
        cases |= {"moved": (CASES["delayed"], 7), "sharded": (CASES["delayed"], 12, "shard")}
    together(2, folder / "two", cases)
    for name in names:
        run_case(folder / "one", name, CASES[name], None)
    return lambda name: (RunStore(folder / "one").run("ranks", name), RunStore(folder / "two").run("ranks", name))


QUICK = ["unscaled", "delayed"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """The cases that every test run takes."""
    return on_one_and_two(tmp_path_factory.mktemp("ranks"), QUICK)


@pytest.fixture(scope="module")
def more_runs(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """The other cases."""
    return on_one_and_two(tmp_path_factory.mktemp("ranks"), [name for name in CASES if name not in QUICK])


def losses(run: Run) -> list[float]:
    return [row["train/loss"] for row in run.metrics(["train/loss"])]


def weights(run: Run) -> dict[str, bytes]:
    newest = run.checkpoints.newest()
    assert newest is not None
    return {name: newest.file(name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")}


def metrics(run: Run) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in run.metrics()]


def are_the_same(one: Run, two: Run) -> None:
    assert len(losses(two)) == 20 and two.status == "completed" and two.meta()["ranks"] == 2
    assert losses(two) == pytest.approx(losses(one), abs=1e-6)
    # Of two summands the order does not matter, so here the agreement is exact, optimizer state and scales included.
    assert weights(two) == weights(one)


@pytest.mark.parametrize("name", QUICK)
def test_two_ranks_are_one_rank_with_two_micro_batches(runs: Both, name: str) -> None:
    are_the_same(*runs(name))


@pytest.mark.long
@pytest.mark.parametrize("name", ["plain", "current", "stochastic", "phased"])
def test_two_ranks_are_one_rank_in_other_casts_and_storages_too(more_runs: Both, name: str) -> None:
    are_the_same(*more_runs(name))


@pytest.mark.long
def test_gradients_added_in_eight_bits_are_the_same_on_two_ranks_to_the_bit(more_runs: Both) -> None:
    one, two = more_runs("reduced")
    are_the_same(one, two)
    assert weights(one) == weights(two)


@pytest.mark.long
def test_every_monitor_says_the_same_on_two_ranks(more_runs: Both) -> None:
    one, two = (metrics(run) for run in more_runs("watched"))
    assert len(one) == len(two) and sum(map(len, one)) > 1000
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert second[key] == pytest.approx(value, rel=2e-5, abs=1e-9, nan_ok=True), key
    counts = [key for key in one[1] if key.endswith(("_rate", "_count", "/amax"))]
    assert counts and all(one[1][key] == two[1][key] or one[1][key] != one[1][key] for key in counts)


def test_a_current_scale_is_that_of_a_micro_batch_on_any_number_of_ranks(tmp_path: Path) -> None:
    """One batch as large as both micro-batches has one scale instead of two, and so is another run; uncast not."""
    for name, same in (("plain", True), ("current", False)):
        sets = [*CASES[name], "accumulate=1", "data.batch_size=4", "model.dropout=0", "steps=5"]
        run_case(tmp_path, name, sets, None)
        run_case(tmp_path, f"{name}-2", [*CASES[name], "model.dropout=0", "steps=5"], None)
        large, small = (losses(RunStore(tmp_path).run("ranks", each)) for each in (name, f"{name}-2"))
        assert (large == pytest.approx(small, abs=2e-5)) == same


def test_a_run_goes_on_with_another_number_of_ranks(runs: Both) -> None:
    whole, (_, moved) = runs("delayed")[0], runs("moved")
    assert moved.status == "interrupted" and moved.meta()["step"] == 7 and moved.meta()["ranks"] == 2
    run_case(moved.path.parents[1], "moved", CASES["delayed"], None)
    assert moved.meta()["ranks"] == 1 and moved.status == "completed"
    assert metrics(moved) == metrics(whole) and weights(moved) == weights(whole)


def test_a_run_sharded_over_two_ranks_goes_on_whole_on_one(runs: Both) -> None:
    whole, (_, moved) = runs("delayed")[0], runs("sharded")
    assert moved.meta()["step"] == 12 and moved.meta()["ranks"] == 2 and moved.meta()["sharded"] is True
    run_case(moved.path.parents[1], "sharded", CASES["delayed"], None)
    assert moved.meta()["ranks"] == 1 and moved.meta()["sharded"] is False and moved.status == "completed"
    assert metrics(moved) == metrics(whole) and weights(moved) == weights(whole)


@pytest.mark.long
def test_casts_of_attention_are_the_same_on_two_ranks(more_runs: Both) -> None:
    """To the bit: weights, amax histories and counters of random bits in the checkpoint, and what monitors count."""
    one, two = more_runs("attention")
    are_the_same(one, two)
    newest = one.checkpoints.newest()
    assert newest is not None
    kept = load_file(newest.file("model.safetensors"))
    names = ("query", "key", "value", "probabilities", "grad_output", "grad_scores")
    at = "blocks.0.attention.attention_products.casts"
    histories = [kept[f"{at}.{name}.scaling.amax_history"] for name in names]
    assert all(bool(history.all()) for history in histories)
    for first, second in zip(metrics(one), metrics(two), strict=True):
        assert first == pytest.approx(second, rel=2e-5, abs=1e-9, nan_ok=True)
        assert all(first[key] == second[key] or first[key] != first[key] for key in first if "/attention/" in key)


@pytest.mark.long
def test_partition_clip_does_the_same_on_two_ranks(more_runs: Both) -> None:
    one, two = more_runs("clipped")
    are_the_same(one, two)
    clipped = [value for row in metrics(one) for key, value in row.items() if key.endswith("/clipped_share")]
    assert metrics(one) == metrics(two) and max(clipped) > 0


@pytest.mark.long
def test_the_same_weights_are_reset_on_two_ranks(more_runs: Both) -> None:
    one, two = more_runs("reset")
    are_the_same(one, two)
    reset = [value for row in metrics(one) for key, value in row.items() if key.endswith("/reset_share")]
    assert metrics(one) == metrics(two) and max(reset) > 0


class Counting(Processes):
    """The first of two ranks, whose other says the half of what it says; `asked` are the sizes of its collectives."""

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        ASKED.append(tensor.numel())
        return [tensor, tensor / 2]


ASKED: list[int] = []


def test_amaxes_and_monitors_sums_and_maxima_are_reduced_in_one_collective_at_the_commit() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    delayed = {"format": "e4m3fn", "scaling": "delayed"}
    policy: Any = {"rules": [{"match": "*", "weight": delayed, "input": delayed, "grad_output": delayed}]}
    quantize_model(model, PrecisionPolicy.made_from(policy))
    spec = RunSpec.parse(TINY, sets=["monitors=[{kind: range, every: 1}, {kind: amax, every: 1}]"])
    watch = MonitorSet(spec.monitors, model, torch.optim.SGD(model.parameters()), Context())
    watch.begin(1)
    model(torch.linspace(-1, 1, 8).reshape(2, 4)).sum().backward()
    sums, maxima = watch.recorded()
    before = [tensor.clone() for tensor in (*sums, *maxima)]
    ASKED.clear()
    commit(model, Counting(0, 2), sums=sums, maxima=maxima)
    amaxes = sum(amax.numel() for quantizer in quantizers(model) for amax in quantizer.scaling.recorded())
    assert before and amaxes == 6 and [sum(tensor.numel() for tensor in before) + amaxes] == ASKED
    for tensor, was, factor in zip([*sums, *maxima], before, [1.5] * len(sums) + [1.0] * len(maxima), strict=True):
        assert tensor.numel() == 0 or torch.allclose(tensor.double(), was.double() * factor, equal_nan=True)


def test_micro_batches_that_cannot_be_dealt_out_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [list(Processes(rank, 2).share_of(6)) for rank in (0, 1)] == [[0, 2, 4], [1, 3, 5]]
    monkeypatch.setattr(Processes, "present", classmethod(lambda cls: cls(0, 3)))
    spec = RunSpec.parse(TINY)
    with pytest.raises(LocatedError, match="accumulate is 2, on 3 processes; .* a multiple of 3") as error:
        train_run(spec, Run(tmp_path), None)  # type: ignore[arg-type]
    assert error.value.location == ("accumulate",)


def test_an_intervention_that_sees_one_ranks_micro_batches_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = RunSpec.parse(TINY, sets=["interventions=[partition_clip, mantissa_shift]"])
    spec.check_processes(Processes())
    monkeypatch.setattr(Processes, "present", classmethod(lambda cls: cls(0, 2)))
    with pytest.raises(LocatedError, match="mantissa_shift decides by one process's .*, and 2 processes") as error:
        train_run(spec, Run(tmp_path), None)  # type: ignore[arg-type]
    assert error.value.location == ("interventions", 1)


def test_a_layer_that_runs_twice_with_random_bits_is_refused_on_several_ranks() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    policy: Any = {"rules": [{"match": "*", "input": {"format": "e4m3fn", "rounding": "stochastic"}}]}
    quantize_model(model, PrecisionPolicy.made_from(policy))
    model(torch.ones(2, 4)).sum().backward()
    with pytest.raises(ValueError, match="0/input is cast more than once a micro-batch"):
        check_passes(model, 1)


CLI_SPEC = """\
project: demo
model: {kind: gpt, layers: 1, width: 16, heads: 2, context: 64}
data: {kind: text, batch_size: 4}
precision: {rules: [{weight: {format: e4m3fn, scaling: delayed}}]}
optimizer: {kind: adamw, lr: 3e-3}
steps: 4
accumulate: 2
threads: 1
evaluate_every: 4
"""


@pytest.mark.long
def test_torchrun_of_the_cli_prints_once_and_keeps_one_run(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CLI_SPEC)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, "altgrad.cli.main", "train", "tiny.yaml"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("completed at step 4") == 1 and done.stdout.count("step 4/4  stopped") == 1
    (run,) = (tmp_path / "runs" / "demo").iterdir()
    assert json.loads((run / "meta.json").read_text())["ranks"] == 2


@pytest.mark.long
def test_the_cli_says_before_anything_starts_that_ranks_cannot_share_a_step(
    run_cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(CLI_SPEC)
    done = run_cli("train", "tiny.yaml", env={"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"})
    assert done.returncode == 2 and done.stderr.startswith("tiny.yaml:7:13: accumulate is 2, on 4 processes")
    assert not (tmp_path / "runs").exists()
