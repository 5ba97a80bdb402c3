"""Direct casts: what recipes cost a trained language model that is not trained again.

The same documents pass the model as it is and, arm by arm, with its layers cast as a recipe says
(`altgrad.conversion.arms`); the arm `bf16` has no casts and computes in bfloat16.

    bits per byte    sum of NLL / ln 2 / bytes of text           perplexity   exp(sum of NLL / tokens)
    KL               mean over tokens of sum p log(p / q)        top-1        tokens whose likeliest is the same

p is the uncast model's distribution, q the arm's.

Documents are what was sampled, so intervals are over documents: of a ratio of sums, by its linearisation (Cochran,
Sampling Techniques, 6.4), with Student's t. Differences are of the same documents, and much narrower than those of the
arms themselves.

Each batch passes all arms while the uncast answers are there: those of all batches would be gigabytes.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from altgrad.conversion.arms import UNCAST, PolicyArm, answers, arm_named, net_of
from altgrad.conversion.language_model import LanguageModel
from altgrad.conversion.windows import KeptSums, Settings, Sums, Windows, kept_at
from altgrad.progress import progress
from altgrad.statistics.intervals import ratio_interval
from altgrad.training.prepare import find_device

__all__ = ["ArmScore", "DirectCast", "direct_cast"]

_ROWS = 256
"""Tokens whose distributions are compared at a time."""


@dataclass(frozen=True)
class ArmScore:
    """One row: each figure with its interval; of the uncast model differences, KL and agreement are trivial."""

    recipe: str
    perplexity: tuple[float, float, float]
    bits_per_byte: tuple[float, float, float]
    more_bits: tuple[float, float, float]
    kl: tuple[float, float, float]
    top1: tuple[float, float, float]
    seconds: float


@dataclass(frozen=True)
class DirectCast:
    """The table, and what it is of."""

    model: str
    documents: int
    bytes: int
    tokens: int
    settings: Settings
    rows: tuple[ArmScore, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self)


def direct_cast(model: LanguageModel, recipes: Sequence[str], settings: Settings, device: str = "cpu") -> DirectCast:
    """The figures of each recipe, after those of the uncast model. `bf16` among recipes: no casts, in bfloat16.

    ValueError for a recipe that does not fit the model, and for a split without text; MachineError for a device that is
    not here. What was done before is kept.
    """
    place = find_device(device)
    arms = [PolicyArm(UNCAST, UNCAST, "float32", None), *map(arm_named, dict.fromkeys(recipes))]
    texts = model.texts(settings.split, settings.size)
    windows = Windows([*model.encode(texts)], model.separator, settings)
    kept = KeptSums(kept_at("direct_cast", model, texts, settings), len(texts))
    module = model.module.to(place).eval()
    nets = {arm.name: net_of(module, arm) for arm in arms}
    sums = {arm.name: np.zeros((len(texts), 4)) for arm in arms}
    seconds = dict.fromkeys(sums, 0.0)
    for number in range(windows.batches):
        lacking = [arm for arm in arms if (arm.key, number) not in kept.rows]
        batch = windows.batch(number, place)
        reference = answers(nets[UNCAST], batch[0], "float32") if lacking else None
        for arm in arms:
            if reference is not None and arm in lacking:
                progress(f"evaluating {arm.name}", number * len(arms) + arms.index(arm), windows.batches * len(arms))
                made, took = _scored(nets[arm.name], arm, batch, reference, len(texts))
                kept.add(arm.key, number, made, seconds=took)
            part, more = kept.rows[arm.key, number]
            sums[arm.name] += part
            seconds[arm.name] += more["seconds"]
    sizes = np.array([len(text.encode()) for text in texts], np.float64)
    rows = tuple(_score(arm.name, sums[arm.name], sums[UNCAST], sizes, seconds[arm.name]) for arm in arms)
    tokens = int(sums[UNCAST][:, 1].sum())
    return DirectCast(model.name, len(texts), int(sizes.sum()), tokens, settings, rows)


def _scored(
    net: nn.Module, arm: PolicyArm, batch: Sequence[Tensor], reference: Tensor, documents: int
) -> tuple[Sums, float]:
    begin = time.perf_counter()
    logits = reference if arm.name == UNCAST else answers(net, batch[0], arm.compute)
    found = torch.zeros(documents, 4, dtype=torch.float64, device=logits.device)
    targets, owners = (part.flatten() for part in batch[1:])
    for rows in torch.split(torch.arange(len(targets), device=logits.device), _ROWS):
        ours, theirs = (each[rows].float().log_softmax(-1) for each in (logits, reference))
        nll = -ours.gather(1, targets[rows, None]).squeeze(1)
        kl = (theirs.exp() * (theirs - ours)).sum(1)
        same = ours.argmax(1) == theirs.argmax(1)
        each = torch.stack([nll.double(), torch.ones_like(nll).double(), kl.double(), same.double()], 1)
        counted = owners[rows] >= 0
        found.index_add_(0, owners[rows][counted], each[counted])
    return found.cpu().numpy(), time.perf_counter() - begin


def _score(name: str, sums: Sums, uncast: Sums, sizes: Sums, seconds: float) -> ArmScore:
    nll, tokens, kl, same = sums.T
    loss = ratio_interval(nll, tokens)
    perplexity = tuple(math.exp(end) if end < 700 else math.inf for end in loss)
    bits, more = (ratio_interval(each / math.log(2), sizes) for each in (nll, nll - uncast[:, 0]))
    assert len(perplexity) == 3
    return ArmScore(name, perplexity, bits, more, ratio_interval(kl, tokens), ratio_interval(same, tokens), seconds)
