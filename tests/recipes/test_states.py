"""Recipes of optimizer states against recorded trajectories of their authors' code."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.optim import AdamW, Muon
from altgrad.recipes.book import find
from altgrad.spec import SpecError
from altgrad.training import RunSpec
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


def test_moments_are_bitsandbytes(recorded: dict[str, Tensor]) -> None:
    """Ten steps of its AdamW8bit. Its CPU library looks codes up in a coarse table: after the first step, whose moments
    are known, 41 and 81 of 4,096 are not the nearest, which ours are; from there on each such code has its moment, and
    so its weight, go elsewhere."""
    for count, expected in ((1, (41, 81)), (2, (9, 64)), (10, (14, 47))):
        optimizer, p = steps("adam_8bit", "bitsandbytes.adamw", recorded, count)
        for number, (name, exceptions) in enumerate(zip(("exp_avg", "exp_avg_sq"), expected, strict=True), 1):
            theirs = recorded[f"bitsandbytes.adamw.step{count}.state{number}"].flatten().int()
            differ = codes_of(optimizer, p, name) != theirs
            assert differ.sum() == exceptions if FUSES else differ.sum() <= exceptions + 4
            book = recorded[f"bitsandbytes.codebook.{'signed' if number == 1 else 'unsigned'}"].double()
            scale = recorded[f"bitsandbytes.adamw.step{count}.absmax{number}"].double()[:, None]
            if count == 1:
                g = gradient(recorded, "bitsandbytes.adamw", 0).double()
                exact = (0.1 * g if number == 1 else 0.001 * g * g) / scale
                off = [
                    (book[codes.long()].view(g.shape) - exact).abs() for codes in (codes_of(optimizer, p, name), theirs)
                ]
                assert torch.equal((off[0] < off[1]).flatten(), differ) and not (off[0] > off[1] + 1e-9).any()
        if count != 2:
            off_by = (p - recorded[f"bitsandbytes.adamw.step{count}.p"]).abs()
            assert off_by.max() < 1e-8 if count == 1 else (off_by > 1e-6).double().mean() < 0.05


def test_moments_are_coats(recorded: dict[str, Tensor]) -> None:
    optimizer, p = steps("coat", "coat_states", recorded, 10, betas=(0.9, 0.95))
    for name, theirs in (("exp_avg", "m"), ("exp_avg_sq", "v")):
        differ = codes_of(optimizer, p, name) != recorded[f"coat_states.step10.{theirs}.codes"].int()
        assert differ.float().mean() <= 1e-3
    assert torch.allclose(p, recorded["coat_states.step10.p"], rtol=0, atol=1e-6)


def test_momentum_of_muon_has_the_papers_codes() -> None:
    """round(127 m / max |m|) in blocks of 2,048, of what the step moved; here two whole blocks and the half of one."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(80, 64))
    optimizer = Muon([("w", p)], states=find("muon_8bit").expansion().states)
    kept = torch.zeros_like(p)
    for _ in range(3):
        p.grad = torch.randn_like(p) * torch.rand(80, 1)
        moved = kept.lerp(p.grad, 1 - 0.95)
        optimizer.step()
        kept = optimizer.state[p]["momentum_buffer"].clone()
        for block, found in zip(moved.flatten().split(2048), kept.flatten().split(2048), strict=True):
            exact = 127 * block.double() / block.abs().max()
            codes = 127 * found.double() / block.abs().max()
            assert (codes - codes.round()).abs().max() < 1e-4
            near_tie = ((exact.abs() % 1) - 0.5).abs() < 1e-4
            assert torch.equal(codes.round()[~near_tie], exact.round()[~near_tie]) and near_tie.sum() < 5


def test_states_of_muon_are_refused_with_an_optimizer_that_has_none() -> None:
    spec = "model: {kind: gpt, layers: 1, width: 32, heads: 2, context: 16}\ndata: text\nsteps: 3\n"
    with pytest.raises(SpecError, match="'momentum_buffer' is not a state of adamw as it is set; it keeps exp_avg and"):
        RunSpec.parse(f"{spec}optimizer: adamw\nrecipe: muon_8bit")
    for optimizer in ("optimizer: muon\n", ""):
        made = RunSpec.parse(f"{spec}{optimizer}recipe: muon_8bit").optimizer
        assert made.kind == "muon" and made.states.keys() == {"momentum_buffer"}
