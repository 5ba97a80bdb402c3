"""Claims about casting in slabs: the same bits as the cast of the whole, whatever the scaling and the rounding."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from altgrad.quantize import Quantizer, QuantizerSpec, ScalingSpec, chunks
from altgrad.quantize.parts import Axis

SCALINGS: list[dict[str, Any]] = [
    *({"kind": kind} for kind in ScalingSpec.kinds()),
    {"kind": "current", "granularity": "channel", "scale": "real"},
    {"kind": "delayed", "granularity": "channel"},
    {"kind": "mse", "granularity": "channel"},
    {"kind": "mse", "scale": "real", "candidates": 40},
    {"kind": "block", "size": 5, "shape": "square", "scale": "real"},
    {"kind": "mx", "mode": "even"},
]


@pytest.fixture
def x() -> Tensor:
    """61 x 37: ragged in every slab and block; wide, with zeros, both infinities, a row of zeros, and -0."""
    torch.manual_seed(0)
    x = torch.randn(61, 37) * torch.exp2(torch.randint(-12, 6, (61, 37)).float())
    x[3], x[5, :4], x[60, 36], x[60, 0] = 0.0, -0.0, torch.inf, -torch.inf
    return x


@pytest.mark.parametrize("reduced", ["last", "first"])
@pytest.mark.parametrize("rounding", ["nearest_even", "toward_zero", "stochastic"])
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: "-".join(map(str, scaling.values())))
def test_slabs_together_are_the_cast_of_the_whole(
    x: Tensor,
    scaling: dict[str, Any],
    rounding: str,
    reduced: Axis,
    monkeypatch: pytest.MonkeyPatch,
    assert_same_bits: Callable[..., None],
) -> None:
    monkeypatch.setattr(chunks, "ELEMENTS", 300)
    spec = QuantizerSpec.model_validate({"format": "e4m3fn", "rounding": rounding, "scaling": scaling})
    quantizer = Quantizer(
        spec, "a/weight", "weight", seed=3, rows=x.shape[0 if reduced == "last" else 1], reduced=reduced
    )
    whole = quantizer.cast(x, live=False)
    scale = chunks.whole_scale(x, quantizer)
    found = list(chunks.cast_in_slabs(x, quantizer, scale))
    assert len(found) > 1
    assert_same_bits(torch.cat([cast.values(torch.float32) for _, cast in found]), whole.values(torch.float32), x)
    assert torch.equal(torch.cat([slab for slab, _ in found]), x)
    assert (scale is None) == (whole.scale is None)
    assert scale is None or scale.clamped == 0
    assert scale is None or torch.equal(scale.spread(tuple(x.shape)).expand(x.shape), whole.scale.expand(x.shape))
    assert_same_bits(torch.cat([cast.exact for _, cast in found]), whole.exact, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_floats_are_cast_as_their_float32_values(x: Tensor, dtype: torch.dtype) -> None:
    quantizer = Quantizer("e3m4", "a/weight", "weight")
    narrow = x.to(dtype)
    found = [cast.rounded for _, cast in chunks.cast_in_slabs(narrow, quantizer, chunks.whole_scale(narrow, quantizer))]
    assert torch.equal(torch.cat(found), quantizer.cast(narrow.float(), live=False).rounded)


def test_a_tensor_without_elements_has_no_slabs() -> None:
    quantizer = Quantizer(QuantizerSpec.model_validate({"format": "e3m4", "scaling": "mx"}), "a/weight", "weight")
    for shape in ((0, 4), (4, 0)):
        empty = torch.empty(shape)
        scale = chunks.whole_scale(empty, quantizer)
        assert sum(cast.rounded.numel() for _, cast in chunks.cast_in_slabs(empty, quantizer, scale)) == 0


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_the_mse_scale_does_not_depend_on_how_a_tensor_is_cut(granularity: str) -> None:
    """Forty candidates a few hundredths apart: the last bits of their errors decide some of the choices."""
    torch.manual_seed(1)
    x = torch.randn(1 << 10, 700)
    scaling = {"kind": "mse", "granularity": granularity, "scale": "real", "candidates": 64}
    quantizer = Quantizer(QuantizerSpec.model_validate({"format": "e3m4", "scaling": scaling}), "a/weight", "weight")
    own = chunks.in_slabs(x)
    assert len(own) > 2 and torch.equal(torch.cat(own), x)
    whole, cut = (quantizer.scaling.find(pieces) for pieces in ((x,), own))
    assert whole is not None and cut is not None and torch.equal(whole.entries, cut.entries)


def test_a_tensor_is_cut_only_where_that_gains_something() -> None:
    x = torch.empty(1 << 9, 1 << 10)
    assert [len(piece) for piece in chunks.in_slabs(x)] == [256, 256]
    assert (
        len(chunks.in_slabs(torch.empty(1 << 20)))
        == len(chunks.in_slabs(x.to("meta")))
        == len(chunks.in_slabs(x[:200]))
        == 1
    )
