"""Kind `text`: blocks of tokens from a file of documents, for language models.

The documents of a split form one ring of M tokens, a separator before each:

    0 d1 d1 d1 0 d2 d2 0 d3 ...      (and after the last token comes the first separator again)

Every token of the ring is a target exactly once: every token of text, and the end of every document. With context T an
epoch cuts the ring into floor(M / T) non-overlapping blocks, starting at a phase that changes with the epoch (so block
borders fall elsewhere each time, and the M mod T tokens left out are others), and visits them in the order of
`visiting_order(seed, epoch)`. Batches are cut from the endless sequence of epochs, so one may straddle two.

Evaluation cuts at phase 0 into ceil(M / T) blocks and fills the last batch by going on around the ring; targets
beyond M are `IGNORED`. All batches thus have one shape (one compiled graph), every target counts exactly once, and what
fills the gap is real text, so no scale or range ever sees padding. Each block starts without context: bits per byte
depend on T, and runs of different T do not compare.

    bits per byte = sum of NLL (nats, over all M targets) / ln 2 / bytes of text in the split

The separators' NLL counts and their bytes do not: a model that gives every byte 1/256 scores 8 * M / bytes.
"""

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from altgrad.data.bad_rows import BadRows, BadRowsSetting
from altgrad.data.dataset import (
    IGNORED,
    Batch,
    Batches,
    Dataset,
    DatasetSpec,
    Evaluator,
    mixed_bits,
    visiting_order,
)
from altgrad.data.documents import SAMPLE, Corpus, FileCorpus, locate
from altgrad.data.hub import Hub, SourceSetting, read_hub
from altgrad.data.tokenizer import TokenizerSetting
from altgrad.data.tokens import Tokens, load_tokens
from altgrad.spec import Since

__all__ = ["Text", "TextEvaluator", "TextSpec"]

SAMPLE_REFERENCES = {"unigram": 4.47, "order-6 n-gram": 1.17}
"""Bits per byte on the packaged sample's validation split of byte-level count models fitted on its training split."""


class TextSpec(DatasetSpec):
    """Text to model, token by token.

    `source` is `eulaw`, the packaged sample (English EU law, 1.16 MB), the path of a .parquet, .jsonl or .txt file (the
    latter two also .gz, .bz2, .xz or .zst), of a folder of such files, or `{hub: owner/name, config: part}`, a data set
    of the Hugging Face Hub; `column` is where its rows hold text (how documents get their split:
    `altgrad.data.documents`). `bad_rows`: what to do with a row that holds no text. `tokenizer` is `bytes`,
    `{bpe: 4096}`, `gpt2` or a folder with a tokenizer.json (see `altgrad.data.tokenizer`). `batch_size` counts blocks.
    """

    kind: ClassVar[str] = "text"

    source: SourceSetting = SAMPLE
    """`eulaw` (packaged), a .parquet, .jsonl or .txt file or a folder of them, or `{hub: owner/name}`."""
    column: Annotated[str, Field(min_length=1)] = "text"
    """Where rows hold their text."""
    tokenizer: TokenizerSetting = "bytes"
    """`bytes`, `{bpe: 4096}`, `gpt2`, or a folder with a tokenizer.json."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Blocks in a micro-batch."""
    bad_rows: Annotated[BadRowsSetting, Since(2)] = "error"
    """What to do with a row that holds no text."""

    def build(self, seed: int, context: int) -> "Text":
        """Read and tokenise, or find the tokens in the cache. ValueError if the file or tokenizer is wrong, if training
        text is shorter than a block or if there is none for validation."""
        corpus = self.corpus()
        name = self.source.name if isinstance(self.source, Hub) else self.source
        tokens = load_tokens(corpus, self.tokenizer)
        if len(tokens.rings["train"]) < context:
            raise ValueError(
                f"{name} has {len(tokens.rings['train'])} training tokens, one block needs {context}; "
                "shorten the model's context or give more text."
            )
        origin = {"source": name, "sha256": corpus.sha256}
        return Text(tokens, seed=seed, context=context, batch_size=self.batch_size, origin=origin)

    def corpus(self) -> Corpus:
        """The documents of the source. ValueError where it is not there."""
        if isinstance(self.source, Hub):
            return read_hub(self.source, self.column, BadRows(self.bad_rows == "skip"))
        return FileCorpus(locate(self.source), self.column, self.bad_rows)


class Text(Dataset):
    """Rings of tokens, one per split; see the head of this file. `origin` is told by `describe`."""

    scores = ("bits_per_byte", "perplexity")

    def __init__(self, tokens: Tokens, *, seed: int, context: int, batch_size: int, origin: dict[str, str]) -> None:
        self.vocabulary = self.outputs = len(tokens.token_bytes)
        self._tokens = tokens
        self._rings = tokens.rings
        self._seed = seed
        self._context = context
        self._rows = batch_size
        self._origin = origin
        if origin["source"] == SAMPLE:
            self.references = SAMPLE_REFERENCES
        self.blocks = len(self._rings["train"]) // context
        """Blocks in one epoch."""
        self.epoch_batches = math.ceil(self.blocks / batch_size)
        self._orders: dict[int, NDArray[np.int64]] = {}

    def batch(self, index: int) -> Batch:
        """int64 `[batch_size, context]` each; examples index * batch_size and on of the endless sequence of epochs."""
        assert index >= 0
        examples = range(index * self._rows, (index + 1) * self._rows)
        return self._gather("train", np.array([self.block_start(example) for example in examples]))

    def block_start(self, example: int) -> int:
        """Where in the training ring the block of example number `example` starts."""
        epoch, place = divmod(example, self.blocks)
        ring = len(self._rings["train"])
        phase = mixed_bits(self._seed, epoch, ring) % ring
        return int((phase + int(self._order(epoch)[place]) * self._context) % ring)

    def evaluation(self, split: str) -> Iterator[Batch]:
        """Batches of `[batch_size, context]` over the split's ring; targets beyond its end are `IGNORED`."""
        if split not in self._rings:
            raise ValueError(f"{self._origin['source']} has no text for {split}; it has {', '.join(self._rings)}.")
        count = -(-len(self._rings[split]) // (self._rows * self._context))
        return Batches(count, self._evaluation(split))

    def _evaluation(self, split: str) -> Iterator[Batch]:
        ring = len(self._rings[split])
        for first in range(0, ring, self._rows * self._context):
            starts = first + np.arange(self._rows) * self._context
            batch = self._gather(split, starts)
            beyond = torch.from_numpy(starts)[:, None] + torch.arange(self._context) >= ring
            yield Batch(batch.inputs, batch.targets.masked_fill(beyond, IGNORED))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats over all targets of the batch; computed in float32 whatever the logits are.

        Of an output wider than the vocabulary (a padded head) the logits beyond it count for nothing.
        """
        return _cross_entropy(output, batch.targets, "mean", self.outputs)

    def evaluator(self, tuned_on: Evaluator | None = None) -> "TextEvaluator":
        """For one pass over one split; there is nothing to tune."""
        return TextEvaluator(torch.from_numpy(self._tokens.token_bytes))

    def describe(self) -> dict[str, str | int | float]:
        """Source, its sha256, and per split the documents, the bytes of text, and the tokens with separators."""
        sizes = {"vocabulary": self.vocabulary, "epoch_batches": self.epoch_batches}
        return {**self._origin, **self._tokens.counts, **sizes}

    def _order(self, epoch: int) -> NDArray[np.int64]:
        # A cache of the two epochs that a batch can straddle; what it holds never depends on who asked before.
        if epoch not in self._orders:
            self._orders = {kept: order for kept, order in self._orders.items() if abs(kept - epoch) == 1}
            self._orders[epoch] = visiting_order(self._seed, epoch, self.blocks)
        return self._orders[epoch]

    def _gather(self, split: str, starts: NDArray[np.int64]) -> Batch:
        ring = self._rings[split]
        places = (starts[:, None] + np.arange(self._context + 1)) % len(ring)
        tokens = torch.from_numpy(ring[places].astype(np.int64))
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


class TextEvaluator(Evaluator):
    """Sums of NLL, targets and bytes, over whatever batches it is given.

    `token_bytes`: int64 `[vocabulary]`, how many bytes of text each token stands for; 0 for separators.
    """

    def __init__(self, token_bytes: Tensor) -> None:
        self._token_bytes = token_bytes
        self._sums: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, output: Tensor, batch: Batch) -> None:
        """`output`: logits `[batch, time, vocabulary]`; those beyond the vocabulary are left out, as in the loss."""
        self._token_bytes = self._token_bytes.to(batch.targets.device)
        counted = batch.targets >= 0
        size = (self._token_bytes[batch.targets.clamp(min=0)] * counted).sum()
        nll = _cross_entropy(output.detach(), batch.targets, "sum", len(self._token_bytes))
        self._sums.append((nll, counted.sum(), size))

    def result(self) -> dict[str, float]:
        """`loss` (nats per target), `perplexity` = exp(loss) (infinite where that overflows), `bits_per_byte`."""
        if not self._sums:
            raise ValueError("no batch was evaluated; a split needs at least one.")
        nll, targets, size = (math.fsum(torch.stack(column).tolist()) for column in zip(*self._sums, strict=True))
        loss = nll / targets
        perplexity = math.inf if loss > 700 else math.exp(loss)
        return {"loss": loss, "perplexity": perplexity, "bits_per_byte": nll / math.log(2) / size}


def _cross_entropy(output: Tensor, targets: Tensor, reduction: str, vocabulary: int) -> Tensor:
    known = output if output.shape[-1] <= vocabulary else output[..., :vocabulary]
    logits = known.float().flatten(0, -2)
    return functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction=reduction)
