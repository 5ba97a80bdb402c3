"""Claims about the one pass over a parameter: compiled it finds what eager finds, whatever is in the tensors."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from altgrad.formats import FloatFormat
from altgrad.monitors import CastMonitor, GradientMonitor, MonitorSpec, UpdateMonitor
from altgrad.optim import Update
from altgrad.quantize import Grid, round_to
from altgrad.watching.compiled_pass import CompiledPass, Seen

# torch.compile warns of what it does itself.
pytestmark = [
    pytest.mark.needs("c++"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch"),
]

FMT = FloatFormat.parse("e4m3fn")
MONITORS = {kind: spec().build() for kind, spec in MonitorSpec.kinds().items()}
HARD = (0.0, -0.0, 1e-45, -1e-40, 448.0, -464.0, 3e38, math.inf, -math.inf, math.nan)


def of(sort: type) -> tuple[str, ...]:
    return tuple(kind for kind, monitor in MONITORS.items() if isinstance(monitor, sort))


def update(storage: str, scale: torch.Tensor | None, number: int, *, hard: bool) -> Update:
    """A step of a weight [96, 48] on a grid of FMT; hard: with entries of every awkward sort."""
    torch.manual_seed(number)
    before = torch.randn(96, 48) * torch.exp2(torch.randint(-12, 8, (96, 48)).float())
    requested = before * 0.2 * torch.randn(96, 48)
    requested[torch.rand(96, 48) < 0.1] = 0
    if hard:
        before[0, : len(HARD)] = torch.tensor(HARD)
        requested[1, : len(HARD)] = torch.tensor(HARD)
    moved = None
    if storage != "master":
        moved = before = round_to(before, FMT, scale=scale)
    after = before + requested
    after = after if moved is None else round_to(after, FMT, scale=scale)
    return Update("w", before, requested, after, requested * 0.9, Grid(FMT, scale), moved, storage, requested.neg())


def same(found: Seen, expected: Seen) -> None:
    """Names alike, whole numbers equal, sums to float32 rounding."""
    assert found[1] == expected[1] and len(expected[1]) == len(expected[0]) > 0
    for name, a, b in zip(expected[1], found[0].tolist(), expected[0].tolist(), strict=True):
        close = b if float(b).is_integer() else pytest.approx(b, rel=1e-5, nan_ok=True)
        assert a == close or (math.isnan(a) and math.isnan(b)), name


@pytest.mark.long
@pytest.mark.parametrize("storage", ["master", "nearest", "stochastic"])
def test_a_look_at_an_update_is_the_same_compiled(storage: str) -> None:
    """Counts equal, over three steps, so that what monitors keep is the same, too; a whole scale, and one by row."""
    looks = [CompiledPass(MONITORS, "eager"), CompiledPass(MONITORS, "compiled")]
    for scale in (torch.tensor(2.0), torch.exp2(torch.randint(-3, 3, (96, 1)).float())):
        for number, hard in ((0, False), (1, False), (2, True)):
            name = f"w{scale.numel()}"
            shown = replace(update(storage, scale * 2.0 ** (number // 2), number, hard=hard), name=name)
            eager, compiled = (look.update(shown, of(UpdateMonitor), of(CastMonitor)) for look in looks)
            same(compiled, eager)
    assert looks[0].state("flips").keys() == looks[1].state("flips").keys()
    for key, value in looks[0].state("flips").items():
        assert torch.equal(value, looks[1].state("flips")[key]), key


@pytest.mark.long
def test_a_look_at_a_gradient_is_the_same_compiled() -> None:
    looks: list[Any] = [CompiledPass(MONITORS, engine) for engine in ("eager", "compiled")]
    for gradient in (torch.randn(40, 30), 1e30 * torch.randn(7), torch.tensor([0.0, math.nan]), torch.zeros(3, 1, 2)):
        eager, compiled = (look.gradient(gradient, of(GradientMonitor)) for look in looks)
        same(compiled, eager)


def test_what_monitors_keep_of_a_parameter_resumes() -> None:
    whole, first = CompiledPass(MONITORS), CompiledPass(MONITORS)
    for number in range(4):
        if number == 2:
            second = CompiledPass(MONITORS)
            second.restore("flips", first.state("flips"))
            first = second
        shown = update("stochastic", torch.tensor(2.0), number, hard=False)
        found, expected = (look.update(shown, ("flips",), ()) for look in (first, whole))
        same(found, expected)
