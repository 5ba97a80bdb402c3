"""The same damage done to what others write, for comparison: PyTorch's distributed checkpoints, and Lightning's.

Nothing here is a claim about AltGrad, so nothing here can fail.
"""

import importlib
import importlib.util
import logging
import random
import warnings
from pathlib import Path
from typing import Any

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


def no_lightning() -> str | None:
    """Why Lightning cannot be measured here, if so."""
    return None if importlib.util.find_spec("pytorch_lightning") else "pytorch-lightning is not installed"


def lightning_checkpoint(seed: int, count: int, folder: Path) -> Figures:
    """The same over weights that `Trainer.save_checkpoint` wrote after a step; whether `load_from_checkpoint` tells."""
    figures, draw = Figures(seed), random.Random(seed)
    lightning: Any = importlib.import_module("pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    def start(self: Any) -> None:
        lightning.LightningModule.__init__(self)
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)))

    def step(self: Any, batch: torch.Tensor) -> Any:
        return self.layers(batch).square().mean()

    def optimizer(self: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())

    parts = {"__init__": start, "training_step": step, "configure_optimizers": optimizer}
    Model: Any = type("Model", (lightning.LightningModule,), parts)
    path = folder / "last.ckpt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(Model(), torch.utils.data.DataLoader(torch.randn(8, 64), batch_size=8))
        trainer.save_checkpoint(path, weights_only=True)
        whole = {name: tensor.clone() for name, tensor in Model.load_from_checkpoint(path).state_dict().items()}
        for damage in damages([path], count - count // 6, count // 6, draw):
            good = damage.do()
            try:
                found = Model.load_from_checkpoint(path).state_dict()
            except Exception:  # of whatever kind: it told
                figures.add("an exception")
            else:
                same = all(torch.equal(found[name], tensor) for name, tensor in whole.items())
                figures.add("loaded as it was" if same else "loaded with other weights, silently")
            damage.path.write_bytes(good)
    return figures
