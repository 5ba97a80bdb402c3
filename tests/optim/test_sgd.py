"""SGD is torch.optim's, bit for bit, and so is everything it keeps."""

import pytest
import torch
from torch import nn

from altgrad.optim import SGD


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(7, 11), nn.LayerNorm(11), nn.Linear(11, 3))


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_torchs_bit_for_bit(foreach: bool, decay: float, momentum: float, nesterov: bool) -> None:
    ours, theirs = model(), model()
    settings = {"lr": 3e-2, "weight_decay": decay, "momentum": momentum, "nesterov": nesterov}
    mine = SGD(ours.parameters(), **settings)
    other = torch.optim.SGD(theirs.parameters(), foreach=foreach, **settings)
    for step in range(50):
        torch.manual_seed(step)
        x = torch.randn(5, 7)
        for net, optimizer in ((ours, mine), (theirs, other)):
            optimizer.zero_grad()
            part = net[:2] if step % 5 == 0 else net  # type: ignore[index]
            part(x).square().mean().backward()
            for group in optimizer.param_groups:
                group["lr"] = 3e-2 / (1 + step)
            optimizer.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b), step
    if momentum:
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(mine.state[a]["momentum_buffer"], other.state[b]["momentum_buffer"])


@pytest.mark.parametrize("bad", [{"momentum": 1.0}, {"nesterov": True}, {"lr": -1.0}])
def test_values_out_of_range_are_named(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"SGD, group 0: {next(iter(bad))} "):
        SGD(model().parameters(), **bad)  # type: ignore[arg-type]
