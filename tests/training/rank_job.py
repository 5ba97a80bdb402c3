"""One rank, started as by torchrun: trains each case with all ranks.

Arguments: a folder and {name: [sets, stop]}, with `shard` as a third where the model is to be shared out.
"""

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch.distributed as dist

from altgrad.store import RunStore
from altgrad.training import RunSpec, train_run

TINY = """
project: ranks
model: {kind: gpt, layers: 1, width: 16, heads: 2, context: 16, dropout: 0.1}
data: {kind: text, batch_size: 2}
optimizer: {kind: adamw, lr: 3e-3, weight_decay: 0.1}
schedule: {kind: wsd, warmup: 2}
steps: 20
accumulate: 2
threads: 1
engine: eager
evaluate_every: 1000
checkpoint_every: 1000
monitors: []
"""
DATA: dict[str, Any] = {}


def run_case(folder: Path, name: str, sets: list[str], stop: int | None, *, shard: bool = False) -> None:
    """Train (or go on with) one run; `stop` ends this sitting after so many steps."""
    spec = RunSpec.parse(TINY, name, sets)
    kind = str((spec.data.tree(), spec.seed, spec.model.context))
    if kind not in DATA:
        found: Any = spec.data.build(spec.seed, spec.model.context)
        whole = found.evaluation
        found.evaluation = lambda split: islice(whole(split), 1)
        DATA[kind] = found
    run = RunStore(folder).run(spec.project, name)
    first = not dist.is_initialized() or dist.get_rank() == 0
    if first and not run.exists:
        run.create(spec.to_yaml(), {"steps": spec.steps})
    # Asked once in the evaluation before training and once before each step; by the last rank alone.
    last = not dist.is_initialized() or dist.get_rank() == dist.get_world_size() - 1
    left = iter(range(1 + (stop if stop is not None and last else 1 << 30)))
    train_run(spec, run, DATA[kind], interrupted=lambda: next(left, None) is None, shard=shard)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for case, (changes, stop_after, *how) in json.loads(sys.argv[2]).items():
        run_case(Path(sys.argv[1]), case, changes, stop_after, shard="shard" in how)
    dist.destroy_process_group()
