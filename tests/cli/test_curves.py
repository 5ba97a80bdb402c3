"""Curves: nothing sharp is lost on the way from 100,000 steps to a line chart, and its axes are round numbers."""

import math

import pytest

from altgrad.cli.chart import LABEL, line_chart, linear_ticks, log_ticks
from altgrad.cli.curves import CAPACITY, KeptCurve


def drawn(curve: KeptCurve, width: int, height: int, twin: KeptCurve | None = None) -> list[str]:
    """The rows of the chart without their labels."""
    return [line.text[LABEL:] for line in line_chart(curve, twin, "cyan", width, height)]


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("at", [1, 777, 49_999, 99_000])
def test_one_spike_among_100_000_steps_survives_into_any_picture(rows: int, at: int) -> None:
    curve = KeptCurve()
    for step in range(1, 100_001):
        curve.add(step, 5.0 if step == at else 1.0 + 0.1 * (step % 2))
    assert len(curve.points) <= CAPACITY
    top = drawn(curve, 60 + LABEL, rows)[0]
    high = [index for index, letter in enumerate(top) if letter != " " and ord(letter) - 0x2800 & 0x09]
    expected = (at - 1) / 100_000 * 59
    assert high and all(abs(index - expected) <= 1 for index in high)


def test_one_nan_among_100_000_steps_survives_into_the_picture() -> None:
    curve = KeptCurve()
    for step in range(1, 100_001):
        curve.add(step, math.nan if step == 50_000 else 1.0)
    assert drawn(curve, 60, 3)[0].count("×") == 1


def test_a_line_is_unbroken_from_column_to_column() -> None:
    curve = KeptCurve()
    for step in range(20):
        curve.add(step, float(step % 2))
    rows = drawn(curve, 40 + LABEL, 3)
    assert all(any(row[column] != " " for row in rows) for column in range(40))
    assert sum(row[20] != " " for row in rows) >= 2  # from 0 to 1 within few columns


def test_the_twin_is_dimmed_behind_in_the_same_axes_and_only_where_it_has_steps() -> None:
    curve, twin = KeptCurve(), KeptCurve()
    for step in range(101):
        curve.add(step, 2.0)
        if step <= 50:
            twin.add(step, 1.0)
    lines = line_chart(curve, twin, "cyan", 80 + LABEL, 9)
    cyan = "".join(part for line in lines for part, style in line.spans if style == "cyan")
    dim = [part for line in lines for part, style in line.spans if (style == "dim" and "⣀" in part) or "⠤" in part]
    assert len(cyan) == 80 and sum(map(len, dim)) in (40, 41)
    assert lines[-2].text.rstrip().endswith(("⣀", "⡀")) and len(lines[-2].text.rstrip()) <= LABEL + 41


@pytest.mark.parametrize(("low", "high"), [(1.17, 5.6), (0.0, 1.0), (-3.0, 7.0), (1e-7, 2e-7), (4.0, 1e6), (1.55, 1.8)])
@pytest.mark.parametrize("most", [2, 4, 9])
def test_ticks_are_round_within_the_range_and_few(low: float, high: float, most: int) -> None:
    ticks = linear_ticks(low, high, most)
    assert 1 <= len(ticks) <= most + 1
    gap = ticks[1][0] - ticks[0][0] if len(ticks) > 1 else 1.0
    digits = f"{gap:.1e}"[0]
    assert digits in "125" and all(low - gap * 1e-9 <= value <= high + gap * 1e-9 for value, _ in ticks)
    assert len({text for _, text in ticks}) == len(ticks)


def test_a_spike_bends_the_axis_and_its_ticks_are_1_2_5() -> None:
    assert [text for _, text in log_ticks(0.9, 60.0, 9)] == ["1", "2", "5", "10", "20", "50"]
    assert [value for value, _ in log_ticks(1e-3, 1e4, 4)] == [1e-3, 1e-1, 10.0, 1e3]


def test_the_axes_say_values_and_steps() -> None:
    curve = KeptCurve()
    for step in range(1, 301):
        curve.add(step, 1.0 + 4 * math.exp(-step / 50))
    lines = [line.text for line in line_chart(curve, None, "cyan", 70, 10)]
    assert len(lines) == 10 and lines[-1].split() == ["step", "100", "200", "300"]
    assert [label for line in lines[:-1] if (label := line[: LABEL - 2].strip())] == ["4", "3", "2"]


def test_a_curve_of_rare_points_is_joined_by_straight_lines() -> None:
    curve = KeptCurve()
    curve.add(0, 0.0)
    curve.add(100, 10.0)
    assert [column.low for column in curve.columns(11) if column] == pytest.approx(list(range(11)))


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
        lines = line_chart(curve, curve, "cyan", count + LABEL, rows)
        assert len(lines) in (0, rows)
        assert all(line.width <= count + LABEL for line in lines)


@pytest.mark.parametrize("value", [5.576, 0.1, 1e-300, -7.3])
def test_a_single_point_is_a_level_line(value: float) -> None:
    curve = KeptCurve()
    curve.add(0, value)
    assert {(column.low, column.high) for column in curve.columns(63) if column} == {(value, value)}
    assert len(set(drawn(curve, 63 + LABEL, 1)[0])) == 1
