"""One of two processes under torch's DistributedDataParallel, watched. Arguments: a folder, and the number of this one.

Writes the metrics of the last step as `<number>.json`.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import altgrad
from altgrad.monitors import MonitorSpec


def train(number: int) -> dict[str, float]:
    """Three steps of two micro-batches, on data of this process."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    altgrad.quantize_model(net, altgrad.PrecisionPolicy.uniform(weight="e4m3fn", input="e4m3fn", grad_output="e5m2"))
    parallel = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    batches = torch.randn(3, 2, 16, 8, generator=torch.Generator().manual_seed(number))
    step = 0

    def loss(micro: int) -> Tensor:
        found: Tensor = parallel(batches[step, micro]).square().mean() / 2
        return found

    kinds = [{"kind": kind, "every": 1} for kind in MonitorSpec.kinds()]
    watch = altgrad.watch(net, optimizer, kinds, replay=lambda: (loss(micro) for micro in range(2)))
    while step < 3:
        optimizer.zero_grad()
        with parallel.no_sync():
            loss(0).backward()  # type: ignore[no-untyped-call]
        loss(1).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        altgrad.commit(net)
        step += 1
    return watch.metrics


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder}/met", rank=rank, world_size=2)
    (folder / f"{rank}.json").write_text(json.dumps(train(rank)))
    dist.destroy_process_group()
