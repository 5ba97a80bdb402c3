"""Recipes of optimizer states against recorded trajectories of their authors' code."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.optim import AdamW
from altgrad.recipes.book import find
from tests.optim.test_states import FUSES, codes_of, gradient, recorded

__all__ = ["recorded"]


def steps(recipe: str, file: str, recorded: dict[str, Tensor], count: int, **settings: Any) -> tuple[AdamW, Tensor]:
    """AdamW with the recipe's states after so many recorded gradients."""
    p = nn.Parameter(recorded[f"{file}.p0"].clone())
    optimizer = AdamW([("w", p)], states=find(recipe).expansion().states, weight_decay=0.1, **settings)
    for step in range(count):
        p.grad = gradient(recorded, file, step)
        optimizer.step()
    return optimizer, p


@pytest.mark.parametrize(("recipe", "kind"), [("adam_fp8", "fp8"), ("adam_8bit", "8bit")])
def test_moments_are_torchaos(recorded: dict[str, Tensor], recipe: str, kind: str) -> None:
    """20 steps. Of a tie between two values of a codebook torchao takes the upper one, the recipe that of even code."""
    optimizer, p = steps(recipe, "torchao_optim", recorded, 20)
    for name in ("exp_avg", "exp_avg_sq"):
        expected = recorded[f"torchao_optim.{kind}.step20.{name}.codes"].flatten().int()
        found = codes_of(optimizer, p, name)
        exact = FUSES and recipe == "adam_fp8"
        assert torch.equal(found, expected) if exact else (found != expected).float().mean() <= 1e-3
        assert (found - expected).abs().max() <= 1


def test_moments_are_coats(recorded: dict[str, Tensor]) -> None:
    optimizer, p = steps("coat", "coat_states", recorded, 10, betas=(0.9, 0.95))
    for name, theirs in (("exp_avg", "m"), ("exp_avg_sq", "v")):
        differ = codes_of(optimizer, p, name) != recorded[f"coat_states.step10.{theirs}.codes"].int()
        assert differ.float().mean() <= 1e-3
    assert torch.allclose(p, recorded["coat_states.step10.p"], rtol=0, atol=1e-6)
