"""The rounding modes' names."""

import json

import pytest

from altgrad.formats import Rounding


def test_members_are_the_six_modes_and_plain_strings():
    assert list(Rounding) == [
        "nearest_even",
        "nearest_away",
        "nearest_ties_to_zero",
        "nearest_ties_up",
        "toward_zero",
        "toward_positive",
        "toward_negative",
        "stochastic",
        "toward_average",
    ]
    assert json.dumps(Rounding.nearest_even) == '"nearest_even"'


@pytest.mark.parametrize("name", list(Rounding))
def test_parse_gives_the_member_back(name):
    assert Rounding.parse(str(name)) is name


def test_parse_suggests_the_nearest_name():
    with pytest.raises(ValueError, match=r"'nearest_evn' is not a rounding\. Did you mean 'nearest_even'\?"):
        Rounding.parse("nearest_evn")


def test_parse_lists_the_modes_when_nothing_is_near():
    with pytest.raises(ValueError, match=r"Choose one of nearest_even, .*stochastic"):
        Rounding.parse("zzz")


def test_only_the_modes_that_differ_in_ties_are_nearest_and_only_two_need_more_than_the_value():
    assert [mode for mode in Rounding if mode.is_nearest] == list(Rounding)[:4]
    assert [mode for mode in Rounding if not mode.by_value] == [Rounding.stochastic, Rounding.toward_average]
