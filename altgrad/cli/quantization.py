"""What `altgrad quantize-model` does: cast a model's weights tensor by tensor, measure each cast, write the codes.

A job is a name, a policy's choices, and perhaps a folder to write. Only one tensor is in memory at a time, a cast of it
only a slab at a time, and codes go to the file as they are made; what stays of a tensor is counts and sums. A folder is
filled under a name aside and renamed when it is whole, so it appears complete or not at all.

Bytes are those of the tensors as they are stored: one element per code, whatever its width, and 4 for each scale.
"""

import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from altgrad.cli.nonfinite_weights import Nonfinite, find_nonfinite, require_finite
from altgrad.cli.selection import CastChoice, choose
from altgrad.formats import CATALOG, FloatFormat
from altgrad.measures.code_utilisation import code_histogram, code_utilisation
from altgrad.measures.range import range_counts
from altgrad.measures.sqnr import decibels, energies
from altgrad.nn import PrecisionPolicy
from altgrad.nn.layers import EMBEDDINGS, HEADS
from altgrad.nn.policy import describe
from altgrad.quantize import Quantizer
from altgrad.quantize.chunks import cast_in_slabs, whole_scale
from altgrad.quantize.codes import to_codes, to_storage
from altgrad.quantize.packed import PackedWriter, PlannedTensor
from altgrad.quantize.quantizer import Cast
from altgrad.spec import Document, LocatedError, SpecError
from altgrad.spec.ranking import badness
from altgrad.store.files import fsync
from altgrad.training.weights import INDEX, MODEL, StoredTensor, Weights

_SHARE_KEYS = {"underflow_rate": ("underflow", "nonzero"), "saturation_rate": ("saturated", "finite")}


@dataclass(frozen=True)
class ModelJob:
    """One way to quantise the model: by name, with the policy as data and what it chooses."""

    name: str
    policy: Mapping[str, Any]
    choices: Mapping[str, CastChoice]


@dataclass
class Tally:
    """Counts and sums over casts, from which the measures follow; they add up over slabs and over tensors."""

    counts: dict[str, int] = field(default_factory=dict)
    clamped: int = 0
    signal: float = 0.0
    noise: float = 0.0

    def add(self, counts: Mapping[str, int], signal: float, noise: float, clamped: int = 0) -> None:
        """Add what was found elsewhere. clamped: scales beyond their range."""
        self.counts = {key: self.counts.get(key, 0) + value for key, value in counts.items()}
        self.signal += signal
        self.noise += noise
        self.clamped += clamped

    def measures(self) -> dict[str, float]:
        """sqnr_db, underflow_rate and saturation_rate as SCIENCE defines them; the others are counts."""
        sums = torch.tensor([self.signal, self.noise], dtype=torch.float64)
        found = {"sqnr_db": float(decibels(sums[0], sums[1]))}
        for key, (part, whole) in _SHARE_KEYS.items():
            found[key] = self.counts[part] / self.counts[whole] if self.counts.get(whole) else math.nan
        return {**found, "nonfinite": self.counts.get("nonfinite", 0), "clamped_scale_count": self.clamped}


def formats_named(names: Sequence[str]) -> list[FloatFormat]:
    """The formats of --format, each once; `all` stands for the catalog. ValueError for one that no tensor can enter."""
    spelled = [entry.name for entry in CATALOG] if "all" in names or not names else names
    formats = list(dict.fromkeys(FloatFormat.parse(name) for name in spelled))
    for fmt in formats:
        fmt.require_tensor_domain()
    return formats


def jobs_by_format(weights: Weights, formats: Sequence[FloatFormat], matching: Sequence[str]) -> list[ModelJob]:
    """One job for each format: the matrices whose module matches, or all but embeddings and heads.

    ValueError, naming what there is, if that is none of them.
    """
    jobs = []
    for fmt in formats:
        rules = tuple({"match": pattern, "weight": str(fmt)} for pattern in matching or ("*",))
        policy = PrecisionPolicy.model_validate({"rules": rules})
        try:
            choices = choose(weights.tensors, policy, without=() if matching else (*EMBEDDINGS, *HEADS))
        except LocatedError as error:
            option = f"--match {error}" if matching else "the model has no 2-D weight besides embeddings and heads."
            raise ValueError(option) from None
        jobs.append(ModelJob(str(fmt), policy.tree(), choices))
    return jobs


def job_by_policy(weights: Weights, path: Path) -> ModelJob:
    """The job a policy file describes: rules, or whatever has some under `precision`, such as a run spec.

    SpecError, with line and column, for what is wrong in it or does not fit.
    """
    document = Document.load(path)
    if isinstance(document.data, dict) and "precision" in document.data:
        document = document.part("precision")
    policy = PrecisionPolicy.check(document)
    try:
        choices = choose(weights.tensors, policy)
    except LocatedError as error:
        raise SpecError(document.where(error.location), str(error)) from None
    if not choices:
        raise SpecError(document.where(()), "no rule casts a weight; give a rule a `weight`.")
    return ModelJob(path.stem, policy.tree(), choices)


def run(job: ModelJob, weights: Weights, folder: Path | None, broken: Mapping[str, Nonfinite]) -> dict[str, Any]:
    """Measure a job and, given a folder to fill, write it there. Returns the summary, with the tensors in `tensors`.

    broken: what holds NaN or Inf.
    """
    rows: list[dict[str, Any]] = []
    order: list[tuple[bool, float]] = []
    pooled, before, after = Tally(), 0, 0
    written: dict[str, str] = {}
    for file, tensors in weights.files.items():
        name = file.name if file.suffix == ".safetensors" else MODEL
        with ExitStack() as stack:
            writer = None
            if folder is not None:
                writer = stack.enter_context(PackedWriter(folder / name, _plan(tensors, job), job.policy))
            for tensor in tensors:
                choice = job.choices.get(tensor.name)
                before += tensor.bytes
                if choice is None:
                    after += tensor.bytes
                    if writer is not None:
                        writer.begin(tensor.name)
                        writer.write(tensor.load())
                    continue
                row, tally = _cast(tensor, choice, writer)
                rows.append(row | _counts(broken.get(tensor.name)))
                # Of a tensor of zeros nothing can be lost: its NaN is that of 0/0, and no damage.
                order.append(badness(row["sqnr_db"] if tally.signal != 0 else math.inf, "lower"))
                pooled.add(tally.counts, tally.signal, tally.noise, tally.clamped)
                after += row["bytes_after"]
            if writer is not None:
                writer.finish()
                written |= dict.fromkeys(writer.names, name)
    if folder is not None:
        _complete(folder, weights, written, after)
    worst = rows[max(range(len(rows)), key=lambda index: order[index])]
    return {
        "name": job.name, "cast_tensors": len(rows), "tensors_in_model": len(weights.tensors),
        **pooled.measures(), "worst": worst["tensor"], "worst_sqnr_db": worst["sqnr_db"],
        **{key: _mean([row[key] for row in rows]) for key in ("utilisation", "unused_share")},
        "bytes_before": before, "bytes_after": after, "tensors": rows,
        "nonfinite_tensors": [
            {"tensor": name, "elements": counts.elements, "cast": name in job.choices, **_counts(counts)}
            for name, counts in broken.items()
        ],
    }  # fmt: skip


def _counts(counts: Nonfinite | None) -> dict[str, int]:
    return {"nan_count": counts.nan if counts else 0, "inf_count": counts.inf if counts else 0}


def _plan(tensors: Sequence[StoredTensor], job: ModelJob) -> list[PlannedTensor]:
    choices = {name: choice.cast for name, choice in job.choices.items()}
    return [PlannedTensor(tensor.name, tensor.dtype, tensor.shape, choices.get(tensor.name)) for tensor in tensors]


@torch.no_grad()
def _cast(tensor: StoredTensor, choice: CastChoice, writer: PackedWriter | None) -> tuple[dict[str, Any], Tally]:
    x, fmt = tensor.load(), choice.cast.format
    rows = tensor.shape[0 if choice.reduced == "last" else 1]
    quantizer = Quantizer(choice.cast, f"{choice.module}/weight", "weight", rows=rows, reduced=choice.reduced)
    scale = whole_scale(x, quantizer)
    tally, histogram = Tally(), torch.zeros(1 << fmt.bits, dtype=torch.int64)
    if writer is not None:
        writer.begin(tensor.name)
    for slab, made in cast_in_slabs(x, quantizer, scale):
        counts = range_counts(made.exact, made.unbounded, made.rounded, fmt)
        signal, noise = energies(slab, made.values(torch.float32))
        tally.add({key: int(value) for key, value in counts.items()}, float(signal), float(noise))
        finite = made.rounded.isfinite()
        whole = bool(finite.all())
        codes = to_codes(made.rounded if whole else made.rounded[finite], fmt)
        histogram += code_histogram(codes, fmt)
        if writer is not None:
            writer.write(to_storage(codes if whole else _codes(made, tensor.name), fmt))
    size = x.numel() * (1 if fmt.bits <= 8 else 2)
    if scale is not None:
        assert scale.clamped is not None
        tally.clamped = int(scale.clamped)
        size += 4 * scale.entries.numel()
        if writer is not None:
            writer.scale(tensor.name, scale)
    used = {key: float(value) for key, value in code_utilisation(histogram, fmt).items()}
    facts = {"tensor": tensor.name, "cast": describe(choice.cast), "format": str(fmt), "shape": list(tensor.shape)}
    return {**facts, **tally.measures(), **used, "bytes_before": tensor.bytes, "bytes_after": size}, tally


def _codes(made: Cast, name: str) -> Tensor:
    """Codes where some values are inf or NaN. Where the scale is NaN (a block of MX) the value is NaN by that alone."""
    rounded = made.rounded
    if made.scale is not None:
        rounded = torch.where(made.scale.isnan(), 0.0, rounded)
    try:
        return to_codes(rounded, made.format)
    except ValueError as error:
        raise ValueError(f"{name} has inf or NaN, and {error}") from None


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _complete(folder: Path, weights: Weights, written: Mapping[str, str], size: int) -> None:
    """What belongs to a model besides its tensors: an index of several files, and copies of the companions."""
    if len(weights.files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(written.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    for name, source in weights.companions.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, folder / name)


def require_vacant(folder: Path) -> None:
    """ValueError if something is there that writing would replace; an empty folder is nothing."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if os.path.lexists(folder):
        raise ValueError(f"--out {folder} is there already; name a folder that is not, or remove it first.")


@contextmanager
def appearing_whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` when the block ends, and vanishes if the block fails."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}.aside")
    aside.mkdir()
    try:
        yield aside
        fsync(aside)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    fsync(folder.parent)


def run_all(jobs: Sequence[ModelJob], weights: Weights, out: Path | None) -> list[dict[str, Any]]:
    """Every job's summary. One job fills `out` itself, several fill a folder each in it, named after the job."""
    broken = find_nonfinite(weights)
    if out is None:
        return [run(job, weights, None, broken) for job in jobs]
    require_vacant(out)
    require_finite(broken, {name for job in jobs for name in job.choices})
    with appearing_whole(out) as aside:
        summaries = []
        for job in jobs:
            folder = aside if len(jobs) == 1 else aside / job.name
            folder.mkdir(exist_ok=True)
            summaries.append(run(job, weights, folder, broken))
        return summaries
