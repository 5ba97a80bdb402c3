"""Claims about a head whose weight is the embedding's: under whichever name it goes, monitors say the same of it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import altgrad
from altgrad import optim
from altgrad.monitors.monitor import MonitorSpec
from altgrad.nn import quantize_model

CASTS: Any = {"rules": [{"match": "*", "weight": "e4m3fn", "input": "e4m3fn", "grad_output": "e5m2"}]}


class Tied(nn.Module):
    """The weight's first name is the embedding's, or the head's, which changes nothing that is computed."""

    def __init__(self, first: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        embed, head, up = nn.Embedding(32, 16), nn.Linear(16, 32, bias=False), nn.Linear(16, 16)
        head.weight = embed.weight
        for name, module in {"embed": {"embed": embed, "head": head}, "head": {"head": head, "embed": embed}}[
            first
        ].items():
            setattr(self, name, module)
        self.up = up

    def forward(self, tokens: Tensor) -> Any:
        return self.head(self.up(self.embed(tokens)))


def loss(model: nn.Module, batch: int) -> Tensor:
    tokens = torch.randint(32, (4, 8), generator=torch.Generator().manual_seed(batch))
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())


def watched(first: str, kind: str, ours: bool) -> dict[str, float]:
    """The metrics of three steps, with the weight's name as W."""
    model = quantize_model(Tied(first), CASTS)
    named = [{"params": list(model.named_parameters()), "lr": 1e-2}]
    optimizer: Any = optim.OptimizerSpec.made_from({"kind": "adamw"}).build(named) if ours else None
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), 1e-2)
    watch = altgrad.watch(model, optimizer, [{"kind": kind, "every": 1}], replay=lambda: loss(model, 0))
    found: dict[str, float] = {}
    for batch in range(3):
        optimizer.zero_grad()
        for _ in range(6 if kind == "gsnr" else 1):
            loss(model, batch).backward()
        optimizer.step()
        found |= watch.metrics
    watch.close()
    return {key.replace(f"{first}.weight", "W"): value for key, value in found.items()}


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "torch's"])
@pytest.mark.parametrize("kind", sorted(MonitorSpec.kinds()))
def test_every_monitor_says_the_same_of_a_tied_weight_by_either_name(kind: str, ours: bool) -> None:
    by_embed, by_head = watched("embed", kind, ours), watched("head", kind, ours)
    assert by_embed.keys() == by_head.keys()
    for key, value in by_embed.items():
        assert value == pytest.approx(by_head[key], rel=1e-12, nan_ok=True), key


@pytest.mark.parametrize("kind", ["stall", "flips", "updates", "stiffness", "alignment", "codes", "ulp"])
def test_what_needs_the_grid_of_its_cast_is_there(kind: str) -> None:
    keys = watched("embed", kind, ours=False)
    assert any(key.startswith(f"{kind}/W/") for key in keys) and any("up.weight/" in key for key in keys)
    own = {key.removeprefix(f"{kind}/W/") for key in keys if key.startswith(f"{kind}/W/") and "binade" not in key}
    others = {key.partition("up.weight/")[2] for key in keys if "up.weight/" in key and "binade" not in key}
    assert own == others
