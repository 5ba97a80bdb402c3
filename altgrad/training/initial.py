"""init_from: the weights a run starts with, taken from another run, a Hugging Face folder or a safetensors file.

Only safetensors are read: a pickle can run code, so `.pt` and `.bin` files are refused by name. Every parameter of the
model must be there with its shape, and nothing may be left over; a partly initialised model looks like a bad format.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from altgrad.models.model import ModelSpec
from altgrad.store import CheckpointError, Run

INDEX = "model.safetensors.index.json"


def read_weights(source: str) -> dict[str, Tensor]:
    """Every tensor of a run's newest checkpoint, of a folder with model.safetensors (or its index), or of one file.

    Raises ValueError, in one line, for anything else and for damaged files.
    """
    path = Path(source)
    try:
        return _read(path)
    except (SafetensorError, CheckpointError, json.JSONDecodeError, KeyError, OSError) as error:
        raise ValueError(f"init_from {source} cannot be read: {str(error).splitlines()[0]}.") from None


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        raise ValueError(f"init_from {path} is a pickle, which can run code; convert it to safetensors first.")
    if path.is_file():
        return load_file(path)
    if Run(path).exists:
        newest = Run(path).checkpoints.newest()
        if newest is None:
            raise ValueError(f"init_from {path} is a run without a checkpoint; let it reach one first.")
        return load_file(newest.file("model.safetensors"))
    if (path / INDEX).is_file():
        names = set(json.loads((path / INDEX).read_text())["weight_map"].values())
        if any(Path(name).name != name for name in names):
            raise ValueError(f"init_from {path / INDEX} names files outside its folder.")
        return {key: tensor for name in sorted(names) for key, tensor in load_file(path / name).items()}
    if (path / "model.safetensors").is_file():
        return load_file(path / "model.safetensors")
    what = "holds no model.safetensors" if path.is_dir() else "is not there"
    raise ValueError(f"init_from {path} {what}; give a run, a Hugging Face folder or a .safetensors file.")


def fitting_weights(model: nn.Module, spec: ModelSpec, source: str) -> dict[str, Tensor]:
    """A tensor for every parameter of the model, which may be on the meta device; ValueError if they do not fit.

    The state of a run's quantizers is left behind: the new run's scales begin anew. A learned table of positions longer
    than the model's context is cut to it.
    """
    tensors = {name: t for name, t in spec.adopt(read_weights(source)).items() if ".casts." not in name}
    parameters = dict(model.named_parameters())
    for name in parameters.keys() & tensors.keys():
        if name == "positions.weight" and len(tensors[name]) > spec.context:
            tensors[name] = tensors[name][: spec.context]
    _check(parameters, tensors, source)
    return tensors


@torch.no_grad()
def initialise(model: nn.Module, spec: ModelSpec, source: str) -> None:
    """Copy the weights of `source` into the model; ValueError, before any is copied, if they do not fit."""
    tensors = fitting_weights(model, spec, source)
    for name, p in model.named_parameters():
        p.copy_(tensors[name])


def _check(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    if missing := sorted(parameters.keys() - tensors.keys()):
        raise ValueError(
            f"init_from {source} lacks {len(missing)} of {len(parameters)} parameters, first {missing[0]}."
        )
    if unknown := sorted(tensors.keys() - parameters.keys()):
        raise ValueError(f"init_from {source} has {len(unknown)} tensors this model lacks, first {unknown[0]}.")
    for name, p in parameters.items():
        if p.shape != tensors[name].shape:
            raise ValueError(
                f"init_from {source}: {name} is {list(tensors[name].shape)}, the model's is {list(p.shape)}; "
                "change the model's sizes."
            )
