"""Claims about the stall oracle: closed forms, and training that it has not seen."""

import math
from typing import Any

import pytest
import torch
from scipy.stats import norm
from torch import nn

from altgrad.diagnosis.forecasts import STORAGES, forecast_variants
from altgrad.diagnosis.oracle import Drawn, Moves, rehearse, smallest_lr
from altgrad.diagnosis.signals import Signal, calibrate, persistence, train_steps
from altgrad.formats import FloatFormat
from altgrad.measures import stall_counts
from altgrad.optim import Update
from altgrad.quantize import Grid, gap, round_to
from altgrad.quantize.scaling import scale_of
from altgrad.training import RunSpec
from altgrad.training.state import TrainState
from tests.diagnosis.conftest import TINY

LR = 1e-4
SGD = ("optimizer={kind: sgd, lr: 1e-4, momentum: 0}", "schedule=constant", "precision={rules: []}")
ONE = "storage=[{match: weight, kind: %s, format: %s}]"


class Matrix(nn.Linear):
    """One weight of normal values."""

    def __init__(self) -> None:
        super().__init__(96, 64, bias=False)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.weight.copy_(0.02 * torch.randn(self.weight.shape, generator=generator))


def spec(*sets: str) -> RunSpec:
    return RunSpec.parse(TINY, "tiny.yaml", sets)


def gaps(fmt: str, sign: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The stored weights, and the gap of each in one direction; one binade of headroom, as storage has it."""
    w, parsed = Matrix().weight.detach(), FloatFormat.parse(fmt)
    scale = scale_of(w.abs().amax(), parsed) * 2
    stored = round_to(w, parsed, scale=scale)
    return stored, gap(stored, parsed, torch.full_like(stored, float(sign)), scale=scale).double()


@pytest.mark.parametrize("fmt", ["e4m3fn", "e5m2", "e0m7", "e3m4"])
def test_sgd_under_stochastic_storage_moves_as_the_directional_law_says(fmt: str) -> None:
    """P = min(1, |delta| / gap) over delta = -lr g with g normal, the gap that of each direction."""
    expected = 0.0
    for sign in (-1, 1):
        _, width = gaps(fmt, sign)
        t = width / LR
        tail = torch.tensor(norm.sf(t.numpy()))
        density = torch.tensor(norm.pdf(0) - norm.pdf(t.numpy()))
        expected += float((density / t + tail).mean())
    found = rehearse(spec(*SGD, ONE % ("stochastic", fmt)), Matrix(), steps=3)
    assert found.overall == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("fmt", ["e4m3fn", "e0m7"])
def test_sgd_under_nearest_storage_moves_where_half_a_gap_is_passed(fmt: str) -> None:
    sets = (*SGD, "optimizer={kind: sgd, lr: 5e-4, momentum: 0}", ONE % ("nearest", fmt))
    expected = sum(float(torch.tensor(norm.sf(gaps(fmt, sign)[1].numpy() / 1e-3)).mean()) for sign in (-1, 1))
    assert rehearse(spec(*sets), Matrix(), steps=1).overall == pytest.approx(expected, rel=0.06)


def test_adam_s_first_step_is_of_length_lr_whatever_the_gradient() -> None:
    """So under stochastic storage its rate is the mean of min(1, lr / gap), exactly one half in each direction."""
    expected = sum(float((LR / gaps("e4m3fn", sign)[1]).clamp(max=1).mean()) / 2 for sign in (-1, 1))
    own = spec("optimizer={kind: adamw, lr: 1e-4}", "schedule=constant", "precision={rules: []}",
               ONE % ("stochastic", "e4m3fn"))  # fmt: skip
    assert rehearse(own, Matrix(), steps=1).overall == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("fmt", ["e4m3fn", "e0m3", "e7m0"])
def test_moves_of_stored_weights_are_counted_as_changes_of_their_codes(fmt: str) -> None:
    """Between any two values of a grid, both zeros and NaN among them."""
    parsed, scale = FloatFormat.parse(fmt), torch.tensor(2.0**-7)
    grid = [sign * m for m in parsed.magnitudes for sign in (1, -1)]
    values = torch.tensor([*grid, math.nan]) * scale
    before, after = (x.flatten() for x in torch.meshgrid(values, values, indexing="ij"))
    requested = torch.where(torch.arange(len(before)) % 3 == 0, 0.0, after - before)
    moves = Moves()
    moves(Update("w", before, requested, after, grid=Grid(parsed, scale), moved=before, storage="nearest"))
    counts = stall_counts(before, after, requested, parsed, scale=scale)
    assert moves.attempted["w"] == int(counts["attempted"])
    assert moves.moved["w"] == int(counts["attempted"] - counts["stalls"])


def test_rehearsals_that_share_their_draws_come_to_what_each_comes_to_alone() -> None:
    model, drawn = Matrix(), Drawn()
    specs = [spec(*SGD, ONE % ("stochastic", fmt)) for fmt in ("e4m3fn", "e5m2")]
    shared = [rehearse(each, model, steps=steps, drawn=drawn) for steps in (2, 4) for each in specs]
    assert shared == [rehearse(each, model, steps=steps) for steps in (2, 4) for each in specs]
    ones = torch.ones(64, 96)
    signals = {"weight": Signal(0.5, 1.0, ones, ones, [1.0])}
    assert rehearse(specs[0], model, steps=2, signals=signals, drawn=drawn) == rehearse(
        specs[0], model, steps=2, signals=signals
    )


def test_a_rehearsal_changes_no_weight_and_repeats_itself() -> None:
    own, model = spec(*SGD, ONE % ("stochastic", "e4m3fn")), Matrix()
    before = model.weight.detach().clone()
    assert rehearse(own, model, steps=2) == rehearse(own, model, steps=2)
    assert torch.equal(model.weight, before) and model.weight.grad is None


@pytest.mark.parametrize("kind", ["nearest", "stochastic"])
@pytest.mark.parametrize("target", [0.01, 0.3])
def test_the_smallest_lr_reaches_its_target_and_a_smaller_one_moves_less(kind: str, target: float) -> None:
    own, model = spec(*SGD, ONE % (kind, "e4m3fn")), Matrix()
    lr = smallest_lr(own, model, target, steps=4)
    assert lr is not None
    at = rehearse(own, model, steps=4, lr_factor=lr / LR).overall
    below = rehearse(own, model, steps=4, lr_factor=0.9 * lr / LR).overall
    assert at == pytest.approx(target, rel=0.06) and below < at


def test_no_lr_is_named_where_none_reaches_the_target() -> None:
    off = spec("optimizer={kind: sgd, lr: 0}", "precision={rules: []}", ONE % ("nearest", "e4m3fn"))
    assert smallest_lr(off, Matrix(), 0.01, steps=2) is None
    ungridded = spec(*SGD, "storage=[]")
    assert math.isnan(rehearse(ungridded, Matrix(), steps=2).overall)
    assert smallest_lr(ungridded, Matrix(), 0.01, steps=2) is None
    for target in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="is between 0 and 1"):
            smallest_lr(off, Matrix(), target, steps=2)


@pytest.mark.parametrize("a", [1.0, 0.95])
@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_persistence_finds_what_was_put_into_gradients_of_lasting_sign(c: float, a: float) -> None:
    """A sign that turns now and then, with correlation a from one step to the next, under noise of energy 1 - c."""
    generator = torch.Generator().manual_seed(1)
    sign, steps = torch.randn(20000, generator=generator).sign(), []
    for _ in range(20):
        steps.append(math.sqrt(c) * sign + math.sqrt(1 - c) * torch.randn(20000, generator=generator))
        sign = torch.where(torch.rand(20000, generator=generator) < (1 - a) / 2, -sign, sign)
    share, memory = persistence(torch.stack(steps))
    assert share == pytest.approx(c * a, abs=0.06) and memory == pytest.approx(a, abs=0.02)


def test_noise_does_not_persist() -> None:
    noise = torch.randn(20, 20000, generator=torch.Generator().manual_seed(0))
    assert persistence(noise)[0] < 0.03
    assert persistence(torch.zeros(20, 8)) == (0.0, 0.0)


def test_a_persistent_gradient_makes_adam_move_more() -> None:
    own = spec("optimizer={kind: adamw, lr: 1e-4}", "schedule=constant", "precision={rules: []}",
               ONE % ("stochastic", "e4m3fn"))  # fmt: skip
    ones = torch.ones(64, 96)
    rates = [
        rehearse(own, Matrix(), steps=20, signals={"weight": Signal(c, 1.0, ones, ones, [1.0])}).overall
        for c in (0.0, 0.5, 1.0)
    ]
    assert rates[0] < rates[1] < rates[2]
    assert rates[0] == pytest.approx(rehearse(own, Matrix(), steps=20).overall, rel=0.05)


@pytest.mark.parametrize("kind", STORAGES)
def test_forecasts_of_a_model_come_near_its_training(kind: str) -> None:
    own = spec(f"storage=[{{match: 'blocks.*.mlp.*.weight', kind: {kind}, format: e4m3fn}}]", "precision={rules: []}",
               "optimizer={kind: adamw, lr: 2e-3}", "steps=12")  # fmt: skip
    dataset = own.data.build(own.seed, own.model.context)
    state = TrainState.build(own, dataset, torch.device("cpu"))
    forecast = rehearse(own, state.model, steps=12, signals=calibrate(own, dataset, 4))
    moves = Moves()
    state.optimizer.watching = True
    state.optimizer.observers.append(moves)
    assert len(list(train_steps(own, dataset, state, 12))) == 12
    # ln of the quotient over three seeds and four weights: nearest -0.115, sd 0.019, the others nearer to 0.
    for name, measured in moves.rates().items():
        assert 1 / 1.3 < forecast.rates[name] / measured < 1.3, name


def test_the_variants_have_every_storage_and_leaves_other_weights_alone(monkeypatch: Any) -> None:
    own = spec("optimizer={kind: adamw, lr: 2e-3}", "steps=4")
    found, variants = forecast_variants(own, own.data.build(0, 16), [FloatFormat.parse("e4m3fn")], 0.01)
    names = {
        f"blocks.{n}.{m}.weight" for n in (0, 1) for m in ("mlp.up", "mlp.down", "attention.qkv", "attention.proj")
    }
    assert found is not None and set(found.rates) == names
    assert [(each.storage, each.optimizer) for each in variants] == [
        (kind, optimizer) for optimizer in ("adamw", "manifold_adamw") for kind in STORAGES
    ]
    assert all(set(each.rates) == names for each in variants)


def test_an_error_of_a_variant_is_not_taken_for_one_that_has_no_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **named: Any) -> None:
        raise ValueError("a mistake of ours")

    own = spec("optimizer={kind: adamw, lr: 2e-3}", "steps=2", "storage=[]", "precision={rules: []}")
    monkeypatch.setattr("altgrad.diagnosis.forecasts.smallest_lr", broken)
    with pytest.raises(ValueError, match="a mistake of ours"):
        forecast_variants(own, own.data.build(0, 16), [FloatFormat.parse("e4m3fn")], 0.01)


def test_an_optimizer_that_asks_for_rungs_is_foretold_and_left_out_beside_storages_that_take_values() -> None:
    index = ("storage=[{match: '*', kind: index, format: e4m3fn}]", "optimizer={kind: grid_optim, landing: index}")
    own = spec(*index, "steps=2", "precision={rules: []}")
    found, variants = forecast_variants(own, own.data.build(0, 16), [FloatFormat.parse("e4m3fn")], 0.01)
    assert found is not None and found.optimizer == "grid_optim" and found.overall > 0
    assert {each.optimizer for each in variants} == {"adamw", "manifold_adamw"}
