"""init_from: the weights a run starts with, taken from another run, a Hugging Face folder or a safetensors file.

Every parameter of the model must be there with its shape, and nothing may be left over: a model that was initialised in
part looks like a bad format.

And what those weights have read before: the data of the runs that `init_from` leads back to. Acts of the European Union
quote and amend one another, and collections of them overlap. A model trained on other EU acts may know the packaged
sample's validation text by heart, and its numbers there would say nothing. Whether a collection holds such text cannot
be told from its name; so every other source is named, and people decide.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from altgrad.data.documents import SAMPLE
from altgrad.data.hub import Hub
from altgrad.models.model import ModelSpec
from altgrad.models.weights import is_padding
from altgrad.spec import SpecError
from altgrad.spec.package_path import tokenizer_ids
from altgrad.store import CheckpointError, Run
from altgrad.training.run import RunSpec
from altgrad.training.weights import find_weights

ROWS_OF_IDS = {"embed.weight", "head.weight"}
"""Parameters of our decoder that have a row for every id of the vocabulary."""


def read_weights(source: str) -> dict[str, Tensor]:
    """Every tensor of a run's newest checkpoint, of a Hugging Face folder (one in compressed-tensors' or transformers'
    FP8 layout as values), or of one .safetensors file.

    Raises ValueError, in one line, for anything else and for damaged files.
    """
    try:
        return {tensor.name: tensor.load() for tensor in find_weights(Path(source), quantised=True).tensors}
    except (ValueError, OSError, CheckpointError) as error:
        raise ValueError(f"init_from {error}") from None


def fitting_weights(model: nn.Module, spec: ModelSpec, source: str) -> dict[str, Tensor]:
    """A tensor for every parameter of the model, which may be on the meta device; ValueError if they do not fit.

    The state of a run's quantizers is left behind: the new run's scales begin anew. A learned table of positions longer
    than the model's context is cut to it, and so are rows of a vocabulary that only pad it (GPT-2 is often kept with
    50304 for its 50257 ids): nothing looks them up, and no loss counts their logits.
    """
    read = read_weights(source)
    adopted = spec.adopt(read)
    tensors = {name: t for name, t in adopted.items() if ".casts." not in name}
    parameters = dict(model.named_parameters())
    for name in parameters.keys() & tensors.keys():
        if name == "positions.weight" and len(tensors[name]) > spec.context:
            tensors[name] = tensors[name][: spec.context]
    if spec.answers == "token" and adopted is not read:
        own = tokenizer_ids(Path(source))
        for name in ROWS_OF_IDS & parameters.keys() & tensors.keys():
            rows, ids = len(tensors[name]), len(parameters[name])
            if rows > ids and is_padding(rows, ids, own):
                tensors[name] = tensors[name][:ids]
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


def earlier_sources(init_from: str | None) -> list[str]:
    """The data sources of the run that `init_from` names, of the run that one began with, and so on; newest first.

    Empty for folders and files that are no run, of which nothing is known.
    """
    found: list[str] = []
    seen: set[Path] = set()
    while init_from is not None and Run(Path(init_from)).exists and Path(init_from).resolve() not in seen:
        seen.add(Path(init_from).resolve())
        try:
            spec = RunSpec.parse(Run(Path(init_from)).spec_text())
        except (SpecError, ValueError):
            break
        found.append(source_of(spec))
        init_from = spec.init_from
    return found


def source_of(spec: RunSpec) -> str:
    """What a run reads, in words; empty for data without a source."""
    source = getattr(spec.data, "source", "")
    return source.name if isinstance(source, Hub) else str(source)


def leak_warning(spec: RunSpec) -> str | None:
    """Why numbers on the packaged sample may mean nothing, if the weights have read anything else before; else None."""
    others = list(dict.fromkeys(source for source in earlier_sources(spec.init_from) if source not in ("", SAMPLE)))
    if source_of(spec) != SAMPLE or not others:
        return None
    return (
        f"the weights were trained on {', '.join(others)} before; if EU acts are among that, the validation text of "
        f"{SAMPLE} may be too, and numbers on it mean nothing. Judge this model on data it has not read."
    )
