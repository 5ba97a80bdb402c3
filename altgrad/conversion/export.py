"""A checkpoint that serving libraries load: weights cast, written in their layout, read again and compared.

    altgrad.export_checkpoint("folder", "out", to="compressed-tensors", preset="NVFP4")

The casts are those of a preset (every matrix but embeddings, heads and routers), of a policy, or a run's own. A tensor
is in memory one at a time and its cast a slab at a time; files are shards of at most `shard_bytes`.

Nothing is taken on trust: once the files are there, each is read as its reader reads it, by the names, dtypes and
config.json that were written, and every weight is compared with the value that the cast itself has on its grid. One
that differs (a scale inverted, blocks transposed, codes packed the other way round, a cast whose values are no product
of code and scale in the reader's order) is an error, and nothing is left behind.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from altgrad.conversion.export_report import ExportReport
from altgrad.conversion.saving import nonfinite_counts, require_finite, threads
from altgrad.conversion.source import PolicyLike, Source, conversion_by_policy
from altgrad.conversion.tensor_cast import TensorCast
from altgrad.measures.sqnr import decibels, energies
from altgrad.nn import PrecisionPolicy
from altgrad.nn.layers import EMBEDDINGS, HEADS
from altgrad.nn.names import matches
from altgrad.nn.slots import slot_text
from altgrad.progress import progress
from altgrad.quantize.checkpoint_config import (
    compressed_tensors_config,
    hf_fp8_config,
    layouts_in,
    quantization_config,
)
from altgrad.quantize.checkpoint_layout import HF_FP8, LAYOUTS, Layout, layout_of, preset_cast, scale_dtype
from altgrad.quantize.checkpoint_weights import QuantisedWeight, quantised_weights
from altgrad.quantize.chunks import cast_in_slabs, whole_scale
from altgrad.quantize.packed import DTYPES
from altgrad.quantize.tensor_file import TensorFile, size_of
from altgrad.quantize.weight_folder import tensors_in, weight_folder
from altgrad.spec import LocatedError
from altgrad.store import Run
from altgrad.store.whole_folder import appearing_whole, require_vacant
from altgrad.training.restore import spec_of
from altgrad.training.trained_run import TrainedRun
from altgrad.training.weights import INDEX, MODEL, StoredTensor

__all__ = ["Target", "export_checkpoint"]

Target = Literal["compressed-tensors", "hf-fp8"]
ROUTERS = ("*.gate", "*router", "*.router.*", "*shared_expert_gate")
"""Names of what sends tokens to experts; serving libraries keep it as it is."""
SHARD_BYTES = 5 * 10**9
_HEAD_FILE = "classifier.safetensors"


@dataclass(frozen=True)
class _Weight:
    """A tensor of the model, and how it is cast and kept; neither for one that is copied."""

    tensor: StoredTensor
    cast: TensorCast | None = None
    layout: Layout | None = None

    @property
    def module(self) -> str:
        return self.tensor.name.rpartition(".")[0]

    @property
    def planned(self) -> dict[str, tuple[torch.dtype, list[int]]]:
        """What is stored of it, by name, in the order of the file."""
        if self.cast is None or self.layout is None:
            return {self.tensor.name: (DTYPES[self.tensor.dtype], list(self.tensor.shape))}
        parts = self.layout.tensors(self.tensor.shape, scale_dtype(self.cast.spec))
        return {f"{self.module}.{suffix}": part for suffix, part in parts.items()}

    @property
    def bytes(self) -> int:
        return sum(size_of(dtype, shape) for dtype, shape in self.planned.values())


def export_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: Target,
    preset: str | None = None,
    policy: PolicyLike | None = None,
    match: str | Sequence[str] = (),
    activations: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> ExportReport:
    """Write a model as serving libraries load it, read it again and compare every weight with its cast.

    to: compressed-tensors (vLLM, transformers), or hf-fp8 (transformers' FP8 in blocks of 128 x 128, as DeepSeek-V3 has
    them). source: a Hugging Face folder, or a run of kind hf or llama, whose own casts are those of its last step.
    preset: FP8, FP8_DYNAMIC, FP8_BLOCK, NVFP4, MXFP4, MXFP8 or INT8, as compressed-tensors has them, for every matrix
    but embeddings, heads and routers, or for the modules that `match` (names with `*`) says; or a policy, whose casts
    must have a layout. activations: whether the config says that they are quantised, too, as the model runs. Every
    weight is read again and compared before `out` appears. ValueError, in one line, for what cannot be read, cast or
    kept so, and for a folder in use; OSError for the disk.
    """
    folder, given = Path(out), Path(source)
    require_vacant(folder)
    if preset is not None and policy is not None:
        raise ValueError("a preset and a policy both say the casts; leave out one of them.")
    run = Run(given) if Run(given).exists else None
    if run is None and not (given / "config.json").is_file():
        raise ValueError(f"{given} has no config.json; give the folder of a transformers model, or a run of kind hf.")
    patterns = [match] if isinstance(match, str) else list(match)
    with appearing_whole(folder) as aside, threads(1):
        model = given
        if run is not None:
            progress("reading the checkpoint")
            model = aside / ".model"
            step = TrainedRun(run).export(model)
            if policy is None and preset is None and to != "hf-fp8":
                policy = spec_of(run).at(step).precision
        weights = _planned(Source.of(model), to, preset, policy, patterns)
        shards = _shards(weights, shard_bytes)
        rows = _write(aside, shards)
        _complete(aside, model, weights, shards, _config(weights, to, activations))
        compared = _compare(aside, weights, rows)
        if run is not None:
            shutil.rmtree(model)
    return ExportReport(str(given), str(folder), to, len(shards), compared, rows, _ignored(weights))


def _planned(
    source: Source, to: Target, preset: str | None, policy: PolicyLike | None, match: Sequence[str]
) -> list[_Weight]:
    """Every tensor of the model in the order of its file, with its cast and its layout. ValueError as above."""
    casts = _casts(source, to, preset, policy, match)
    counted = {}
    tensors = source.weights.tensors
    for number, tensor in enumerate(tensors):
        progress("reading tensors", number, len(tensors))
        counted[tensor.name] = nonfinite_counts(tensor.load()) if tensor.name in casts else {}
    require_finite(source.weights, counted, casts)
    found = []
    for tensor in tensors:
        cast = casts.get(tensor.name)
        if cast is None:
            found.append(_Weight(tensor))
            continue
        if cast.experts:
            raise ValueError(
                f"{tensor.name} is 3-D {list(tensor.shape)}, and {to} keeps a matrix of each expert; leave it out by "
                "match, or split it as transformers' save_pretrained does."
            )
        layout = layout_of(cast.spec)
        if layout is not None and to == "hf-fp8":
            layout = HF_FP8 if layout.name == HF_FP8.name else None
        if layout is None or cast.reduced == "first":
            kept = "FP8_BLOCK" if to == "hf-fp8" else ", ".join(LAYOUTS)
            what = f"{slot_text(cast.spec)}" if layout is None else "a weight of [in, out]"
            raise ValueError(f"{tensor.name}: {what} has no layout in {to}, which keeps {kept} of [out, in].")
        layout.require_shape(tensor.name, tensor.shape)
        found.append(_Weight(tensor, cast, layout))
    return found


def _casts(
    source: Source, to: Target, preset: str | None, policy: PolicyLike | None, match: Sequence[str]
) -> dict[str, TensorCast]:
    """The cast of each tensor that is quantised."""
    if policy is not None:
        if match:
            raise ValueError("a policy names its own modules; leave out match.")
        return dict(conversion_by_policy(source, policy).casts)
    if preset is None and to == "hf-fp8":
        preset = HF_FP8.name
    if preset is None:
        raise ValueError(f"nothing says how to quantise; give a preset ({', '.join(LAYOUTS)}), or a policy.")
    if preset not in LAYOUTS:
        raise ValueError(f"preset {preset} is unknown; there are {', '.join(LAYOUTS)}.")
    rules = [{"match": pattern, "weight": preset_cast(preset).tree()} for pattern in match or ("*",)]
    try:
        casts = source.casts(
            PrecisionPolicy.made_from({"rules": tuple(rules)}),
            without=() if match else (*EMBEDDINGS, *HEADS, *ROUTERS),
        )
    except LocatedError as error:
        option = f"match: {error}" if match else "the model has no matrix besides embeddings, heads and routers."
        raise ValueError(option) from None
    narrow = {tensor.name for tensor in source.weights.tensors if tensor.dtype == "BF16" and to != "hf-fp8"}
    return {name: replace(cast, spec=preset_cast(preset, bfloat16=name in narrow)) for name, cast in casts.items()}


def _shards(weights: Sequence[_Weight], most: int) -> dict[str, list[_Weight]]:
    """The weights of each file, by its name; a file has one tensor at least."""
    found: list[list[_Weight]] = [[]]
    size = 0
    for weight in weights:
        if found[-1] and size + weight.bytes > most:
            found.append([])
            size = 0
        found[-1].append(weight)
        size += weight.bytes
    if len(found) == 1:
        return {MODEL: found[0]}
    return {f"model-{n:05d}-of-{len(found):05d}.safetensors": part for n, part in enumerate(found, 1)}


@torch.no_grad()
def _write(folder: Path, shards: Mapping[str, Sequence[_Weight]]) -> list[dict[str, Any]]:
    """The files, and a row for each weight that was cast."""
    rows: list[dict[str, Any]] = []
    total = sum(map(len, shards.values()))
    done = 0
    for name, weights in shards.items():
        planned = {key: part for weight in weights for key, part in weight.planned.items()}
        if len(planned) != sum(len(weight.planned) for weight in weights):
            raise ValueError("two tensors of the model would have one name; it is quantised already in part.")
        with TensorFile(folder / name, planned) as file:
            for weight in weights:
                progress("casting and writing", done, total)
                done += 1
                x = weight.tensor.load()
                if weight.cast is None or weight.layout is None:
                    file.write(x)
                    continue
                for piece in _pieces(x, weight.cast, weight.layout):
                    file.write(piece)
                rows.append(
                    {
                        "tensor": weight.tensor.name, "layout": weight.layout.name, "cast": slot_text(weight.cast.spec),
                        "shape": list(weight.tensor.shape), "bytes_before": weight.tensor.bytes,
                        "bytes_after": weight.bytes,
                    }
                )  # fmt: skip
    return rows


def _pieces(x: Tensor, cast: TensorCast, layout: Layout) -> Iterator[Tensor]:
    """What is stored of a weight, in order: its elements a slab at a time, then its scales."""
    quantizer = cast.quantizer(x.shape)
    scale = whole_scale(x, quantizer)
    for _, made in cast_in_slabs(x, quantizer, scale):
        yield layout.stored(made.rounded)
    yield from layout.scales(scale, x, cast.spec, scale_dtype(cast.spec)).values()


def _ignored(weights: Sequence[_Weight]) -> list[str]:
    """The Linears that are kept as they are, by name; an output head that shares the table has no tensor of its own."""
    matrices = [
        each.module
        for each in weights
        if each.cast is None and each.tensor.name.endswith(".weight") and len(each.tensor.shape) == 2
    ]
    plain = [name for name in matrices if not any(matches(pattern, [name]) for pattern in EMBEDDINGS)]
    cast = {each.module for each in weights if each.cast is not None}
    return sorted({*plain, *({"lm_head"} - cast)})


def _config(weights: Sequence[_Weight], to: Target, activations: bool) -> dict[str, Any]:
    if to == "hf-fp8":
        return hf_fp8_config(_ignored(weights))
    modules = {each.module: each.layout for each in weights if each.layout is not None}
    return compressed_tensors_config(modules, _ignored(weights), activations=activations)


def _complete(
    folder: Path,
    model: Path,
    weights: Sequence[_Weight],
    shards: Mapping[str, Sequence[_Weight]],
    said: Mapping[str, Any],
) -> None:
    """What belongs to a model besides its tensors: config.json, an index of several files, the tokenizer."""
    for name, companion in Source.of(model).weights.companions.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(companion, folder / name)
    if (model / _HEAD_FILE).is_file():
        shutil.copyfile(model / _HEAD_FILE, folder / _HEAD_FILE)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}, indent=2) + "\n")
    if len(shards) > 1:
        places = {key: name for name, part in shards.items() for each in part for key in each.planned}
        index = {
            "metadata": {"total_size": sum(each.bytes for each in weights)},
            "weight_map": dict(sorted(places.items())),
        }
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


@torch.no_grad()
def _compare(folder: Path, weights: Sequence[_Weight], rows: Sequence[dict[str, Any]]) -> int:
    """How many numbers were read again and compared; ValueError for the first tensor with one that differs."""
    written, config = weight_folder(folder), quantization_config(folder)
    assert config is not None
    there = tensors_in(written)
    read, taken = quantised_weights(layouts_in(config), there)
    plain = {name: place for name, place in there.items() if name not in taken}
    by_name, compared = {row["tensor"]: row for row in rows}, 0
    for number, weight in enumerate(weights):
        progress("reading again", number, len(weights))
        name, x = weight.tensor.name, weight.tensor.load()
        compared += x.numel()
        if weight.cast is None:
            dtype, shape, file = plain[name]
            kept = StoredTensor(name, dtype, shape, file).load()
            if kept.dtype != x.dtype or not torch.equal(_raw(kept), _raw(x)):
                raise ValueError(f"{name} was not copied as it is; nothing was written.")
            continue
        if name not in read:
            raise ValueError(f"{name} is not found among the quantised weights; nothing was written.")
        by_name[name]["sqnr_db"] = _compare_cast(x, weight.cast, read[name])
    return compared


def _compare_cast(x: Tensor, cast: TensorCast, written: QuantisedWeight) -> float:
    """The SQNR of a cast in dB; ValueError unless what was written has its values."""
    quantizer = cast.quantizer(x.shape)
    differ, start, sums = 0, 0, torch.zeros(2, dtype=torch.float64)
    with written.rows() as read:
        if written.shape != tuple(x.shape):
            raise ValueError(f"{written.name} is {list(written.shape)} when read; nothing was written.")
        for slab, made in cast_in_slabs(x, quantizer, whole_scale(x, quantizer)):
            values = made.values(torch.float32)
            differ += int(torch.count_nonzero(read(start, start + len(slab)) != values))
            sums += torch.stack(energies(slab, values))
            start += len(slab)
    if differ:
        raise ValueError(
            f"{written.name}: {differ:,} of {x.numel():,} weights, read from its {written.layout.name} layout, differ "
            f"from those of {slot_text(cast.spec)}; nothing was written. Values come back that are code times scale as "
            "the reader multiplies them (arithmetic: compressed_tensors)."
        )
    return float(decibels(sums[0], sums[1]))


def _raw(x: Tensor) -> Tensor:
    return x.contiguous().flatten().view(torch.uint8)
