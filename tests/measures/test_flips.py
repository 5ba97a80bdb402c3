"""Claims about flips, against exact scalar arithmetic; the two laws of chance, against simulation."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from altgrad.formats import FloatFormat, Rounding
from altgrad.formats.codes import round_rung
from altgrad.measures.flips import (
    cell_fraction,
    expected_flips,
    expected_master_flips,
    flip_counts,
    flipped,
    follow_trail,
    gap_fraction,
    oscillation_average,
    rescale_flip_counts,
    trail_start,
    trail_sums,
)
from altgrad.quantize import at_rung, round_to, rung

EIGHT = [FloatFormat.parse(f"e{e}m{7 - e}f") for e in range(8)]
DEPLOYED = [FloatFormat.parse(name) for name in ("e4m3fn", "e5m2", "e4m3fnuz", "e2m1", "e2m0")]
EVERY = pytest.mark.parametrize("fmt", EIGHT + DEPLOYED, ids=str)
E4M3 = FloatFormat.parse("e4m3fn")


def exact_rung(value: float, fmt: FloatFormat, scale: float = 1) -> float:
    """The signed rung by integers and Fractions; NaN for NaN."""
    if math.isnan(value):
        return math.nan
    if math.isinf(value):
        return math.copysign(fmt.max_code, value)
    size = min(round_rung(fmt, abs(Fraction(value) / Fraction(scale)), Rounding.nearest_even), fmt.max_code)
    return size if value > 0 else -size


def next_magnitude(fmt: FloatFormat, r: int) -> Fraction:
    """The magnitude at rung r, as if the grid went on beyond the largest value."""
    if r <= fmt.max_code:
        return fmt.magnitude(r)
    spacing = Fraction(2) ** (max(fmt.e_min, fmt.max_binade) - fmt.mantissa_bits)
    return fmt.magnitude(fmt.max_code) + spacing


def groups(fmt: FloatFormat, rungs: Tensor) -> dict[str, Tensor]:
    """Masks of the sorts of grid values that have a law of their own."""
    size = rungs.abs()
    normal = size >= (1 << fmt.mantissa_bits) if fmt.exponent_bits else torch.zeros_like(size, dtype=torch.bool)
    power = normal & (size % (1 << fmt.mantissa_bits) == 0)
    return {
        "zero": size == 0,
        "sub-normal": (size > 0) & ~normal,
        "power of two": power & (size < fmt.max_code),
        "between": normal & ~power & (size < fmt.max_code),
        "largest": size == fmt.max_code,
    }


@pytest.mark.parametrize("name", ["e4m3fn", "e7m0", "e0m7", "e4m3fnuz"])
@pytest.mark.parametrize("scale", [1.0, 2.0**-10])
def test_flips_are_changes_of_the_exact_code(adversarial: dict[str, Tensor], name: str, scale: float) -> None:
    fmt = FloatFormat.parse(name)
    for case, before in adversarial.items():
        after = before + 0.1 * before.flip(0)
        old, new = ([exact_rung(v, fmt, scale) for v in x.flatten().tolist()] for x in (before, after))
        pairs = list(zip(old, new, strict=True))
        found = {key: int(value) for key, value in flip_counts(before, after, fmt, scale=scale).items()}
        same = [a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs]
        assert found == {
            "flips": len(pairs) - sum(same),
            "sign_flips": sum(a * b < 0 for a, b in pairs),
            "weights": len(pairs),
        }, case


def test_zeros_of_either_sign_are_one_code_and_a_stop_at_zero_is_no_sign_flip() -> None:
    counts = flip_counts(torch.tensor([0.0, -0.0, 1.0, -1.0]), torch.tensor([-0.0, 0.0, 0.0, 1.0]), E4M3)
    assert (int(counts["flips"]), int(counts["sign_flips"])) == (2, 1)


def test_rescale_flips_and_flips_part_what_happened_between_two_casts() -> None:
    torch.manual_seed(0)
    before = torch.randn(4000)
    after = before + 0.05 * torch.randn(4000)
    first, middle, last = (rung(x, E4M3, scale=s) for x, s in ((before, 0.01), (before, 0.02), (after, 0.02)))
    found = rescale_flip_counts(before, E4M3, 0.01, 0.02)
    assert int(found["rescale_flips"]) == int((first != middle).sum()) > 3000
    assert int(flip_counts(before, after, E4M3, scale=0.02)["flips"]) == int((middle != last).sum())
    assert int(rescale_flip_counts(before, E4M3, 0.01, 0.01)["rescale_flips"]) == 0


def test_a_trail_is_what_a_walk_written_down_says() -> None:
    torch.manual_seed(1)
    walk = torch.cumsum(torch.randint(-2, 3, (60, 50)), 0)
    walk[7, 3] = walk[20, 3] = walk[20, 9] = -(1 << 31)  # NaN for a step: no length, no direction
    values = at_rung(walk, E4M3, scale=0.5)
    trail, reversals = trail_start(values[0]), torch.zeros(50)
    for old, new in itertools.pairwise(values):
        trail, reversed_ = follow_trail(trail, old, new, E4M3, scale=0.5)
        reversals += reversed_
    for unit in range(50):
        pairs = itertools.pairwise(walk[:, unit].tolist())
        moves = [b - a for a, b in pairs if min(a, b) > -(1 << 31)]
        signs = [math.copysign(1, move) for move in moves if move]
        assert int(trail.net[unit]) == sum(moves)
        assert int(trail.gross[unit]) == sum(map(abs, moves))
        assert int(reversals[unit]) == sum(a != b for a, b in itertools.pairwise(signs))
        assert int(trail.direction[unit]) == signs[-1]
    sums = trail_sums(trail)
    assert int(sums["net"]) == int(trail.net.abs().sum()) <= int(sums["gross"])


def test_a_weight_that_only_swings_has_an_oscillation_frequency_of_one() -> None:
    frequency, trail, low, high = torch.zeros(3), trail_start(torch.zeros(3)), torch.zeros(3), torch.tensor([1.0, 0, 1])
    for step in range(400):
        ends = (low, high) if step % 2 == 0 else (high, low)
        trail, reversed_ = follow_trail(trail, *ends, E4M3)
        frequency = oscillation_average(frequency, reversed_, 0.05)
    assert frequency.tolist() == pytest.approx([1, 0, 1], abs=1e-6)
    once = oscillation_average(torch.tensor([0.5]), torch.tensor([True]), 0.1)
    assert float(once) == pytest.approx(0.1 * 1 + 0.9 * 0.5)


@EVERY
def test_a_gap_fraction_is_a_part_of_the_way_to_the_neighbour(fmt: FloatFormat) -> None:
    for r in range(fmt.max_code + 1):
        here, step = fmt.magnitude(r), fmt.min_subnormal / 4
        outward = float(Fraction(step) / (next_magnitude(fmt, r + 1) - here)) if r < fmt.max_code else 0
        inward = float(Fraction(step) / (here - fmt.magnitude(r - 1))) if r else outward
        w = torch.tensor([here, here, -here, -here], dtype=torch.float32)
        found = gap_fraction(w, torch.tensor([step, -step, -step, step]), fmt)
        assert found.tolist() == pytest.approx([outward, inward] * 2, rel=1e-6), r


@EVERY
def test_a_cell_reaches_halfway_to_either_neighbour(fmt: FloatFormat) -> None:
    step = fmt.min_subnormal / 4
    for r in range(fmt.max_code + 1):
        here, above = fmt.magnitude(r), next_magnitude(fmt, r + 1)
        below = fmt.magnitude(r - 1) if r else -fmt.magnitude(1)
        width, part = (above - below) / 2, Fraction(3, 8)
        inside = [here, here + (above - here) * part, here - (here - below) * part]
        for place in inside:
            w = torch.tensor([float(place), -float(place)], dtype=torch.float32)
            found = cell_fraction(w, torch.tensor([-step, step]), fmt)
            expected = float(Fraction(step) / width)
            assert found.tolist() == pytest.approx([expected] * 2, rel=1e-6), (r, float(place))
            if r == fmt.max_code:
                assert cell_fraction(w, torch.tensor([step, -step]), fmt).tolist() == [0, 0]


def test_the_cell_of_a_power_of_two_is_three_quarters_of_a_spacing() -> None:
    w = torch.tensor([0.0, 2.0**-9, 2.0**-6, 2.0**-5, 1.0, 1.125, 448.0])
    spacing = torch.tensor([2.0**-9, 2.0**-9, 2.0**-9, 2.0**-8, 0.125, 0.125, 32.0])
    found = cell_fraction(w, -spacing / 16, E4M3) * 16
    assert (1 / found).tolist() == pytest.approx([1, 1, 1, 0.75, 0.75, 1, 1])


def drawn_steps(gaps: Tensor, seed: int) -> Tensor:
    """Steps of either sign, from 1/300 of a gap to 1.5."""
    generator = torch.Generator().manual_seed(seed)
    sizes = gaps * torch.exp(torch.rand(gaps.shape, generator=generator) * math.log(450) - math.log(300))
    return torch.where(torch.rand(gaps.shape, generator=generator) < 0.5, sizes, -sizes)


def assert_law(changed: Tensor, chances: Tensor, masks: dict[str, Tensor]) -> None:
    """Counts within 4 standard errors of the chances' sum, all together and in each group."""
    p = chances.clamp(max=1).double()
    for name, mask in {"all": torch.ones_like(changed), **masks}.items():
        error = (p * (1 - p))[mask].sum().sqrt()
        assert abs(changed[mask].sum() - p[mask].sum()) <= 4 * error, name


@EVERY
@pytest.mark.parametrize("scale", [1.0, 2.0**-20])
def test_stochastic_storage_flips_as_often_as_the_law_says(fmt: FloatFormat, scale: float) -> None:
    rungs = torch.arange(-fmt.max_code, fmt.max_code + 1).repeat(200)
    w = at_rung(rungs, fmt, scale=scale)
    delta = drawn_steps(at_rung(rungs.abs().clamp(min=1), fmt, scale=scale) * 2.0**-fmt.mantissa_bits, 0)
    after = round_to(w + delta, fmt, "stochastic", scale=scale, key=12345)
    chances = gap_fraction(w, delta, fmt, scale=scale)
    assert_law(flipped(w, after, fmt, scale=scale), chances, groups(fmt, rungs))
    assert float(expected_flips(w, delta, fmt, scale=scale)) == pytest.approx(
        float(chances.clamp(max=1).double().sum())
    )


@EVERY
@pytest.mark.parametrize("scale", [1.0, 2.0**-20])
def test_masters_uniform_in_their_cells_flip_as_often_as_the_law_says(fmt: FloatFormat, scale: float) -> None:
    low = [
        (fmt.magnitude(r - 1) + fmt.magnitude(r)) / 2 if r else -fmt.magnitude(1) / 2 for r in range(fmt.max_code + 1)
    ]
    high = [(fmt.magnitude(r) + next_magnitude(fmt, r + 1)) / 2 for r in range(fmt.max_code + 1)]
    ends = torch.tensor([[float(a), float(b)] for a, b in zip(low, high, strict=True)], dtype=torch.float64).repeat(
        400, 1
    )
    generator = torch.Generator().manual_seed(3)
    share = torch.rand(len(ends), generator=generator, dtype=torch.float64)
    sign = torch.where(torch.rand(len(ends), generator=generator) < 0.5, 1, -1)
    masters = ((ends[:, 0] + share * (ends[:, 1] - ends[:, 0])) * sign * scale).float()
    delta = drawn_steps(((ends[:, 1] - ends[:, 0]) * scale).float(), 4)
    changed = flipped(masters, masters + delta, fmt, scale=scale)
    rungs = torch.arange(fmt.max_code + 1).repeat(400)
    assert_law(changed, cell_fraction(masters, delta, fmt, scale=scale), groups(fmt, rungs))
    expected = float(expected_master_flips(masters, delta, fmt, scale=scale))
    assert abs(int(changed.sum()) - expected) <= 4 * math.sqrt(expected)


@pytest.mark.parametrize("law", [expected_flips, expected_master_flips])
def test_the_laws_hold_their_edges(adversarial: dict[str, Tensor], law: object) -> None:
    assert callable(law)
    for case, w in adversarial.items():
        assert float(law(w, torch.zeros_like(w), E4M3)) == 0, case
        assert 0 <= float(law(w, w.flip(0), E4M3)) <= w.numel(), case
    w = torch.tensor([448.0, 448.0, 1.0, 1.0, math.inf, math.nan])
    d = torch.tensor([math.inf, -math.inf, math.nan, -math.inf, -1.0, 1.0])
    assert float(law(w, d, E4M3)) == 3  # saturated outward, and two weights that are not finite, never flip


def test_flips_are_traced_into_one_graph(assert_one_graph: object) -> None:
    assert callable(assert_one_graph)
    torch.manual_seed(0)
    w, d, s = torch.randn(30, 20), 0.02 * torch.randn(30, 20), torch.tensor(0.25)

    def every(w: Tensor, d: Tensor, s: Tensor) -> object:
        trail, reversed_ = follow_trail(trail_start(w), w, w + d, E4M3, scale=s)
        return (
            flip_counts(w, w + d, E4M3, scale=s),
            rescale_flip_counts(w, E4M3, s, 2 * s),
            follow_trail(trail, w + d, w, E4M3, scale=s),
            trail_sums(trail),
            oscillation_average(torch.zeros_like(w), reversed_, 0.1),
            expected_flips(w, d, E4M3, scale=s),
            expected_master_flips(w, d, E4M3, scale=s),
        )

    assert_one_graph(every, w, d, s)
