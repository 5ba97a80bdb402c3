"""Claims about changing the format of stored weights in the middle of a run."""

from typing import Any

import pytest
import torch

from altgrad.formats import FloatFormat
from altgrad.optim import AdamW
from altgrad.optim.format_change import change_storage_format, gridded
from altgrad.quantize import round_to
from altgrad.quantize.scaling import finite_amax, scale_of

KINDS = ["nearest", "stochastic", "kahan", "eco"]
FINER = FloatFormat.parse("e4m3ieee")


def optimizer(kind: str, count: int = 3) -> AdamW:
    torch.manual_seed(0)
    named = [(f"w{i}", torch.nn.Parameter(torch.randn(8, 8))) for i in range(count)]
    return AdamW(named, lr=1e-2, storage={"kind": kind, "format": "e5m2"}, seed=3)


def train(made: AdamW, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        torch.manual_seed(100 + step)
        for group in made.param_groups:
            for p in sorted(group["params"], key=lambda p: made.names[p]):
                p.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(step + ord(made.names[p][1])))
        made.step()


def by_name(made: AdamW) -> dict[str, torch.Tensor]:
    return {made.names[p]: p.detach().clone() for group in made.param_groups for p in group["params"]}


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_is_on_the_new_grid_and_the_others_go_on_bit_for_bit(kind: str) -> None:
    changed, other = optimizer(kind), optimizer(kind)
    train(changed, 5)
    train(other, 5)
    before = by_name(changed)["w1"]
    owed: Any = next(changed.state[p].get("compensation", 0) for name, p, _ in gridded(changed) if name == "w1")
    whole = before + owed
    change_storage_format(changed, "w1", FINER)
    scale = scale_of(finite_amax(whole), FINER, margin=1)
    assert torch.equal(by_name(changed)["w1"], round_to(whole, FINER, scale=scale))
    train(changed, 5, 5)
    train(other, 5, 5)
    ours, theirs = by_name(changed), by_name(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ("w0", "w2"))
    assert {name: str(storage.format) for name, _, storage in gridded(changed)} == {
        "w0": "e5m2", "w1": "e4m3ieee", "w2": "e5m2"
    }  # fmt: skip
    assert torch.equal(ours["w1"], round_to(ours["w1"], FINER, scale=scale))


def test_one_parameter_needs_no_new_group_and_names_move_along() -> None:
    alone = optimizer("nearest", 1)
    change_storage_format(alone, "w0", FINER)
    assert len(alone.param_groups) == 1 and alone.param_groups[0]["storage"]["format"] == "e4m3ieee"
    several = optimizer("nearest")
    change_storage_format(several, "w1", FINER)
    assert [group["param_names"] for group in several.param_groups] == [["w0", "w2"], ["w1"]]


def test_what_is_not_stored_on_a_grid_is_refused() -> None:
    made = AdamW([("w", torch.nn.Parameter(torch.zeros(2)))])
    with pytest.raises(ValueError, match="w is not stored on a grid"):
        change_storage_format(made, "w", FINER)
