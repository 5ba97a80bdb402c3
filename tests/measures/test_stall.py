"""Claims about stalls, zero updates and the effective update ratio, against exact arithmetic and real storage."""

import math

import pytest
import torch
from torch import Tensor

from altgrad.formats import FloatFormat
from altgrad.measures import effective_update_ratio, stall_ratio, zero_update_fraction
from altgrad.measures.flips import flipped
from altgrad.measures.stall import (
    effective_update_sums,
    predicted_stall_counts,
    stall_counts,
    zero_update_counts,
)
from altgrad.quantize import at_rung, gap, round_to, rung, spacing

FORMATS = [FloatFormat.parse(f"e{e}m{7 - e}f") for e in range(8)]
FORMATS += [FloatFormat.parse(name) for name in ("e4m3fn", "e5m2", "e2m1", "e2m0", "e4m3fnuz")]
E4M3 = FloatFormat.parse("e4m3fn")


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_stall_is_attempted_and_leaves_the_code(adversarial: dict[str, Tensor], fmt: FloatFormat) -> None:
    for case, before in adversarial.items():
        requested = 0.02 * before.flip(0)
        after = round_to(before + requested, fmt, "stochastic", key=5)
        counts = stall_counts(before, after, requested, fmt)
        old, new = rung(before, fmt).flatten().tolist(), rung(after, fmt).flatten().tolist()
        asked = [value != 0 for value in requested.flatten().tolist()]
        stalled = sum(a and b == c for a, b, c in zip(asked, old, new, strict=True))
        assert (int(counts["attempted"]), int(counts["stalls"])) == (sum(asked), stalled), case
        ratio = float(stall_ratio(before, after, requested, fmt))
        assert 0 <= ratio <= 1 if sum(asked) else math.isnan(ratio), case


def test_the_ratio_is_one_less_flips_over_updates_on_the_attempted() -> None:
    torch.manual_seed(0)
    before = round_to(torch.randn(5000), E4M3, scale=0.25)
    requested = torch.where(torch.rand(5000) < 0.3, 0.0, 0.01 * torch.randn(5000))
    after = round_to(before + requested, E4M3, "stochastic", scale=0.25, key=1)
    attempted = requested != 0
    flips = int((flipped(before, after, E4M3, scale=0.25) & attempted).sum())
    expected = 1 - flips / int(attempted.sum())
    assert float(stall_ratio(before, after, requested, E4M3, scale=0.25)) == pytest.approx(expected, rel=1e-12)


def test_a_flip_of_a_weight_nobody_asked_is_neither_stall_nor_attempt() -> None:
    before, after, requested = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0]), torch.tensor([0.0, 1e-3])
    assert float(stall_ratio(before, after, requested, E4M3)) == 1


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("scale", [1.0, 2.0**-30])
def test_the_prediction_is_what_nearest_storage_does(fmt: FloatFormat, scale: float) -> None:
    """Every grid value, steps of either sign around half a gap and a quarter; ties belong to the code's parity."""
    w = at_rung(torch.arange(-fmt.max_code, fmt.max_code + 1), fmt, scale=scale)
    for part in (0.01, 0.2, 0.24, 0.26, 0.3, 0.49, 0.51, 0.74, 0.76, 1.0, 1.4):
        for sign in (1, -1):
            requested = sign * part * spacing(w, fmt, scale=scale)
            after = round_to(w + requested, fmt, scale=scale)
            found = predicted_stall_counts(w, requested, fmt, scale=scale)
            real = stall_counts(w, after, requested, fmt, scale=scale)
            assert int(found["predicted_stalls"]) == int(real["stalls"]), (part, sign)
            assert int(found["attempted"]) == int(real["attempted"]) == w.numel()


def test_towards_zero_from_a_power_of_two_a_quarter_of_a_spacing_is_enough() -> None:
    w = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0])
    requested = 0.125 * torch.tensor([0.26, 0.49, -0.26, -0.24, 0.26, -0.26])
    found = [int(predicted_stall_counts(a, b, E4M3)["predicted_stalls"]) for a, b in zip(w, requested, strict=True)]
    assert found == [1, 1, 0, 1, 0, 1]


def test_a_tie_is_not_foretold_and_outward_from_the_largest_every_step_stalls() -> None:
    one, top = torch.tensor([1.0]), torch.tensor([448.0, -448.0])
    assert int(predicted_stall_counts(one, gap(one, E4M3, 1.0) / 2, E4M3)["predicted_stalls"]) == 0
    assert int(predicted_stall_counts(top, 100 * top, E4M3)["predicted_stalls"]) == 2
    assert int(predicted_stall_counts(top, -top, E4M3)["predicted_stalls"]) == 0


def test_zero_updates_are_counted_over_all_weights(adversarial: dict[str, Tensor]) -> None:
    for case, w in adversarial.items():
        values = w.flatten().tolist()
        counts = zero_update_counts(w, w.clone())
        assert (int(counts["unchanged"]), int(counts["weights"])) == (sum(v == v for v in values), len(values)), case
    assert float(zero_update_fraction(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 3.0, -0.0]))) == 2 / 3
    assert math.isnan(float(zero_update_fraction(torch.empty(0), torch.empty(0))))


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_the_effective_update_ratio_is_the_projection_on_the_request(factor: float) -> None:
    torch.manual_seed(2)
    requested, realised = factor * torch.randn(50), factor * torch.randn(50)
    a, b = requested.double().numpy(), realised.double().numpy()
    assert float(effective_update_ratio(requested, realised)) == pytest.approx(a @ b / (a @ a), rel=1e-12)
    assert float(effective_update_ratio(requested, requested)) == pytest.approx(1)
    assert float(effective_update_ratio(requested, torch.zeros(50))) == 0


def test_nothing_requested_or_not_finite_has_no_effective_update_ratio(adversarial: dict[str, Tensor]) -> None:
    plain = adversarial["plain"]
    for case in ("zeros", "empty", "inf", "NaN", "mixed"):
        x = adversarial[case]
        assert math.isnan(float(effective_update_ratio(x, torch.ones_like(x)))), case
    assert math.isnan(float(effective_update_ratio(plain, torch.full_like(plain, math.inf))))


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f.max > 4], ids=str)
def test_stochastic_storage_does_as_it_is_told_on_average(fmt: FloatFormat) -> None:
    torch.manual_seed(3)
    w = round_to(torch.randn(20000), fmt)
    requested = 1e-3 * torch.randn(20000)
    after = round_to(w + requested, fmt, "stochastic", key=9)
    sums = effective_update_sums(requested, after - w)
    low = round_to(w + requested, fmt, "toward_negative").double()
    high = round_to(w + requested, fmt, "toward_positive").double()
    variance = (((w + requested) - low) * (high - (w + requested)) * requested.double().square()).sum()
    assert abs(float(sums["overlap"] - sums["energy"])) <= 4 * float(variance.sqrt())


def test_stalls_are_traced_into_one_graph(assert_one_graph: object) -> None:
    assert callable(assert_one_graph)
    torch.manual_seed(0)

    def every(w: Tensor, d: Tensor, s: Tensor) -> object:
        return (
            stall_counts(w, w + d, d, E4M3, scale=s),
            stall_ratio(w, w + d, d, E4M3, scale=s),
            predicted_stall_counts(w, d, E4M3, scale=s),
            zero_update_fraction(w, w + d),
            effective_update_ratio(d, w),
        )

    assert_one_graph(every, torch.randn(30, 20), 0.02 * torch.randn(30, 20), torch.tensor(0.25))
