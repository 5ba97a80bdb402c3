"""Direct casts: what recipes cost a trained language model that is not trained again.

The same documents pass the model as it is and, arm by arm, with its layers cast as a recipe says: the forward slots
alone, weights in float32 before them. Products run in float32, so that a figure is about the casts; the arm `bf16` has
no casts and computes in bfloat16. Delayed scales have no history and take the amax of what they cast.

    bits per byte    sum of NLL / ln 2 / bytes of text           perplexity   exp(sum of NLL / tokens)
    KL               mean over tokens of sum p log(p / q)        top-1        tokens whose likeliest is the same

p is the uncast model's distribution, q the arm's. Documents form one stream of tokens, a separator before each, cut
into windows of `context` tokens that begin without context; the last batch is filled from the beginning of the stream
and what fills it counts nowhere (as in `altgrad.data.text`). A scale for the tensor is one for a batch.

Documents are what was sampled, so intervals are over documents: of a ratio of sums, by its linearisation (Cochran,
Sampling Techniques, 6.4), with Student's t. Differences are of the same documents, and much narrower than those of the
arms themselves.

Each batch passes all arms while the uncast answers are there: those of all batches would be gigabytes. What an arm made
of a batch is kept under a hash of all that decides it, so that the command goes on where it was stopped.
"""

import copy
import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from altgrad.conversion.language_model import LanguageModel
from altgrad.data.tokens import cache_folder
from altgrad.nn import PrecisionPolicy, quantize_model
from altgrad.nn.rule import GradInputSlots, GradWeightSlots
from altgrad.progress import progress
from altgrad.statistics.intervals import ratio_interval
from altgrad.store.files import Appender, read_jsonl
from altgrad.training.micro_batches import autocast

__all__ = ["ArmScore", "DirectCast", "Settings", "direct_cast"]

UNCAST, BF16 = "uncast", "bf16"
_ROWS = 256
"""Tokens whose distributions are compared at a time."""
Sums = NDArray[np.float64]
"""By document: NLL, tokens, KL, agreements."""


@dataclass(frozen=True)
class Settings:
    """What is evaluated: documents of a split up to `size` bytes (None: all), in windows of `context` tokens."""

    split: str = "test"
    size: int | None = 1 << 16
    context: int = 512
    batch_size: int = 8


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


class _Arm(NamedTuple):
    name: str
    key: str
    compute: str
    policy: PrecisionPolicy | None


class _Stream:
    """The documents as windows: which document each target belongs to, -1 for what counts nowhere."""

    def __init__(self, documents: Sequence[NDArray[Any]], separator: int, settings: Settings) -> None:
        ring = np.concatenate([np.concatenate([[separator], ids]) for ids in documents]).astype(np.int64)
        owner = np.repeat(np.arange(len(documents)), [len(ids) + 1 for ids in documents])
        shape = settings.batch_size, settings.context
        self.batches = -(-len(ring) // (shape[0] * shape[1]))
        places = np.arange(self.batches * shape[0] * shape[1])
        following = (places + 1) % len(ring)
        # The separator that follows a document is told by it: its end.
        counted = np.where(places < len(ring), owner[places % len(ring)], -1)
        self.inputs, self.targets, self.owners = (
            torch.from_numpy(np.ascontiguousarray(each)).view(self.batches, *shape)
            for each in (ring[places % len(ring)], ring[following], counted)
        )


def direct_cast(
    model: LanguageModel, recipes: Sequence[str], settings: Settings, device: torch.device | str = "cpu"
) -> DirectCast:
    """The figures of each recipe, after those of the uncast model. `bf16` among recipes: no casts, in bfloat16.

    ValueError for a recipe that does not fit the model, and for a split without text. What was done before is kept.
    """
    arms = [_Arm(UNCAST, UNCAST, "float32", None), *map(_arm, dict.fromkeys(recipes))]
    texts = model.texts(settings.split, settings.size)
    stream = _Stream([*model.encode(texts)], model.separator, settings)
    done = _Done(_place(model, texts, settings), len(texts))
    module = model.module.to(device).eval()
    nets = {arm.name: _net(module, arm) for arm in arms}
    sums = {arm.name: np.zeros((len(texts), 4)) for arm in arms}
    seconds = dict.fromkeys(sums, 0.0)
    for number in range(stream.batches):
        lacking = [arm for arm in arms if (arm.key, number) not in done.rows]
        batch = [part[number].to(device) for part in (stream.inputs, stream.targets, stream.owners)]
        reference = _answers(nets[UNCAST], batch[0], "float32") if lacking else None
        for arm in arms:
            if reference is not None and arm in lacking:
                progress(f"evaluating {arm.name}", number * len(arms) + arms.index(arm), stream.batches * len(arms))
                done.add(arm.key, number, *_scored(nets[arm.name], arm, batch, reference, len(texts)))
            part, took = done.rows[arm.key, number]
            sums[arm.name] += part
            seconds[arm.name] += took
    sizes = np.array([len(text.encode()) for text in texts], np.float64)
    rows = tuple(_score(arm.name, sums[arm.name], sums[UNCAST], sizes, seconds[arm.name]) for arm in arms)
    tokens = int(sums[UNCAST][:, 1].sum())
    return DirectCast(model.name, len(texts), int(sizes.sum()), tokens, settings, rows)


def _arm(name: str) -> _Arm:
    if name == BF16:
        return _Arm(name, name, "bfloat16", None)
    policy = PrecisionPolicy.made_from(name)
    rules = tuple(
        rule.model_copy(
            update={
                "grad_output": None,
                "grad_input": GradInputSlots(grad_output=None, weight=None),
                "grad_weight": GradWeightSlots(grad_output=None, input=None),
            }
        )
        for rule in policy.rules
    )
    forward = PrecisionPolicy(rules=rules)
    return _Arm(name, json.dumps(forward.tree(), sort_keys=True, default=str), "float32", forward)


def _net(module: nn.Module, arm: _Arm) -> nn.Module:
    """The arm's modules over the very parameters of the model."""
    if arm.policy is None:
        return module
    progress(f"casting the model by {arm.name}")
    made = copy.deepcopy(module, {id(p): p for p in module.parameters()})
    try:
        return quantize_model(made, arm.policy).eval()
    except ValueError as error:
        raise ValueError(f"recipe {arm.name}: {error}") from None


@torch.no_grad()
def _answers(net: nn.Module, inputs: Tensor, compute: str) -> Tensor:
    with autocast(compute, inputs.device):
        logits: Tensor = net(inputs)
    return logits.flatten(0, 1)


def _scored(
    net: nn.Module, arm: _Arm, batch: Sequence[Tensor], reference: Tensor, documents: int
) -> tuple[Sums, float]:
    begin = time.perf_counter()
    answers = reference if arm.name == UNCAST else _answers(net, batch[0], arm.compute)
    found = torch.zeros(documents, 4, dtype=torch.float64, device=answers.device)
    targets, owners = (part.flatten() for part in batch[1:])
    for rows in torch.split(torch.arange(len(targets), device=answers.device), _ROWS):
        ours, theirs = (logits[rows].float().log_softmax(-1) for logits in (answers, reference))
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


def _place(model: LanguageModel, texts: Sequence[str], settings: Settings) -> Path:
    """Where what was done is kept: a name made of everything that decides it but the arm."""
    decides = json.dumps([model.identity, list(texts), settings.context, settings.batch_size, torch.__version__])
    return cache_folder() / "direct_cast" / f"{hashlib.sha256(decides.encode()).hexdigest()}.jsonl"


class _Done:
    """What arms made of batches, in a file of lines, floats to the last bit; a torn last one is none."""

    def __init__(self, path: Path, documents: int) -> None:
        self.path, self.documents = path, documents
        self.rows: dict[tuple[str, int], tuple[Sums, float]] = {}
        for row in read_jsonl(path):
            sums = np.zeros((documents, 4))
            for document, numbers in row["sums"].items():
                sums[int(document)] = [float.fromhex(number) for number in numbers]
            self.rows[row["arm"], row["batch"]] = sums, row["seconds"]

    def add(self, arm: str, batch: int, sums: Sums, seconds: float) -> None:
        """Keep a row, at once. ValueError where it cannot be written."""
        self.rows[arm, batch] = sums, seconds
        own = {str(document): [float(x).hex() for x in sums[document]] for document in np.flatnonzero(sums[:, 1])}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            log = Appender(self.path)
            log.append({"arm": arm, "batch": batch, "sums": own, "seconds": seconds})
            log.close()
        except OSError as error:
            raise ValueError(
                f"{self.path}: {error.strerror or error}; set ALTGRAD_CACHE to a folder with space."
            ) from None
