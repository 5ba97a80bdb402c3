"""Numbers as they are shown, on a terminal and elsewhere."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altgrad.numerals import count_text, duration, number, percent


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
