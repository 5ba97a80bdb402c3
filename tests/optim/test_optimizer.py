"""Claims about optimizers and groups: AdamW is torch's bit for bit; groups go by name; gradients are left alone."""

from typing import Any

import pytest
import torch
from torch import nn

from altgrad.optim import AdamW, OptimizerSpec, Update, parameter_groups
from altgrad.spec import LocatedError


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(7, 11), nn.LayerNorm(11), nn.Linear(11, 3))


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.95)])
def test_adamw_is_torchs_bit_for_bit(foreach: bool, decay: float, betas: tuple[float, float]) -> None:
    ours, theirs = model(), model()
    mine = AdamW(ours.parameters(), lr=3e-3, weight_decay=decay, betas=betas)
    other = torch.optim.AdamW(theirs.parameters(), lr=3e-3, weight_decay=decay, betas=betas, foreach=foreach)
    for step in range(50):
        torch.manual_seed(step)
        x = torch.randn(5, 7)
        for net, optimizer in ((ours, mine), (theirs, other)):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 / (1 + step)
            optimizer.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b), step
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.state[a].keys() == other.state[b].keys()
        assert all(torch.equal(mine.state[a][key], other.state[b][key]) for key in mine.state[a])


def test_a_parameter_without_gradient_is_skipped_as_in_torch() -> None:
    ours, theirs = model(), model()
    mine, other = AdamW(ours.parameters()), torch.optim.AdamW(theirs.parameters())
    for step in range(6):
        for net, optimizer in ((ours, mine), (theirs, other)):
            optimizer.zero_grad()
            part = net[:2] if step % 2 else net  # type: ignore[index]
            part(torch.ones(2, 7)).square().sum().backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_gradients_are_never_changed_and_zero_gradients_move_nothing() -> None:
    net = model()
    optimizer = AdamW(net.parameters(), weight_decay=0)
    before = [p.detach().clone() for p in net.parameters()]
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    net(torch.ones(2, 7)).sum().backward()
    grads = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads, strict=True) if p.grad is not None)


def test_a_watched_step_shows_what_was_asked_and_changes_nothing() -> None:
    seen: list[Update] = []
    nets = model(), model()
    for net, watching in zip(nets, (True, False), strict=True):
        optimizer = AdamW(net.named_parameters())
        optimizer.observers.append(seen.append)
        optimizer.watching = watching
        net(torch.ones(2, 7)).square().sum().backward()
        optimizer.step()
    assert [update.name for update in seen] == [name for name, _ in nets[0].named_parameters()]
    assert all(torch.allclose(u.after - u.before, u.requested, rtol=1e-4, atol=1e-7) for u in seen)
    assert all(torch.equal(a, b) for a, b in zip(*(net.parameters() for net in nets), strict=True))


def test_closure_and_state_dict_work_as_in_torch() -> None:
    net = model()
    optimizer = AdamW(net.parameters())

    def closure() -> float:
        optimizer.zero_grad()
        loss = net(torch.ones(2, 7)).square().sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == pytest.approx(closure(), rel=0.2)
    other = torch.optim.AdamW(net.parameters())
    other.load_state_dict(optimizer.state_dict())
    again = AdamW(net.parameters())
    again.load_state_dict(other.state_dict())
    assert all(torch.equal(again.state[p]["exp_avg"], optimizer.state[p]["exp_avg"]) for p in net.parameters())


@pytest.mark.parametrize(
    "bad", [{"lr": -1.0}, {"lr": 1e300}, {"betas": (0.9, 1.0)}, {"eps": -1.0}, {"weight_decay": -0.1}]
)
def test_values_out_of_range_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"AdamW, group 0: {next(iter(bad))} is "):
        AdamW(model().parameters(), **bad)


def groups(**fields: Any) -> dict[str, tuple[float, float]]:
    spec = OptimizerSpec.of({"kind": "adamw", "lr": 1.0, "weight_decay": 0.5, **fields})
    return {n: (g["lr"], g["weight_decay"]) for g in parameter_groups(model(), spec) for n, _ in g["params"]}


def test_one_dimensional_parameters_do_not_decay_unless_told() -> None:
    assert groups() == {
        "0.weight": (1.0, 0.5), "0.bias": (1.0, 0.0), "1.weight": (1.0, 0.0), "1.bias": (1.0, 0.0),
        "2.weight": (1.0, 0.5), "2.bias": (1.0, 0.0),
    }  # fmt: skip
    assert groups(groups=[{"match": "*.bias", "weight_decay": 0.25}])["2.bias"] == (1.0, 0.25)


def test_the_first_matching_group_decides_each_value_it_names() -> None:
    found = groups(groups=[{"match": "last.*", "lr": 0.1}, {"match": "*.weight", "lr": 0.2, "weight_decay": 0.0}])
    assert found["2.weight"] == (0.1, 0.5) and found["0.weight"] == (0.2, 0.0) and found["0.bias"] == (1.0, 0.0)


def test_a_group_that_decides_nothing_is_an_error() -> None:
    with pytest.raises(LocatedError, match=r"Did you mean '0.weight'") as error:
        groups(groups=[{"match": "0.wight", "lr": 0.1}])
    assert error.value.location == ("groups", 0, "match")


def test_a_tied_parameter_answers_to_all_its_names() -> None:
    net = nn.ModuleDict({"embed": nn.Embedding(4, 8), "head": nn.Linear(8, 4, bias=False)})
    net["head"].weight = net["embed"].weight
    spec = OptimizerSpec.of({"kind": "adamw", "groups": [{"match": "head.weight", "lr": 0.5}]})
    (group,) = parameter_groups(net, spec)
    assert group["lr"] == 0.5 and [name for name, _ in group["params"]] == ["embed.weight"]
