"""A plain safetensors file, written a piece at a time: all that other libraries read, and nothing of ours in it.

Writing is ours, because safetensors' own writer wants every tensor in memory. Names, dtypes and shapes are known before
the first piece, so the header is written first and is final.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from altgrad.quantize.packed import NAMES

__all__ = ["TensorFile", "size_of"]

Planned = Mapping[str, tuple[torch.dtype, list[int]]]


def size_of(dtype: torch.dtype, shape: list[int]) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * dtype.itemsize


class TensorFile:
    """A new file with these tensors, filled in their order; a context that removes it again if its block fails.

    FileExistsError where there is a file, OSError for the disk.
    """

    def __init__(self, path: Path, tensors: Planned) -> None:
        self._path, end = path, 0
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        for name, (dtype, shape) in tensors.items():
            header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [end, end + size_of(dtype, shape)]}
            end += size_of(dtype, shape)
        text = json.dumps(header).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        self._left = end
        self._file = path.open("xb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                assert self._left == 0, f"{self._left} bytes of {self._path.name} were not written"
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
            if kind is not None:
                self._path.unlink(missing_ok=True)

    def write(self, piece: Tensor) -> None:
        """The next elements, in row-major order."""
        data = piece.contiguous().flatten().view(torch.uint8).cpu()
        self._file.write(data.numpy().data)
        self._left -= data.numel()
