"""Claims about the recipes' own reference code: our casts give its codes, values and scales, bit for bit.

What was recorded, from where, stands in tests/references/README.md; in which words we say it, in
bench/reference_words.py; what differs all the same, and why, in `UNEQUAL`.
"""

import os
from pathlib import Path

import pytest
import torch

from bench.reference_casts import (
    PAGE,
    REASONS,
    UNEQUAL,
    Compared,
    compare,
    compared,
    page,
    quantizer_of,
    recorded,
    unexplained,
)
from bench.reference_words import FILES, Case

Found = list[tuple[str, Compared]]


@pytest.fixture(scope="module")
def found() -> Found:
    return list(compared(recorded()))


@pytest.mark.parametrize("file", FILES)
def test_casts_equal_the_reference_bit_for_bit_but_for_what_is_listed(file: str, found: Found) -> None:
    own = [(name, each) for name, each in found if name == file]
    assert own and sum(each.compared for _, each in own) > 5_000
    assert not unexplained(own), "\n".join(unexplained(own))


def test_every_listed_difference_has_a_reason_and_a_case(found: Found) -> None:
    cases = {(file, each.case.entry, each.case.input) for file, each in found}
    assert {reason for _, reason in UNEQUAL.values()} == REASONS.keys()
    whole = "ALTGRAD_REFERENCES" in os.environ
    assert whole is False or UNEQUAL.keys() <= cases
    assert all(key in cases for key in UNEQUAL if key[2] in ("edge", "normal"))


def test_a_difference_is_counted(found: Found) -> None:
    """One other bit in a code, a value and a scale."""
    case = next(each.case for file, each in found if file == "te_nvfp4_casts" and each.case.values is not None)
    assert case.codes is not None and case.values is not None and case.scale is not None
    codes, values, scale = case.codes.clone(), case.values.clone(), case.scale.clone()
    codes[5, 7] ^= 1
    values[3, 3] = torch.nextafter(values[3, 3], torch.tensor(9.0))
    scale[1, 1] *= 2
    moved: Case = case._replace(codes=codes, values=values, scale=scale)
    assert (compare(moved).codes, compare(moved).values, compare(moved).scales) == (1, 1, 1)


def test_the_page_has_a_row_for_every_entry(found: Found) -> None:
    rows = {tuple(line.split("|")[1:4]) for line in page(found).splitlines() if line.startswith("| ")}
    written = Path(PAGE).read_text(encoding="utf-8")
    assert all("|".join(row) in written for row in rows)


def test_the_short_form_is_the_general_one(found: Found) -> None:
    """Of every arithmetic, in both directions, with values in another order than q * scale among them."""
    for arithmetic in {str(each.case.words["scaling"].get("arithmetic")) for _, each in found}:
        cases = [each.case for _, each in found if each.case.words["scaling"].get("arithmetic") == arithmetic]
        for case in cases[:: max(1, len(cases) // 8)]:
            for reduced in ("last", "first"):
                quantizer = quantizer_of(case, reduced=reduced)
                x = case.x if reduced == "last" else case.x.T.contiguous()
                general = quantizer.cast(x, False).values(torch.float32)
                assert torch.equal(quantizer.values(x, False, torch.float32), general)
                if reduced == "first":
                    assert torch.equal(general.T, quantizer_of(case).cast(case.x, False).values(torch.float32))
