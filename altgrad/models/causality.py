"""Whether a model that answers for every token looks at the tokens after it: asked of the model, not of its name.

Two rows of tokens are alike in their first half and differ in their second. A causal model answers the first half of
both alike; one that does not reads the very tokens it is to predict, and its loss falls towards zero without any
language being learnt. transformers builds such models without a word: BERT under AutoModelForCausalLM is bidirectional
unless its configuration says `is_decoder`. A list of architectures was the road not taken, since one option turns
either sort into the other.

Measured on 18 architectures with random weights: the ten causal ones differ by exactly 0, of the bidirectional ones the
least by 1e-3 of the largest answer. TOLERANCE lies between, above what a kernel may round differently in another row.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["LENGTH", "sees_ahead"]

LENGTH = 8
"""How many tokens a row has, where the model takes so many."""

TOLERANCE = 1e-5


@torch.no_grad()
def sees_ahead(module: nn.Module, answers: Callable[[Tensor], Sequence[Tensor]], vocabulary: int, length: int) -> bool:
    """Whether a changed token moves what `module` answers before it.

    answers: its outputs for int64 tokens `[2, length]`, each `[2, length, ...]`: logits, and hidden states too, which
    tell where a head of zeros answers nothing yet. length: at least 2. One pass in eval mode; modes of all modules,
    buffers and random generators are afterwards what they were.
    """
    first = (torch.arange(length) * 7 + 1) % vocabulary
    other = torch.where(torch.arange(length) < length // 2, first, (first + max(1, vocabulary // 2)) % vocabulary)
    rows = torch.stack([first, other]).to(next(module.parameters()).device)
    with _untouched(module):
        found = answers(rows)
    return any(_moved(answer[:, : length // 2].double(), answer.double()) for answer in found)


def _moved(past: Tensor, whole: Tensor) -> bool:
    """Entries that are not finite (weights with NaN) say nothing; whoever trains them is told by the loss."""
    known = past[0].isfinite() & past[1].isfinite()
    largest = whole[whole.isfinite()].abs()
    if not known.any() or not largest.numel():
        return False
    return bool((past[0] - past[1])[known].abs().max() > TOLERANCE * largest.max())


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    modes = [(each, each.training) for each in module.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    module.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for each, mode in modes:
            each.training = mode
        for buffer, before in buffers:
            buffer.copy_(before)
