"""Claims about range counts, against the exact scalar arithmetic of altgrad.formats on adversarial tensors."""

import math
from fractions import Fraction

import pytest
import torch

from altgrad.formats import FloatFormat, Rounding
from altgrad.formats.codes import round_rung
from altgrad.measures import range_counts
from altgrad.quantize.grid import bound_units, round_units

FORMATS = ["e0m7", "e1m6", "e3m4", "e4m3fn", "e5m2", "e7m0", "e2m1", "e4m3fnuz"]


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    wide = torch.randn(3000) * torch.exp2(torch.randint(-20, 20, (3000,)).float())
    return {
        "wide": wide,
        "zeros": torch.tensor([0.0, -0.0] * 5),
        "equal": torch.full((17,), 0.3),
        "float32 sub-normals": torch.tensor([1e-44, -1e-40, 1e-39]),
        "not finite": torch.tensor([math.inf, -math.inf, math.nan, 1.0]),
        "empty": torch.empty(0),
        "one": torch.tensor(1.0),
        "tiny": wide * 1e-13,
        "huge": wide * 1e13,
    }


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("case", list(tensors()))
def test_counts_are_those_of_exact_arithmetic(name: str, case: str) -> None:
    fmt, x = FloatFormat.parse(name), tensors()[case]
    unbounded = round_units(x, fmt, Rounding.nearest_even)
    found = range_counts(x, unbounded, bound_units(unbounded, fmt), fmt)
    expected = dict.fromkeys(found, 0)
    for value in x.flatten().tolist():
        if not math.isfinite(value):
            expected["nonfinite"] += 1
            continue
        rung = round_rung(fmt, abs(Fraction(value)), Rounding.nearest_even)
        bounded = min(rung, fmt.max_code)
        expected["finite"] += 1
        expected["nonzero"] += value != 0
        expected["underflow"] += value != 0 and rung == 0
        expected["subnormal"] += fmt.exponent_bits > 0 and 0 < bounded < 1 << fmt.mantissa_bits
        expected["saturated"] += rung > fmt.max_code
    assert {key: int(value) for key, value in found.items()} == expected


def test_a_value_that_rounds_down_to_the_largest_has_not_overflowed() -> None:
    fmt = FloatFormat.parse("e4m3fn")
    x = torch.tensor([448.0, 450.0, 464.0, 464.001, 480.0])
    unbounded = round_units(x, fmt, Rounding.nearest_even)
    assert int(range_counts(x, unbounded, bound_units(unbounded, fmt), fmt)["saturated"]) == 2
