"""Where a model's weights lie, in files or in memory, and one tensor of them at a time.

MODEL is a Hugging Face folder (model.safetensors, a variant, or the shards that its index names: which, says
`altgrad.quantize.weight_folder`), one .safetensors file, or a run (its newest checkpoint). Only safetensors are read; a
pickle can run code, so it is refused by name, unopened.

Listing reads headers alone. A tensor's pages are mapped from its file and count as memory for as long as the file is
open, whether or not the tensor still exists; so each tensor opens the file anew, and what is resident is one tensor.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from altgrad.quantize.checkpoint_config import layouts_in, quantization_config
from altgrad.quantize.checkpoint_weights import QuantisedWeight, quantised_weights
from altgrad.quantize.packed import DTYPES, METADATA, NAMES
from altgrad.quantize.weight_folder import INDEX, MODEL, WeightFolder, tensors_to_read, unread, weight_folder
from altgrad.spec import did_you_mean
from altgrad.store import Run

__all__ = ["INDEX", "MODEL", "StoredTensor", "Weights", "find_weights", "read_tensor", "weights_in_memory"]

_CASTS = ".casts."  # amax histories and counters: the state of a training, not of a model
_COMPANIONS = (".json", ".txt", ".model", ".jinja", ".md", ".yaml")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, or `tensors_to_read` in memory. Its dtype is safetensors' word for it, such as BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    held: Tensor | None = field(default=None, compare=False, repr=False)
    quantised: QuantisedWeight | None = field(default=None, compare=False, repr=False)
    """How it is kept, in a folder whose weights are quantised."""

    @property
    def elements(self) -> int:
        """How many."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size of its elements."""
        return self.elements * DTYPES[self.dtype].itemsize

    def load(self) -> Tensor:
        """The tensor; its memory is mapped from the file and goes when the tensor goes. ValueError for damage."""
        if self.held is not None:
            return self.held.cpu()
        try:
            if self.quantised is not None:
                return self.quantised.values()
            with safe_open(self.file, framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(self.name)
                return tensor
        except SafetensorError as error:
            raise ValueError(f"{self.file} cannot be read: {_line(error)}.") from None


@dataclass(frozen=True)
class Weights:
    """The files of a model with the tensors in each, in the order of their names, and what else belongs to the model.

    companions: files without weights (config, tokenizer), by their path below the folder.
    """

    files: dict[Path, tuple[StoredTensor, ...]]
    companions: dict[str, Path]

    @property
    def tensors(self) -> list[StoredTensor]:
        """All of them."""
        return [tensor for tensors in self.files.values() for tensor in tensors]


def find_weights(source: Path, *, quantised: bool = False) -> Weights:
    """The weights at a path, described. ValueError, in one line, for what is no readable model; CheckpointError for a
    run of which no checkpoint verifies.

    quantised: a folder in the layout of compressed-tensors or transformers' FP8 is read, as values; else it is refused.
    """
    try:
        folder, companions = _find(source)
        found = {file: _describe(folder, file, is_run=Run(source).exists) for file in folder.files}
    except (SafetensorError, json.JSONDecodeError, KeyError, AttributeError) as error:
        raise ValueError(f"{source} cannot be read: {_line(error)}.") from None
    config = quantization_config(source) if source.is_dir() else None
    if config is not None:
        found = _dequantised(source, found, config, quantised)
    weights = Weights(found, companions)
    if not weights.tensors:
        raise ValueError(f"{source} holds no tensors.")
    return weights


def read_tensor(source: Path | str, name: str) -> Tensor:
    """One tensor of a model, in a float dtype of at most 32 bits. ValueError for a name that it does not have, and for
    integers and float64, which no cast takes.
    """
    tensors = {tensor.name: tensor for tensor in find_weights(Path(source)).tensors}
    if name not in tensors:
        hint = did_you_mean(name, list(tensors)) or f" It has {', '.join(list(tensors)[:8])}."
        raise ValueError(f"{source} has no tensor '{name}'.{hint}")
    tensor = tensors[name].load()
    if not tensor.is_floating_point() or tensor.dtype.itemsize > 4:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"'{name}' is {kind}; casts take float32, bfloat16, float16 and narrower floats.")
    return tensor if tensor.dtype.itemsize > 1 else tensor.float()


def weights_in_memory(model: nn.Module) -> Weights:
    """The weights of a model, described as if in one file. ValueError for tensors that no file could hold."""
    tensors = []
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor) or _CASTS in name:
            continue
        if tensor.is_meta or tensor.dtype not in NAMES:
            what = "on the meta device" if tensor.is_meta else str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{name} is {what}, which safetensors cannot hold; give a model whose weights are there.")
        tensors.append(StoredTensor(name, NAMES[tensor.dtype], tuple(tensor.shape), Path(MODEL), tensor.detach()))
    if not tensors:
        raise ValueError(f"{type(model).__name__} holds no tensors.")
    return Weights({Path(MODEL): tuple(tensors)}, {})


def _find(source: Path) -> tuple[WeightFolder, dict[str, Path]]:
    if not source.is_dir() and (why := unread(source)) is not None:
        raise ValueError(why)
    if source.is_file():
        return WeightFolder((source,)), {}
    if not source.is_dir():
        raise ValueError(f"{source} is not there; give a run, a Hugging Face folder or a .safetensors file.")
    if Run(source).exists:
        newest = Run(source).newest_checkpoint()
        return WeightFolder((newest.file(MODEL),)), {"spec.yaml": source / "spec.yaml"}
    return weight_folder(source), _companions(source)


def _dequantised(
    source: Path, found: Mapping[Path, tuple[StoredTensor, ...]], config: Mapping[str, Any], wanted: bool
) -> dict[Path, tuple[StoredTensor, ...]]:
    """The tensors of a folder whose weights are quantised, as values. ValueError if those are not wanted."""
    if not wanted:
        method = config.get("quant_method")
        raise ValueError(f"{source} is quantised already ({method}); quantise the model it was made from.")
    there = {tensor.name: (tensor.dtype, tensor.shape, file) for file, each in found.items() for tensor in each}
    try:
        weights, taken = quantised_weights(layouts_in(config), there)
    except ValueError as error:
        raise ValueError(f"{source} cannot be read: {error}") from None
    made: dict[Path, list[StoredTensor]] = {file: [] for file in found}
    for weight in weights.values():
        file = weight.files[weight.layout.elements]
        made[file].append(StoredTensor(weight.name, "F32", weight.shape, file, quantised=weight))
    for file, each in found.items():
        made[file] += [tensor for tensor in each if tensor.name not in taken]
    return {file: tuple(sorted(each, key=lambda tensor: tensor.name)) for file, each in made.items()}


def _companions(folder: Path) -> dict[str, Path]:
    """Files of the folder and of the folders in it that hold settings and words, not weights."""
    found = [path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file()]
    named = {path.relative_to(folder).as_posix(): path for path in sorted(found)}
    return {
        name: path
        for name, path in named.items()
        if path.suffix in _COMPANIONS and not name.startswith(".") and ".safetensors.index." not in name
    }


def _describe(folder: WeightFolder, file: Path, *, is_run: bool) -> tuple[StoredTensor, ...]:
    with safe_open(file, framework="pt") as opened:
        if METADATA in (opened.metadata() or {}):
            raise ValueError(f"{file} is quantised already; quantise the model it was made from.")
        found = []
        for name in tensors_to_read(folder, file, opened.keys()):
            if is_run and _CASTS in name:
                continue
            entry = opened.get_slice(name)
            if entry.get_dtype() not in DTYPES:
                raise ValueError(f"{name} in {file} is {entry.get_dtype()}, which AltGrad cannot read.")
            found.append(StoredTensor(name, entry.get_dtype(), tuple(entry.get_shape()), file))
    return tuple(found)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
