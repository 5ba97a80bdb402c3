"""Storage: every stored weight is on its grid, moves as often as the laws say, and never drifts."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.formats import FloatFormat
from altgrad.measures import expected_flips, expected_master_flips
from altgrad.measures.stall import predicted_stall_counts
from altgrad.optim import SGD, AdamW, ManifoldAdamW, Storage, Update
from altgrad.quantize import CurrentSpec, at_rung, round_to, rung, spacing

EIGHT = ("e0m7f", "e1m6f", "e2m5f", "e3m4f", "e4m3f", "e5m2f", "e6m1f", "e7m0f")
KINDS = ("nearest", "stochastic", "kahan", "eco")


def stored(kind: str, fmt: str = "e4m3fn", **more: Any) -> dict[str, Any]:
    return {"kind": kind, "format": fmt, **more}


def sgd(p: nn.Parameter, storage: Any, **settings: Any) -> SGD:
    return SGD([p], lr=1.0, storage=storage, **settings)


def scale_of(optimizer: SGD | AdamW, p: nn.Parameter) -> Tensor:
    found: Tensor = optimizer.state[p]["storage_scale"]
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fmt", [*EIGHT, "e4m3fn", "e5m2", "e2m1", "e4m3fnuz"])
@pytest.mark.parametrize(
    "scaling", ["current", {"kind": "current", "granularity": "channel"}, {"kind": "mx", "size": 8}]
)
@pytest.mark.parametrize("scale", ["fixed", "tracked"])
def test_every_stored_weight_is_on_its_grid(kind: str, fmt: str, scaling: Any, scale: str) -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(12, 16) * 10 ** (-2 * torch.rand(12, 16)))
    optimizer = AdamW([p], lr=0.05, weight_decay=0.1, storage=stored(kind, fmt, scaling=scaling, scale=scale))
    for step in range(6):
        held = scale_of(optimizer, p)
        assert torch.equal(p, round_to(p, fmt, scale=held)), step
        assert bool((torch.frexp(held).mantissa == 0.5).all())
        p.grad = torch.randn(12, 16)
        optimizer.step()
    assert torch.equal(p, round_to(p, fmt, scale=scale_of(optimizer, p)))


def test_the_first_scale_leaves_a_binade_of_headroom() -> None:
    p = nn.Parameter(torch.tensor([0.3, -1.9]))
    optimizer = sgd(p, stored("nearest"))
    assert float(scale_of(optimizer, p)) == 2.0 ** (math.ceil(math.log2(1.9 / 448)) + 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fmt", [*EIGHT, "e4m3fn"])
def test_without_gradient_and_decay_nothing_ever_moves(kind: str, fmt: str) -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.cat([torch.randn(500), torch.tensor([0.0, -0.0])]))
    optimizer = sgd(p, stored(kind, fmt), momentum=0.9)
    kept = p.detach().clone()
    for _ in range(20):
        p.grad = torch.zeros_like(p)
        optimizer.step()
        assert torch.equal(p, kept)
        if kind != "kahan":  # -0 + 0 is +0
            assert torch.equal(p.detach().view(torch.int32), kept.view(torch.int32))


@pytest.mark.parametrize("fmt", EIGHT)
def test_stochastic_storage_flips_as_often_as_the_directional_law_says(fmt: str) -> None:
    """E[flips] = sum min(1, |delta| / gap(w, sign delta)), one step from every code, both ways, several sizes."""
    found = FloatFormat.parse(fmt)
    codes = torch.arange(-found.max_code + 1, found.max_code, dtype=torch.int32).repeat_interleave(64)
    scale = 2.0**-4
    w = at_rung(codes, found, scale=scale)
    torch.manual_seed(1)
    sign = torch.randint(0, 2, w.shape) * 2.0 - 1
    for share in (0.02, 0.3, 0.49, 0.9):
        delta = share * torch.rand(w.shape) * 2 * spacing(w, found, scale=scale) * sign
        p = nn.Parameter(w.clone())
        optimizer = sgd(p, stored("stochastic", fmt))
        optimizer.state[p]["storage_scale"].fill_(scale)
        p.data.copy_(w)
        p.grad = -delta
        optimizer.step()
        flips = int((rung(p, found, scale=scale) != codes).sum())
        expected = float(expected_flips(w, delta, found, scale=scale))
        assert abs(flips - expected) <= 4 * math.sqrt(len(w)) / 2, (share, flips, expected)


@pytest.mark.parametrize("fmt", EIGHT)
def test_masters_flip_as_often_as_their_cells_say(fmt: str) -> None:
    """P(flip) = min(1, |delta| / cell width) for masters uniform in their cells: the optimizer's steps under master."""
    found = FloatFormat.parse(fmt)
    scale = 2.0**-4
    codes = torch.arange(-found.max_code + 2, found.max_code - 1, dtype=torch.int32).repeat_interleave(64)
    w = at_rung(codes, found, scale=scale)
    low = (at_rung(codes - 1, found, scale=scale).double() + w.double()) / 2
    high = (at_rung(codes + 1, found, scale=scale).double() + w.double()) / 2
    torch.manual_seed(2)
    master = (low + (high - low) * torch.rand(w.shape, dtype=torch.float64)).float()
    start = rung(master, found, scale=scale)
    delta = 0.3 * spacing(master, found, scale=scale) * (torch.randint(0, 2, w.shape) * 2.0 - 1)
    p = nn.Parameter(master.clone())
    optimizer = sgd(p, {"kind": "master", "format": fmt})
    p.grad = -delta
    optimizer.step()
    flips = int((rung(p, found, scale=scale) != start).sum())
    expected = float(expected_master_flips(master, delta, found, scale=scale))
    assert abs(flips - expected) <= 4 * math.sqrt(len(w)) / 2, (flips, expected)


@pytest.mark.parametrize("fmt", EIGHT)
def test_nearest_storage_stalls_below_half_a_gap_in_its_direction(fmt: str) -> None:
    found, scale = FloatFormat.parse(fmt), 2.0**-4
    codes = torch.arange(-found.max_code + 1, found.max_code, dtype=torch.int32).repeat_interleave(16)
    w = at_rung(codes, found, scale=scale)
    torch.manual_seed(3)
    delta = spacing(w, found, scale=scale) * torch.rand(w.shape) * (torch.randint(0, 2, w.shape) * 2.0 - 1)
    p = nn.Parameter(w.clone())
    optimizer = sgd(p, stored("nearest", fmt))
    optimizer.state[p]["storage_scale"].fill_(scale)
    p.data.copy_(w)
    p.grad = -delta
    optimizer.step()
    stalls = int(((rung(p, found, scale=scale) == codes) & (delta != 0)).sum())
    counts = predicted_stall_counts(w, (w + delta) - w, found, scale=scale)
    # Within a float32 ulp of half a gap the sum w + delta decides; such draws are rare.
    assert abs(stalls - int(counts["predicted_stalls"])) <= 2


@pytest.mark.parametrize("fmt", EIGHT)
def test_stochastic_storage_does_not_drift(fmt: str) -> None:
    """Weights started at +1 under zero-mean noise: the mean stays, the rms is at its closed form.

    One step from a grid value x over d: lo or hi with E = x + d, variance (x + d - lo)(hi - x - d). Summed over steps,
    the mean square is 1 + sum of the noise's and the rounding's variances, which the run itself reports.
    """
    steps, count = (20 if fmt == "e7m0f" else 200), 20_000
    p = nn.Parameter(torch.ones(count))
    optimizer = sgd(p, stored("stochastic", fmt, scaling={"kind": "current", "margin": 4 if fmt != "e0m7f" else 3}))
    variance = torch.zeros(count, dtype=torch.float64)
    for step in range(steps):
        torch.manual_seed(step)
        noise = 0.01 * torch.randn(count)
        wanted = p.detach() + noise
        scale = float(scale_of(optimizer, p))
        low = round_to(wanted, fmt, "toward_negative", scale=scale).double()
        high = round_to(wanted, fmt, "toward_positive", scale=scale).double()
        variance += noise.double().var() + (wanted.double() - low) * (high - wanted.double())
        p.grad = -noise
        optimizer.step()
    values = p.detach().double()
    error = math.sqrt(float(values.var()) / count)
    assert abs(float(values.mean()) - 1) <= 4 * error
    expected = 1 + float(variance.mean())
    spread = float((values.square()).std()) / math.sqrt(count)
    assert abs(float(values.square().mean()) - expected) <= 4 * spread
    rms = math.sqrt(float(values.square().mean()))
    assert float((values.abs() < 2**-20 * rms).double().mean()) < 0.01 or fmt in ("e0m7f", "e1m6f")


def test_stochastic_bits_go_by_seed_name_and_step() -> None:
    def final(seed: int, name: str, steps: int = 3) -> Tensor:
        p = nn.Parameter(torch.linspace(-1, 1, 400))
        optimizer = SGD([(name, p)], lr=1.0, storage=stored("stochastic", "e3m4"), seed=seed)
        for _ in range(steps):
            p.grad = torch.full_like(p, 0.003)
            optimizer.step()
        return p.detach()

    assert torch.equal(final(0, "a"), final(0, "a"))
    assert not torch.equal(final(0, "a"), final(1, "a")) and not torch.equal(final(0, "a"), final(0, "b"))


def test_kahan_keeps_what_nearest_loses() -> None:
    """A thousand steps of a hundredth of a gap: nearest stands still, kahan arrives within a gap."""
    for kind, arrives in (("nearest", False), ("kahan", True)):
        p = nn.Parameter(torch.full((64,), 1.0))
        optimizer = sgd(p, stored(kind, "e4m3fn"))
        gap = float(spacing(p, "e4m3fn", scale=scale_of(optimizer, p))[0])
        for _ in range(1000):
            p.grad = torch.full((64,), -gap / 1000 * 3)
            optimizer.step()
        moved = float(p.detach().mean()) - 1
        assert (abs(moved - 3 * gap) <= gap) if arrives else moved == 0


def test_kahan_is_a_compensated_sum_in_its_named_format() -> None:
    torch.manual_seed(0)
    start = torch.randn(50)
    p = nn.Parameter(start.clone())
    optimizer = sgd(p, stored("kahan", "e3m4", compensation="e5m2"))
    scale = scale_of(optimizer, p)
    w = round_to(start, "e3m4", scale=scale)
    for step in range(10):
        kept = optimizer.state[p]["compensation"].clone()
        torch.manual_seed(step)
        delta = 0.01 * torch.randn(50)
        p.grad = -delta
        optimizer.step()
        whole = (w + delta) + kept
        w = round_to(whole, "e3m4", scale=scale)
        assert torch.equal(p, w)
        lost = whole - w
        compensation = optimizer.state[p]["compensation"]
        amax = lost.abs().max()
        step_of = 2.0 ** math.ceil(math.log2(float(amax) / 57344))
        assert torch.equal(compensation, round_to(lost, "e5m2", "nearest_even", scale=step_of))


@pytest.mark.parametrize("stochastic", [False, True])
def test_eco_makes_up_for_what_rounding_lost(stochastic: bool) -> None:
    """Steps of 1/20 of a gap: nearest stands still, eco moves at the masters' speed once its loop has filled.

    In the long run lr E[m] + E[e] = lr g, so the speed is lr g whatever the rounding.
    """
    moved = {}
    for kind in ("nearest", "eco"):
        p = nn.Parameter(torch.full((16,), 0.9))
        more = {"stochastic": stochastic} if kind == "eco" else {}
        optimizer = AdamW(
            [p], lr=2.0**-7 / 20, weight_decay=0.0, betas=(0.9, 0.999), storage=stored(kind, "e0m7", **more)
        )
        optimizer.state[p]["storage_scale"].fill_(1.0)
        p.data.copy_(round_to(p, "e0m7", scale=1.0))
        places = []
        for step in range(3001):
            p.grad = torch.ones(16)
            optimizer.step()
            if step in (1000, 3000):
                places.append(float(p.detach().mean()))
        moved[kind] = places[0] - places[1]
    assert moved["nearest"] == 0
    assert moved["eco"] == pytest.approx(2000 * 2.0**-7 / 20, rel=0.1)


def test_eco_puts_the_error_into_the_momentum_as_its_formula_says() -> None:
    p = nn.Parameter(torch.tensor([1.0, -0.7, 0.3]))
    optimizer = sgd(p, stored("eco", "e3m4"), momentum=0.8)
    before, g = p.detach().clone(), torch.tensor([0.011, -0.023, 0.007])
    p.grad = g.clone()
    optimizer.step()
    wanted = before - g
    lost = wanted - p.detach()
    expected = g + lost * (1 - 1 / 0.8)  # lr = 1: m + (1 / lr)(1 - 1 / beta) e
    assert torch.allclose(optimizer.state[p]["momentum_buffer"], expected, rtol=1e-6, atol=0)
    assert float(lost.abs().max()) > 0


def test_a_tracked_scale_grows_and_shrinks_with_the_weights_and_counts_its_flips() -> None:
    p = nn.Parameter(torch.linspace(0.5, 1.0, 33))
    optimizer = sgd(p, stored("nearest", "e4m3fn", scale="tracked"))
    first = float(scale_of(optimizer, p))
    p.grad = -9 * p.detach()
    optimizer.step()
    grown = float(scale_of(optimizer, p))
    assert grown > first and float(p.detach().max()) == pytest.approx(10, rel=0.07)
    p.grad = 0.99 * p.detach()
    optimizer.step()
    assert float(scale_of(optimizer, p)) < grown
    assert int(optimizer.state[p]["rescale_flips"]) > 0


def test_eco_rounds_stochastically_and_its_spec_names_the_run_it_named() -> None:
    """One step of a hundredth of a gap from a grid value: to nearest nothing moves, stochastically one in a hundred."""
    tree = {"kind": "eco", "match": "*", "format": "e4m3fn", "scaling": CurrentSpec(margin=1).tree(), "scale": "fixed"}
    assert Storage.of(stored("eco")).tree() == tree | {"rounding": "nearest_even"}
    assert Storage.of(stored("eco", stochastic=False)).tree()["stochastic"] is False
    with pytest.raises(ValueError, match="leave rounding out"):
        Storage.made_from(stored("eco", rounding="stochastic", stochastic=False))
    for more, moves in (({}, True), ({"rounding": "nearest_even"}, True), ({"stochastic": False}, False)):
        p = nn.Parameter(torch.ones(4000))
        optimizer = sgd(p, stored("eco", **more), momentum=0.9)
        p.grad = torch.full((4000,), -0.125 / 100)
        optimizer.step()
        moved = float((p != 1).float().mean())
        assert 0.005 < moved < 0.016 if moves else moved == 0


def test_a_state_of_the_first_edition_goes_on_to_nearest_even() -> None:
    """It has no entry that says that it rounds stochastically; a loaded state replaces that of a new optimizer."""
    p = nn.Parameter(torch.ones(4000))
    optimizer = sgd(p, stored("eco"), momentum=0.9)
    old = optimizer.state_dict()
    old["state"][0] = {entry: value for entry, value in old["state"][0].items() if entry != "stochastic"}
    optimizer.load_state_dict(old)
    p.grad = torch.full((4000,), -0.125 / 100)
    optimizer.step()
    assert bool((p == 1).all())


def test_kahan_with_adam_arrives_where_masters_do() -> None:
    """1,500 steps of noisy Adam below a 600th of a gap: compensation towards zero kept 7 % of what was asked for."""
    ends = []
    for storage in ({"kind": "master"}, stored("kahan")):
        p = nn.Parameter(torch.ones(256))
        optimizer = AdamW([p], lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0, storage=storage)
        torch.manual_seed(0)
        for _ in range(1500):
            p.grad = torch.randn(256) + 0.3
            optimizer.step()
        ends.append(float((p.detach() + optimizer.state[p].get("compensation", 0) - 1).mean()))
    assert abs(ends[1] - ends[0]) < 0.1 * abs(ends[0])


SCALINGS: list[Any] = ["current", {"kind": "current", "granularity": "channel"}, {"kind": "mx", "size": 8}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_tracked_scale_clips_nothing_and_spares_less_than_two_binades(kind: str, scaling: Any) -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(6, 16))
    optimizer = sgd(p, stored(kind, "e4m3f", scaling=scaling, scale="tracked"), momentum=0.5)
    optimizer.observers.append(lambda update: seen.append(update))
    optimizer.watching = True
    top = float(FloatFormat.parse("e4m3f").max)
    for step in range(12):
        seen: list[Update] = []
        p.grad = p.detach() * (1 - 2.0 ** (6 - step)) if step % 2 else torch.randn(6, 16)
        optimizer.step()
        wanted = (seen[0].before + seen[0].requested).abs()
        reach = (top * scale_of(optimizer, p)).expand(6, 16)
        size = 8 if "mx" in str(scaling) else 16
        amax = wanted.view(6, -1, size).amax(-1).repeat_interleave(size, -1)
        amax = wanted.amax().expand(6, 16) if scaling == "current" else amax
        slack = 1 + 2e-6  # w + request is summed in another order than keep w + step
        assert bool((amax <= reach * slack).all()) and bool((amax * slack > reach / 4).all()), step


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
@pytest.mark.parametrize("engine", ["eager", pytest.param("compiled", marks=pytest.mark.needs("c++"))])
def test_masters_take_their_field_at_a_current_scale_or_at_a_tracked_one(engine: str) -> None:
    """What a storage arm's scale would be: never clipped, up to two binades to spare, and kept in between."""
    p = nn.Parameter(torch.linspace(0.5, 1.0, 40))
    made = {
        scale: ManifoldAdamW([p], lr=0.0, storage={"kind": "master", "format": "e4m3f", "scale": scale})
        for scale in ("current", "tracked")
    }
    top, held = float(FloatFormat.parse("e4m3f").max), {}
    for amax, current, tracked in (
        (1, 1, 1),
        (0.51, 1, 1),
        (0.5, 0.5, 1),
        (0.26, 0.5, 1),
        (0.24, 0.25, 0.5),
        (3, 4, 4),
    ):
        with torch.no_grad():
            p.mul_(amax * top / 256 / p.max())
        for scale, optimizer in made.items():
            optimizer.engine = engine
            p.grad = torch.zeros_like(p)
            optimizer.step()
            ((_, _, grid),) = optimizer.grids()
            assert grid.scale is not None
            held[scale] = float(grid.scale) * top
            assert float(p.detach().max()) <= held[scale], (scale, amax)
        first = held.setdefault("first", held["current"])
        assert (held["current"], held["tracked"]) == (first * current, first * tracked), amax
    assert "storage_scale" in made["tracked"].state[p] and "storage_scale" not in made["current"].state[p]
    with pytest.raises(ValueError, match="no format is named; add a format"):
        Storage.made_from({"kind": "master", "scale": "tracked"})


@pytest.mark.parametrize("kind", [*KINDS, "index"])
@pytest.mark.parametrize("scaling", [None, *SCALINGS, {"kind": "block", "size": 4}])
@pytest.mark.parametrize("scale", ["fixed", "tracked"])
def test_a_weight_of_zeros_gets_the_scale_of_its_fan_in(kind: str, scaling: Any, scale: str) -> None:
    """1 / sqrt(fan_in), as far as PyTorch initialises a Linear of that shape; a row of zeros, the weight's own amax."""
    more = {} if scaling is None else {"scaling": scaling}
    storage = Storage.of(stored(kind, "e4m3fn", scale=scale, **more))
    states: list[dict[str, Tensor]] = []
    likes = (torch.full((4, 16), 0.25), torch.zeros(4, 16), torch.cat([torch.full((1, 16), 0.25), torch.zeros(3, 16)]))
    for w in likes:
        states.append({})
        storage.adopt(w.clone(), states[-1])
    first, empty, partly = (state["storage_scale"].expand(4, 16) for state in states)
    assert torch.equal(first, empty) and torch.equal(first, partly) and float(first.max()) < 2.0**-8
    bias: dict[str, Tensor] = {}
    storage.adopt(torch.zeros(100), bias)
    assert float(bias["storage_scale"].max()) * 448 >= 0.1 > float(bias["storage_scale"].max()) * 448 / 4


def test_a_tracked_weight_that_is_asked_to_be_zero_keeps_its_scale() -> None:
    p = nn.Parameter(torch.full((8,), 0.01))
    optimizer = sgd(p, stored("nearest", scale="tracked"))
    held = float(scale_of(optimizer, p))
    p.grad = p.detach().clone()
    optimizer.step()
    assert not p.detach().any() and float(scale_of(optimizer, p)) == held


def test_a_fixed_scale_saturates_instead() -> None:
    p = nn.Parameter(torch.tensor([1.0, 0.5]))
    optimizer = sgd(p, stored("nearest", "e4m3fn"))
    p.grad = torch.tensor([-100.0, 0.0])
    optimizer.step()
    assert float(p[0].detach()) == 448 * float(scale_of(optimizer, p))


@pytest.mark.parametrize("kind", [*KINDS, "master"])
def test_updates_are_shown_as_they_happened(kind: str) -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(40))
    storage = {"kind": "master", "format": "e3m4"} if kind == "master" else stored(kind, "e3m4")
    optimizer = AdamW([("w", p)], lr=0.01, weight_decay=0.5, storage=storage)
    seen: list[Update] = []
    optimizer.observers.append(seen.append)
    optimizer.watching = True
    before = p.detach().clone()
    p.grad = torch.randn(40)
    optimizer.step()
    (update,) = seen
    assert (update.name, update.storage) == ("w", kind) and update.grid is not None
    assert torch.equal(update.before, before) and torch.equal(update.after, p)
    direction = p.grad / (p.grad.abs() + 1e-8)
    assert torch.allclose(update.requested, -0.01 * direction - 0.005 * before, rtol=1e-4, atol=1e-7)
    assert update.undecayed is not None
    torch.testing.assert_close(update.requested - update.undecayed, -0.005 * update.before)
    assert (update.moved is None) == (kind == "master")


def test_state_dict_moves_a_run_to_another_optimizer_bit_for_bit(tmp_path: Any) -> None:
    def step(p: nn.Parameter, optimizer: AdamW, number: int) -> None:
        torch.manual_seed(number)
        p.grad = torch.randn(64)
        optimizer.step()

    for storage in (stored("stochastic", "e3m4", scale="tracked"), stored("kahan", "e4m3fn"), stored("eco", "e5m2")):
        torch.manual_seed(5)
        start = torch.randn(64)
        p = nn.Parameter(start.clone())
        optimizer = AdamW([p], lr=0.02, storage=storage, track=True)
        for number in range(3):
            step(p, optimizer, number)
        torch.save({"p": p.detach(), "o": optimizer.state_dict()}, tmp_path / "state.pt")
        saved = torch.load(tmp_path / "state.pt", weights_only=True)
        q = nn.Parameter(torch.zeros(64))
        other = AdamW([q], lr=9.0, storage=storage)
        q.data.copy_(saved["p"])
        other.load_state_dict(saved["o"])
        for number in range(3, 6):
            step(p, optimizer, number)
            step(q, other, number)
        assert torch.equal(p, q)
        assert all(torch.equal(a, other.state[q][key]) for key, a in optimizer.state[p].items())


@pytest.mark.parametrize(
    ("storage", "why"),
    [
        ({"kind": "stochastic"}, "format"),
        ({"kind": "stochastic", "format": "e4m3"}, "e4m3fn"),
        ({"kind": "nearest", "format": "e8m7", "scaling": {"kind": "current", "scale": "real"}}, "power-of-two"),
        ({"kind": "nearest", "format": "e2m1", "scaling": "nvfp4"}, "power-of-two"),
        ({"kind": "nearest", "format": "e2m1", "scaling": "delayed"}, "tracked"),
        ({"kind": "nearest", "format": "e10m5"}, "float32"),
        ({"kind": "stocastic", "format": "e5m2"}, "stochastic"),
        ({"kind": "eco", "format": "e5m2"}, "momentum above 0"),
        ({"kind": "index", "format": "e5m2"}, "landing: index"),
    ],
)
def test_storage_that_cannot_be_is_one_line_naming_the_group(storage: Any, why: str) -> None:
    with pytest.raises(ValueError, match=r"^SGD, group 0: .*") as caught:
        SGD([nn.Parameter(torch.ones(3))], storage=storage)
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_every_storage_is_a_documented_kind() -> None:
    assert set(Storage.kinds()) == {"master", "nearest", "stochastic", "kahan", "eco", "index"}
    assert all(kind.__doc__ for kind in Storage.kinds().values())
