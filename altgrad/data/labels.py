"""Kind `labels`: texts that each have any number of labels, for classifiers.

    loss = mean over rows and labels of  -(w y log p + (1 - y) log(1 - p)),     p = sigmoid(logit)

w is 1, or `pos_weight`: one number, `balanced` (rows without a label over rows with it, in the training split), or
`root`, the square root of that, which tells a rare label less loudly.

Training visits the endless sequence of epochs, each a permutation of the rows (`visiting_order`). With `lengths:
similar` sixteen batches' worth of rows at a time are sorted by their number of tokens and cut into batches, which are
then visited in an order of their own: rows of a batch are about equally long and little of it is padding. A batch is as
long as its longest row, rounded up to 16. With `lengths: mixed` nothing is sorted and every batch is as long as the
model's context: one shape, for one compiled graph. Either way a batch is a function of the seed and its index alone.

Evaluation sorts a whole split by length. The last batch is filled up with rows from the split's beginning whose targets
count for nothing.

The packaged sample is EU law: 1,933 provisions of six acts with 25 labels. They are *not* EuroVoc: `act/*` is the act,
`topic/*` was read off the legislator's own headings by regular expressions (sample/NOTICE).
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PlainValidator, model_validator
from torch import Tensor
from torch.nn import functional

from altgrad.data.dataset import (
    IGNORED,
    PADDING,
    Answers,
    Batch,
    Batches,
    Dataset,
    DatasetSpec,
    Evaluator,
    mixed_bits,
    visiting_order,
)
from altgrad.data.documents import SAMPLE
from altgrad.data.encoding import Encoded, encode_texts
from altgrad.data.hub import Hub, SourceSetting
from altgrad.data.label_scores import LabelEvaluator
from altgrad.data.labelled import Classes, Labelled, read_labelled
from altgrad.data.tokenizer import TokenizerSetting

__all__ = ["Labels", "LabelsSpec"]

POOL = 16
"""Batches whose rows are sorted by length together."""
ROUND = 16
_ORDER_OF_BATCHES = 0x6C656E67  # keeps the order of batches apart from that of rows


def _to_classes(value: Any) -> Classes:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    same = isinstance(value, list | tuple) and value and {type(each) for each in value} in ({str}, {int})
    if same and len(set(value)) == len(value):
        return tuple(value)
    raise ValueError(f"{value!r:.60} names no classes; write how many there are (ids 0, 1, ...) or list them all once.")


def _to_weight(value: Any) -> float | str | None:
    if value is None or value in ("balanced", "root"):
        return value  # type: ignore[no-any-return]
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise ValueError(f"{value!r:.40} is not a pos_weight; write a number above 0, balanced, root or null.")


class LabelsSpec(DatasetSpec):
    """Texts with lists of labels.

    `source` is `eulaw`, the packaged sample, the path of a .parquet or .jsonl file, or `{hub: owner/name, config:
    part}`; `column` holds the text, `label_column` the list of labels. `classes`: how many (ids 0, 1, ...) or a list of
    them; left out, what the data declares, else the labels of the training split. `bad_rows`: what to do with a row
    that has an unknown label or no text. `tokenizer` is `bytes`, `{bpe: 4096}`, `gpt2`, or a folder with a
    tokenizer.json, used as it is; texts are cut to the model's context. `none_label`: judge "no label" as LexGLUE does
    for ecthr_a.
    """

    kind: ClassVar[str] = "labels"
    answers: ClassVar[Answers] = "text"

    source: SourceSetting = SAMPLE
    """`eulaw` (packaged), a .parquet or .jsonl file, or `{hub: owner/name}`."""
    column: Annotated[str, Field(min_length=1)] = "text"
    """Where rows hold their text."""
    label_column: Annotated[str, Field(min_length=1)] = "labels"
    """Where rows hold their list of labels."""
    classes: Annotated[Classes, PlainValidator(_to_classes)] = None
    """How many (ids 0, 1, ...) or a list; null: what the data declares, else the training split's."""
    bad_rows: Literal["error", "skip"] = "error"
    """What to do with a row that has an unknown label or no text."""
    tokenizer: TokenizerSetting = "bytes"
    """`bytes`, `{bpe: 4096}`, `gpt2`, or a folder with a tokenizer.json; texts are cut to the context."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Texts in a micro-batch."""
    lengths: Literal["similar", "mixed"] = "similar"
    """similar: batches of like length; mixed: all padded alike, which `compile: model` needs."""
    pos_weight: Annotated[float | str | None, PlainValidator(_to_weight)] = None
    """Weight of positives in the loss: a number, balanced (negatives / positives), or its root."""
    none_label: bool = False
    """Judge "no label" as a label, as LexGLUE does for ecthr_a."""

    @model_validator(mode="after")
    def _two_columns(self) -> "LabelsSpec":
        if self.column == self.label_column:
            raise ValueError(f"column and label_column are both '{self.column}'; name the text's and the labels'.")
        return self

    @property
    def one_shape(self) -> bool:
        return self.lengths == "mixed"

    def build(self, seed: int, context: int) -> "Labels":
        """Read, check and tokenise. ValueError, with file, row and column, for what cannot be used."""
        columns = (self.column, self.label_column)
        labelled = read_labelled(self.source, columns, self.classes, skip=self.bad_rows == "skip")
        encoded, vocabulary = encode_texts(labelled, self.tokenizer, context)
        return Labels(self, labelled, encoded, vocabulary, seed=seed, context=context)


class Labels(Dataset):
    """Rows in memory; see the head of this file. `classes` are the labels in the order of the outputs."""

    scores = ("f1_micro", "f1_macro", "tuned_f1_micro", "tuned_f1_macro")

    def __init__(
        self, spec: LabelsSpec, labelled: Labelled, encoded: Encoded, vocabulary: int, *, seed: int, context: int
    ) -> None:
        self.spec, self.classes, self.vocabulary, self.outputs = (
            spec,
            labelled.classes,
            vocabulary,
            len(labelled.classes),
        )
        self._labelled, self._encoded = labelled, encoded
        self._seed, self._context, self._rows = seed, context, spec.batch_size
        self._lengths = {split: np.array([len(row) for row in rows], np.int64) for split, rows in encoded.items()}
        count = len(encoded["train"])
        pool = spec.batch_size * (POOL if spec.lengths == "similar" else 1)
        self._pool = pool
        self.epoch_batches = math.ceil(count / pool) * (pool // spec.batch_size)
        self.weight = self._weight()
        self._orders: dict[int, NDArray[np.int64]] = {}

    def batch(self, index: int) -> Batch:
        """int64 `[batch_size, length]` and float32 `[batch_size, labels]`."""
        assert index >= 0
        return self._gather("train", self.rows_of(index))

    def rows_of(self, index: int) -> NDArray[np.int64]:
        """Which training rows batch number `index` holds."""
        batches = self._pool // self._rows
        pool, place = divmod(index, batches)
        rows = np.array([self._row(example) for example in range(pool * self._pool, (pool + 1) * self._pool)])
        if batches > 1:
            rows = rows[np.argsort(self._lengths["train"][rows], kind="stable")]
            place = int(visiting_order(mixed_bits(self._seed, _ORDER_OF_BATCHES), pool, batches)[place])
        return rows[place * self._rows : (place + 1) * self._rows]

    def evaluation(self, split: str) -> Iterator[Batch]:
        """Batches of `batch_size` rows, shortest first. ValueError for a split without rows."""
        if not self._encoded.get(split):
            known = ", ".join(name for name, rows in self._encoded.items() if rows)
            raise ValueError(f"{self._source} has no rows for {split}; it has {known}.")
        return Batches(-(-len(self._lengths[split]) // self._rows), self._evaluation(split))

    def _evaluation(self, split: str) -> Iterator[Batch]:
        order = np.argsort(self._lengths[split], kind="stable")
        for start in range(0, len(order), self._rows):
            rows = order[start : start + self._rows]
            missing = self._rows - len(rows)
            batch = self._gather(split, np.concatenate([rows, np.resize(order, missing)]))
            if missing:
                batch.targets[-missing:] = IGNORED
            yield batch

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean binary cross-entropy in nats over rows and labels; in float32 whatever the logits are."""
        weight = None if self.weight is None else self.weight.to(output.device)
        return functional.binary_cross_entropy_with_logits(output.float(), batch.targets, pos_weight=weight)

    def evaluator(self, tuned_on: Evaluator | None = None) -> LabelEvaluator:
        assert tuned_on is None or isinstance(tuned_on, LabelEvaluator)
        return LabelEvaluator(self.classes, self.weight, none_label=self.spec.none_label, tuned_on=tuned_on)

    def describe(self) -> dict[str, str | int | float]:
        """Source, sha256 of the rows; per split rows, labels per row and texts cut short; rows skipped, by reason."""
        facts: dict[str, str | int | float] = {"source": self._source, "sha256": self._labelled.sha256}
        for split, labels in self._labelled.labels.items():
            if labels:
                facts[f"{split}_rows"] = len(labels)
                facts[f"{split}_labels_per_row"] = round(sum(map(len, labels)) / len(labels), 4)
                facts[f"{split}_rows_at_full_length"] = int((self._lengths[split] >= self._context).sum())
        facts |= {f"skipped_{reason}": count for reason, count in self._labelled.skipped.items() if count}
        sizes = {"vocabulary": self.vocabulary, "labels": self.outputs, "epoch_batches": self.epoch_batches}
        return facts | sizes

    @property
    def _source(self) -> str:
        return self.spec.source.name if isinstance(self.spec.source, Hub) else self.spec.source

    def _weight(self) -> Tensor | None:
        chosen = self.spec.pos_weight
        if chosen is None or isinstance(chosen, float):
            return None if chosen is None else torch.full((self.outputs,), chosen)
        counts = torch.zeros(self.outputs)
        for row in self._labelled.labels["train"]:
            counts[list(row)] += 1
        # A class without a training row has no ratio; its loss has no positive term either, so any weight will do.
        ratio = torch.where(counts > 0, (len(self._labelled.labels["train"]) - counts) / counts.clamp(min=1), 1.0)
        # A label that every row has would get 0, and its loss no positive term at all.
        ratio = torch.where(ratio > 0, ratio, 1.0)
        return ratio.sqrt() if chosen == "root" else ratio

    def _row(self, example: int) -> int:
        epoch, place = divmod(example, len(self._encoded["train"]))
        if epoch not in self._orders:
            # The pool at hand reaches over few epochs; what is kept never depends on who asked before.
            self._orders = {kept: order for kept, order in self._orders.items() if abs(kept - epoch) <= POOL}
            self._orders[epoch] = visiting_order(self._seed, epoch, len(self._encoded["train"]))
        return int(self._orders[epoch][place])

    def _gather(self, split: str, rows: NDArray[np.int64]) -> Batch:
        longest = int(self._lengths[split][rows].max())
        length = min(-(-longest // ROUND) * ROUND, self._context) if self.spec.lengths == "similar" else self._context
        inputs = torch.full((len(rows), length), PADDING, dtype=torch.int64)
        targets = torch.zeros(len(rows), self.outputs)
        for place, row in enumerate(rows):
            ids = self._encoded[split][row]
            inputs[place, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
            targets[place, list(self._labelled.labels[split][row])] = 1.0
        return Batch(inputs, targets)
