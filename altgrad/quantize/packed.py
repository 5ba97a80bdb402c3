"""Quantised tensors in a safetensors file, written a piece at a time, and read back to exactly the values of the cast.

    <name>          the codes: torch's own dtype of the format where there is one, else uint8 or uint16
    <name>.scale    float32, if the cast had a scale:  value = code's value * scale
    metadata        "altgrad": JSON {version, sha256, policy, tensors: {name: {cast, dtype, scale, block}}}

A scale broadcasts against its tensor once each of its entries has been repeated `block` times along each axis (and cut
to the tensor, where the last block is ragged). So one layout serves a scale for the tensor, for each channel, for rows
of 32 and for squares. Tensors that were not cast are byte for
byte what they were, so any reader of safetensors sees an ordinary file.

Writing is ours, because safetensors' own writer wants every tensor in memory. The header comes first in the file but is
known last; it is given room enough for the largest it can become and padded with blanks, as the format allows.

safetensors has no checksum, and a flipped bit would be another weight. `sha256` is that of the tensors' bytes followed
by the header's, padding included, with 64 zeros in its own place.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from altgrad.formats import parse_format
from altgrad.quantize.block_scale import SmallScale
from altgrad.quantize.checkpoint_config import layouts_in, quantization_config
from altgrad.quantize.checkpoint_weights import quantised_weights
from altgrad.quantize.codes import from_codes, from_storage, storage_dtype
from altgrad.quantize.quantizer import QuantizerSpec
from altgrad.quantize.weight_folder import WeightFolder, tensors_in, tensors_to_read, weight_folder

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip
"""safetensors' names of dtypes."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA, VERSION, SCALE = "altgrad", 2, ".scale"
_UNKNOWN = "0" * 64
"""What stands for a checksum while it is being made."""
_BLOCK = 1 << 20


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor that a file will hold: its name, dtype (safetensors' word) and shape, and its cast if it has one."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    cast: QuantizerSpec | None = None

    @property
    def stored(self) -> torch.dtype:
        """What its elements are stored as."""
        return DTYPES[self.dtype] if self.cast is None else storage_dtype(self.cast.format)

    @property
    def rows(self) -> tuple[int, ...]:
        """Its shape as it is cast: a vector as one row."""
        return (1, *self.shape) if len(self.shape) == 1 else self.shape

    @property
    def scale(self) -> str:
        """The name of its scale."""
        return self.name + SCALE


class PackedWriter:
    """One safetensors file, filled from front to back; a context that removes the file again if its block fails.

    `begin` a planned tensor, `write` its elements in as many pieces as is convenient, give its `scale` if it has one,
    and at last `finish`. FileExistsError where there is a file; ValueError if two tensors would have one name.
    """

    def __init__(self, path: Path, tensors: Sequence[PlannedTensor], policy: Mapping[str, Any]) -> None:
        self._path, self._tensors, self._policy = path, {tensor.name: tensor for tensor in tensors}, policy
        for tensor in tensors:
            if tensor.cast is not None and not tensor.cast.scaling.is_plain:
                raise ValueError(
                    f"{tensor.name}: a file holds codes and scales, and under scaling: {tensor.cast.scaling.kind} with "
                    f"arithmetic: {tensor.cast.scaling.tree()['arithmetic']} values are not their product; use "
                    "arithmetic: encode."
                )
            if tensor.cast is not None and tensor.scale in self._tensors:
                raise ValueError(
                    f"{tensor.scale} is a tensor of the model, and the name of the scale of {tensor.name}."
                )
        self._entries: dict[str, dict[str, Any]] = {}
        self._blocks: dict[str, tuple[int, ...]] = {}
        self._written = 0
        self._sum = hashlib.sha256()
        self._room = -(-len(self._largest_header()) // 8) * 8
        self._file = path.open("xb")
        self._file.write(bytes(8 + self._room))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is not None:
            self._path.unlink(missing_ok=True)

    @property
    def names(self) -> list[str]:
        """The tensors written so far, scales among them."""
        return list(self._entries)

    def begin(self, name: str) -> None:
        """The next `write` has the first elements of this planned tensor."""
        tensor = self._tensors[name]
        self._enter(name, NAMES[tensor.stored], tensor.shape, math.prod(tensor.shape) * tensor.stored.itemsize)

    def write(self, piece: Tensor) -> None:
        """The next elements of the tensor begun last, in row-major order; any shape, the dtype that was planned."""
        data = piece.contiguous().flatten().view(torch.uint8).cpu()
        self._file.write(data.numpy().data)
        self._sum.update(data.numpy().data)
        self._written += data.numel()

    def scale(self, name: str, scale: SmallScale) -> None:
        """The scale of a planned tensor."""
        self._blocks[name] = scale.block
        self._enter(self._tensors[name].scale, "F32", tuple(scale.entries.shape), scale.entries.numel() * 4)
        self.write(scale.entries)

    def finish(self) -> int:
        """Write the header and put everything on disk. Returns the number of bytes of tensors."""
        assert self._entries.keys() >= self._tensors.keys()
        header = self._header(self._entries, self._blocks).ljust(self._room)
        assert len(header) == self._room and self._written == self._end
        self._sum.update(header)
        header = header.replace(_UNKNOWN.encode(), self._sum.hexdigest().encode(), 1)
        self._file.seek(0)
        self._file.write(struct.pack("<Q", self._room) + header)
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._written

    @property
    def _end(self) -> int:
        return max((entry["data_offsets"][1] for entry in self._entries.values()), default=0)

    def _enter(self, name: str, dtype: str, shape: tuple[int, ...], size: int) -> None:
        assert self._written == self._end, "the tensor before is not complete"
        assert name not in self._entries
        offsets = [self._written, self._written + size]
        self._entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}

    def _header(self, entries: Mapping[str, Any], blocks: Mapping[str, Sequence[int]]) -> bytes:
        layouts = {
            tensor.name: {"cast": tensor.cast.tree(), "dtype": tensor.dtype, "block": blocks.get(tensor.name)}
            for tensor in self._tensors.values()
            if tensor.cast is not None
        }
        ours = {"version": VERSION, "sha256": _UNKNOWN, "policy": self._policy, "tensors": layouts}
        # "format" is what transformers looks for before it reads a file.
        return json.dumps({"__metadata__": {"format": "pt", METADATA: json.dumps(ours)}, **entries}).encode()

    def _largest_header(self) -> bytes:
        far, tensors = 10**18, self._tensors.values()
        sizes = {name: list(t.rows) for t in tensors for name in ((t.name, t.scale) if t.cast else (t.name,))}
        longest = max(NAMES.values(), key=len)
        entries = {
            name: {"dtype": longest, "shape": shape, "data_offsets": [far, far]} for name, shape in sizes.items()
        }
        return self._header(entries, {t.name: t.rows for t in tensors})


def load_quantized(path: str | Path) -> dict[str, Tensor]:
    """Every tensor, by name, of a quantised folder or file.

    path: what `altgrad quantize-model --out` wrote, a folder or one of its files; or a folder in compressed-tensors' or
    transformers' FP8 layout, as `altgrad export --to` writes it and others do.

    A tensor that was cast comes as float32 and has, bit for bit, the values that the cast gave; the others come as they
    were. Every byte of our own files is read once more for its checksum. ValueError, in one line, for a path without
    such files, for files that are damaged, and for layouts that are not read, by their name.
    """
    source = Path(path)
    if not source.is_dir() and not source.is_file():
        raise ValueError(f"{source} is not there; give what `altgrad quantize-model --out` wrote.")
    if source.is_dir() and not any(source.rglob("*.safetensors")):
        raise ValueError(f"{source} holds no .safetensors file; give what `altgrad quantize-model --out` wrote.")
    folder = weight_folder(source) if source.is_dir() else WeightFolder((source,))
    config = quantization_config(source) if source.is_dir() else None
    if config is not None:
        return _load_checkpoint(folder, source, config)
    return {name: tensor for file in folder.files for name, tensor in _load(folder, file).items()}


def _load_checkpoint(folder: WeightFolder, source: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a folder in the layout that its config announces."""
    try:
        there = tensors_in(folder)
        weights, taken = quantised_weights(layouts_in(config), there)
        found = {name: weight.values() for name, weight in weights.items()}
        for name in there.keys() - taken:
            with safe_open(there[name][2], framework="pt") as opened:
                found[name] = opened.get_tensor(name)
        return dict(sorted(found.items()))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{source} cannot be read: {str(error).splitlines()[0]}") from None


def layouts(metadata: Mapping[str, str] | None) -> dict[str, dict[str, Any]] | None:
    """How each cast tensor of a file is kept, from the file's metadata; None if quantize-model did not write it."""
    if not metadata or METADATA not in metadata:
        return None
    ours = json.loads(metadata[METADATA])
    if ours["version"] != VERSION:
        raise ValueError(f"its layout has version {ours['version']}; this AltGrad reads version {VERSION}.")
    if not isinstance(ours["tensors"], dict):
        raise ValueError("its layout is damaged.")
    return ours["tensors"]


def _load(folder: WeightFolder, file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            found = layouts(opened.metadata())
            if found is None:
                raise ValueError("it was not written by `altgrad quantize-model`.")
            _verify(file, str(json.loads(opened.metadata()[METADATA])["sha256"]))
            names = set(tensors_to_read(folder, file, opened.keys()))
            found = {name: layout for name, layout in found.items() if folder.index is None or name in names}
            scales = {name + SCALE for name in found} & names
            return {
                name: _values(opened, name, found[name], scales) if name in found else opened.get_tensor(name)
                for name in sorted(names - scales | found.keys())
            }
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None


def _verify(file: Path, told: str) -> None:
    """ValueError unless the bytes of the file are those that the checksum was made of."""
    found = hashlib.sha256()
    with file.open("rb") as bytes_:
        (size,) = struct.unpack("<Q", bytes_.read(8))
        header = bytes_.read(size)
        while block := bytes_.read(_BLOCK):
            found.update(block)
    found.update(header.replace(told.encode(), _UNKNOWN.encode(), 1))
    if found.hexdigest() != told:
        raise ValueError("its bytes are not those that were written (sha256); make it again.")


def _values(opened: Any, name: str, layout: Mapping[str, Any], scales: set[str]) -> Tensor:
    fmt = parse_format(layout["cast"]["format"])
    values = from_codes(from_storage(opened.get_tensor(name), fmt), fmt)
    if layout["block"] is None:
        return values
    scale = SmallScale(opened.get_tensor(name + SCALE), tuple(layout["block"]))
    rows = values[None] if values.ndim == 1 else values
    return (rows * scale.spread(tuple(rows.shape))).view(values.shape)
