"""Claims about altgrad.watch in loops of several kinds: closures, loss scalers, accumulation, several processes."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import altgrad
from altgrad.measures import GradientMoments, add_gradient, gsnr_summary, moments_start
from altgrad.watching.own_gradients import OwnGradients

JOB = Path(__file__).with_name("watched_rank_job.py")
ROOT = Path(__file__).parents[2]
E4M3 = {"weight": "e4m3fn", "input": "e4m3fn", "grad_output": "e5m2"}


def network(policy: Any = E4M3, *, width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, width))
    return altgrad.quantize_model(net, altgrad.PrecisionPolicy.uniform(**policy))


def every_step(*kinds: str) -> list[dict[str, Any]]:
    return [{"kind": kind, "every": 1} for kind in kinds]


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_of_a_line_search_the_first_evaluation_and_the_whole_update_are_reported(search: str | None) -> None:
    net, plain = network(), network()
    x = torch.randn(32, 8)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=5, line_search_fn=search)
    watch = altgrad.watch(net, optimizer, every_step("gradient", "range", "updates", "ulp"))
    losses: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = net(x).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        return loss

    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer.step(closure)
    plain(x).square().mean().backward()
    assert len(losses) > 2 and watch.step == 1
    for name, p in plain.named_parameters():
        assert p.grad is not None
        assert watch.metrics[f"gradient/{name}/l2"] == pytest.approx(float(p.grad.norm()))
        moved = (net.get_parameter(name) != before[name]).double().mean()
        assert watch.metrics[f"updates/{name}/attempted_share"] == pytest.approx(float(moved))
    assert watch.metrics["range/0/input/amax"] == float(x.abs().max())
    assert watch.metrics["range/2/weight/amax"] == float(before["2.weight"].abs().max())


def test_the_loss_of_a_closure_is_known_to_finite() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch = altgrad.watch(net, optimizer, ["finite"])
    net(torch.randn(4, 8)).sum().backward()
    optimizer.step(lambda: torch.tensor(math.nan))  # type: ignore[arg-type, return-value]
    assert watch.stop == "the loss is not finite."


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("role", ["input", "weight", "grad_output"])
def test_finite_names_every_cast_that_something_not_finite_enters(role: str, value: float) -> None:
    """Also where no gradient shows it; once for each site, and with how many."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    watch = altgrad.watch(net, optimizer, every_step("finite", "range"))
    x = torch.randn(4, 8)
    if role == "input":
        x[0, :2] = value
    if role == "weight":
        with torch.no_grad():
            net.get_parameter("0.weight")[0, :2] = value
    for number in range(2):
        optimizer.zero_grad()
        y = net(x)
        if role == "grad_output":
            y.register_hook(lambda g: torch.where(torch.arange(8) < 2, value, g)[:1].expand(4, 8) * 1.0)
        y.square().mean().backward()
        for p in net.parameters():
            p.grad = torch.zeros_like(p)  # as a loop would that cleans its gradients
        optimizer.step()
        site, count = ("2/grad_output", 8) if role == "grad_output" else (f"0/{role}", 2)
        alarms = [(a.value, a.phase) for a in watch.alarms if (a.site, a.quantity) == (site, "nonfinite_count")]
        phase = "backward" if role == "grad_output" else "forward"
        assert alarms == ([(count, phase)] if number == 0 else []) and watch.stop is None
        assert watch.metrics[f"range/{site}/nonfinite_count"] == count


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_cast_that_hides_infinities_is_watched_at_every_step(compiled: bool) -> None:
    """Neither loss nor gradients show it; and nothing else is watched, or measured, on a step where it is not due."""
    hiding = {"format": "e4m3fn", "nonfinite": "saturate"}
    net = network({"weight": "e4m3fn", "input": hiding})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    watch = altgrad.watch(net, optimizer, ["finite", {"kind": "range", "every": 3}])
    run: Any = torch.compile(net, fullgraph=True) if compiled else net
    found = {}
    for step in range(1, 9):
        x = torch.randn(4, 8)
        if step in (5, 6):
            x[0, 0] = math.inf
        optimizer.zero_grad()
        assert {q.site for q in altgrad.nn.quantizers(net) if q.watching} == (
            {"0/input", "0/weight", "2/input", "2/weight"} if step in (1, 3, 6) else {"0/input", "2/input"}
        )
        loss = run(x).square().mean()
        loss.backward()
        assert loss.isfinite()
        optimizer.step()
        assert bool(watch.metrics) == (step in (1, 3, 6))
        found |= {step: [str(alarm) for alarm in watch.alarms]} if watch.alarms else {}
    line = "0/input: a value that is inf or NaN entered the cast and left it as ordinary numbers, which hides them."
    assert found == {5: [line]} and watch.stop is None


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_a_loss_scaler_leaves_out_was_never_seen(fused: bool, commits: bool) -> None:
    """Two rounds overflow float16 and are left out, in between one is taken: only its casts and gradients count."""
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    told = {} if commits else {"scaler": scaler}
    watch = altgrad.watch(net, optimizer, every_step("finite", "range", "gradient", "gsnr"), **told)
    x = torch.randn(16, 8)
    for step, size in enumerate((math.inf, 1.0, math.inf, 1.0)):
        optimizer.zero_grad()
        scaler.scale((net(x) * size).square().mean()).backward()
        true = {name: p.grad / scaler.get_scale() for name, p in net.named_parameters() if p.grad is not None}
        scaler.step(optimizer)
        scaler.update()
        if commits:
            altgrad.commit(net)
        assert (watch.step, watch.stop, watch.alarms) == ((step + 1) // 2, None, [])
        if size == 1.0:
            assert watch.metrics["range/0/grad_output/nonfinite_count"] == 0
            for name, gradient in true.items():
                assert watch.metrics[f"gradient/{name}/linf"] == pytest.approx(float(gradient.abs().max()))
    watch.close()
    assert "update" not in vars(scaler)


def test_a_commit_before_the_step_loses_no_cast() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch = altgrad.watch(net, optimizer, every_step("range"))
    for _ in range(3):
        net(torch.randn(4, 8)).square().mean().backward()
        altgrad.commit(net)
        optimizer.step()
        assert watch.metrics["range/0/input/amax"] > 0


class Wrapped(nn.Module):
    """All of a network in one checkpointed region, so that each backward runs within another."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.net, self.way = network(), way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "plain":
            return self.net(x)  # type: ignore[no-any-return]
        return checkpoint(self.net, x, use_reentrant=self.way == "reentrant")  # type: ignore[no-any-return]


@pytest.mark.parametrize("way", ["plain", "non-reentrant", "reentrant"])
@pytest.mark.parametrize("marked", [True, False])
def test_gsnr_sees_each_micro_batch_in_a_loop_that_marks_none(way: str, marked: bool) -> None:
    """Two backward passes that are marked are one micro-batch; unmarked, each is."""
    net = Wrapped(way)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch = altgrad.watch(net, optimizer, every_step("gsnr"))
    batches = torch.randn(6, 2, 16, 8)
    moments: dict[str, GradientMoments] = {}

    def gradients(xs: Tensor) -> dict[str, Tensor]:
        other = Wrapped("plain")
        for x in xs:
            other(x).square().mean().backward()
        return {name: p.grad for name, p in other.named_parameters() if p.grad is not None}

    for pair in batches:
        for own in [pair] if marked else [pair[:1], pair[1:]]:
            for name, gradient in gradients(own).items():
                moments[name] = add_gradient(moments.get(name) or moments_start(gradient), gradient)
        if marked:
            with watch.micro_batch():
                for x in pair:
                    net(x.requires_grad_()).square().mean().backward()
        else:
            for x in pair:
                net(x.requires_grad_()).square().mean().backward()
    before = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    optimizer.step()
    assert all(torch.equal(p.grad, before[n]) for n, p in net.named_parameters() if p.grad is not None)
    for name, own_moments in moments.items():
        for key, value in gsnr_summary(own_moments).items():
            assert watch.metrics[f"gsnr/{name}/{key}"] == pytest.approx(float(value), rel=1e-4, nan_ok=True)


def test_backward_calls_are_told_apart_without_a_forward_of_the_model() -> None:
    """As when the model's parts are called, or a compiled one: autograd's own numbers say where a pass ends."""
    net = network()
    shown: list[set[str]] = []
    own = OwnGradients(net, {p: name for name, p in net.named_parameters()}, lambda g: shown.append(set(g)))
    own.start()
    parts: Any = net
    for _ in range(3):
        parts[2](parts[0](torch.randn(4, 8))).sum().backward()
    own.stop()
    net(torch.randn(4, 8)).sum().backward()
    assert shown == [{"0.weight", "0.bias", "2.weight", "2.bias"}] * 3


def test_a_replay_takes_no_optimizer_step_that_hangs_on_a_gradient() -> None:
    """Optimizers that step in backward register with each accumulated gradient; a shadow step is none of theirs."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x = torch.randn(8, 8)

    def loss() -> Iterator[Tensor]:
        yield net(x).square().mean()

    fired: list[str] = []
    for name, p in net.named_parameters():
        p.register_post_accumulate_grad_hook(lambda _, name=name: fired.append(name))
    watch = altgrad.watch(net, optimizer, every_step("shadow"), replay=loss)
    next(loss()).backward()  # type: ignore[no-untyped-call]
    kept = {name: p.grad for name, p in net.named_parameters()}
    optimizer.step()
    assert len(fired) == 4 and all(p.grad is kept[name] for name, p in net.named_parameters())
    next(loss()).backward()  # type: ignore[no-untyped-call]
    assert len(fired) == 8 and watch.metrics["shadow/2.weight/cosine"] > 0.9


def test_under_distributed_data_parallel_each_process_has_its_own_numbers(tmp_path: Path) -> None:
    """Two gloo processes, every monitor, also those that replay: none waits for another, and averages are torch's."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen([sys.executable, str(JOB), str(tmp_path), str(n)], env=environment, stderr=subprocess.PIPE)
        for n in range(2)
    ]
    said = [process.communicate(timeout=300)[1].decode() for process in started]
    assert not any(process.returncode for process in started), "".join(said)[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first.keys() == second.keys() and len(first) > 100
    alike = [k for k in first if k.startswith(("gradient/", "updates/", "shadow/", "range/0/weight"))]
    assert [k for k in alike if first[k] != second[k] and first[k] == first[k]] == [] and len(alike) > 20
    assert first["range/0/input/amax"] != second["range/0/input/amax"]
