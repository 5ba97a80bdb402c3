"""Claims about Muon, Lion and AdamW's variants: torch.optim's bits, Lion's by hand, AdamW for what is no matrix."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.optim import AdamW, Lion, Muon, Optimizer, OptimizerSpec

SHAPES = ((24, 10), (8, 24), (16, 16))


def weights(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape) * 0.1) for shape in shapes]


def same(mine: torch.optim.Optimizer, theirs: torch.optim.Optimizer, p: list[Tensor], q: list[Tensor]) -> None:
    """Both take 50 steps on the same gradients to the same bits."""
    for step in range(50):
        torch.manual_seed(step)
        for a, b in zip(p, q, strict=True):
            a.grad = torch.randn_like(a) * 0.1
            b.grad = a.grad.clone()
        mine.step()
        theirs.step()
    assert all(torch.equal(a, b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("more", [{}, {"nesterov": False, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3}])
def test_muon_is_torchs_to_the_bit(more: dict[str, Any]) -> None:
    p, q = weights(*SHAPES), weights(*SHAPES)
    same(Muon(p, lr=0.02, **more), torch.optim.Muon(q, lr=0.02, **more), p, q)


@pytest.mark.parametrize("more", [{"amsgrad": True}, {"maximize": True}, {"amsgrad": True, "maximize": True}])
def test_variants_of_adamw_are_torchs_to_the_bit(more: dict[str, bool]) -> None:
    p, q = weights((6, 5), (7,)), weights((6, 5), (7,))
    same(AdamW(p, **more), torch.optim.AdamW(q, foreach=True, **more), p, q)


def test_lion_is_its_rule() -> None:
    (p,) = weights((6, 5))
    w, m = p.detach().double(), torch.zeros(6, 5, dtype=torch.float64)
    optimizer = Lion([p], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(20):
        torch.manual_seed(step)
        p.grad = torch.randn(6, 5)
        optimizer.step()
        g = p.grad.double()
        w = (1 - 0.001) * w - 0.01 * (0.9 * m + 0.1 * g).sign()
        m = 0.99 * m + 0.01 * g
    assert torch.allclose(p.double(), w, atol=1e-6) and torch.allclose(
        optimizer.state[p]["exp_avg"].double(), m, atol=1e-6
    )


def test_lion_has_the_bits_of_the_package() -> None:
    theirs = pytest.importorskip("lion_pytorch").Lion
    p, q = weights((6, 5), (7,)), weights((6, 5), (7,))
    same(Lion(p, lr=0.01, weight_decay=0.1), theirs(q, lr=0.01, weight_decay=0.1), p, q)


def test_what_is_no_matrix_is_stepped_by_adamw() -> None:
    names = ("blocks.0.up.weight", "embed.weight", "blocks.0.up.bias")
    mine, theirs = weights((6, 5), (6, 5), (6,)), weights((6, 5), (6, 5), (6,))
    one: Optimizer = Muon(list(zip(names, mine, strict=True)), lr=0.02, adam_rate=0.5, weight_decay=0.1)
    two = torch.optim.AdamW(theirs[1:], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, foreach=True)
    for step in range(5):
        torch.manual_seed(step)
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        one.step()
        two.step()
    assert all(torch.equal(a, b) for a, b in zip(mine[1:], theirs[1:], strict=True))
    assert set(one.state[mine[0]]) == {"momentum_buffer"} and set(one.state[mine[1]]) == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }


def test_eight_bit_muon_goes_where_muon_goes() -> None:
    """Momentum in int8, blocks of 2,048: after 50 steps on a quadratic about as near to its end."""
    torch.manual_seed(1)
    target = torch.randn(48, 64)
    found = []
    for states in (
        {},
        {"momentum_buffer": {"format": "int8", "scaling": {"kind": "block", "size": 2048, "scale": "real"}}},
    ):
        p = nn.Parameter(torch.zeros(48, 64))
        spec = OptimizerSpec.of({"kind": "muon", "lr": 0.1, "states": states})
        optimizer = spec.build([{"params": [("w", p)]}])
        for step in range(50):
            p.grad = (p.detach() - target) / 64
            for group in optimizer.param_groups:
                group["lr"] = 0.2 * (1 - step / 50)
            optimizer.step()
        found.append(float((p.detach() - target).square().mean()))
    assert found[1] < 1.1 * found[0] + 1e-3 and found[0] < 0.5
