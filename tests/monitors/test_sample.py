"""Claims about `sample: 1/16`: every element as often as any other, right on average, with an error that is its own."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from altgrad.formats import FloatFormat
from altgrad.monitors import CastMonitor, MonitorSpec, UpdateMonitor
from altgrad.monitors.monitor import Context
from altgrad.monitors.sample import EVERY, LEAST, RUN, Draws, Errors, is_drawn, taken
from altgrad.nn import PrecisionPolicy, commit, quantize_model
from altgrad.optim import AdamW, Storage, Update
from altgrad.quantize import Grid, round_to
from altgrad.quantize.noise import _mix
from altgrad.watching import MonitorSet
from altgrad.watching.cast_tables import cast_on
from altgrad.watching.compiled_pass import CompiledPass

FMT = FloatFormat.parse("e4m3fn")
KINDS = ("range", "updates", "stall", "flips")
SAMPLED: dict[str, Any] = {kind: MonitorSpec.of({"kind": kind, "sample": "1/16"}).build() for kind in KINDS}
FULL: dict[str, Any] = {kind: MonitorSpec.of(kind).build() for kind in KINDS}
CPU = torch.device("cpu")


def keys(observations: int, name: str = "w", seed: int = 3) -> Tensor:
    """The keys of these observations of one site."""
    draws, found = Draws(seed, [name], CPU), []
    for number in range(observations):
        draws.renew(number)
        found.append(draws.keys[name].clone())
    return torch.stack(found)


def test_the_hash_behind_a_draw_is_a_permutation_of_all_words() -> None:
    """So over all 2^32 numbers of a 16, and over all first words of a key, each of the 16 runs is drawn equally often.
    Shown by its inverse, on words of every sort: shifts undo themselves, and both factors are odd."""
    factors = [pow(factor, -1, 1 << 32) for factor in (0x7FEB352D, 0x846CA68B)]
    inverse = [factor - (1 << 32 if factor >= 1 << 31 else 0) for factor in factors]
    words = torch.cat([torch.arange(-(1 << 15), 1 << 15), torch.arange(1 << 15) << 17]).to(torch.int32)

    def undone(x: Tensor, by: int) -> Tensor:
        made = x
        for _ in range(32 // by):
            made = x ^ ((made >> by) & ((1 << (32 - by)) - 1))
        return made

    found = undone(undone(undone(_mix(words.clone()), 16) * inverse[1], 15) * inverse[0], 16)
    assert torch.equal(found, words)


def test_each_sixteen_gives_one_whole_run_and_draws_of_observations_sites_and_seeds_differ() -> None:
    places = torch.arange(LEAST)
    picked = []
    for key in (keys(2)[0], keys(2)[1], keys(1, "v")[0], keys(1, seed=4)[0]):
        (runs,) = taken(key, places.reshape(256, 256))
        assert torch.equal(runs[:, 0] // (EVERY * RUN), torch.arange(LEAST // (EVERY * RUN)))
        assert torch.equal(runs, runs[:, :1] + torch.arange(RUN)) and (runs[:, 0] % RUN == 0).all()
        picked.append(runs[:, 0])
    for number, one in enumerate(picked):
        assert all((one == other).float().mean() < 0.2 for other in picked[:number])


def test_draws_are_even_over_observations_and_numbers() -> None:
    """Chi-square of 16 classes, for the first and the last 16 of a tensor over observations, and over one draw."""
    places = torch.arange(LEAST)
    drawn = torch.stack([taken(key, places)[0][:, 0] // RUN % EVERY for key in keys(1600)])
    for classes in (drawn[:, 0], drawn[:, -1], drawn[:16].flatten()):
        counted = torch.bincount(classes, minlength=EVERY).double()
        even = classes.numel() / EVERY
        assert ((counted - even).square() / even).sum() < 37.7  # one in a thousand, and drawn once for all


@pytest.mark.parametrize("shape", [(255, 256), (257, 257), (0, 256)])
def test_a_small_or_uneven_tensor_is_counted_in_full(shape: tuple[int, int]) -> None:
    x = torch.randn(shape)
    assert not is_drawn(x)
    shown = replace(cast_on(Grid(FMT, None), x, "a", "input"), draw=keys(1)[0])
    assert SAMPLED["range"].measure(shown) == FULL["range"].measure(shown)


def patterned(number: int) -> Update:
    """A step of a weight whose columns differ in size by seven binades: a fixed stride would see some alone."""
    torch.manual_seed(number)
    before = torch.randn(256, 256) * torch.exp2(-(torch.arange(256) % 8).float() * 2)
    requested = 0.2 * before * torch.randn(256, 256)
    requested[torch.rand(256, 256) < 0.1] = 0
    moved = round_to(before, FMT, scale=torch.tensor(0.25))
    after = round_to(moved + requested, FMT, scale=torch.tensor(0.25))
    return Update("w", moved, requested, after, None, Grid(FMT, torch.tensor(0.25)), moved, "nearest")


OBSERVATIONS = 300


def test_counts_and_sums_are_right_on_average_and_extremes_in_full() -> None:
    """The mean of 300 estimates within 4 of its standard errors of the full count, for everything that is expanded."""
    update = patterned(0)
    assert update.grid is not None
    cast = cast_on(update.grid, update.before * 100, "a", "input")
    seen: dict[str, list[float]] = {}
    full = {**FULL["range"].measure(cast), **FULL["updates"].measure(update, {})}
    for key in keys(OBSERVATIONS):
        found = SAMPLED["range"].measure(replace(cast, draw=key))
        found |= SAMPLED["updates"].measure(replace(update, draw=key), {})
        for name, value in found.items():
            seen.setdefault(name, []).append(float(value))
    assert seen.keys() == full.keys()
    assert {"amax", "clamped", "weights", "nearest"} <= {n for n, v in seen.items() if set(v) == {float(full[n])}}
    for name, values in seen.items():
        estimates = torch.tensor(values, dtype=torch.float64)
        error = float(estimates.std() / math.sqrt(OBSERVATIONS))
        assert abs(float(estimates.mean() - full[name])) <= 4 * error, name
    assert len({n for n, v in seen.items() if len(set(v)) > 1}) >= 6


def test_the_standard_error_is_the_spread_of_estimates_about_the_truth() -> None:
    """Of runs of 16 alike elements, whose shares vary more than binomially: within a fifth of the true spread."""
    torch.manual_seed(0)
    x = (torch.rand(LEAST // RUN, 1) < 0.3).float().expand(-1, RUN).reshape(256, 256) * 1e9
    cast = cast_on(Grid(FMT, None), x, "a", "input")
    monitor = MonitorSpec.of({"kind": "range", "sample": "1/16"}).build()
    estimates: list[float] = []
    for key in keys(OBSERVATIONS):
        assert isinstance(monitor, CastMonitor)
        report = monitor.report("a", {n: float(v) for n, v in monitor.measure(replace(cast, draw=key)).items()})
        estimates.append(report.metrics["a/saturation_rate"])
    spread = float((torch.tensor(estimates) - float((x > 0).float().mean())).square().mean().sqrt())
    assert report.metrics["a/saturation_rate_error"] == pytest.approx(spread, rel=0.2)
    assert spread > 3 * math.sqrt(0.3 * 0.7 / (LEAST / EVERY))


def test_errors_need_two_observations_skip_nan_and_resume() -> None:
    whole, first = Errors(), Errors()
    found = [whole.see("s", {"x": value})["x_error"] for value in (1.0, 3.0, math.nan, 3.0, 7.0)]
    assert math.isnan(found[0])
    assert found[1:] == pytest.approx([math.sqrt(2), math.sqrt(2), 1, math.sqrt(20 / 6)])
    for value in (1.0, 3.0):
        first.see("s", {"x": value})
    second = Errors()
    second.restore(json.loads(json.dumps(first.state())))
    assert [second.see("s", {"x": value})["x_error"] for value in (math.nan, 3.0, 7.0)] == found[2:]


def test_flips_follow_the_weights_of_the_first_draw() -> None:
    """Reversals exist only if both flips are of the same weight: a step back undoes every flip that was drawn."""
    there = patterned(0)
    back = replace(there, before=there.after, moved=there.after, after=there.before, requested=-there.requested)
    looks = CompiledPass(SAMPLED)
    for number, (shown, key) in enumerate(zip((there, back), keys(2), strict=True)):
        values, names = looks.update(replace(shown, draw=key), ("flips",), ())
        found = dict(zip((name for _, _, name in names), values.tolist(), strict=True))
        assert found["weights"] == LEAST and found["net"] == 0 if number else found["net"] > 0
    assert found["reversals"] == found["flips"] > 0 == found["reversals"] % EVERY
    assert looks.state("flips")["w/net"].numel() == LEAST // EVERY


SMALL = ("range/1/weight", "range/1/grad_output", "range/1.", "updates/1.", "stall/1.", "flips/1.")


def trained(monitors: list[dict[str, Any]]) -> tuple[list[dict[str, float]], list[Tensor]]:
    """Rows of metrics, and the weights after three steps of a net whose one matrix is large enough to be sampled."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 4))
    quantize_model(net, PrecisionPolicy.uniform(weight="e4m3fn", input="e4m3fn", grad_output="e5m2"))
    kept = Storage.of({"kind": "stochastic", "format": "e4m3fn"})
    optimizer = AdamW([{"params": list(net.named_parameters()), "storage": kept}], lr=1e-3)
    watch = MonitorSet([MonitorSpec.of({"every": 1, **m}) for m in monitors], net, optimizer, Context(seed=5))
    rows = []
    for step in range(1, 4):
        watch.begin(step)
        net(torch.randn(256, 256)).square().mean().backward()
        gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        watch.gradients(torch.zeros(()), torch.zeros(()), gradients)
        optimizer.step()
        optimizer.zero_grad()
        commit(net)
        reports = watch.finish()
        rows.append({f"{kind}/{key}": v for kind, report in reports.items() for key, v in report.metrics.items()})
    return rows, [p.detach().clone() for p in net.parameters()]


def test_a_watched_run_keeps_its_bits_and_keys_and_its_shares_are_near() -> None:
    full, bits = trained([{"kind": kind} for kind in KINDS])
    few, same = trained([{"kind": kind, "sample": "1/16"} for kind in KINDS])
    assert all(torch.equal(a, b) for a, b in zip(bits, same, strict=True))
    for a, b in zip(full, few, strict=True):
        assert {key for key in b if not key.endswith("_error")} == a.keys()
        apart = {key for key in a if a[key] != b[key] and not (math.isnan(a[key]) and math.isnan(b[key]))}
        assert {"range/0/input/subnormal_rate", "stall/0.weight/stall_ratio", "flips/0.weight/flip_rate"} <= apart
        assert not any(key.endswith("/amax") or "bias" in key or key.startswith(SMALL) for key in apart)
        for key in apart:
            if key.endswith(("_rate", "_share", "_ratio", "_fraction")):
                assert abs(a[key] - b[key]) < 0.05, key
    assert any(key.endswith("_error") and few[2][key] > 0 for key in few[2])


def test_a_spec_without_it_says_what_it_said_and_other_values_are_refused() -> None:
    for kind in KINDS:
        assert "sample" not in MonitorSpec.of(kind).tree()
        assert MonitorSpec.of({"kind": kind, "sample": "1/16"}).tree()["sample"] == "1/16"
    with pytest.raises(ValueError, match="1/16"):
        MonitorSpec.of({"kind": "range", "sample": "1/8"})


@pytest.mark.long
@pytest.mark.needs("c++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
def test_a_sampled_look_is_the_same_compiled() -> None:
    """Counts equal and sums to rounding, of a large and a small parameter, on a whole scale and one by row."""
    looks = [CompiledPass(SAMPLED, engine) for engine in ("eager", "compiled")]
    kinds = tuple(kind for kind, monitor in SAMPLED.items() if isinstance(monitor, UpdateMonitor))
    for number, key in enumerate(keys(3)):
        for rows in (256, 100):
            for scale in (torch.tensor(0.25), torch.full((rows, 1), 0.25)):
                made = patterned(number)
                parts = {name: getattr(made, name)[:rows] for name in ("before", "requested", "after", "moved")}
                name = f"w{rows}{scale.ndim}"
                shown = replace(made, name=name, draw=key, grid=Grid(FMT, scale), **parts)
                (eager, names), (compiled, same) = (look.update(shown, kinds, ("range",)) for look in looks)
                assert names == same and torch.allclose(eager, compiled, rtol=1e-5, atol=0, equal_nan=True)
