"""Where a model's weights lie, and one tensor of them at a time.

MODEL is a Hugging Face folder (model.safetensors, or the shards that its index names), one .safetensors file, or a run
(its newest checkpoint). Only safetensors are read; a pickle can run code, so it is refused by name, unopened.

Listing reads headers alone. A tensor's pages are mapped from its file and count as memory for as long as the file is
open, whether or not the tensor still exists; so each tensor opens the file anew, and what is resident is one tensor.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from altgrad.quantize.packed import DTYPES, METADATA
from altgrad.store import Run

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_COMPANIONS = (".json", ".txt", ".model", ".jinja", ".md", ".yaml")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its dtype is safetensors' word for it, such as BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path

    @property
    def bytes(self) -> int:
        """Size of its elements."""
        size = DTYPES[self.dtype].itemsize
        for length in self.shape:
            size *= length
        return size

    def load(self) -> Tensor:
        """The tensor; its memory is mapped from the file and goes when the tensor goes. ValueError for damage."""
        try:
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


def find_weights(source: Path) -> Weights:
    """The weights at a path, described. ValueError, in one line, for what is no readable model; CheckpointError for a
    run of which no checkpoint verifies.
    """
    try:
        files, companions = _find(source)
        found = {file: _describe(file, is_run=Run(source).exists) for file in files}
    except (SafetensorError, json.JSONDecodeError, KeyError, AttributeError) as error:
        raise ValueError(f"{source} cannot be read: {_line(error)}.") from None
    weights = Weights(found, companions)
    names = [tensor.name for tensor in weights.tensors]
    if not names:
        raise ValueError(f"{source} holds no tensors.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{source} holds {twice} in more than one file; keep one of them.")
    return weights


def _find(source: Path) -> tuple[list[Path], dict[str, Path]]:
    if source.suffix in PICKLES:
        raise ValueError(f"{source} is a pickle, which can run code; convert it to safetensors first.")
    if source.is_file():
        return [source], {}
    if not source.is_dir():
        raise ValueError(f"{source} is not there; give a run, a Hugging Face folder or a .safetensors file.")
    if Run(source).exists:
        newest = Run(source).checkpoints.newest()
        if newest is None:
            raise ValueError(f"{source} is a run without a checkpoint; let it reach one first.")
        return [newest.file(MODEL)], {"spec.yaml": source / "spec.yaml"}
    if (source / INDEX).is_file():
        return _shards(source), _companions(source)
    if (source / MODEL).is_file():
        return [source / MODEL], _companions(source)
    pickles = sorted(path.name for path in source.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise ValueError(f"{source} holds only pickles ({pickles[0]}), which can run code; convert it to safetensors.")
    raise ValueError(f"{source} holds no {MODEL}; give a run, a Hugging Face folder or a .safetensors file.")


def _shards(folder: Path) -> list[Path]:
    try:
        places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        names = sorted({Path(name).as_posix() for name in places.values()})
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{folder / INDEX} maps no weights to files; fetch it again.") from None
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{folder / INDEX} names {name}, which is not in its folder.")
        if not (folder / name).is_file():
            raise ValueError(f"{folder / INDEX} names {name}, which is not there; fetch the missing shard.")
    return [folder / name for name in names]


def _companions(folder: Path) -> dict[str, Path]:
    """Files of the folder and of the folders in it that hold settings and words, not weights."""
    found = [path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file()]
    named = {path.relative_to(folder).as_posix(): path for path in sorted(found)}
    return {
        name: path
        for name, path in named.items()
        if path.suffix in _COMPANIONS and not name.startswith(".") and not name.endswith(".index.json")
    }


def _describe(file: Path, *, is_run: bool) -> tuple[StoredTensor, ...]:
    with safe_open(file, framework="pt") as opened:
        if METADATA in (opened.metadata() or {}):
            raise ValueError(f"{file} is quantised already; quantise the model it was made from.")
        found = []
        for name in sorted(opened.keys()):
            if is_run and ".casts." in name:
                continue  # amax histories and counters: the state of a training, not of a model
            entry = opened.get_slice(name)
            if entry.get_dtype() not in DTYPES:
                raise ValueError(f"{name} in {file} is {entry.get_dtype()}, which AltGrad cannot read.")
            found.append(StoredTensor(name, entry.get_dtype(), tuple(entry.get_shape()), file))
    return tuple(found)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
