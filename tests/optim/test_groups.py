"""Groups by name: learning rates and storage, first match wins, tied parameters are stored once."""

from typing import Any

import pytest
import torch
from torch import nn

from altgrad.optim import OptimizerSpec, Storage, parameter_groups
from altgrad.spec import LocatedError


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


def rules(*found: dict[str, Any]) -> tuple[Storage, ...]:
    return tuple(Storage.of(rule) for rule in found)


def kept(*found: dict[str, Any]) -> dict[str, str]:
    model = Tied()
    groups = parameter_groups(model, OptimizerSpec.of("adamw"), rules(*found))
    optimizer = OptimizerSpec.of("adamw").build(groups)
    return {
        optimizer.names[p]: storage.kind
        for group, storage in zip(optimizer.param_groups, optimizer.storages, strict=True)
        for p in group["params"]
    }


def test_the_first_matching_rule_decides_and_the_rest_is_master() -> None:
    found = kept(
        {"match": "blocks.first.weight", "kind": "master"},
        {"match": "blocks.*.weight", "kind": "stochastic", "format": "e3m4"},
        {"match": "*.bias", "kind": "kahan", "format": "e4m3fn"},
    )
    assert found == {
        "embed.weight": "master", "blocks.0.weight": "master", "blocks.0.bias": "kahan",
        "blocks.1.weight": "stochastic", "blocks.1.bias": "kahan",
    }  # fmt: skip


def test_a_tied_parameter_takes_one_storage() -> None:
    both = kept({"match": "*", "kind": "nearest", "format": "e5m2"})
    assert both["embed.weight"] == "nearest"
    with pytest.raises(LocatedError, match=r"embed\.weight and head\.weight are one tied parameter") as caught:
        kept({"match": "head.weight", "kind": "nearest", "format": "e5m2"})
    assert caught.value.location[0] == "storage"
    with pytest.raises(LocatedError, match="tied"):
        kept(
            {"match": "head.weight", "kind": "nearest", "format": "e5m2"},
            {"match": "*", "kind": "nearest", "format": "e3m4"},
        )


def test_a_rule_that_decides_nothing_is_an_error_with_its_place() -> None:
    with pytest.raises(LocatedError, match=r"'block\.\*' decides no parameter") as caught:
        kept({"match": "*.bias", "kind": "master"}, {"match": "block.*", "kind": "nearest", "format": "e5m2"})
    assert caught.value.location == ("storage", 1, "match")


def test_what_does_not_go_together_names_group_and_first_parameter() -> None:
    spec = OptimizerSpec.of({"kind": "sgd", "momentum": 0.0})
    groups = parameter_groups(Tied(), spec, rules({"match": "blocks.*.weight", "kind": "eco", "format": "e5m2"}))
    with pytest.raises(ValueError, match=r"SGD, group 1 \(blocks\.0\.weight, \.\.\.\): storage eco puts its errors"):
        spec.build(groups)


def test_nothing_is_changed_when_a_later_group_is_refused() -> None:
    p, q = nn.Parameter(torch.tensor([0.123])), nn.Parameter(torch.tensor([0.123]))
    spec = OptimizerSpec.of({"kind": "sgd", "momentum": 0.0})
    groups = [
        {"params": [q], "storage": {"kind": "eco", "format": "e5m2"}},
        {"params": [p], "storage": {"kind": "nearest", "format": "e5m2"}},
    ]
    with pytest.raises(ValueError, match="group 0"):
        spec.build(groups)
    assert float(p.detach()) == float(q.detach()) == float(torch.tensor(0.123))
