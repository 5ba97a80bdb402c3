"""python -m bench.recipe_differences: how far the forward casts of two recipes are apart on the same numbers.

Writes its table into docs/recipes/DIFFERENCES.md between its markers. What is random of it (exp and the draws) may have
other last bits on another processor, so no test makes it anew.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from altgrad.nn.rule import Rule
from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.recipes.book import find
from bench.page import refresh
from bench.recipe_pages import DIFFERENCES, FOLDER, MEASURED

INPUTS = ("normal", "log-normal", "t(2)", "normal in bf16")
PAIRS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("te_nvfp4", "torchao_nvfp4", "input", {}), ("te_nvfp4", "torchao_nvfp4", "weight", {}),
    ("te_nvfp4_4over6", "four_over_six", "input", {"by": "mse"}), ("four_over_six", "quartet2", "input", {}),
    ("te_nvfp4", "tetrajet_v2", "input", {}), ("te_nvfp4", "fp4_all_the_way", "input", {}),
    ("deepseek_v3", "torchao_blockwise", "input", {}), ("deepseek_v3", "torchao_blockwise", "weight", {}),
    ("te_block", "deepseek_v3", "input", {"scale": "real"}),
    ("te_block", "torchao_blockwise", "input", {"scale": "real"}),
    ("te_current", "torchao_tensorwise", "input", {}), ("torchao_tensorwise", "nanochat", "input", {}),
    ("te_mxfp8", "torchao_mxfp8", "input", {}), ("te_mxfp8", "mx", "input", {}),
    ("torchao_int8", "switchback", "input", {}), ("torchao_int8", "bitnet_b158", "input", {}),
]  # fmt: skip
"""Recipes that cast an operand to one format with scales of one kind; parameters of those that have them."""


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
    return Quantizer(spec.model_copy(update={"outliers": None}), "s")  # chosen columns are a layer's


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


def main() -> None:
    """Measure every pair and write the table."""
    lines = [f"| recipes | operand | {' | '.join(INPUTS)} |", "|---" * (len(INPUTS) + 2) + "|"]
    for one, two, operand, parameters in PAIRS:
        chosen = ", ".join(f"{key} {value}" for key, value in parameters.items())
        names = f"{one}, {two}" + (f" ({chosen})" if chosen else "")
        lines.append(f"| {names} | {operand} | {' | '.join(apart(one, two, operand, parameters))} |")
    told = (
        "Forward casts of two recipes on the same 131,072 values (512 x 256), by `python -m bench.recipe_differences`. "
        "*values* differ in any bit; *codes* are other numbers of the grid under the same scale; *scales* are those of "
        "blocks, rows or the tensor."
    )
    refresh(FOLDER / DIFFERENCES, MEASURED, "\n\n".join([told, "\n".join(lines)]))


if __name__ == "__main__":
    main()
