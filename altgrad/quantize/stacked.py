"""Casts of the slices of one tensor, as one cast to whoever asks what grid the tensor is on: the weights of experts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from altgrad.quantize.grid import Grid
from altgrad.quantize.quantizer import Quantizer, QuantizerSpec

__all__ = ["StackedCasts"]


class StackedCasts:
    """The casts, all of one spec, of x[0], x[1], ... Each has a scale of its own."""

    def __init__(self, casts: Sequence[Quantizer]) -> None:
        self.casts = tuple(casts)

    @property
    def spec(self) -> QuantizerSpec:
        """What each of them is."""
        return self.casts[0].spec

    @property
    def sites(self) -> list[str]:
        """The site of each."""
        return [cast.site for cast in self.casts]

    def grid(self, x: Tensor) -> Grid:
        """The grid that x would enter now, slice by slice, with one scale that broadcasts with x; records nothing."""
        scales = [cast.grid(each).scale for cast, each in zip(self.casts, x, strict=True)]
        known = [
            scale.expand((1,) * (x.ndim - 1)) if scale.ndim == 0 else scale for scale in scales if scale is not None
        ]
        return Grid(self.spec.format, torch.stack(known) if len(known) == len(scales) else None)
