"""Which casts make a mismatch: each computed as in training, all others as in serving; and each alone the other way.

With K(S) the mean KL of the distribution in training from the one with the casts of serving at the sites S,

    without    K(all) - K(all but g)     what is gained by serving g as it is trained: what ranks them
    alone      K(g)                      what g would cost if all else were served as it is trained
    rest       K(all) - sum of K(g)      what casts do to one another; the sums of `without` have one likewise

K is at its minimum where nothing is served, so its gradient there is 0 and ranks nothing: each of these is a forward
pass. All are of the same tokens, and intervals are over documents, as in `altgrad.conversion.direct_cast`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from altgrad.conversion.arms import PolicyArm
from altgrad.conversion.mixed_net import Grain, MixedNet
from altgrad.conversion.windows import KeptSums, Sums, Windows
from altgrad.progress import progress
from altgrad.statistics.intervals import ratio_interval

__all__ = ["LEAST_BATCHES", "Cause", "Causes", "Interval3", "causes", "chunks", "finite", "require_batches"]

Interval3: TypeAlias = tuple[float, float, float]
"""A figure with the ends of its interval."""
LEAST_BATCHES = 8
"""A cast's effect is a mean over batches, some of which it harms by more than others."""
_BYTES = 1 << 27
"""Of the distributions that are compared at a time."""


@dataclass(frozen=True)
class Cause:
    """A group of casts, its sites, and its two figures in nats."""

    group: str
    sites: int
    without: Interval3
    alone: Interval3


@dataclass(frozen=True)
class Causes:
    """The groups in which two policies differ, that with the most to gain first. kl: of all, K(all)."""

    train: str
    serve: str
    by: Grain
    batches: int
    kl: Interval3
    groups: tuple[Cause, ...]
    rest_alone: Interval3
    rest_without: Interval3


def require_batches(windows: Windows) -> None:
    """ValueError for fewer than LEAST_BATCHES."""
    if windows.batches < LEAST_BATCHES:
        raise ValueError(
            f"causes take at least {LEAST_BATCHES} batches, and these {windows.tokens:,} tokens are {windows.batches}; "
            "give more text (--bytes), or a smaller --batch-size or --context."
        )


def causes(module: nn.Module, arms: tuple[PolicyArm, PolicyArm], by: Grain, windows: Windows, kept: KeptSums) -> Causes:
    """Those of the mismatch between training and serving, from 2 passes a batch for each group and 2 besides."""
    train, serve = arms
    net = MixedNet(module, train, serve)
    groups, every = net.groups(by), frozenset(net.sites)
    asked = {"all": every}
    asked |= {f"without {name}": every - set(sites) for name, sites in groups.items()}
    asked |= {f"alone {name}": frozenset(sites) for name, sites in groups.items()}
    sums = {name: np.zeros((windows.documents, 2)) for name in asked}
    device = next(module.parameters()).device
    for number in range(windows.batches):
        keys = {name: f"{train.key} | {serve.key} | {by} {name}" for name in asked}
        lacking = [name for name in asked if (keys[name], number) not in kept.rows]
        inputs, _, owners = windows.batch(number, device)
        reference = net.answers(inputs, ()) if lacking else None
        for name in lacking:
            done = number * len(asked) + list(asked).index(name)
            progress(f"serving {serve.name} {name}", done, windows.batches * len(asked))
            assert reference is not None
            logits = finite(f"{serve.name} {name}", net.answers(inputs, asked[name]))
            made = _divergence(reference, logits, owners.flatten(), windows.documents)
            kept.add(keys[name], number, made)
        for name in asked:
            sums[name] += kept.rows[keys[name], number][0]
    return _ranked(train.name, serve.name, by, windows.batches, groups, sums)


def finite(name: str, logits: Tensor) -> Tensor:
    """These logits. ValueError, with what gave them, for any that are not finite."""
    if not bool(logits.isfinite().all()):
        raise ValueError(f"{name} gives logits that are not finite, so there is nothing to compare; leave it out.")
    return logits


def chunks(owners: Tensor, vocabulary: int, distributions: int) -> Sequence[Tensor]:
    """The tokens that count, as many at a time as so many distributions in float64 leave room for."""
    places = torch.nonzero(owners >= 0).flatten()
    return torch.split(places, max(1, _BYTES // (8 * vocabulary * distributions)))


def _divergence(reference: Tensor, logits: Tensor, owners: Tensor, documents: int) -> Sums:
    """By document: tokens, and the sum of their KL."""
    found = torch.zeros(documents, 2, dtype=torch.float64, device=logits.device)
    for rows in chunks(owners, logits.shape[1], 4):
        ours, theirs = (each[rows].double().log_softmax(-1) for each in (reference, logits))
        kl = torch.linalg.vecdot(ours.exp(), ours - theirs)
        found.index_add_(0, owners[rows], torch.stack([torch.ones_like(kl), kl], 1))
    return found.cpu().numpy()


def _ranked(
    train: str, serve: str, by: Grain, batches: int, groups: dict[str, list[str]], sums: dict[str, Sums]
) -> Causes:
    tokens, full = sums["all"].T
    without = {name: full - sums[f"without {name}"][:, 1] for name in groups}
    alone = {name: sums[f"alone {name}"][:, 1] for name in groups}
    rows = [
        Cause(name, len(sites), ratio_interval(without[name], tokens), ratio_interval(alone[name], tokens))
        for name, sites in groups.items()
    ]
    rest_alone, rest_without = (
        ratio_interval(full - np.sum([*each.values()], axis=0), tokens) for each in (alone, without)
    )
    ranked = tuple(sorted(rows, key=lambda row: -row.without[0]))
    return Causes(train, serve, by, batches, ratio_interval(full, tokens), ranked, rest_alone, rest_without)
