"""The schedule: its shape at the ends and in between, against torch's own schedulers, and its YAML."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from altgrad.optim.schedule import Schedule
from altgrad.spec import Spec

KINDS = ("constant", "cosine", "wsd")


class Holder(Spec):
    schedule: Schedule = Schedule()


def schedules() -> st.SearchStrategy[Schedule]:
    share = st.floats(0, 1)
    return st.builds(Schedule, kind=st.sampled_from(KINDS), warmup=st.integers(0, 50), floor=share, decay=share)


def test_yaml_takes_a_word_or_a_mapping() -> None:
    assert Holder.parse("schedule: wsd").schedule == Schedule(kind="wsd")
    assert Holder.parse("schedule: {kind: wsd, warmup: 7, floor: 0}").schedule == Schedule(
        kind="wsd", warmup=7, floor=0
    )
    assert Holder.parse(Holder().to_yaml()) == Holder()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schedule: cosin", "cosin.*Did you mean 'cosine'"),
        ("schedule: {warmup: -1}", "warmup"),
        ("schedule: {floor: 1.5}", "floor"),
        ("schedule: {warm: 3}", "'warm' is not a key of schedule.*Did you mean 'warmup'"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Holder.parse(text)


def test_limits_hold_for_python_too() -> None:
    with pytest.raises(ValidationError):
        Schedule(decay=math.nan)


@pytest.mark.parametrize("kind", KINDS)
def test_warmup_rises_in_equal_steps_to_the_peak(kind: str) -> None:
    schedule = Schedule.model_validate({"kind": kind, "warmup": 4})
    assert [schedule.at(step, 100) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("steps", "taken"), [(31, 30), (30, 3), (20, 2), (9, 0), (1, 0)])
def test_a_run_no_longer_than_its_warmup_warms_up_over_a_tenth(kind: str, steps: int, taken: int) -> None:
    schedule, short = (Schedule.model_validate({"kind": kind, "warmup": warmup}) for warmup in (30, taken))
    assert [schedule.at(step, steps) for step in range(steps + 1)] == [short.at(s, steps) for s in range(steps + 1)]
    assert schedule.warmup_of(steps) == taken and max(schedule.at(step, steps) for step in range(steps)) == 1.0


def test_constant_stays_at_the_peak() -> None:
    assert {Schedule(kind="constant", floor=0).at(step, 100) for step in range(101)} == {1.0}


@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
def test_cosine_is_torchs_cosine_annealing(floor: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=floor)
    schedule = Schedule(kind="cosine", floor=floor)
    for step in range(51):
        assert schedule.at(step, 50) == pytest.approx(oracle.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        oracle.step()


def test_wsd_is_stable_then_linear() -> None:
    schedule = Schedule(kind="wsd", floor=0.2, decay=0.25)
    assert [schedule.at(step, 100) for step in (0, 40, 75)] == [1.0, 1.0, 1.0]
    assert [schedule.at(step, 100) for step in (80, 85, 95, 100)] == pytest.approx([0.84, 0.68, 0.36, 0.2])


@given(schedules(), st.integers(1, 200))
def test_every_schedule_rises_then_never_rises_again(schedule: Schedule, steps: int) -> None:
    values = [schedule.at(step, steps) for step in range(steps + 1)]
    assert all(min(schedule.floor, 1 / 51) - 1e-12 <= value <= 1 for value in values)
    peak = schedule.warmup_of(steps)
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert all(later <= earlier + 1e-12 for earlier, later in zip(values[peak:], values[peak + 1 :], strict=False))


@given(schedules(), st.integers(51, 200))
def test_the_end_is_the_floor_and_no_step_before_it_is_wasted(schedule: Schedule, steps: int) -> None:
    decays = schedule.kind == "cosine" or (schedule.kind == "wsd" and round(schedule.decay * steps) > 0)
    assert schedule.at(steps, steps) == pytest.approx(schedule.floor if decays else 1.0, abs=1e-9)
    assert all(schedule.at(step, steps) > 0 for step in range(steps))
