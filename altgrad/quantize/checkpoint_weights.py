"""The quantised weights of a checkpoint that other libraries wrote, or `altgrad export` for them, as values.

Which layout a module's tensors are in is asked of the tensors, and has to be one that `quantization_config` announces.
A scale without elements, elements without a scale, and a tensor of which no layout has the name (a zero point, a
permutation) are refused: to leave one out would be other weights. Scales of activations and caches belong to no weight
and are left behind.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from altgrad.quantize.block_scale import SmallScale
from altgrad.quantize.checkpoint_layout import Layout

__all__ = ["QuantisedWeight", "quantised_weights"]

_LEFT = ("input_scale", "input_global_scale", "activation_scale", "output_scale", "k_scale", "v_scale", "q_scale")
_ELEMENTS = ("weight", "weight_packed")
_OF_A_WEIGHT = ("weight_scale", "weight_scale_inv", "weight_global_scale", "weight_packed", "weight_zero_point",
                "weight_shape", "weight_g_idx", "qweight", "qzeros", "scales")  # fmt: skip


@dataclass(frozen=True)
class QuantisedWeight:
    """One weight: its module's name, its shape, its layout, and the file of each of its tensors by suffix."""

    module: str
    layout: Layout
    shape: tuple[int, int]
    files: Mapping[str, Path]

    @property
    def name(self) -> str:
        """The name that it has unquantised."""
        return f"{self.module}.weight" if self.module else "weight"

    def stored(self, suffix: str) -> str:
        """The name of one of its tensors."""
        return f"{self.module}.{suffix}" if self.module else suffix

    @cached_property
    def scale(self) -> SmallScale:
        """Its scale. ValueError where it does not fit the weight."""
        with ExitStack() as stack:
            found = {}
            for suffix, file in self.files.items():
                if suffix != self.layout.elements:
                    opened = stack.enter_context(safe_open(file, framework="pt"))
                    found[suffix] = _bytes(opened.get_tensor(self.stored(suffix)))
            try:
                return self.layout.read_scale(found, self.shape)
            except ValueError as error:
                raise ValueError(f"{self.name}: {error}") from None

    @contextmanager
    def rows(self) -> Iterator[Callable[[int, int], Tensor]]:
        """A function that gives the values of some rows, float32: from `start` up to `stop`."""
        with safe_open(self.files[self.layout.elements], framework="pt") as opened:
            elements, scale = opened.get_slice(self.stored(self.layout.elements)), self.scale

            def read(start: int, stop: int) -> Tensor:
                shape = (stop - start, self.shape[1])
                return self.layout.read(elements[start:stop]) * scale.rows(start, stop).spread(shape)

            yield read

    def values(self) -> Tensor:
        """All of them, float32."""
        with self.rows() as read:
            return read(0, self.shape[0])


def _bytes(scale: Tensor) -> Tensor:
    """A scale; one of torch's e8m0 as the bytes that it is."""
    return scale.view(torch.uint8) if scale.dtype == torch.float8_e8m0fnu else scale


def quantised_weights(
    announced: Sequence[Layout], tensors: Mapping[str, tuple[str, Sequence[int], Path]]
) -> tuple[dict[str, QuantisedWeight], set[str]]:
    """The quantised weights among a folder's tensors (dtype by safetensors' word, shape and file of each), and the
    names of all tensors that are no plain weights. ValueError, by name, for what is not read.
    """
    modules: dict[str, dict[str, str]] = {}
    for name in tensors:
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = name
    found, taken = {}, set()
    for module, leaves in modules.items():
        taken |= {leaves[leaf] for leaf in _LEFT if leaf in leaves}
        own = [leaf for leaf in _OF_A_WEIGHT if leaf in leaves]
        narrow = "weight" in leaves and tensors[leaves["weight"]][0] in ("F8_E4M3", "F8_E5M2", "I8", "U8", "I32")
        if not own and not narrow:
            continue
        fitting = [each for each in dict.fromkeys(announced) if _fits(each, leaves, tensors)]
        if len(fitting) > 1:  # of like names: a scale for the tensor, its rows or its blocks
            fitting = [each for each in fitting if _spans(each, leaves, tensors)]
        if not fitting:
            known = " or ".join(dict.fromkeys(f"{each.name} ({each.stored_format or 'fp8'})" for each in announced))
            there = ", ".join(f"{leaf} {tensors[leaves[leaf]][0]}" for leaf in ("weight", *own) if leaf in leaves)
            raise ValueError(f"{module or 'the model'} has {there}, which is not {known}, as its config says.")
        layout = fitting[0]
        parts = layout.tensors((1, 2), torch.float32)
        weight = QuantisedWeight(
            module, layout, _whole(layout, leaves, tensors), {leaf: tensors[leaves[leaf]][2] for leaf in parts}
        )
        found[weight.name] = weight
        taken |= {leaves[leaf] for leaf in parts}
    return found, taken


def _whole(layout: Layout, leaves: Mapping[str, str], tensors: Mapping[str, Any]) -> tuple[int, int]:
    rows, columns = tensors[leaves[layout.elements]][1]
    return rows, columns * 2 if layout.packed else columns


def _spans(layout: Layout, leaves: Mapping[str, str], tensors: Mapping[str, Any]) -> bool:
    """Whether the scale has the shape that it has in a layout."""
    shape = list(tensors[leaves[layout.suffix]][1])
    if layout.strategy == "tensor":
        return set(shape) <= {1}
    wanted = layout.tensors(_whole(layout, leaves, tensors), torch.float32)[layout.suffix][1]
    return shape in (wanted, wanted[:1] if layout.strategy == "channel" else wanted)


def _fits(layout: Layout, leaves: Mapping[str, str], tensors: Mapping[str, Any]) -> bool:
    """Whether a module's tensors are those of a layout, in its dtypes."""
    parts = layout.tensors((1, 2), torch.float32)
    if {leaf for leaf in leaves if leaf in _OF_A_WEIGHT or leaf in _ELEMENTS} != set(parts):
        return False
    if len(tensors[leaves[layout.elements]][1]) != 2:
        return False
    floats = ("F32", "BF16", "F16") if layout.strategy in ("tensor", "channel", "block") else ()
    words = {torch.float8_e4m3fn: ("F8_E4M3",), torch.int8: ("I8",), torch.uint8: ("U8", "F8_E8M0")}
    for leaf, (dtype, _) in parts.items():
        allowed = words.get(dtype, (*floats, "F32"))
        if layout.suffix == "weight_scale_inv" and leaf == layout.suffix:
            allowed = (*allowed, "U8", "F8_E8M0")
        if tensors[leaves[leaf]][0] not in allowed:
            return False
    return True
