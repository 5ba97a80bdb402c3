"""Curves: nothing sharp is lost on the way from 100,000 steps to a line of block characters."""

import math

import pytest

from altgrad.cli.curves import CAPACITY, KeptCurve, plot


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("at", [1, 777, 49_999, 99_000])
def test_one_spike_among_100_000_steps_survives_into_any_picture(rows: int, at: int) -> None:
    curve = KeptCurve()
    for step in range(1, 100_001):
        curve.add(step, 5.0 if step == at else 1.0 + 0.1 * (step % 2))
    assert len(curve.points) <= CAPACITY
    top = plot(curve.columns(60), rows)[0].text
    assert top.count("█") == 1
    expected = (at - 1) / 100_000 * 59
    assert abs(top.index("█") - expected) <= 1


def test_one_nan_among_100_000_steps_survives_into_the_picture() -> None:
    curve = KeptCurve()
    for step in range(1, 100_001):
        curve.add(step, math.nan if step == 50_000 else 1.0)
    assert plot(curve.columns(60), 3)[-1].text.count("×") == 1


def test_a_dip_is_drawn_dim_above_its_lowest_value() -> None:
    curve = KeptCurve()
    for step in range(1000):
        curve.add(step, 1.0 if step == 500 else 2.0 + step % 2)
    lines = plot(curve.columns(10), 4)
    dim = [sum(len(part) for part, style in line.spans if style.startswith("dim")) for line in lines]
    assert dim[-1] == 1  # in the lowest row only the dip's column is not solid


def test_a_curve_of_rare_points_is_joined_by_straight_lines() -> None:
    curve = KeptCurve()
    curve.add(0, 0.0)
    curve.add(100, 10.0)
    assert [column.low for column in curve.columns(11)] == pytest.approx(list(range(11)))


def test_a_resumed_run_takes_the_curve_back() -> None:
    curve = KeptCurve()
    for step, value in ((1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (3, 3.5)):
        curve.add(step, value)
    assert [point.first for point in curve.points] == [1, 2, 3]
    assert curve.last == 3.5


@pytest.mark.parametrize(
    "values",
    [
        [],
        [math.nan],
        [math.inf, -math.inf],
        [1.0],
        [1.0, 1.0],
        [math.nan, 2.0, math.inf],
        [0.0, 0.0],
        [-1e308, 1e308],
        [5e-324, 1.0],
        [1e300, 1e-300],
    ],
)
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_any_values_can_be_plotted(values: list[float], rows: int) -> None:
    curve = KeptCurve()
    for step, value in enumerate(values):
        curve.add(step, value)
    for count in (0, 1, 2, 50):
        lines = plot(curve.columns(count), rows)
        assert len(lines) == rows
        assert {line.width for line in lines} <= {count if values else 0}


@pytest.mark.parametrize("value", [5.576, 0.1, 1e-300, -7.3])
def test_a_single_point_is_a_level_line(value: float) -> None:
    curve = KeptCurve()
    curve.add(0, value)
    assert {(column.low, column.high) for column in curve.columns(63)} == {(value, value)}
    assert len(set(plot(curve.columns(63), 1)[0].text)) == 1
