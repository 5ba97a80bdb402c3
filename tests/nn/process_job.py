"""One of several processes that train a quantised model by torch's DDP and FSDP2; writes what it saw to a folder."""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import altgrad
from altgrad.nn import PrecisionPolicy, commit, quantize_model, quantizers

CAST = {"format": "e4m3fn", "rounding": "stochastic", "scaling": "delayed"}
NEAREST = {"format": "e4m3fn", "scaling": "delayed"}
OUTLIERS = {"kind": "columns", "largest": 2, "record": 2, "cast": {"format": "e4m3fn"}}


def network(cast: dict[str, Any]) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(inplace=True), nn.Linear(32, 8))
    quantize_model(net, PrecisionPolicy.uniform(weight=cast, input=cast, grad_output=cast))
    return net


def batch(step: int, rank: int, size: int) -> Tensor:
    """Of the step's rows, those of this process; all of them for a size of 1."""
    rows = torch.randn(8, 8, generator=torch.Generator().manual_seed(step))
    return rows.chunk(size)[rank] if size > 1 else rows


def train(net: nn.Module, own: nn.Module, rank: int, size: int, *, again: bool = False) -> list[Tensor]:
    """Three steps; the outputs."""
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
    found = []
    for step in range(3):
        x = batch(step, rank, size)
        y = checkpoint(net, x, use_reentrant=False) if again else net(x)
        y.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        commit(own)
        found.append(y.detach())
    return found


def ddp(rank: int) -> dict[str, Any]:
    """What the same data comes to in each process, and what scales come to."""
    net = network(CAST)
    layer, ones = net[0], torch.randn(4, 8, generator=torch.Generator().manual_seed(9))
    bits = {name: layer.casts[name].values(ones, True, torch.float32) for name in ("input", "grad_output")}
    bits["weight"] = layer.casts["weight"].values(layer.weight.detach(), True, torch.float32)
    net = network(CAST)
    train(DistributedDataParallel(net), net, rank, dist.get_world_size())
    scales = {q.site: q.scaling.amax_history.clone() for q in quantizers(net)}
    weights = [p.detach().clone() for p in net.parameters()]
    chosen = {by: outlier_columns(rank, by) for by in ("norm", "amax")}
    return {"bits": bits, "scales": scales, "weights": weights, "chosen": chosen}


def outlier_columns(rank: int, by: str) -> list[Tensor]:
    """Which columns the two inputs of a network keep apart after three steps."""
    net = network({"format": "e2m1", "scaling": "mx", "outliers": OUTLIERS | {"by": by}})
    train(DistributedDataParallel(net), net, rank, dist.get_world_size())
    return [layer.casts["input"].outliers.chosen.clone() for layer in (net[0], net[2])]


def fsdp(rank: int, *, again: bool) -> dict[str, Any]:
    """FSDP2 on CPU: casts see whole weights, and nothing warns of a view."""
    net = network(NEAREST)
    for layer in (net[0], net[2]):
        fully_shard(layer)
    fully_shard(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs = train(net, net, rank, dist.get_world_size(), again=again)
    whole = [p.full_tensor().detach() for p in net.parameters()]  # type: ignore[attr-defined]
    return {"outputs": outputs, "weights": whole, "classes": [type(net[0]).__name__, type(net[2]).__name__]}


def watched(rank: int) -> dict[str, float]:
    """What monitors say of a sharded model: whole weights, and gradients of all processes."""
    net = network(NEAREST)
    for layer in (net[0], net[2]):
        fully_shard(layer)
    fully_shard(net)
    optimizer, x = torch.optim.SGD(net.parameters(), lr=0.1), batch(0, rank, dist.get_world_size())
    kinds = [{"kind": kind, "every": 1} for kind in ("range", "shadow", "gradient", "updates", "stall")]
    watch = altgrad.watch(net, optimizer, kinds, replay=lambda: net(x).square().mean())
    net(x).square().mean().backward()
    optimizer.step()
    commit(net)
    return watch.metrics


if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {"ddp": ddp(rank), "fsdp": fsdp(rank, again=False), "checkpointed": fsdp(rank, again=True)}
    found["watched"] = watched(rank)
    torch.save(found, Path(sys.argv[1]) / f"{rank}.pt")
    dist.destroy_process_group()
