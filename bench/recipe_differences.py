"""How far the forward casts of two recipes are apart on the same numbers: values, codes and scales."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from altgrad.nn.rule import Rule
from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.recipes.book import find

INPUTS = ("normal", "log-normal", "t(2)", "normal in bf16")


def _inputs() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(512, 256, generator=generator)
    yield normal
    yield normal * torch.exp(2 * torch.randn(512, 256, generator=generator))
    yield normal / (torch.randn(2, 512, 256, generator=generator).square().mean(0)).sqrt()
    yield normal.to(torch.bfloat16).to(torch.float32)


def _cast(name: str, operand: str, parameters: Mapping[str, Any]) -> Quantizer:
    recipe = find(name)
    chosen = {key: value for key, value in parameters.items() if key in recipe.parameters}
    rules = recipe.expansion(**chosen).run["precision"]["rules"]
    rule = Rule.made_from({key: value for key, value in rules[-1].items() if key != "place"})
    spec = rule.layer().slots["forward", operand]  # type: ignore[index]
    assert isinstance(spec, QuantizerSpec)
    return Quantizer(spec, "s")


def apart(one: str, two: str, operand: str, parameters: Mapping[str, Any]) -> Iterator[str]:
    """What differs of each input, in words."""
    for x in _inputs():
        sides = []
        for name in (one, two):
            made = _cast(name, operand, parameters)
            scale = made.find_scale(x)
            assert scale is not None
            wide = made.cast(x, False)
            assert wide.scale is not None
            blocks = (scale.entries if scale.inner is None else scale.inner).numel()
            sides.append((made.values(x, False, torch.float32), wide.rounded, wide.scale.expand(x.shape), blocks))
        (values, codes, scales, blocks), (others, their_codes, their_scales, their_blocks) = sides
        same = torch.isclose(scales, their_scales, rtol=1e-5, atol=0)
        found = [int((values != others).sum()), int(((codes != their_codes) & same).sum())]
        told = f"{int((~same).sum()) * blocks // x.numel():,} of {blocks:,} scales"
        yield f"{found[0]:,} values, {found[1]:,} codes, {told if blocks == their_blocks else 'other blocks'}"
