"""The family of data sets: batches by number, so that the step is the whole cursor.

    batch(index) = f(seed, index)          index = step * accumulate + micro-batch

Nothing is consumed, so there is no iterator whose position must be saved: a run resumed at step s asks for the same
batches as one that was never stopped, two runs that differ in their number format see identical data in identical
order, and a rank asks for its own numbers. A DataLoader with workers and a sampler was the road not taken: its cursor
is hidden state, and the texts and label rows here fit into memory or a memory map.

A data set also owns the task: what the loss is and which numbers describe a pass over a split. The loop that trains
knows neither tokens nor labels.

The order in which training sees its examples: a permutation per epoch, computed and never drawn.

    order(seed, epoch) = argsort of hash(seed, epoch, i) over i = 0 .. count-1

The hash is splitmix64's output function (Steele, Lea and Flood, OOPSLA 2014) applied to the three numbers in turn: a
counter-based generator, so nothing is advanced and nothing must be saved. A seeded `torch.Generator` with `randperm`
was the road not taken: PyTorch does not promise the same numbers from one release to the next, and the order of the
data is what two runs of a comparison must share.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from altgrad.spec import Kind

__all__ = ["IGNORED", "PADDING", "SPLITS", "Answers", "Batch", "Batches", "Dataset", "DatasetSpec", "Evaluator"]

SPLITS = ("train", "validation", "test")
"""The names of splits, everywhere."""

PADDING = -1
"""An input that is none: it fills a row up to the length of its batch. No tokenizer has ids below zero."""

IGNORED = -100
"""A target that counts for nothing (torch's own default for cross-entropy)."""

Answers = Literal["token", "text"]
"""What gets an answer of its own, a row of the last axis: every token, or every text as a whole."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch. `inputs` goes to the model; `targets` goes to the data set's own loss and evaluator.

    `inputs` is int64 `[batch, time]`, and PADDING where a row has ended. `targets` is int64 `[batch, time]` where every
    token gets an answer, float32 `[batch, outputs]` where every text does; a target below zero counts for nothing.
    """

    inputs: Tensor
    targets: Tensor

    @property
    def tokens(self) -> int:
        """How many inputs are no padding. Asked of a batch on the CPU; elsewhere it waits for the device."""
        return int((self.inputs >= 0).sum())

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        return Batch(self.inputs.to(device), self.targets.to(device))


class Batches(Iterator[Batch]):
    """Batches of which it is known how many there are: `operator.length_hint` says how many are left."""

    def __init__(self, count: int, batches: Iterator[Batch]) -> None:
        self._left, self._batches = count, batches

    def __next__(self) -> Batch:
        self._left -= 1
        return next(self._batches)

    def __length_hint__(self) -> int:
        return max(0, self._left)


class Evaluator(ABC):
    """Gathers what a model says about a whole split; made anew for every pass."""

    @abstractmethod
    def add(self, output: Tensor, batch: Batch) -> None:
        """Take in the model's output for one batch. Does not wait for the device."""

    @abstractmethod
    def result(self) -> dict[str, float]:
        """The split's numbers by name, `loss` among them. Waits for the device; ValueError if nothing was added."""

    def table(self) -> list[dict[str, Any]]:
        """What there is to say of each of the task's classes, one row each; empty where a task has none."""
        return []


class Dataset(ABC):
    """Data ready to be asked. What `DatasetSpec.build` returns.

    `vocabulary`: how many values `Batch.inputs` may hold. `outputs`: how wide the model's last axis must be.
    `epoch_batches`: how many training batches show every example at least once.
    """

    vocabulary: int
    outputs: int
    epoch_batches: int
    references: Mapping[str, float] = MappingProxyType({})
    """What others reach on the validation split, by name, in the unit the evaluator's main number has."""
    scores: tuple[str, ...] = ()
    """The evaluator's numbers that people ask for first, beside `loss`, the main one in front."""

    @abstractmethod
    def batch(self, index: int) -> Batch:
        """Training micro-batch number `index` >= 0, on the CPU: a pure function of the seed and `index`."""

    @abstractmethod
    def evaluation(self, split: str) -> Iterator[Batch]:
        """The whole of a split once, in fixed order, in batches of one shape. ValueError for an absent split."""

    @abstractmethod
    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """The training loss: the mean over the batch, a float32 scalar."""

    @abstractmethod
    def evaluator(self, tuned_on: Evaluator | None = None) -> Evaluator:
        """A fresh evaluator for one pass over a split.

        tuned_on: what this data set's evaluator gathered on another split, to take over what is chosen by looking at
        answers (a threshold). Without it such choices are made on the split itself.
        """

    @abstractmethod
    def describe(self) -> dict[str, str | int | float]:
        """What was read, for people and for the run's record: source, content hash, counts."""


class DatasetSpec(Kind, family="dataset", package="altgrad.data"):
    """What every data spec has: a way to build the data set for a model that takes `context` positions."""

    answers: ClassVar[Answers] = "token"
    """What the model must give an answer for."""

    @property
    def one_shape(self) -> bool:
        """Whether all batches have the same shape, so that one compiled graph serves them all."""
        return True

    @abstractmethod
    def build(self, seed: int, context: int) -> Dataset:
        """Read the source and make it ready. ValueError, in one line, where the source cannot serve."""


_STEP = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mixed(value: int) -> int:
    """splitmix64's output function on one integer modulo 2^64; a bijection."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def mixed_bits(*numbers: int) -> int:
    """64 well-mixed bits that are a function of the given integers and their order; integers count modulo 2^64."""
    state = 0
    for number in numbers:
        state = _mixed((state + _STEP + _mixed(number & _MASK)) & _MASK)
    return state


def visiting_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """A permutation of 0..count-1 that is a pure function of its arguments; equal hashes keep their order.

    Element i is hashed as splitmix64 would: the i-th output of a generator seeded with `counted_bits(seed, epoch)`.
    """
    start = np.full(count, mixed_bits(seed, epoch), np.uint64)
    bits = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(bits ^ (bits >> np.uint64(31)), kind="stable")
