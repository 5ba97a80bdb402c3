"""The card's facts are those of the codes."""

import json
from fractions import Fraction

import pytest

from altgrad.formats import CATALOG, FloatFormat, classify, decode
from altgrad.formats.card import exact, format_facts, landmarks, same_grids

FORMATS = [
    FloatFormat.parse(name) for name in [line.name for line in CATALOG] + ["e2m0", "e0m2", "e1m1fn", "e3m0p3109"]
]
SMALL = [fmt for fmt in FORMATS if fmt.bits <= 8]


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_landmarks_stand_at_every_change_of_kind(fmt):
    marks = landmarks(fmt)
    half = 1 << (fmt.bits - 1)
    kinds = [classify(fmt, code) for code in range(1 << fmt.bits)]
    starts = {mark.first for mark in marks}
    assert {0, *(code for code in range(1, half) if kinds[code] != kinds[code - 1])} <= starts
    assert {
        half,
        *(code for code in range(half + fmt.max_code + 1, 2 * half) if kinds[code] != kinds[code - 1]),
    } <= starts
    assert [mark.first for mark in marks] == sorted(starts)
    for mark in marks:
        assert len({kinds[code] for code in range(mark.first, mark.last + 1)}) == 1
        assert str(mark.value) == str(decode(fmt, mark.first))
    assert sum(mark.meaning.endswith(", max") for mark in marks) == 1


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_the_card_is_json_and_counts_its_binades(fmt):
    card = format_facts(fmt)
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    assert card["binades"] == len({value.bit_length() for value in map(fmt.units, range(1, fmt.max_code + 1))})


def test_equal_grids_are_found():
    assert ("e0m7", 2) in same_grids(FloatFormat.parse("e1m6"))
    assert ("e1m6", -2) in same_grids(FloatFormat.parse("e0m7"))
    assert ("e4m3fn", -1) in same_grids(FloatFormat.parse("e4m3p3109"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.5, 0.5),
        (float("-inf"), "-inf"),
        (Fraction(31) * 2**1020, "31*2^1020"),
        (Fraction(-1, 2**2000), "-1*2^-2000"),
        (Fraction(1, 3), 1 / 3),
        (Fraction(3, 4), 0.75),
    ],
)
def test_json_values_are_floats_or_say_themselves_exactly(value, shown):
    assert exact(value) == shown
