"""Claims about runs that share their machine: the panel and the lines say so when a run slows down, once, and why."""

import io
import math
import os
from collections.abc import Callable

import pytest

from altgrad import crowding
from altgrad.cli.panel import PlainLines
from altgrad.cli.run_view import PACE, Watched

WHY = "Other programs use this machine (load 3.1 of 2 cores)."


def notices(watched: Watched) -> list[str]:
    return [happening.message for happening in watched.happenings() if happening.event == "notice"]


def run(watched: Watched | PlainLines, speeds: list[float], start: int = 1) -> None:
    for step, speed in enumerate(speeds, start):
        watched.metrics(step, {"train/loss": 1.0, "time/tokens_per_second": speed})


def test_a_lasting_fall_beside_others_is_said_once_with_its_reason() -> None:
    watched, lines = Watched("r", 1000), io.StringIO()
    plain = PlainLines("r", 1000, stream=lines)
    watched.crowd = lambda: WHY
    plain.beside(lambda: WHY)
    for each in (watched, plain):
        run(each, [12_010.0] * PACE + [2_874.0] * PACE)
    assert notices(watched) == [f"speed fell from 12.0k to 2.87k tokens/s. {WHY}"]
    assert lines.getvalue().count(f"speed fell from 12.0k to 2.87k tokens/s. {WHY}") == 1


@pytest.mark.parametrize(
    ("crowd", "speeds"),
    [
        (lambda: None, [12_010.0] * PACE + [2_874.0] * PACE),  # slow for reasons of its own
        (None, [12_010.0] * PACE + [2_874.0] * PACE),  # an onlooker, perhaps on another machine
        (lambda: WHY, [100.0, 101.0] * PACE),
        (lambda: WHY, ([100.0] * 9 + [20.0]) * PACE),  # evaluations and checkpoints
        (lambda: WHY, [100.0] * (PACE - 10) + [20.0] * 8),  # too few to know
        (lambda: WHY, [math.nan, math.inf] * PACE),
    ],
)
def test_nothing_is_said_of_others(crowd: Callable[[], str | None] | None, speeds: list[float]) -> None:
    watched = Watched("r", 1000)
    watched.crowd = crowd
    run(watched, speeds)
    assert not notices(watched)


def test_a_resumed_run_is_not_compared_with_what_it_was() -> None:
    watched = Watched("r", 1000)
    watched.crowd = lambda: WHY
    run(watched, [100.0] * PACE)
    watched.event(PACE, "resumed", "")
    run(watched, [20.0] * PACE, PACE + 1)
    assert not [line for line in notices(watched) if "speed fell" in line]


@pytest.mark.parametrize(
    ("threads", "wanted", "told"),
    [(2, 2.4, None), (2, 3.1, "2 threads wait for each other"), (1, 3.1, "cores)."), (4, 4.3, None), (4, 4.6, "less")],
)  # fmt: skip
def test_a_crowd_is_a_load_beyond_the_cores_and_the_runs_own_threads(
    threads: int, wanted: float, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (wanted, 0.0, 0.0))
    monkeypatch.setattr(crowding, "cores", lambda: 2)
    said = crowding.crowd(threads)
    assert said is None if told is None else said is not None and told in said and f"load {wanted}" in said
    assert said is None or (threads > 1) == ("threads" in said)
