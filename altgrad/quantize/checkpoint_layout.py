"""How serving libraries keep a quantised weight: which tensors, in which dtypes and shapes, which way a scale is meant.

For a module `m` with a weight of [rows, columns], in safetensors, by compressed-tensors 0.20.1 and, for hf-fp8, by
transformers' FineGrainedFP8 (DeepSeek-V3's layout):

    layout       elements                          scales                                            a value is
    FP8          m.weight           e4m3fn         m.weight_scale         float  [1]                  q s
    FP8_DYNAMIC  m.weight           e4m3fn         m.weight_scale         float  [rows, 1]            q s
    FP8_BLOCK    m.weight           e4m3fn         m.weight_scale         float  [rows/128, cols/128] q s
    hf-fp8       m.weight           e4m3fn         m.weight_scale_inv     float  [rows/128, cols/128] q s (sic)
    NVFP4        m.weight_packed    uint8 [., /2]  m.weight_scale         e4m3fn [rows, cols/16]      q fl(s/g)
                                                   m.weight_global_scale  float  [1], g
    MXFP4        m.weight_packed    uint8 [., /2]  m.weight_scale         uint8  [rows, cols/32]      q 2^(s-127)
    MXFP8        m.weight           e4m3fn         m.weight_scale         uint8  [rows, cols/32]      q 2^(s-127)
    INT8         m.weight           int8           m.weight_scale         float  [rows, 1]            q s

Every scale multiplies, but for g, which divides (2688 / amax). Two e2m1 codes share a byte, the first in the low four
bits. Blocks at the edge are ragged; runs of 16 and 32 must fill their rows. `float` is bfloat16 where scales are
rounded to it (`scale: bf16`), as those of a model in it are, else float32.

A layout fixes the grid and where scales lie, not how they were found: any cast goes into it whose values are products
of code and scale in just this order. Whoever writes one proves that by reading it back.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from altgrad.formats import NumberFormat, parse_format
from altgrad.quantize.arithmetic import global_scale
from altgrad.quantize.block import BlockSpec
from altgrad.quantize.block_scale import SmallScale
from altgrad.quantize.chunks import in_slabs
from altgrad.quantize.codes import from_codes, storage_dtype, to_codes, to_storage
from altgrad.quantize.quantizer import QuantizerSpec
from altgrad.quantize.scaling import finite_magnitude

__all__ = ["BLOCK", "HF_FP8", "LAYOUTS", "PRESETS", "Layout", "layout_of", "preset_cast", "scale_dtype"]

BLOCK = 128
"""Rows and columns of a block of FP8_BLOCK."""
_E4M3FN, _E2M1, _INT8, _BF16 = map(parse_format, ("e4m3fn", "e2m1", "int8", "bf16"))
_ARITHMETIC = {"arithmetic": "compressed_tensors"}
PRESETS: dict[str, dict[str, Any]] = {
    "FP8": {"format": "e4m3fn", "scaling": {"kind": "current", "scale": "real"}},
    "FP8_DYNAMIC": {"format": "e4m3fn", "scaling": {"kind": "current", "scale": "real", "granularity": "channel"}},
    "FP8_BLOCK": {"format": "e4m3fn", "scaling": {"kind": "block", "scale": "real", "shape": "square"}},
    "NVFP4": {"format": "e2m1", "scaling": {"kind": "nvfp4", "zero_becomes": 0.125, **_ARITHMETIC}},
    "MXFP4": {"format": "e2m1", "scaling": {"kind": "mx", "mode": "even", **_ARITHMETIC}},
    "MXFP8": {"format": "e4m3fn", "scaling": {"kind": "mx", "mode": "even", **_ARITHMETIC}},
    "INT8": {
        "format": "int8",
        "scaling": {"kind": "current", "scale": "real", "granularity": "channel", "target": 127.5 / 127},
    },
}
"""The casts of compressed-tensors' presets for a weight, in the words of a spec."""


def preset_cast(name: str, *, bfloat16: bool = False) -> QuantizerSpec:
    """The cast of a weight that compressed-tensors' preset of this name is; bfloat16: of a model in it, whose float
    scales are rounded to it."""
    words = PRESETS[name]
    if bfloat16 and words["scaling"].get("scale") == "real":
        words = {**words, "scaling": {**words["scaling"], "scale": "bf16"}}
    return QuantizerSpec.model_validate(words)


def scale_dtype(spec: QuantizerSpec) -> torch.dtype:
    """What the float scales of a cast are stored as."""
    return torch.bfloat16 if getattr(spec.scaling, "scale", "real") == _BF16 else torch.float32


@dataclass(frozen=True)
class Layout:
    """One row of the table above. strategy: compressed-tensors' word for what shares a scale; size: of a block or run.

    suffix: of the scale's name, behind that of the module.
    """

    name: str
    format: NumberFormat
    strategy: str
    stored_format: str
    size: int = 0
    suffix: str = "weight_scale"

    @property
    def packed(self) -> bool:
        """Whether two codes share a byte."""
        return self.format.bits == 4

    @property
    def two_levels(self) -> bool:
        """Whether scales are numbers of e4m3fn under one for the tensor."""
        return self.strategy == "tensor_group"

    @property
    def exponents(self) -> bool:
        """Whether scales are biased powers of two in a byte."""
        return self.strategy == "group"

    @property
    def elements(self) -> str:
        """The suffix of the elements' name."""
        return "weight_packed" if self.packed else "weight"

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns that one entry of the scale spans."""
        return (self.size, self.size) if self.strategy == "block" else (1, max(1, self.size))

    def require_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """ValueError, in one line, for a weight that this layout cannot hold, or that its readers misread."""
        rows, columns = shape
        if self.strategy in ("group", "tensor_group") and columns % self.size:
            raise ValueError(
                f"{name} has {columns} columns, no multiple of {self.size}, which {self.name} needs; leave it out by "
                "match, or take FP8."
            )
        if self.suffix == "weight_scale_inv" and any(size > BLOCK and size % BLOCK for size in shape):
            raise ValueError(
                f"{name} is {rows} x {columns}, no multiple of {BLOCK}, and transformers takes the blocks of such a "
                "weight for smaller ones; leave it out by match, or use --to compressed-tensors with FP8_BLOCK."
            )

    def tensors(self, shape: tuple[int, ...], scale_dtype: torch.dtype) -> dict[str, tuple[torch.dtype, list[int]]]:
        """What is stored of a weight: by suffix, dtype and shape; elements first."""
        rows, columns = shape
        across = [-(-size // step) for size, step in zip(shape, self.block, strict=True)]
        scale = {"tensor": [1], "channel": [rows, 1]}.get(self.strategy, across)
        kind = torch.uint8 if self.exponents else torch.float8_e4m3fn if self.two_levels else scale_dtype
        found = {self.elements: (storage_dtype(self.format), [rows, columns // 2 if self.packed else columns])}
        found[self.suffix] = (kind, scale)
        if self.two_levels:
            found["weight_global_scale"] = (torch.float32, [1])
        return found

    def stored(self, rounded: Tensor) -> Tensor:
        """The elements of grid values, [rows, columns], as they are stored."""
        codes = to_codes(rounded, self.format)
        if not self.packed:
            return to_storage(codes, self.format)
        return (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8)

    def scales(self, found: SmallScale | None, x: Tensor, spec: QuantizerSpec, dtype: torch.dtype) -> dict[str, Tensor]:
        """The scales of a weight x that was cast by `spec`, by suffix, as they are stored."""
        entries = torch.ones(()) if found is None else found.entries
        if self.exponents:
            return {self.suffix: (torch.frexp(entries).exponent + 126).to(torch.uint8)}
        if not self.two_levels:
            return {self.suffix: (entries.reshape(1) if self.strategy == "tensor" else entries).to(dtype)}
        assert isinstance(spec.scaling, BlockSpec)
        amax = torch.stack([finite_magnitude(slab).amax() for slab in in_slabs(x)]).amax()
        factor = global_scale(amax, spec.scaling.bound * spec.scaling.top(spec.format))
        inner = (entries * factor).clamp(max=448).to(torch.float8_e4m3fn)
        return {self.suffix: inner, "weight_global_scale": factor.reshape(1)}

    def read_scale(self, stored: Mapping[str, Tensor], shape: tuple[int, ...]) -> SmallScale:
        """The scale of a weight of this shape, from what is stored. ValueError where that does not fit."""
        scale = stored[self.suffix]
        if scale.dtype == torch.uint8:
            entries = torch.exp2(scale.to(torch.float64) - 127).float()
            entries = torch.where(scale == 255, math.nan, entries)
        else:
            entries = scale.float()
        if self.two_levels:
            entries = entries / stored["weight_global_scale"].float()
        if self.strategy == "tensor":
            if entries.numel() != 1:
                raise ValueError(f"{self.suffix} has {entries.numel()} numbers, and strategy tensor has one.")
            return SmallScale(entries.reshape(()), ())
        entries = entries.reshape(-1, 1) if self.strategy == "channel" and entries.ndim == 1 else entries
        wanted = self.tensors(shape, torch.float32)[self.suffix][1]
        if list(entries.shape) != wanted:
            raise ValueError(f"{self.suffix} is {list(entries.shape)}; of a weight {list(shape)} it is {wanted}.")
        return SmallScale(entries, self.block)

    def read(self, stored: Tensor) -> Tensor:
        """Stored elements as grid values, float32, [rows, columns]."""
        if not self.packed:
            return stored.float()
        codes = torch.stack([stored & 0xF, stored >> 4], dim=-1).flatten(-2)
        return from_codes(codes, self.format)


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("FP8", _E4M3FN, "tensor", "float-quantized"),
        Layout("FP8_DYNAMIC", _E4M3FN, "channel", "float-quantized"),
        Layout("FP8_BLOCK", _E4M3FN, "block", "float-quantized", BLOCK),
        Layout("NVFP4", _E2M1, "tensor_group", "nvfp4-pack-quantized", 16),
        Layout("MXFP4", _E2M1, "group", "mxfp4-pack-quantized", 32),
        Layout("MXFP8", _E4M3FN, "group", "mxfp8-quantized", 32),
        Layout("INT8", _INT8, "channel", "int-quantized"),
    )
}
"""compressed-tensors', by the names of its presets."""
HF_FP8 = Layout("FP8_BLOCK", _E4M3FN, "block", "", BLOCK, suffix="weight_scale_inv")


def layout_of(spec: QuantizerSpec) -> Layout | None:
    """The layout that holds what a cast makes; None where no layout has its grid and its blocks."""
    wanted = (spec.format, _strategy(spec), getattr(spec.scaling, "size", 0))
    return next((each for each in LAYOUTS.values() if (each.format, each.strategy, each.size) == wanted), None)


def _strategy(spec: QuantizerSpec) -> str | None:
    """compressed-tensors' word for where the scales of a cast lie; None where it has none."""
    scaling = spec.scaling
    if not isinstance(scaling, BlockSpec):
        return "channel" if getattr(scaling, "granularity", "tensor") == "channel" else "tensor"
    if scaling.shape == "square":
        plain = scaling.scale in ("real", "power_of_two", _BF16) and scaling.outer == "none"
        return "block" if plain else None
    if scaling.outer == "tensor" and scaling.scale == _E4M3FN:
        return "tensor_group"
    return "group" if scaling.outer == "none" and scaling.scale in ("e8m0", "power_of_two") else None
