"""Claims about stored(): torch's optimizers and others with weights and states in formats, in a loop of one's own."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import altgrad
from altgrad.optim import AdamW, stored
from altgrad.quantize import round_to

E4M3 = {"kind": "stochastic", "format": "e4m3fn"}


class OwnLion(torch.optim.Optimizer):
    """An optimizer of somebody's own, as packages have it."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if len(state) == 0:
                    state["exp_avg"] = torch.zeros_like(p)
                p.add_((0.9 * state["exp_avg"] + 0.1 * p.grad).sign(), alpha=-group["lr"])
                state["exp_avg"].lerp_(p.grad, 0.01)


INNER: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adafactor": lambda params: torch.optim.Adafactor(params, lr=0.01),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "lion": lambda params: OwnLion(params, lr=0.02),
    "lion_pytorch": lambda params: pytest.importorskip("lion_pytorch").Lion(params, lr=0.02, weight_decay=0.01),
    "adam": lambda params: torch.optim.AdamW(params, lr=0.01, foreach=True),
}
STATES = {
    "sgd": {"momentum_buffer": "e4m3fn"}, "lion": {"exp_avg": "e4m3fn"}, "lion_pytorch": {"exp_avg": "e4m3fn"},
    "adafactor": {"variance": "bf16"},
}  # fmt: skip


def problem() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(32, 12)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    (model(x) - x[:, :3]).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize(
    "storage", [E4M3, {"kind": "kahan", "format": "e3m4", "scale": "tracked"}, {"kind": "nearest", "format": "int8"}]
)
def test_weights_are_on_their_grid_after_each_step(name: str, storage: dict[str, str]) -> None:
    model, x = problem()
    optimizer = stored(INNER[name](model.parameters()), storage, STATES.get(name), named=model.named_parameters())
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(5):
        step(model, optimizer, x)
        for p in model.parameters():
            assert torch.equal(p, round_to(p, storage["format"], scale=optimizer.state[p]["storage_scale"]))
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    for state in STATES.get(name, {}):
        held = [s[state] for s in optimizer.inner.state.values() if state in s]
        assert held and all(h.abs().unique().numel() <= 128 or state == "variance" for h in held)


@pytest.mark.parametrize("name", INNER)
def test_a_stopped_loop_goes_on_to_the_same_bits(name: str) -> None:
    def made() -> tuple[nn.Module, Any, Tensor]:
        model, x = problem()
        inner = INNER[name](model.parameters())
        return model, stored(inner, E4M3, STATES.get(name), named=model.named_parameters(), seed=3), x

    whole, optimizer, x = made()
    for _ in range(6):
        step(whole, optimizer, x)
    first, begun, _ = made()
    for _ in range(3):
        step(first, begun, x)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": begun.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file)
    second, again, _ = made()
    second.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    others = [(second, again)]
    if name != "lion_pytorch":  # which loses its settings when it is copied
        others.append(copy.deepcopy((first, begun)))
    for model, its in others:
        for _ in range(3):
            step(model, its, x)
        assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), model.parameters(), strict=True))


def test_under_master_it_is_the_optimizer_itself_and_schedulers_go_on() -> None:
    one, x = problem()
    two, _ = problem()
    plain, wrapped = INNER["adam"](one.parameters()), stored(INNER["adam"](two.parameters()))
    schedules = [torch.optim.lr_scheduler.StepLR(each, 2, 0.5) for each in (plain, wrapped)]
    for _ in range(5):
        for model, optimizer, schedule in zip((one, two), (plain, wrapped), schedules, strict=True):
            step(model, optimizer, x)
            schedule.step()
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_it_is_our_adamw_in_the_same_storage() -> None:
    """The same bits wherever w + (w~ - w) is w~: requests, random bits and all."""
    one, x = problem()
    two, _ = problem()
    ours = AdamW(one.named_parameters(), lr=0.01, storage=E4M3, seed=5)
    theirs = stored(INNER["adam"](two.parameters()), E4M3, named=two.named_parameters(), seed=5)
    for _ in range(5):
        step(one, ours, x)
        step(two, theirs, x)
    same = [float((p == q).double().mean()) for p, q in zip(one.parameters(), two.parameters(), strict=True)]
    assert min(same) > 0.9


@pytest.mark.parametrize("name", ["adafactor", "sgd", "lion", "lion_pytorch"])
def test_monitors_see_requested_and_realised_updates(name: str) -> None:
    """What was requested is the step that the optimizer takes by itself, what was realised that on the grid."""
    (model, x), (alone, _) = problem(), problem()
    optimizer = stored(INNER[name](model.parameters()), {"kind": "nearest", "format": "e4m3fn"})
    for p, q in zip(alone.parameters(), model.parameters(), strict=True):
        p.data.copy_(q)
    plain = INNER[name](alone.parameters())
    watch = altgrad.watch(model, optimizer, [{"kind": "stall", "every": 1}, {"kind": "updates", "every": 1}])
    seen: list[Any] = []
    optimizer.observers.append(seen.append)
    step(model, optimizer, x)
    step(alone, plain, x)
    ratio = {key: value for key, value in watch.metrics.items() if key.startswith("stall/")}
    ratio = {key: value for key, value in ratio.items() if key.endswith("/stall_ratio")}
    assert len(ratio) == 4 and (name != "sgd" or any(value > 0 for value in ratio.values()))
    for update, p in zip(seen, alone.parameters(), strict=True):
        assert torch.equal(update.requested, p - update.before) and bool((update.requested != 0).any())
        assert torch.equal(update.after, round_to(update.before + update.requested, "e4m3fn", scale=update.grid.scale))


@pytest.mark.parametrize(
    ("storage", "states", "message"),
    [
        ({"kind": "eco", "format": "e4m3fn"}, None, "storage eco needs the inside of a rule, and SGD is not ours"),
        (E4M3, {"exp_avg": "e4m3fn"}, "'exp_avg' is not a state of SGD; it keeps momentum_buffer."),
    ],
)
def test_what_cannot_be_is_one_line(storage: dict[str, str], states: Any, message: str) -> None:
    model, x = problem()
    with pytest.raises(ValueError, match=message) as caught:
        step(model, stored(INNER["sgd"](model.parameters()), storage, states), x)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="AdamW keeps weights and states itself"):
        stored(AdamW(model.parameters()), E4M3)
