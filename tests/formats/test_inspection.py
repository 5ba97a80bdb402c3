"""One number under the magnifying glass."""

import math
from fractions import Fraction

import pytest

from altgrad.formats import FloatFormat, Rounding, encode
from altgrad.formats.inspection import inspect_code, inspect_roundings, read_code, read_number

E4M3 = FloatFormat.parse("e4m3fn")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.1", Fraction(1, 10)),
        ("-1/3", Fraction(-1, 3)),
        ("2^-9", Fraction(1, 512)),
        ("-2^3", Fraction(-8)),
        ("1e-4", Fraction(1, 10000)),
    ],
)
def test_a_number_is_read_exactly_as_written(text, number):
    assert read_number(text) == number


def test_signed_zeros_and_specials_are_read():
    assert math.copysign(1, read_number("-0")) == -1
    assert math.isnan(read_number("nan"))
    assert read_number("-inf") == -math.inf


@pytest.mark.parametrize("text", ["", "x", "1/0", "2^x", "3^2", "2^999999999", "1e999999999", "1e", "2^3^4", "infx"])
def test_what_is_no_number_says_how_to_write_one(text):
    with pytest.raises(ValueError, match=r"is not a number; write 0\.3, 1/3"):
        read_number(text)


def test_codes_are_hexadecimal_or_binary():
    assert read_code(E4M3, "0x7e") == read_code(E4M3, "0b1111110") == 126
    assert read_code(E4M3, "126") is None
    with pytest.raises(ValueError, match="'0xzz' is not a code"):
        read_code(E4M3, "0xzz")
    with pytest.raises(ValueError, match="code 0x100 is outside"):
        read_code(E4M3, "0x100")


def test_gaps_differ_at_a_power_of_two_and_end_at_max():
    at_one = inspect_code(E4M3, encode(E4M3, 1.0), Fraction(1))
    assert (at_one["gap_below"], at_one["gap_above"]) == (0.0625, 0.125)
    at_max = inspect_code(E4M3, E4M3.max_code, Fraction(1, 4))
    assert (at_max["value"], at_max["below"], at_max["above"], at_max["gap_above"]) == (112.0, 104.0, None, None)


def test_a_special_code_has_neither_neighbours_nor_gaps():
    found = inspect_code(E4M3, 0x7F, Fraction(1))
    assert (found["class"], found["value"], found["below"], found["gap_below"]) == ("nan", "nan", None, None)


def test_errors_are_result_minus_value_in_units_of_x_and_in_gaps():
    found = inspect_roundings(E4M3, Fraction(3, 10), Fraction(1, 2))
    assert set(found) == set(Rounding) - {Rounding.toward_average}
    assert found["nearest_even"]["value"] == 0.3125  # 0.6 rounds to 0.625
    assert found["nearest_even"]["error"] == float(Fraction(0.3125) - Fraction(3, 10))
    assert found["nearest_even"]["error_in_gaps"] == float((Fraction(0.3125) - Fraction(3, 10)) * 32)
    assert found["stochastic"]["value"] == found["toward_positive"]["value"]
    assert found["stochastic"]["probability"] == pytest.approx(0.6 * 16 - math.floor(0.6 * 16))


def test_saturation_is_told_per_rounding():
    found = inspect_roundings(E4M3, Fraction(479), Fraction(1))
    assert {name for name, facts in found.items() if facts["saturates"]} == {
        "nearest_even",
        "nearest_away",
        "nearest_ties_to_zero",
        "nearest_ties_up",
        "toward_positive",
        "stochastic",
    }
