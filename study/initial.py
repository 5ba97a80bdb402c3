"""First weights of spread.yaml: the seed's own, rescaled so that tensors differ in size and the function does not.

    attention.qkv x 4 and norm1 / 4;  mlp.up / 4 and norm2 x 4

A norm's weight multiplies what its linear layer takes in, so powers of two cancel to the last bit.
"""

import torch
from safetensors.torch import save_file

from altgrad.training import RunSpec
from altgrad.training.state import build_model
from study.row import VOCABULARY

FACTORS = {"attention.qkv.weight": 4.0, "norm1.weight": 0.25, "mlp.up.weight": 0.25, "norm2.weight": 4.0}


def spread(spec: RunSpec) -> dict[str, torch.Tensor]:
    """Every parameter of the run's model as it is to start."""
    torch.manual_seed(spec.seed)
    model = build_model(spec, VOCABULARY, VOCABULARY)
    found = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, p in found.items():
        for ending, factor in FACTORS.items():
            if name.endswith(ending):
                p.mul_(factor)
    return found


def write(spec: RunSpec, path: str) -> None:
    """Put them into a file, for `init_from`."""
    save_file(spread(spec), path)
