"""A model quantised at rest: its weights cast tensor by tensor, each cast measured, and the codes written if asked.

Only one tensor is in memory at a time, a cast of it only a slab at a time, and codes go to the file as they are made;
what stays of a tensor is counts and sums. A folder is filled under a name aside and renamed when it is whole, so it
appears complete or not at all. Bytes are those of the tensors as they are stored: one element per code, whatever its
width, and 4 for each scale.

Tensors that hold NaN or Inf are counted, cast or not, before any cast (in a block of MX one NaN makes 32). Such a model
can be measured, which is how one finds out, and is not written: codes of NaN, or of an Inf that saturates to the
largest weight, would be taken for weights by whoever loads them. What no rule casts is copied as it was (masks hold
-inf by right), and named all the same.
"""

import json
import math
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.conversion.conversion_report import ConversionReport, nonfinite_words
from altgrad.conversion.source import (
    Conversion,
    Formats,
    PolicyLike,
    Source,
    conversion_by_policy,
    conversion_of_quantised,
    conversions_by_format,
    formats_named,
)
from altgrad.conversion.tensor_cast import TensorCast
from altgrad.measures.code_utilisation import code_histogram, code_utilisation
from altgrad.measures.range import range_counts
from altgrad.measures.sqnr import decibels, energies
from altgrad.nn.slots import slot_text
from altgrad.progress import progress
from altgrad.quantize.block_scale import SmallScale
from altgrad.quantize.cast import Cast
from altgrad.quantize.chunks import ELEMENTS, cast_in_slabs, whole_scale
from altgrad.quantize.codes import to_codes, to_storage
from altgrad.quantize.packed import PackedWriter, PlannedTensor
from altgrad.spec.ranking import badness
from altgrad.store.whole_folder import appearing_whole, require_vacant
from altgrad.training.weights import INDEX, MODEL, StoredTensor, Weights

Totals = Mapping[str, float]
_NOTHING: Totals = {"signal": 0.0, "noise": 0.0, "clamped": 0}
_SHARE_KEYS = {"underflow_rate": ("underflow", "nonzero"), "saturation_rate": ("saturated", "finite")}


def save_quantized(
    source: nn.Module | str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    *,
    policy: PolicyLike | None = None,
    format: Formats | None = None,
    match: str | Sequence[str] = (),
) -> ConversionReport:
    """Quantise a model's weights and write them to a new folder, which `load_quantized` reads to exactly these values.

    source: a Hugging Face folder, a .safetensors file, a run, or a model; one that `quantize_model` has quantised is
    written as its own casts have it, and takes nothing more. out: None to measure without writing. policy: a
    PrecisionPolicy, its rules as data, or the file of one. format, instead: one for every matrix but embeddings and
    heads, or those of the modules that `match` (names with `*`) says; of several formats (`all` for the catalog, which
    is what is measured by default) each has a folder in `out`. Returns what each cast kept. ValueError, in one line,
    for what cannot be read or cast, for a folder in use, and for weights that are not finite; OSError for the disk.
    """
    if policy is not None and (format or match):
        raise ValueError("a policy names its own formats and modules; leave out format and match.")
    formats = formats_named(format or "all") if policy is None else []
    folder = None if out is None else Path(out)
    if folder is not None:
        require_vacant(folder)
    opened = Source.of(source)
    quantised = conversion_of_quantised(opened) if policy is None and not format else None
    if quantised is not None:
        conversions = [quantised]
    elif policy is not None:
        conversions = [conversion_by_policy(opened, policy)]
    elif folder is not None and not format:
        raise ValueError("nothing says what to write; give a format, such as e4m3fn, or a policy.")
    else:
        conversions = conversions_by_format(opened, formats, [match] if isinstance(match, str) else match)
    with threads(1):  # a slab is work for one core; threads that wait for one another take longer together
        results = _convert_all(conversions, opened.weights, folder)
    return ConversionReport(opened.name, None if out is None else str(out), results)


def nonfinite_counts(x: Tensor) -> dict[str, int]:
    """How many entries are NaN and how many Inf, counted a piece at a time; a tensor of integers has none."""
    nan = inf = 0
    flat = x.flatten() if x.is_floating_point() else x.flatten()[:0]
    for start in range(0, len(flat), ELEMENTS):
        part = flat[start : start + ELEMENTS]
        values = part.float() if part.dtype.itemsize == 1 else part
        if not values.isfinite().all():
            nan, inf = nan + int(values.isnan().sum()), inf + int(values.isinf().sum())
    return {"nan_count": nan, "inf_count": inf}


def _measures(totals: Totals) -> dict[str, float]:
    """sqnr_db, underflow_rate and saturation_rate as docs/SCIENCE.md defines them; the others are counts."""
    sums = torch.tensor([totals["signal"], totals["noise"]], dtype=torch.float64)
    measures = {"sqnr_db": float(decibels(sums[0], sums[1]))}
    for key, (part, whole) in _SHARE_KEYS.items():
        measures[key] = totals[part] / totals[whole] if totals.get(whole) else math.nan
    return {**measures, "nonfinite": totals.get("nonfinite", 0), "clamped_scale_count": totals["clamped"]}


def _added(totals: Totals, more: Totals) -> dict[str, float]:
    """Counts and sums over casts add up over slabs and over tensors; the measures follow from them."""
    return {**totals, **{key: totals.get(key, 0) + value for key, value in more.items()}}


def _convert_all(conversions: Sequence[Conversion], weights: Weights, out: Path | None) -> list[dict[str, Any]]:
    """Every conversion's summary. One fills `out` itself, several fill a folder each in it, named after them."""
    counted = {}
    for number, tensor in enumerate(weights.tensors):
        progress("reading tensors", number, len(weights.tensors))
        counted[tensor.name] = nonfinite_counts(tensor.load())
    if out is None:
        return [_convert(conversion, weights, None, counted) for conversion in conversions]
    require_finite(weights, counted, {name for conversion in conversions for name in conversion.casts})
    with appearing_whole(out) as aside:
        summaries = []
        for conversion in conversions:
            folder = aside if len(conversions) == 1 else aside / conversion.name
            folder.mkdir(exist_ok=True)
            summaries.append(_convert(conversion, weights, folder, counted))
        return summaries


def _convert(
    conversion: Conversion, weights: Weights, folder: Path | None, counted: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """Measure a conversion and, given a folder to fill, write it there. counted: NaN and Inf by tensor."""
    rows: list[dict[str, Any]] = []
    order: list[tuple[bool, float]] = []
    pooled, before, after = dict(_NOTHING), 0, 0
    written: dict[str, str] = {}
    for file, tensors in weights.files.items():
        name = file.name if file.suffix == ".safetensors" else MODEL
        with ExitStack() as stack:
            writer = None
            if folder is not None:
                writer = stack.enter_context(PackedWriter(folder / name, _plan(tensors, conversion), conversion.policy))
            for tensor in tensors:
                cast = conversion.casts.get(tensor.name)
                before += tensor.bytes
                if cast is None:
                    after += tensor.bytes
                    if writer is not None:
                        writer.begin(tensor.name)
                        writer.write(tensor.load())
                    continue
                progress(f"casting to {conversion.name}", len(rows), len(conversion.casts))
                row, totals = _cast(tensor, cast, writer)
                rows.append({**row, **counted[tensor.name]})
                # Of a tensor of zeros nothing can be lost: its NaN is that of 0/0, and no damage.
                order.append(badness(row["sqnr_db"] if totals["signal"] != 0 else math.inf, "lower"))
                pooled = _added(pooled, totals)
                after += row["bytes_after"]
            if writer is not None:
                writer.finish()
                written |= dict.fromkeys(writer.names, name)
    if folder is not None:
        _complete(folder, weights, written, after)
    worst = rows[max(range(len(rows)), key=lambda index: order[index])]
    return {
        "name": conversion.name, "cast_tensors": len(rows), "tensors_in_model": len(weights.tensors),
        **_measures(pooled), "worst": worst["tensor"], "worst_sqnr_db": worst["sqnr_db"],
        **{key: _mean([row[key] for row in rows]) for key in ("utilisation", "unused_share")},
        "bytes_before": before, "bytes_after": after, "tensors": rows,
        "nonfinite_tensors": [
            {"tensor": t.name, "elements": t.elements, "cast": t.name in conversion.casts, **counted[t.name]}
            for t in weights.tensors
            if any(counted[t.name].values())
        ],
    }  # fmt: skip


def _plan(tensors: Sequence[StoredTensor], conversion: Conversion) -> list[PlannedTensor]:
    specs = {name: cast.spec for name, cast in conversion.casts.items()}
    return [PlannedTensor(tensor.name, tensor.dtype, tensor.shape, specs.get(tensor.name)) for tensor in tensors]


@torch.no_grad()
def _cast(tensor: StoredTensor, cast: TensorCast, writer: PackedWriter | None) -> tuple[dict[str, Any], Totals]:
    fmt, x = cast.spec.format, tensor.load()
    totals, histogram = dict(_NOTHING), torch.zeros(1 << fmt.bits, dtype=torch.int64)
    scales: list[SmallScale] = []
    if writer is not None:
        writer.begin(tensor.name)
    for matrix, quantizer in cast.matrices(x):
        matrix = matrix.to(next((buffer.device for buffer in quantizer.buffers()), x.device))  # to scales of a training
        scale = whole_scale(matrix, quantizer)
        scales += [] if scale is None else [scale]
        for slab, made in cast_in_slabs(matrix, quantizer, scale):
            counts = range_counts(made.exact, made.unbounded, made.rounded, fmt)
            signal, noise = energies(slab, made.values(torch.float32))
            sums = {"signal": float(signal), "noise": float(noise)}
            totals = _added(totals, {key: int(value) for key, value in counts.items()} | sums)
            finite = made.rounded.isfinite()
            whole = bool(finite.all())
            codes = to_codes(made.rounded if whole else made.rounded[finite], fmt).cpu()
            histogram += code_histogram(codes, fmt)
            if writer is not None:
                writer.write(to_storage(codes if whole else _codes(made, tensor.name), fmt))
    size = tensor.elements * (1 if fmt.bits <= 8 else 2)
    if scales:
        found = SmallScale.stacked(scales) if cast.experts else scales[0]
        assert found.clamped is not None
        totals["clamped"] = int(found.clamped)
        size += 4 * found.entries.numel()
        if writer is not None:
            writer.scale(tensor.name, found)
    used = {key: float(value) for key, value in code_utilisation(histogram, fmt).items()}
    facts = {"tensor": tensor.name, "cast": slot_text(cast.spec), "format": str(fmt), "shape": list(tensor.shape)}
    return {**facts, **_measures(totals), **used, "bytes_before": tensor.bytes, "bytes_after": size}, totals


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
    for name, companion in weights.companions.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(companion, folder / name)


def require_finite(weights: Weights, counted: Mapping[str, Mapping[str, int]], cast: Collection[str]) -> None:
    """ValueError, in one line, if a tensor that is to be cast is broken."""
    broken = [tensor for tensor in weights.tensors if tensor.name in cast and any(counted[tensor.name].values())]
    if broken:
        words = nonfinite_words(counted[broken[0].name], broken[0].elements)
        others = f", and so do {len(broken) - 1} other tensors" if len(broken) > 1 else ""
        raise ValueError(
            f"{broken[0].name} has inf or NaN, and a quantised model is written of finite weights only: {words}"
            f"{others}; start from whole weights, or measure without writing."
        )


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many threads for the length of a block; None for as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
