"""Claims about departures: a gap is found where it was planted, and runs that agree are seldom said to part."""

import math
import random
from collections.abc import Callable, Sequence

import pytest

from altgrad.diagnosis.departure import Departure, departure


def rows(values: Sequence[float], key: str = "train/loss") -> list[dict[str, float]]:
    return [{"step": n, key: value} for n, value in enumerate(values, 1)]


def noise(number: int) -> Callable[[int], float]:
    return lambda n: 0.02 * math.sin(7.3 * n * n + number)


def losses(number: int, after: int = 10**9, by: float = 0.0) -> list[dict[str, float]]:
    own = noise(number)
    return rows([3 + 2 / n + own(n) + (by if n >= after else 0) for n in range(1, 101)])


def test_a_departure_is_found_where_it_was_planted() -> None:
    found = departure(losses(0), losses(0, after=60, by=0.5))
    assert found.step == 60 and found.difference == pytest.approx(0.5) and found.band < 0.5


def test_runs_within_the_band_agree_and_seeds_make_the_band() -> None:
    seeds = [losses(number) for number in range(5)]
    found = departure(losses(0), losses(1), seeds)
    assert found.step is None and found.source.startswith("5 seeds") and found.band <= 0.2
    assert departure(losses(0), losses(1, after=30, by=0.2), seeds).step == 30


def test_a_loss_that_is_not_finite_departs_at_once_and_runs_without_common_steps_are_refused() -> None:
    bad = losses(0)
    bad[41]["train/loss"] = math.nan
    assert departure(losses(0), bad).step == 42
    with pytest.raises(ValueError, match="no step in common"):
        departure(rows([1.0]), [{"step": 2, "train/loss": 1.0}])


def curves(
    n: int, coefficient: float, gap: float, draw: random.Random, *, noise: float = 0.1, start: int = 0
) -> Departure:
    """A loss that falls by 3 nats under the noise of batches, and one of the same: autoregressive noise, a gap."""
    reference = [2.5 + 3 * math.exp(-5 * step / n) + draw.gauss(0, 0.2) for step in range(n)]
    own = draw.gauss(0, noise)
    suspect = []
    for step, value in enumerate(reference):
        own = coefficient * own + math.sqrt(1 - coefficient**2) * draw.gauss(0, noise)
        suspect.append(value + own + (gap if step >= start else 0))
    return departure(rows(reference), rows(suspect))


CELLS = [(n, coefficient) for n in (60, 200, 1000) for coefficient in (0.0, 0.5, 0.9)]


def test_a_twentieth_of_the_runs_that_agree_are_said_to_part() -> None:
    draw = random.Random(0)
    alarms = {
        cell: [curves(*cell, 0.0, draw).step is not None for _ in range(60 if cell[0] < 1000 else 20)] for cell in CELLS
    }
    told = {cell: sum(found) / len(found) for cell, found in alarms.items()}
    assert sum(told.values()) / len(told) <= 0.05 and max(told.values()) <= 0.15, told


@pytest.mark.parametrize("start", [0, 100])
@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.9])
def test_a_gap_of_0_7_nats_is_found(coefficient: float, start: int) -> None:
    draw = random.Random(1)
    for noise in (0.0, 0.1, 0.2):
        for _ in range(4):
            found = curves(200, coefficient, 0.7, draw, noise=noise, start=start)
            assert found.step is not None and found.difference > found.band > 0
            assert noise or found.step == start + 1


def test_a_gap_that_noise_hides_at_every_step_is_found_by_the_mean() -> None:
    found = curves(400, 0.0, 0.7, random.Random(2), noise=0.5)
    assert found.step == 1 and found.source.endswith("by the mean of all steps")
    assert found.difference == pytest.approx(0.7, abs=0.1)


def test_seeds_whose_batches_are_noisy_do_not_hide_a_gap_of_levels() -> None:
    draw = random.Random(3)
    seeds = [rows([3 + 2 / n + draw.gauss(0, 0.3) for n in range(1, 201)]) for _ in range(3)]
    suspect = [row | {"train/loss": row["train/loss"] + 0.719} for row in seeds[0]]
    assert departure(seeds[0], suspect, seeds).step == 1
    assert departure(seeds[0], seeds[0], seeds).step is None


def test_runs_that_are_the_same_and_runs_of_one_step_agree() -> None:
    assert departure(rows([3.0] * 9), rows([3.0] * 9)) == Departure(None, 0.0, 0.0, "the difference's own noise", 9)
    assert departure(rows([3.0]), rows([3.1])).step is None
