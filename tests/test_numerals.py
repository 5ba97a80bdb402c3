"""Numbers as they are written."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altgrad.numerals import (
    alike,
    count_text,
    counted,
    duration,
    number,
    percent,
    rate_text,
    signed,
    significant,
    size_text,
    tick_text,
    tick_texts,
    with_interval,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (2.3, "2.30"),
        (123.4, "123"),
        (999.9, "1.00k"),
        (12_345, "12.3k"),
        (999_950, "1.00M"),
        (1e-3, "0.00100"),
        (3e-4, "3.00e-4"),
        (-2.5e-12, "-2.50e-12"),
        (1e20, "1.00e20"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_a_number_has_three_significant_figures(value: float, text: str) -> None:
    assert number(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_short_and_off_by_at_most_half_of_its_last_figure(value: float) -> None:
    text = number(value)
    assert len(text) <= 10
    letter = text[-1] if text[-1] in "kMGT" else ""
    shown = float(text.removesuffix(letter)) * {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[letter]
    # Below the normal range a float itself has fewer than three figures.
    assert math.isclose(shown, value, rel_tol=5.001e-3, abs_tol=1e-322) or math.isinf(shown)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.42, "0.4s"),
        (12.9, "12s"),
        (245, "4m 05s"),
        (7500, "2h 05m"),
        (3 * 86400 + 4 * 3600, "3d 04h"),
        (None, "?"),
        (math.nan, "?"),
        (math.inf, "?"),
        (-1, "?"),
    ],
)
def test_a_duration_has_two_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0, "0"),
        (1e-9, "<0.001%"),
        (3.4e-4, "0.034%"),
        (2e-3, "0.200%"),
        (0.1234, "12.3%"),
        (1.0, "100%"),
        (math.nan, "nan"),
    ],
)
def test_a_rate_that_is_not_zero_never_reads_as_zero(rate: float, text: str) -> None:
    assert percent(rate) == text


def test_a_count_below_a_thousand_is_exact() -> None:
    assert [count_text(n) for n in (0, 7, 999, 1000, 20_300_000)] == ["0", "7", "999", "1.00k", "20.3M"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (signed(-0.01234), "−0.0123"), (signed(0.5, 2), "+0.50"), (signed(math.nan), "–"), (signed(-math.inf), "−∞"),
        (significant(0.0012345), "0.00123"), (significant(-2.0), "−2.00"), (significant(math.nan), "–"),
        (significant(2.55, 4), "2.550"),
        (rate_text(3e-3), "3e-3"), (rate_text(1.78e-3), "1.78e-3"), (rate_text(0.0), "0"), (rate_text(math.nan), "–"),
        (tick_text(3e-3), "3e-3"), (tick_text(0.5), "0.5"), (tick_text(20.0), "20"), (tick_text(1e5), "1e5"),
        (counted(1, "run"), "1 run"), (counted(3, "run"), "3 runs"),
    ],
)  # fmt: skip
def test_a_report_writes_numbers_with_a_real_minus_and_a_dash_for_none(text: str, expected: str) -> None:
    assert text == expected


def test_the_numbers_of_a_column_are_written_alike() -> None:
    assert alike([1.8123, 12.25, None, math.nan]) == [" 1.812", "12.250", "     -", "   nan"]
    assert alike([0.01, 0.0034]) == ["0.0100", "0.0034"]
    assert alike([3e-4, 1.0]) == ["3.00e-04", "1.00e+00"]  # the smallest would lose its figures
    assert alike([0.0, 0.0]) == ["0.0000", "0.0000"] and alike([]) == []


@given(st.lists(st.one_of(st.none(), st.floats(1e-3, 1e5), st.just(0.0))))
def test_columns_are_as_wide_everywhere_and_have_their_points_below_one_another(values: list[float | None]) -> None:
    texts = alike(values)
    assert len({len(text) for text in texts}) <= 1
    assert len({text.index(".") for text in texts if "." in text}) <= 1


def test_an_interval_is_told_where_there_is_one_and_a_share_s_ends_are_shares() -> None:
    inf = math.inf
    assert with_interval((1.234, 1.2, 1.26), ".2f") == "1.23 [1.20, 1.26]"
    assert with_interval((0.5, -inf, inf), "+.4f") == "+0.5000 (no interval)"
    assert with_interval((20.0, 0.0, inf), ".2f") == "20.00 (no interval)"
    assert with_interval((0.01, -0.005, 0.025), ".2f", share=True) == "1.00 % [0.00, 2.50]"
    assert with_interval((0.99, 0.97, 1.01), ".2f", share=True) == "99.00 % [97.00, 100.00]"
    assert with_interval((0.5, -inf, inf), ".2f", share=True) == "50.00 % (no interval)"


def test_bytes_have_a_prefix_and_three_figures() -> None:
    assert [size_text(n) for n in (0, 312, 8230, 28_200_000_000)] == ["0 B", "312 B", "8.23 kB", "28.2 GB"]


def test_ticks_of_an_axis_are_written_alike() -> None:
    assert tick_texts([1e-3, 3e-3, 1e-2, 3e-2]) == ["1e-3", "3e-3", "1e-2", "3e-2"]
    assert tick_texts([0.0, 0.5, 20.0]) == ["0", "0.5", "20"]
