"""Claims about `--shard`: a run whose parameters are shared out over processes is the run of one process.

What two processes do to FP8 with delayed scales stands in `test_distributed.py`, whose processes it shares.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from altgrad.nn import Processes
from altgrad.optim import SGD, AdamW, is_sharded, stored, whole_tensor
from altgrad.spec import LocatedError
from altgrad.store import Run, RunStore
from altgrad.training import RunSpec
from altgrad.training.prepare import prepare
from altgrad.training.sharding import check_sharding, clip_gradients, gradient_norm, shard
from tests.training.rank_job import TINY, run_case
from tests.training.test_distributed import CASES, CLI_SPEC, ROOT, Cases, losses, metrics, together, weights

BLOCK = "{format: e4m3fn, scaling: {kind: block, size: 4}}"
FP4 = "{format: e2m1, scaling: nvfp4}"
KINDS = (
    "range", "amax", "finite", "gradient", "shadow", "dead", "stall", "flips", "accumulation", "alignment", "codes",
    "correlation", "optimizer_state", "outliers", "products", "rank", "stiffness", "ulp", "updates",
)  # fmt: skip
WATCHED = f"monitors=[{', '.join(f'{{kind: {kind}, every: 2}}' for kind in KINDS)}]"
ADAM_8_BITS = (
    "optimizer={kind: adamw, lr: 3e-3, states: {exp_avg: {format: e4m3fn, rounding: stochastic, packed: true, "
    "scaling: {kind: block, size: 32, scale: real}}, exp_avg_sq: {format: dynamic8_unsigned, "
    "scaling: {kind: block, size: 32, scale: real}}}}"
)
MIXTURE = (
    "model={kind: llama, layers: 2, width: 16, heads: 2, hidden: 12, experts: 4, active: 2, context: 16, tied: true}"
)
SHARDED: dict[str, list[str]] = {
    "current": CASES["current"],
    "block": [f"precision.rules=[{{weight: {BLOCK}, input: {BLOCK}, grad_output: {BLOCK}}}]"],
    "bfloat16": ["compute=bfloat16", "precision.rules=[{weight: {format: e4m3fn, scaling: {kind: block, size: 16, "
                 "shape: square}}, input: e4m3fn}]", "recompute=blocks", "model.layers=2"],
    "fp4": [f"precision.rules=[{{weight: {FP4}, input: {FP4}, grad_output: {FP4}}}]"],
    "stochastic": CASES["stochastic"],
    "phased": CASES["phased"],
    # Of 9 rows, and of 3, the processes do not have equally many.
    "uneven": ["model.width=18", "model.context=3", *CASES["stochastic"], WATCHED],
    "eight-bits": [ADAM_8_BITS, *CASES["delayed"], WATCHED],
    "mixture": [MIXTURE, "precision.rules=[{place: norms, weight: {format: e4m3fn, scaling: mx}}, {weight: e4m3fn, "
                "input: e4m3fn}]", "evaluate_with={rules: [{weight: e3m4}]}", "evaluate_every=4", WATCHED],
    "muon": ["optimizer={kind: muon, lr: 0.02}", "storage=[{match: blocks.*.weight, kind: stochastic, format: e3m4}]"],
    "eco": ["optimizer={kind: sgd, lr: 0.1, momentum: 0.9}", "storage=[{match: blocks.*.weight, kind: eco, "
            "format: e3m4}]"],
    "manifold": ["optimizer={kind: manifold_adamw, lr: 3e-3}", "storage=[{kind: kahan, format: e4m3fn}]"],
    "index": ["optimizer={kind: grid_optim, lr: 0.5, landing: index}", "storage=[{kind: index, format: e3m4}]"],
    "tracked": ["optimizer={kind: lion, lr: 1e-3}", "storage=[{kind: nearest, format: e4m3fn, scale: tracked}]"],
}  # fmt: skip
TEN = ["steps=10", "monitors=[{kind: range, every: 1}]"]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process, which holds a part that is all."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def same(one: Run, other: Run) -> None:
    assert losses(one) == losses(other) and weights(one) == weights(other)
    assert str(metrics(one)) == str(metrics(other))  # NaN among them


def test_a_sharded_run_is_the_whole_one_and_each_goes_on_as_the_other(tmp_path: Path, alone: None) -> None:
    """Storage that counts its bits and scales whole weights; states in blocks; monitors of weights and updates."""
    watched = "monitors=[range, flips, updates, shadow, optimizer_state]"
    sets = [ADAM_8_BITS, *CASES["stochastic"], watched, "steps=4", "model.width=8"]
    run_case(tmp_path, "whole", sets, None)
    for name, sharded in (("sharded", False), ("again", True)):
        run_case(tmp_path, name, sets, 2, shard=not sharded)
        run_case(tmp_path, name, sets, None, shard=sharded)
        whole, run = (RunStore(tmp_path).run("ranks", each) for each in ("whole", name))
        same(whole, run)
        assert run.status == "completed" and run.meta()["sharded"] is sharded and "sharded" not in whole.meta()


def test_norm_clipping_and_step_of_shards_are_those_of_whole_tensors(alone: None) -> None:
    def steps(sharded: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        if sharded:
            shard(model, torch.device("cpu"))
        optimizer = AdamW(model.parameters(), lr=0.1)
        for step in range(3):
            model(torch.linspace(-1, 1, 12).reshape(2, 6) * (step + 1)).square().sum().backward()
            norm = gradient_norm([p.grad for p in model.parameters() if p.grad is not None])
            clip_gradients(model.parameters(), 0.5, norm)
            optimizer.step()
            optimizer.zero_grad()
        assert all(is_sharded(p) == sharded for p in model.parameters())
        assert all(is_sharded(optimizer.state[p]["exp_avg"]) == sharded for p in model.parameters())
        kept = [x for p in model.parameters() for x in (p, *optimizer.state[p].values())]
        return [norm, *(whole_tensor(x) for x in kept)]

    assert all(torch.equal(a, b) for a, b in zip(steps(True), steps(False), strict=True))


def test_a_step_that_raises_leaves_nothing_of_what_stood_in(alone: None) -> None:
    model = shard(nn.Linear(4, 4), torch.device("cpu"))
    optimizer = AdamW(model.parameters(), storage={"kind": "stochastic", "format": "e4m3fn"})
    known = len(optimizer.names), len(optimizer.state)

    def fail(*_: Any) -> None:
        raise RuntimeError("not now")

    optimizer.observers.append(fail)
    optimizer.watching = True
    model(torch.ones(2, 4)).sum().backward()
    with pytest.raises(RuntimeError, match="not now"):
        optimizer.step()
    assert known == (len(optimizer.names), len(optimizer.state))


def test_a_foreign_optimizer_of_shards_takes_neither_storage_nor_states(alone: None) -> None:
    model = shard(nn.Linear(4, 4), torch.device("cpu"))
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="a weight \\[4, 4\\] is a DTensor, which SGD steps part by part"):
        stored(inner, {"kind": "nearest", "format": "e4m3fn"})
    assert isinstance(SGD(model.parameters(), storage={"kind": "nearest", "format": "e4m3fn"}), SGD)


REFUSED = {
    "gsnr needs each micro-batch's own gradient": (["monitors=[range, gsnr]"], ("monitors", 1)),
    "partition_clip changes whole weights or gradients": (["interventions=[partition_clip]"], ("interventions", 0)),
    "gradients are cast before they are added up": (["gradients.micro_batch={format: bf16}"], ("gradients",)),
    "compile: model is one graph": (["compile=model"], ("compile",)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_trained_sharded_is_refused_where_it_stands(why: str) -> None:
    sets, location = REFUSED[why]
    spec = RunSpec.parse(TINY, sets=sets)
    with pytest.raises(LocatedError, match=f"^{why}[^\n]* train without --shard.$") as error:
        check_sharding(spec, Processes(0, 2), [])
    assert error.value.location == location


def test_parameters_that_cannot_be_cut_are_refused() -> None:
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.temperature = nn.Parameter(torch.ones(()))

    tied = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    tied[1].weight = tied[0].weight
    spec = RunSpec.parse(TINY)
    for model, why in ((Scaled(), "temperature is a single number"), (nn.Sequential(tied), "0.0.weight is shared")):
        with pytest.raises(LocatedError, match=f"^{why}[^\n]*, which --shard cannot cut"):
            check_sharding(spec, Processes(0, 2), [nn.Linear(2, 2), model])


def test_one_process_alone_is_told_to_leave_it_out() -> None:
    with pytest.raises(ValueError, match="^--shard shares a model out over processes, and there is 1; start several"):
        prepare({**RunSpec.parse(TINY).tree()}, ["data=text"], device="cpu", shard=True)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases by two processes that share the model, and by one."""
    folder = tmp_path_factory.mktemp("sharding")
    together(2, folder / "two", {name: ([*sets, "steps=10"], None, "shard") for name, sets in SHARDED.items()})
    for name, sets in SHARDED.items():
        run_case(folder / "one", name, [*sets, "steps=10"], None)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("name", SHARDED)
def test_two_processes_that_share_a_model_are_one(stores: Path, name: str) -> None:
    one, two = (RunStore(stores / where).run("ranks", name) for where in ("one", "two"))
    assert two.status == "completed" and two.meta()["sharded"] and len(losses(two)) == 10
    same(one, two)


@pytest.mark.long
def test_four_processes_differ_from_one_as_summation_orders_do(tmp_path: Path) -> None:
    """FP4, four micro-batches: the same operands and codes in the first step, and then no further apart than three
    times what four processes that each have the whole model, and add up in another order, are from one."""
    sets = [*SHARDED["fp4"], "accumulate=4", *TEN]
    together(4, tmp_path / "four", {"sharded": (sets, None, "shard"), "whole": (sets, None)})
    run_case(tmp_path / "one", "one", sets, None)
    one = RunStore(tmp_path / "one").run("ranks", "one")
    sharded, whole = (RunStore(tmp_path / "four").run("ranks", name) for name in ("sharded", "whole"))
    first, theirs = (next(row for row in metrics(run) if row["step"] == 1) for run in (one, sharded))
    casts = [key for key in first if key.startswith("range/")]
    assert len(casts) > 50 and all(str(first[key]) == str(theirs[key]) for key in casts)
    spread = max(abs(a - b) for a, b in zip(losses(one), losses(whole), strict=True))
    apart = max(abs(a - b) for a, b in zip(losses(one), losses(sharded), strict=True))
    assert 0 < apart <= 3 * spread


@pytest.mark.long
def test_a_sharded_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    """2 -> 1 and 1 -> 2 to the bit, 2 -> 4 and 4 -> 2 with sums in another order."""
    exact, near = [*CASES["stochastic"], "steps=10"], [*CASES["delayed"], "steps=10", "accumulate=4"]
    run_case(tmp_path, "exact", exact, None)
    run_case(tmp_path, "near", near, None)
    run_case(tmp_path, "1-2", exact, 4)
    first: Cases = {"2-1": (exact, 4, "shard"), "2-4": (near, 4, "shard")}
    together(2, tmp_path, first)
    together(4, tmp_path, {"4-2": (near, 4, "shard"), "2-4": (near, None, "shard")})
    together(2, tmp_path, {"1-2": (exact, None, "shard"), "4-2": (near, None, "shard")})
    run_case(tmp_path, "2-1", exact, None)
    found = {name: RunStore(tmp_path).run("ranks", name) for name in ("exact", "near", "1-2", "2-1", "2-4", "4-2")}
    assert all(run.status == "completed" for run in found.values()) and found["2-4"].meta()["ranks"] == 4
    for name in ("1-2", "2-1"):
        same(found["exact"], found[name])
    for name in ("2-4", "4-2"):
        assert losses(found[name]) == pytest.approx(losses(found["near"]), abs=1e-5)


@pytest.mark.long
def test_a_killed_worker_ends_the_run_and_the_same_command_goes_on(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(f"{CLI_SPEC}storage: [{{kind: nearest, format: e4m3fn}}]\n")
    sets = ["steps=40", "evaluate_every=40", "evaluate_limit=2", "checkpoint_every=5"]
    arguments = ["train", "tiny.yaml", *(word for each in sets for word in ("--set", each))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = [*torchrun, "altgrad.cli.main", *arguments, "--shard"]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    started = start()
    while not list(tmp_path.glob("runs/demo/*/checkpoints/step-00000010")):
        assert started.poll() is None
        time.sleep(0.02)
    workers = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    assert started.wait() != 0
    (folder,) = (tmp_path / "runs" / "demo").iterdir()
    assert Run(folder).status != "completed" and 10 <= max(Run(folder).checkpoints.steps()) < 40
    assert start().wait() == 0
    whole = [sys.executable, "-m", "altgrad.cli.main", *arguments, "--runs", "whole"]
    subprocess.run(whole, cwd=tmp_path, env=environment, check=True, capture_output=True)
    (other,) = (tmp_path / "whole" / "demo").iterdir()
    assert other.name == folder.name and Run(folder).meta()["sharded"]  # one fingerprint, sharded or not
    same(Run(other), Run(folder))
