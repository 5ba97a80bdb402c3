"""The fused step is the eager step to float32 rounding, and stored weights are on their grids under both engines."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.optim import SGD, AdamW, GridOptim, Madam, ManifoldAdamW, Update
from altgrad.quantize import round_to

# torch.compile warns of what it does itself.
pytestmark = [
    pytest.mark.needs("c++"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch"),
]

CHANNEL = {"kind": "current", "granularity": "channel"}
CASES: list[tuple[Any, dict[str, Any]]] = [
    (AdamW, {}),
    (ManifoldAdamW, {"format": "e4m3fn"}),
    (ManifoldAdamW, {"format": "e5m2", "power": 0.5, "kappa": 0.25}),
    (ManifoldAdamW, {"storage": {"kind": "nearest", "format": "e3m4"}}),
    (AdamW, {"storage": {"kind": "stochastic", "format": "e5m2"}}),
    (
        ManifoldAdamW,
        {
            "storage": {
                "kind": "stochastic",
                "format": "e4m3fn",
                "scaling": {"kind": "current", "granularity": "channel"},
            }
        },
    ),
]


def run(
    made: Any, settings: dict[str, Any], engine: Any, *, watching: bool = False
) -> tuple[Tensor, Any, list[Update]]:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(24, 32) * 10 ** (-2 * torch.rand(24, 32)))
    optimizer = made([("w", p)], lr=1e-3, weight_decay=0.1, **settings)
    optimizer.engine = engine
    seen: list[Update] = []
    optimizer.observers.append(seen.append)
    optimizer.watching = watching
    for _ in range(4):
        p.grad = torch.randn(24, 32)
        kept = p.grad.clone()
        optimizer.step()
        assert torch.equal(p.grad, kept)
    return p.detach(), optimizer.state[p], seen


# Each takes seconds to compile: a master and a storage here, the others among the long ones.
@pytest.mark.parametrize(
    ("made", "settings"),
    [pytest.param(*case, marks=() if number == 1 else pytest.mark.long) for number, case in enumerate(CASES)],
)
def test_fused_is_eager_to_rounding(made: Any, settings: dict[str, Any]) -> None:
    (eager, old, shown), (fused, new, also) = (run(made, settings, e, watching=True) for e in ("eager", "compiled"))
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.allclose(old[key], new[key], rtol=1e-5, atol=3e-7)  # sums that nearly cancel
    for a, b in zip(shown[:1], also[:1], strict=True):
        assert torch.allclose(a.requested, b.requested, rtol=2e-5, atol=1e-9)
    storage = settings.get("storage")
    if storage is None:
        assert torch.allclose(eager, fused, rtol=1e-5, atol=1e-7)
    else:
        assert torch.equal(fused, round_to(fused, storage["format"], scale=new["storage_scale"]))
        assert torch.equal(old["storage_scale"], new["storage_scale"])
        assert int(old["storage_step"]) == int(new["storage_step"]) == 4
        # A request that differs in its last bit lands elsewhere only where it met its random bits or a tie.
        assert float((eager != fused).double().mean()) < 0.01


@pytest.mark.long
@pytest.mark.parametrize(("made", "settings"), CASES[4:5])
def test_watching_a_fused_step_changes_no_bit(made: Any, settings: dict[str, Any]) -> None:
    watched, alone = (run(made, settings, "compiled", watching=w)[0] for w in (True, False))
    assert torch.equal(watched, alone)


LANDINGS: list[tuple[Any, dict[str, Any]]] = [
    (AdamW, {"storage": {"kind": "kahan", "format": "e4m3fn"}}),
    (AdamW, {"storage": {"kind": "eco", "format": "e4m3fn"}}),
    (GridOptim, {"storage": {"kind": "eco", "format": "e3m4"}, "track": False}),
    (GridOptim, {"storage": {"kind": "stochastic", "format": "e4m3fn"}, "track": False}),
    (Madam, {}),
    (SGD, {"momentum": 0.9, "storage": {"kind": "nearest", "format": "e4m3fn"}}),
    (SGD, {"momentum": 0.9, "storage": {"kind": "eco", "format": "e4m3fn", "scaling": CHANNEL}}),
]


def two_steps(made: Any, settings: dict[str, Any], engine: Any) -> tuple[Tensor, Any]:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(64, 80) * 0.1)
    optimizer = made([("w", p)], lr=1e-2, **settings)
    optimizer.engine = engine
    for _ in range(2):
        p.grad = torch.randn(64, 80) * 0.01
        optimizer.step()
    return p.detach(), optimizer.state[p]


@pytest.mark.long
@pytest.mark.parametrize(("made", "settings"), LANDINGS)
def test_every_other_fused_step_has_the_bits_of_the_eager_one(made: Any, settings: dict[str, Any]) -> None:
    (one, old), (two, new) = (two_steps(made, settings, engine) for engine in ("eager", "compiled"))
    assert torch.equal(one, two) and all(torch.equal(old[key], new[key]) for key in old)


@pytest.mark.long
@pytest.mark.parametrize("taken", ["unrounded", "rounded"])
def test_fused_states_are_on_their_grid_and_eager_to_rounding(taken: str) -> None:
    cast = {"format": "e4m3fn", "scaling": {"kind": "block", "size": 64}, "step_takes": taken, "packed": True}
    settings = {"states": {"exp_avg": cast, "exp_avg_sq": cast}}
    (one, old), (two, new) = (two_steps(AdamW, settings, engine) for engine in ("eager", "compiled"))
    assert torch.allclose(one, two, atol=1e-6)
    for name in ("exp_avg", "exp_avg_sq"):
        # The same but where a moment that differs in its last bit met a tie.
        assert float((old[name] != new[name]).double().mean()) < 1e-3
        scale = new[f"{name}.scale"].repeat_interleave(64)
        assert torch.equal(new[name].flatten(), round_to(new[name].flatten(), "e4m3fn", scale=scale))
