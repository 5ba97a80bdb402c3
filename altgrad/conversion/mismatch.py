"""Serving against training: how far two policies on one set of weights are apart, token by token.

p is the distribution of the policy that trains, q of the one that serves, both after the same text (`windows`). In
reinforcement learning q draws the tokens and p is what is updated, so what is drawn has the importance ratio p / q.

    KL           mean over tokens of sum p log(p / q)              in float64, from float32 logits
    flips        tokens whose likeliest is another
    ratio        q / p of a token: of the text's own, and of one that serving draws at each place (the same random
                 number for every policy): quantiles, and how many are outside of [0.5, 2]
    effective    1 / mean of sum p^2 / q                           the part of the tokens drawn by q that is left when
                 each is weighted by p / q: (E w)^2 / E w^2 with E w = 1, summed over the vocabulary and not drawn

Intervals are over documents, as in `altgrad.conversion.direct_cast`. Of a matrix of policies each runs once a batch,
and every pair is compared while their answers are there.
"""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from altgrad.conversion.arms import BF16, UNCAST, PolicyArm, answers, arm_named, net_of
from altgrad.conversion.causes import Causes, Interval3, causes, chunks, finite, require_batches
from altgrad.conversion.language_model import LanguageModel
from altgrad.conversion.mixed_net import Grain
from altgrad.conversion.windows import KeptSums, Settings, Sums, Windows, kept_at
from altgrad.progress import progress
from altgrad.statistics.intervals import ratio_interval
from altgrad.training.prepare import find_device

__all__ = ["HIGH", "LOW", "Mismatch", "Pair", "Ratios", "serving_mismatch"]

NONE = "none"
LOW, HIGH = 0.5, 2.0
"""A ratio outside of these is in the tail: what clipped objectives leave out at the latest."""
SHARES = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
_COLUMNS = 6
"""By document: tokens, KL, flips, sum p^2 / q, and ratios in the tail, of the text's tokens and of drawn ones."""
_SMALLEST = -300.0
"""The least log q that 1 / q is taken of, so that it stays finite; p^2 is 0 long before."""


@dataclass(frozen=True)
class Ratios:
    """q / p of some tokens: quantiles by share, and the part outside of [LOW, HIGH]."""

    quantiles: Mapping[str, float]
    outside: Interval3


@dataclass(frozen=True)
class Pair:
    """A policy that trains and one that serves: every figure with its interval."""

    train: str
    serve: str
    kl: Interval3
    flips: Interval3
    effective: Interval3
    text: Ratios
    drawn: Ratios


@dataclass(frozen=True)
class Mismatch:
    """All pairs, row by row, what they are of, and the causes where these were asked for."""

    model: str
    documents: int
    bytes: int
    tokens: int
    settings: Settings
    pairs: tuple[Pair, ...]
    causes: tuple[Causes, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self)


class _Side(NamedTuple):
    """What comparisons take of one policy's distributions, [tokens, vocabulary] in float64."""

    logs: Tensor
    likeliest: Tensor
    p: Tensor | None
    """With its square, of a policy that trains."""
    squares: Tensor | None
    inverse: Tensor | None
    """1 / q, and the tokens drawn, of a policy that serves."""
    drawn: Tensor | None


def serving_mismatch(
    model: LanguageModel, train: Sequence[str], serve: Sequence[str], settings: Settings, *,
    by: Grain | None = None, device: str = "cpu",
) -> Mismatch:  # fmt: skip
    """Every policy of `train` against every one of `serve`, and with `by` the causes of each pair.

    ValueError for a policy that does not fit the model or casts nothing, for `by` with several policies in `train`, and
    for text that is too short; MachineError for a device that is not here. What was done before is kept.
    """
    place = find_device(device)
    if by is not None and len(set(train)) > 1:
        raise ValueError(f"causes are those of one policy in training, and there are {len(set(train))}; name one.")
    trains, serves = ([_arm(name) for name in dict.fromkeys(names)] for names in (train, serve))
    texts = model.texts(settings.split, settings.size)
    windows = Windows([*model.encode(texts)], model.separator, settings)
    if by is not None:
        require_batches(windows)
    kept = KeptSums(kept_at("mismatch", model, texts, settings), len(texts))
    module = model.module.to(place).eval()
    nets = {arm.name: net_of(module, arm) for arm in (*trains, *serves)}
    listed = [(f"{a.key} | {b.key}", a, b) for a in trains for b in serves]
    pairs = {key: (a, b) for key, a, b in listed}
    for number in range(windows.batches):
        lacking = {key: pair for key, pair in pairs.items() if (key, number) not in kept.rows}
        batch = windows.batch(number, place)
        logits: dict[str, Tensor] = {}
        for arm in {arm.name: arm for pair in lacking.values() for arm in pair}.values():
            progress(f"running {arm.name}", number * len(nets) + len(logits), windows.batches * len(nets))
            logits[arm.name] = finite(arm.name, answers(nets[arm.name], batch[0], arm.compute))
        for key, (sums, ratios) in _compared(logits, lacking, batch, number, len(texts)):
            kept.add(key, number, sums, ratios=base64.b64encode(ratios.tobytes()).decode())
    found = tuple(_pair(a.name, b.name, key, kept, windows) for key, a, b in listed)
    made = () if by is None else tuple(causes(module, (trains[0], arm), by, windows, kept) for arm in serves)
    size = sum(len(text.encode()) for text in texts)
    return Mismatch(model.name, len(texts), size, windows.tokens, settings, found, made)


def _arm(name: str) -> PolicyArm:
    if name == NONE:
        return PolicyArm(name, UNCAST, "float32", None)
    arm = arm_named(name)
    rules = () if arm.policy is None else arm.policy.rules
    if name != BF16 and all(rule.casts_nothing for rule in rules):
        raise ValueError(f"{name} casts nothing in a forward pass; write {NONE} if that is meant.")
    return arm


@torch.no_grad()
def _compared(
    logits: Mapping[str, Tensor],
    pairs: Mapping[str, tuple[PolicyArm, PolicyArm]],
    batch: Sequence[Tensor],
    number: int,
    many: int,
) -> Iterator[tuple[str, tuple[Sums, NDArray[np.float32]]]]:
    """Each pair's sums by document, and the logarithms of its ratios: those of the text, those that were drawn."""
    if not pairs:
        return
    targets, owners = (part.flatten() for part in batch[1:])
    some = next(iter(logits.values()))
    generator = torch.Generator().manual_seed(number)
    chances = torch.rand(len(targets), dtype=torch.float64, generator=generator).to(some.device)
    sums = {key: torch.zeros(many, _COLUMNS, dtype=torch.float64, device=some.device) for key in pairs}
    ratios: dict[str, list[Tensor]] = {key: [] for key in pairs}
    trains, serves = ({pair[side].name for pair in pairs.values()} for side in (0, 1))
    for rows in chunks(owners, some.shape[1], 4 * len(logits)):
        sides = {
            name: _side(x[rows], name in trains, chances[rows] if name in serves else None)
            for name, x in logits.items()
        }
        for key, (a, b) in pairs.items():
            each, pair_ratios = _figures(sides[a.name], sides[b.name], targets[rows])
            sums[key].index_add_(0, owners[rows], each)
            ratios[key].append(pair_ratios)
    for key in pairs:
        yield key, (sums[key].cpu().numpy(), torch.cat(ratios[key], 1).float().cpu().numpy())


def _side(logits: Tensor, trains: bool, chances: Tensor | None) -> _Side:
    logs = logits.double().log_softmax(-1)
    p = logs.exp()
    inverse = drawn = None
    if chances is not None:
        inverse = logs.clamp(min=_SMALLEST).neg().exp()
        reached = p.cumsum(-1)
        drawn = torch.searchsorted(reached, (chances[:, None] * reached[:, -1:])).clamp(max=p.shape[1] - 1)
    return _Side(logs, logits.argmax(-1), p if trains else None, p.square() if trains else None, inverse, drawn)


def _figures(train: _Side, serve: _Side, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of each token, and the logarithm of its two ratios."""
    assert train.p is not None and train.squares is not None and serve.inverse is not None and serve.drawn is not None
    kl = torch.linalg.vecdot(train.p, train.logs - serve.logs)
    moment = torch.linalg.vecdot(train.squares, serve.inverse)
    ratios = torch.stack(
        [
            (serve.logs.gather(1, tokens) - train.logs.gather(1, tokens)).squeeze(1)
            for tokens in (targets[:, None], serve.drawn)
        ]
    )
    outside = (ratios < math.log(LOW)) | (ratios > math.log(HIGH))
    flips = train.likeliest != serve.likeliest
    return torch.stack([torch.ones_like(kl), kl, flips.double(), moment, *outside.double()], 1), ratios


def _pair(train: str, serve: str, key: str, kept: KeptSums, windows: Windows) -> Pair:
    rows = [kept.rows[key, number] for number in range(windows.batches)]
    tokens, kl, flips, moment, *outside = np.sum([sums for sums, _ in rows], axis=0).T
    parts = [np.frombuffer(base64.b64decode(more["ratios"]), np.float32).reshape(2, -1) for _, more in rows]
    logs = np.concatenate(parts, 1).astype(np.float64)
    text, drawn = (
        Ratios(
            dict(zip(map(str, SHARES), np.quantile(each, SHARES).tolist(), strict=True)), ratio_interval(over, tokens)
        )
        for each, over in zip(np.exp(logs.clip(max=700)), outside, strict=True)
    )
    square, low, high = ratio_interval(moment, tokens)
    effective = 1 / square, 1 / max(high, 1.0), 1 / max(low, 1.0)
    return Pair(train, serve, ratio_interval(kl, tokens), ratio_interval(flips, tokens), effective, text, drawn)
