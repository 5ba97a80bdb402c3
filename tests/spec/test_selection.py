"""Claims about selections on the command line: a value is found however it is written."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altgrad.spec.selection import selects


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["r", "e", "g"]))
def test_a_number_is_found_by_every_text_that_reads_as_it(value: float, form: str) -> None:
    texts = {"r": repr(value), "e": f"{value:.17e}", "g": f"{value:.17g}"}
    assert selects(texts[form], value)


@pytest.mark.parametrize(
    ("pattern", "value", "found"),
    [
        ("3.56e-3", 0.00356, True), ("0.00356", 3.56e-3, True), ("3.6e-3", 0.00356, False), ("1e-*", 0.001, True),
        ("1e-0*", 0.001, True), ("0.*", 0.001, True), ("1", 1.0, True), ("1.0", 1, True), ("1000", 1e3, True),
        ("1e3", 1000, True), ("true", True, True), ("True", True, True), ("1", True, False), ("true", 1, False),
        ("null", None, True), ("None", None, True), ("none", "none", True), ("e5*", "e5m2", True),
        ("[0.9, 0.95]", (0.9, 0.95), True), ("[0.9, 9.5e-1]", [0.9, 0.95], True), ("[0.9]", [0.9, 0.95], False),
        ("{kind: mx, size: 32}", {"kind": "mx", "size": 32}, True), ("*", 0.1, True), ("[ab]c", "bc", True),
        ("", "", True), ("e4m3fn", "e4m3fnuz", False), (".inf", float("inf"), True), ("007", "007", True),
    ],
)  # fmt: skip
def test_a_selection_is_read_as_a_spec_is(pattern: str, value: Any, found: bool) -> None:
    assert selects(pattern, value) == found
