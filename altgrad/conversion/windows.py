"""Documents as windows of tokens, and what was made of them, kept: what evaluations under casts have in common.

Documents form one stream of tokens, a separator before each, cut into windows of `context` tokens that begin without
context; the last batch is filled from the beginning of the stream and what fills it counts nowhere (as in
`altgrad.data.text`). A scale for the tensor is one for a batch.

What was made of a batch is kept under a hash of all that decides it, so that a command goes on where it was stopped.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from altgrad.conversion.language_model import LanguageModel
from altgrad.data.tokens import cache_folder
from altgrad.store.files import Appender, read_jsonl

__all__ = ["KeptSums", "Settings", "Sums", "Windows", "kept_at"]

Sums: TypeAlias = NDArray[np.float64]
"""By document: some sums over its tokens."""


@dataclass(frozen=True)
class Settings:
    """What is evaluated: documents of a split up to `size` bytes (None: all), in windows of `context` tokens."""

    split: str = "test"
    size: int | None = 1 << 16
    context: int = 512
    batch_size: int = 8


class Windows:
    """The documents as windows: which document each target belongs to, -1 for what counts nowhere."""

    def __init__(self, documents: Sequence[NDArray[Any]], separator: int, settings: Settings) -> None:
        ring = np.concatenate([np.concatenate([[separator], ids]) for ids in documents]).astype(np.int64)
        owner = np.repeat(np.arange(len(documents)), [len(ids) + 1 for ids in documents])
        shape = settings.batch_size, settings.context
        self.documents, self.tokens = len(documents), len(ring)
        self.batches = -(-len(ring) // (shape[0] * shape[1]))
        places = np.arange(self.batches * shape[0] * shape[1])
        following = (places + 1) % len(ring)
        # The separator that follows a document is told by it: its end.
        counted = np.where(places < len(ring), owner[places % len(ring)], -1)
        self._parts = tuple(
            torch.from_numpy(np.ascontiguousarray(each)).view(self.batches, *shape)
            for each in (ring[places % len(ring)], ring[following], counted)
        )

    def batch(self, number: int, device: torch.device | str) -> list[Tensor]:
        """Inputs, targets and the document of each target, `[batch_size, context]` each."""
        return [part[number].to(device) for part in self._parts]


def kept_at(folder: str, model: LanguageModel, texts: Sequence[str], settings: Settings) -> Path:
    """Where what was done is kept: a name made of everything that decides it but the casts."""
    decides = json.dumps([model.identity, list(texts), settings.context, settings.batch_size, torch.__version__])
    return cache_folder() / folder / f"{hashlib.sha256(decides.encode()).hexdigest()}.jsonl"


class KeptSums:
    """What arms made of batches, in a file of lines, floats to the last bit; a torn last one is none.

    rows: by the arm's key and the batch, its sums and whatever else was said of it.
    """

    def __init__(self, path: Path, documents: int) -> None:
        self.path = path
        self.rows: dict[tuple[str, int], tuple[Sums, Mapping[str, Any]]] = {}
        for row in read_jsonl(path):
            columns = max((len(numbers) for numbers in row["sums"].values()), default=0)
            sums = np.zeros((documents, columns))
            for document, numbers in row["sums"].items():
                sums[int(document)] = [float.fromhex(number) for number in numbers]
            more = {key: value for key, value in row.items() if key not in ("arm", "batch", "sums")}
            self.rows[row["arm"], row["batch"]] = sums, more

    def add(self, arm: str, batch: int, sums: Sums, **more: Any) -> None:
        """Keep a row, at once. ValueError where it cannot be written."""
        self.rows[arm, batch] = sums, more
        own = {str(document): [float(x).hex() for x in sums[document]] for document in np.flatnonzero(sums.any(1))}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            log = Appender(self.path)
            log.append({"arm": arm, "batch": batch, "sums": own, **more})
            log.close()
        except OSError as error:
            raise ValueError(
                f"{self.path}: {error.strerror or error}; set ALTGRAD_CACHE to a folder with space."
            ) from None
