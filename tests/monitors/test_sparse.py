"""Every monitor on a model whose embedding has sparse gradients: what it says is what it says of the dense one."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import altgrad
from altgrad.monitors import MonitorSpec

POLICY = altgrad.PrecisionPolicy.uniform(weight="e4m3fn", input="e4m3fn", grad_output="e5m2")


def metrics(kind: str, *, sparse: bool) -> dict[str, float]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(50, 8, sparse=sparse), nn.Linear(8, 4))
    altgrad.quantize_model(net, POLICY)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    tokens = torch.randint(50, (6, 6))

    def losses() -> Iterator[Tensor]:
        return (net(row).square().mean() for row in tokens)

    watch = altgrad.watch(net, optimizer, [{"kind": kind, "every": 1}], replay=losses)
    for _ in range(2):
        optimizer.zero_grad()
        for row in tokens:
            with watch.micro_batch():
                net(row).square().mean().backward()
        optimizer.step()
        altgrad.commit(net)
    assert net[0].weight.grad is not None and net[0].weight.grad.is_sparse == sparse
    return watch.metrics


@pytest.mark.parametrize("kind", list(MonitorSpec.kinds()))
def test_a_sparse_gradient_is_looked_at_as_the_dense_one(kind: str) -> None:
    dense, sparse = metrics(kind, sparse=False), metrics(kind, sparse=True)
    assert dense.keys() == sparse.keys()
    for key, value in dense.items():
        assert sparse[key] == pytest.approx(value, rel=1e-3, abs=1e-6, nan_ok=True) or math.isinf(value), key
