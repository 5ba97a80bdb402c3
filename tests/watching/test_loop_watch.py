"""Claims about altgrad.watch: it looks on at anyone's loop, changes nothing, and can be taken away again."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import altgrad
from altgrad.document import SpecError
from altgrad.monitors import MonitorSpec
from altgrad.optim import ManifoldAdamW

KINDS = list(MonitorSpec.kinds())
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3),
    "manifold_adamw": lambda p: ManifoldAdamW(p, lr=1e-3, storage={"kind": "stochastic", "format": "e4m3fn"}),
}


def network(quantised: bool) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))
    if quantised:
        parts: Any = {"format": "e4m3fn", "outliers": {"kind": "elements", "quantile": 0.9}}
        sums: Any = {"accumulator": "hopper_promote_128"}
        altgrad.quantize_model(
            net,
            altgrad.PrecisionPolicy.uniform(weight="e4m3fn", input=parts, grad_output="e5m2", grad_input=sums),
        )
    return net


def loop(net: nn.Module, optimizer: torch.optim.Optimizer, monitors: list[Any] | None, steps: int = 6) -> Any:
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))

    def loss() -> Tensor:
        return net(x).square().mean()

    watch = None if monitors is None else altgrad.watch(net, optimizer, monitors, replay=loss)
    seen = []
    for step in range(steps):
        torch.manual_seed(step)
        for _ in range(4):
            if watch is None:
                (loss() / 4).backward()
            else:
                with watch.micro_batch():
                    (loss() / 4).backward()
        optimizer.step()
        optimizer.zero_grad()
        altgrad.commit(net)
        if watch is not None:
            seen.append(dict(watch.metrics))
    return watch, seen


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("quantised", [True, False])
def test_every_monitor_looks_on_at_any_optimizer_and_changes_nothing(optimizer: str, quantised: bool) -> None:
    watched, alone = network(quantised), network(quantised)
    all_of_them = [{"kind": kind, "every": 2} for kind in KINDS]
    watch, seen = loop(watched, OPTIMIZERS[optimizer](watched.parameters()), all_of_them)
    loop(alone, OPTIMIZERS[optimizer](alone.parameters()), None)
    assert all(
        torch.equal(a, b) for a, b in zip(watched.state_dict().values(), alone.state_dict().values(), strict=True)
    )
    gridded = {"alignment", "amax", "codes", "correlation", "flips", "optimizer_state", "range", "stall"}
    gridded |= {"stiffness", "ulp"}
    without = {"finite"} | (set() if quantised or optimizer == "manifold_adamw" else gridded)
    without |= set() if quantised else {"outliers", "products", "accumulation"}
    assert {key.split("/")[0] for key in seen[0]} == set(KINDS) - without
    assert seen[2] == {} and watch.step == 6 and watch.alarms == []
    assert seen[3]["updates/0.weight/attempted_share"] > 0.5


def test_a_watch_taken_away_leaves_no_hook_and_no_observer() -> None:
    net = network(True)
    for optimizer in (torch.optim.SGD(net.parameters(), lr=0.1), ManifoldAdamW(net.parameters())):
        watch, _ = loop(net, optimizer, KINDS, 1)
        watch.close()
        assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
        assert not any(q.observers or q.watching for q in altgrad.nn.quantizers(net))
        assert not getattr(optimizer, "observers", [])


def test_a_watch_resumes_where_it_was() -> None:
    found = []
    for stops in (False, True):
        net = network(True)
        optimizer = OPTIMIZERS["adamw"](net.parameters())
        kinds = ["flips", "amax", "updates", "rank"]
        watch = altgrad.watch(net, optimizer, [{"kind": kind, "every": 2} for kind in kinds])
        for step in range(6):
            if stops and step == 3:
                saved = watch.state_dict()
                watch.close()
                watch = altgrad.watch(net, optimizer, [{"kind": kind, "every": 2} for kind in kinds])
                watch.load_state_dict(saved)
            torch.manual_seed(step)
            net(torch.randn(32, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(watch.metrics)
    assert found[0] == found[1] and found[0]


def test_alarms_are_told_and_a_poisoned_gradient_is_named() -> None:
    net = network(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch = altgrad.watch(net, optimizer)
    net(torch.full((2, 8), math.inf)).mean().backward()
    optimizer.step()
    (alarm,) = watch.alarms
    assert str(alarm) == "the gradient of 3.weight is not finite, nor is one other tensor."
    assert (alarm.site, alarm.quantity, alarm.phase, alarm.step) == ("3.weight", "linf", "backward", watch.step)


def test_look_shows_gradients_before_clipping_and_replay_may_give_micro_batches() -> None:
    net = network(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x = torch.randn(8, 8)

    def losses() -> Iterator[Tensor]:
        torch.manual_seed(0)
        yield from (net(half).square().mean() / 2 for half in x.chunk(2))

    watch = altgrad.watch(
        net, optimizer, [{"kind": kind, "every": 1} for kind in ("gradient", "shadow")], replay=losses
    )
    for loss in losses():
        loss.backward()
    norm = net[0].weight.grad.norm().item()  # type: ignore[index, operator, union-attr]
    watch.look()
    torch.nn.utils.clip_grad_norm_(net.parameters(), norm / 100)
    optimizer.step()
    assert watch.metrics["gradient/0.weight/l2"] == pytest.approx(norm)
    assert watch.metrics["shadow/0.weight/sqnr_db"] == math.inf
    assert not watch.looked and watch.stop is None


def test_mistakes_are_one_line() -> None:
    net = network(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(SpecError, match="'stal' is not a monitor. Did you mean 'stall'?"):
        altgrad.watch(net, optimizer, ["stal"])
    with pytest.raises(SpecError, match="every"):
        altgrad.watch(net, optimizer, [{"kind": "stall", "every": 0}])
    with pytest.raises(ValueError, match="names stall twice"):
        altgrad.watch(net, optimizer, ["stall", "stall"])
    with pytest.raises(ValueError, match="twin nowhere is not a run's folder"):
        altgrad.watch(net, optimizer, ["rank"], twin="nowhere")
