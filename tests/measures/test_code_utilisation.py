"""Claims about code utilisation, against counting by hand, scipy-free entropy and the formats' exact codes."""

import math
from collections import Counter

import pytest
import torch

from altgrad.formats import FloatFormat
from altgrad.formats.codes import CodeClass, classify
from altgrad.measures.code_utilisation import code_histogram, code_utilisation
from altgrad.quantize import round_to
from altgrad.quantize.codes import to_codes

FORMATS = ["e2m1", "e4m3fn", "e5m2", "e4m3fnuz", "e4m3p3109", "e0m7", "e7m0", "e3m4"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_measures_are_those_of_counting_codes_one_by_one(name: str, factor: float) -> None:
    fmt = FloatFormat.parse(name)
    torch.manual_seed(0)
    codes = to_codes(round_to(torch.randn(4000) * factor, fmt), fmt)
    found = code_utilisation(code_histogram(codes, fmt), fmt)
    counts = Counter(codes.tolist())
    finite = [c for c in range(1 << fmt.bits) if classify(fmt, c) not in (CodeClass.nan, CodeClass.infinity)]
    assert len(finite) == fmt.code_count
    shares = [counts[code] / 4000 for code in finite]
    entropy = -sum(share * math.log2(share) for share in shares if share)
    sign = 1 << (fmt.bits - 1)
    expected = {
        "utilisation": entropy / math.log2(fmt.code_count),
        "unused_share": shares.count(0.0) / len(finite),
        "top_share": (counts[fmt.max_code] + counts[sign + fmt.max_code]) / 4000,
        "zero_share": (counts[0] + (counts[sign] if fmt.has_negative_zero else 0)) / 4000,
    }
    assert {key: float(value) for key, value in found.items()} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", FORMATS)
def test_it_is_one_when_every_finite_code_is_used_equally(name: str) -> None:
    fmt = FloatFormat.parse(name)
    found = code_utilisation(code_histogram(torch.arange(1 << fmt.bits), fmt), fmt)
    assert float(found["utilisation"]) == pytest.approx(1.0, abs=1e-12)
    assert float(found["unused_share"]) == 0.0


def test_a_constant_tensor_uses_nothing_of_a_format() -> None:
    fmt = FloatFormat.parse("e4m3fn")
    found = code_utilisation(code_histogram(torch.full((9,), 7), fmt), fmt)
    assert float(found["utilisation"]) == 0.0
    assert float(found["unused_share"]) == 253 / 254


def test_codes_that_are_not_finite_count_nowhere() -> None:
    fmt = FloatFormat.parse("e5m2")
    specials = torch.tensor([0x7C, 0x7E, 0xFC, 0xFF])
    alone = code_utilisation(code_histogram(specials, fmt), fmt)
    assert float(alone.pop("unused_share")) == 1.0
    assert all(math.isnan(float(value)) for value in alone.values())
    some = torch.tensor([1, 2, 3, 0])
    both = code_utilisation(code_histogram(torch.cat((some, specials)), fmt), fmt)
    assert both == code_utilisation(code_histogram(some, fmt), fmt)
