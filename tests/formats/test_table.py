"""Tables of values: what their facts follow from, what is refused, and exact rounding against its definition."""

import math
from fractions import Fraction
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from altgrad.formats import (
    TABLES,
    FloatFormat,
    Rounding,
    TableFormat,
    classify,
    decode,
    encode,
    neighbours,
    parse_format,
    round_value,
)
from altgrad.formats.catalog import ALIASES, AMBIGUOUS, CATALOG, OUTSIDE, SCALES, TABLE_NAMES
from altgrad.formats.table import float32, float32_after

NAMES = [line.name for line in TABLES]
WITH_TABLE = pytest.mark.parametrize("name", NAMES)
NEAREST = [rounding for rounding in Rounding if rounding.is_nearest]


def table(name: str) -> TableFormat:
    found = parse_format(name)
    assert isinstance(found, TableFormat)
    return found


@WITH_TABLE
def test_a_name_parses_back_and_every_code_is_its_value_again(name: str) -> None:
    fmt = table(name)
    assert str(fmt) == name and parse_format(name.upper()) == fmt and fmt.label == name
    for code, value in enumerate(fmt.values):
        assert decode(fmt, code) == value or math.isnan(value)
        again = encode(fmt, value)
        assert again == code or fmt.values[again] == value or math.isnan(value)
    assert sum(len(run) for run in fmt.finite_codes) == fmt.code_count


def test_names_of_tables_are_taken_by_nothing_else() -> None:
    others = {line.name for line in (*CATALOG, *SCALES)} | ALIASES.keys() | AMBIGUOUS.keys() | OUTSIDE.keys()
    assert not others & TABLE_NAMES.keys()
    assert {parse_format(name) for name in ("fp4", "nvfp4", "mxfp4")} == {FloatFormat.parse("e2m1")}
    with pytest.raises(ValueError, match="int8 is a table of values and no ExMy; altgrad.formats.parse_format"):
        FloatFormat.parse("int8")


def test_int4_and_int8_are_twos_complement() -> None:
    codes = np.arange(16, dtype=np.int8)
    assert [float(value) for value in codes.view(ml_dtypes.int4)] == list(table("int4").values)
    assert np.arange(256).astype(np.uint8).view(np.int8).tolist() == list(table("int8").values)


@pytest.mark.parametrize(
    ("name", "lowest", "highest", "largest", "smallest"),
    [
        ("int8", -128, 127, 127, 1), ("int4", -8, 7, 7, 1), ("nf4", -1, 1, 1, 0.07958029955625534),
        ("ternary", -1, 1, 1, 1), ("posit8", -(2.0**24), 2.0**24, 2.0**24, 2.0**-24),
        ("hif8", -32768, 32768, 32768, 2.0**-22),
        ("[-4,0,2,3]", -4, 3, 3, 2), ("[0,0.5,2]", 0, 2, 2, 0.5), ("[-3,-1]", -3, -1, 3, 1),
    ],
)  # fmt: skip
def test_max_is_the_magnitude_that_both_signs_reach(
    name: str, lowest: float, highest: float, largest: float, smallest: float
) -> None:
    fmt = table(name)
    assert (fmt.lowest, fmt.highest, fmt.max, fmt.min_positive) == (lowest, highest, largest, smallest)


def test_a_list_of_values_is_a_format_that_its_text_parses_to() -> None:
    fmt = table("[1, -1, 0, 0.1]")
    assert fmt == parse_format({"values": [1, -1, 0, 0.1]}) and str(fmt) == "[1,-1,0,0.1]"
    assert fmt.values[3] == float32(0.1) != 0.1 and fmt.tree() == {"values": [1, -1, 0, 0.1]}
    assert fmt.ranked == (-1, 0, float32(0.1), 1) and fmt.rank_codes == (1, 2, 3, 0) and fmt.bits == 2
    facts = {"values": [0, "-0", 1, "nan", "inf", "-inf", -1], "midpoints": [-0.75, 0.25], "next": [-3, 2]}
    facts["values"][1] = -0.0
    special = parse_format(facts)
    assert isinstance(special, TableFormat) and parse_format(str(special)) == special and special.tree() == facts
    assert special.has_negative_zero and special.has_nan and special.has_inf and special.zero_codes == (0, 1)
    assert [str(classify(special, code)) for code in (0, 2, 3, 4)] == ["zero", "normal", "nan", "infinity"]
    assert encode(special, -0.0) == 1 and encode(special, 0.0) == 0 and encode(special, math.nan) == 3
    assert neighbours(fmt, 3) == (0, 1) and neighbours(fmt, 0) == (float32(0.1), None)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"values": [1]}, "a table has 2 to 65536 values, not 1."),
        ({"values": [0, -0.0, 0]}, "a table needs two different finite values."),
        ({"values": [0, 1e39]}, "1e+39 is beyond float32"),
        ({"values": [0, "one"]}, "'one' is not a number of a table; write numbers, nan, inf or -inf."),
        ({"values": "0,1"}, "values is a list of numbers, such as [-1, 0, 1]."),
        ({"value": [0, 1]}, "a table of values takes values, midpoints, next; 'value' is not one of them."),
        ({"midpoints": [0.5]}, "a table of values takes values, midpoints, next; values are missing."),
        ({"values": [0, 1, 2], "midpoints": [0.5]}, "3 values have 2 midpoints, not 1."),
        ({"values": [0, 1], "midpoints": [2]}, "midpoint 2.0 is not between its values 0.0 and 1.0."),
        ({"values": [0, 1], "next": [0, 2]}, "next is [0.0, 2.0]; give a number below 0.0 and one above 1.0."),
        ({"values": [0, 1], "next": [2]}, "next is two numbers, one below and one above the values."),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_in_a_line(facts: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_format(facts)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_slip_of_a_tables_name_and_a_broken_list_say_what_to_write() -> None:
    with pytest.raises(ValueError, match="Did you mean 'posit8'"):
        parse_format("posit_8x")
    with pytest.raises(ValueError, match=r"is not a table of values; write \[-1, 0, 1\]"):
        parse_format("[1, 2")


def nearest_by_definition(fmt: TableFormat, value: Fraction) -> set[float]:
    """The values, `next` among them, at the least distance."""
    least = min(abs(Fraction(each) - value) for each in fmt.extended)
    return {each for each in fmt.extended if abs(Fraction(each) - value) == least}


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=9, unique_by=lambda value: value + 0.0),
    st.fractions(-150, 150, max_denominator=64),
)
def test_rounding_is_that_of_the_definition(values: list[float], x: Fraction) -> None:
    fmt = TableFormat(tuple(values))
    below = max((each for each in fmt.extended if Fraction(each) <= x), default=fmt.extended[0])
    above = min((each for each in fmt.extended if Fraction(each) >= x), default=fmt.extended[-1])

    def bound(each: float) -> float:
        return min(max(each, fmt.lowest), fmt.highest)

    for rounding in NEAREST:
        assert round_value(fmt, x, rounding) in set(map(bound, nearest_by_definition(fmt, x)))
    assert round_value(fmt, x, "toward_negative") == bound(below)
    assert round_value(fmt, x, "toward_positive") == bound(above)
    assert abs(round_value(fmt, x, "toward_zero")) == min(abs(bound(below)), abs(bound(above)))
    if below != above and fmt.lowest <= x <= fmt.highest:
        passed = (x - Fraction(below)) / (Fraction(above) - Fraction(below))
        ups = sum(round_value(fmt, x, "stochastic", u=Fraction(k, 64)) == above for k in range(64))
        assert abs(Fraction(ups, 64) - passed) < Fraction(1, 64)


def test_ties_go_by_the_rung_and_away_from_zero() -> None:
    fmt = table("int4")
    assert [round_value(fmt, Fraction(k, 2)) for k in (-15, -3, -1, 1, 3, 13, 15)] == [-8, -2, 0, 0, 2, 6, 7]
    away = [round_value(fmt, Fraction(k, 2), "nearest_away") for k in (-15, -3, -1, 1, 3, 13)]
    assert away == [-8, -2, -1, 1, 2, 7]
    to_zero = [round_value(fmt, Fraction(k, 2), "nearest_ties_to_zero") for k in (-15, -3, -1, 1, 3, 13)]
    assert to_zero == [-7, -1, 0, 0, 1, 6]
    up = [round_value(fmt, Fraction(k, 2), "nearest_ties_up") for k in (-15, -3, -1, 1, 3, 13)]
    assert up == [-7, -1, 0, 1, 2, 7]


@WITH_TABLE
@pytest.mark.parametrize("rounding", NEAREST)
def test_thresholds_are_the_last_float32_that_stays(name: str, rounding: Rounding) -> None:
    fmt = table(name)
    for index, threshold in enumerate(fmt.thresholds(rounding)):
        assert fmt.round_index(Fraction(threshold), rounding) <= index
        if float32_after(threshold) != math.inf:
            assert fmt.round_index(Fraction(float32_after(threshold)), rounding) > index


def test_posits_and_logarithms_round_nothing_but_zero_to_zero() -> None:
    for name in ("posit8", "posit8_es0", "lns8"):
        fmt = table(name)
        for tiny in (Fraction(1, 2**200), Fraction(-1, 2**200)):
            assert round_value(fmt, tiny) == math.copysign(fmt.min_positive, tiny)
        assert round_value(fmt, Fraction(2**200)) == fmt.max and round_value(fmt, 0.0) == 0
    ratios = {round(high / low, 6) for low, high in pairwise(value for value in table("lns8").ranked if value > 0)}
    assert ratios == {round(2 ** (1 / 8), 6)}


def test_beyond_the_highest_value_of_hif8_lies_infinity() -> None:
    fmt, edge = table("hif8"), Fraction(5, 4) * 2**15
    assert round_value(fmt, edge, "nearest_away", overflow="inf") == math.inf
    assert round_value(fmt, edge - Fraction(1, 100), "nearest_away", overflow="inf") == 2.0**15
    assert round_value(fmt, -edge, "nearest_away") == -(2.0**15)
    assert (encode(fmt, math.inf), encode(fmt, -math.inf), encode(fmt, math.nan)) == (0x6F, 0xEF, 0x80)
