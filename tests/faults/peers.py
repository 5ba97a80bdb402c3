"""The same damage done to what others write, for comparison: PyTorch's distributed checkpoints, in one process.

Nothing here is a claim about AltGrad, so nothing here can fail.
"""

import random
from pathlib import Path

import torch
from torch.distributed import checkpoint as dcp

from tests.faults.campaign import Figures, damages


def distributed_checkpoint(seed: int, count: int, folder: Path) -> Figures:
    """Five flips to one truncation over a DCP checkpoint of a small model; whether a load tells."""
    figures, draw = Figures(seed), random.Random(seed)
    torch.manual_seed(0)
    state = {f"layer{n}": torch.randn(64, 64) for n in range(4)}
    dcp.save(state, checkpoint_id=folder / "dcp", no_dist=True)
    files = sorted(path for path in (folder / "dcp").iterdir() if path.is_file())
    for damage in damages(files, count - count // 6, count // 6, draw):
        good = damage.do()
        found = {name: torch.zeros(64, 64) for name in state}
        try:
            dcp.load(found, checkpoint_id=folder / "dcp", no_dist=True)
        except BaseException as error:  # its own are no Exceptions; of whatever kind: it told
            if isinstance(error, KeyboardInterrupt):
                raise
            figures.add("an exception")
        else:
            same = all(torch.equal(found[name], state[name]) for name in state)
            figures.add("loaded as it was" if same else "loaded with other weights, silently")
        damage.path.write_bytes(good)
    return figures
