"""Claims about moving a bit between exponent and mantissa."""

from typing import get_args

import pytest

from altgrad.formats import FloatFormat, Specials
from altgrad.formats.neighbour import neighbour

EVERY = [
    FloatFormat.parse(f"e{e}m{bits - 1 - e}{specials}")
    for bits in range(3, 17)
    for e in range(bits)
    for specials in get_args(Specials)
    if not (specials == "ieee" and (e < 2 or bits - 1 - e < 1))
]


def test_the_width_and_the_specials_stay_and_one_bit_moves_there_and_back() -> None:
    for fmt in EVERY:
        for more in (1, -1):
            found = neighbour(fmt, more)
            if found is None:
                continue
            assert (found.bits, found.specials) == (fmt.bits, fmt.specials)
            assert found.exponent_bits == fmt.exponent_bits + more
            assert neighbour(found, -more) == fmt


def test_there_is_none_exactly_where_no_bit_is_left_or_the_specials_have_no_room() -> None:
    for fmt in EVERY:
        assert (neighbour(fmt, 1) is None) == (fmt.mantissa_bits == (1 if fmt.specials == "ieee" else 0))
        assert (neighbour(fmt, -1) is None) == (fmt.exponent_bits == (2 if fmt.specials == "ieee" else 0))


@pytest.mark.parametrize(
    ("name", "wider", "finer"),
    [
        ("e4m3fn", "e5m2fn", "e3m4fn"),
        ("e5m2", "e6m1ieee", "e4m3ieee"),
        ("e4m3b9f", "e5m2b17f", "e3m4b5f"),
        ("e0m7", "e1m6", None),
        ("e7m0", None, "e6m1"),
    ],
)
def test_the_bias_keeps_its_distance_from_the_default(name: str, wider: str | None, finer: str | None) -> None:
    found = [neighbour(FloatFormat.parse(name), more) for more in (1, -1)]
    assert [None if fmt is None else str(fmt) for fmt in found] == [
        None if spelled is None else str(FloatFormat.parse(spelled)) for spelled in (wider, finer)
    ]
