"""Claims about gradient fidelity, against exact rational arithmetic and the formula's edges."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from altgrad.measures.fidelity import fidelity, fidelity_sums
from altgrad.quantize import round_to


def found(gradient: Tensor, reference: Tensor) -> dict[str, float]:
    return {name: float(value) for name, value in fidelity(fidelity_sums(gradient, reference)).items()}


def expected(gradient: Tensor, reference: Tensor) -> dict[str, float]:
    """Exact up to the last square root and logarithm."""
    g, r = ([Fraction(v) for v in x.flatten().tolist()] for x in (gradient, reference))
    rr, gg, gr = sum(x * x for x in r), sum(x * x for x in g), sum(x * y for x, y in zip(g, r, strict=True))
    error = sum((x - y) ** 2 for x, y in zip(g, r, strict=True))
    a = gr / rr
    signed = [(x, y) for x, y in zip(g, r, strict=True) if y != 0]
    return {
        "cosine": math.copysign(math.sqrt(gr * gr / (gg * rr)), gr),
        "sqnr_db": 10 * math.log10(rr / error),
        "bias_coefficient": float(a),
        "orthogonal_noise": math.sqrt(sum((x - a * y) ** 2 for x, y in zip(g, r, strict=True)) / rr),
        "sign_agreement": sum(x * y > 0 for x, y in signed) / len(signed),
    }


@pytest.mark.parametrize("factor", [1.0, 1e-30, 1e30, 1e-13])
@pytest.mark.parametrize("fmt", ["e2m1", "e4m3fn", "bf16"])
def test_each_is_its_formula_at_any_scale(factor: float, fmt: str) -> None:
    torch.manual_seed(0)
    reference = torch.randn(20, 15) * factor
    reference[3] = 0
    gradient = round_to(reference, fmt, scale=factor)
    assert found(gradient, reference) == pytest.approx(expected(gradient, reference), rel=1e-9)


@pytest.mark.parametrize("factor", [-1.0, 0.5, 1e-6, 1e6])
def test_a_gradient_far_from_its_reference_keeps_all_its_digits(factor: float) -> None:
    torch.manual_seed(1)
    reference = torch.randn(200)
    gradient = factor * reference + 0.1 * abs(factor) * torch.randn(200)
    assert found(gradient, reference) == pytest.approx(expected(gradient, reference), rel=1e-6)


def test_a_common_power_of_two_changes_no_bit() -> None:
    torch.manual_seed(2)
    reference = torch.randn(300)
    gradient = round_to(reference, "e3m2")
    for power in (2.0**-100, 2.0**100):
        assert found(gradient * power, reference * power) == found(gradient, reference)


def test_the_noise_of_a_nearly_exact_gradient_is_not_lost_in_a_difference() -> None:
    torch.manual_seed(3)
    reference = torch.randn(4000)
    gradient = reference.clone()
    gradient[7] = float(np.nextafter(np.float32(gradient[7]), np.float32(10)))
    noise = abs(float(gradient[7]) - float(reference[7])) / float(reference.double().norm())
    assert found(gradient, reference)["orthogonal_noise"] == pytest.approx(noise, rel=1e-3)


def test_an_exact_gradient_has_no_noise() -> None:
    reference = torch.tensor([1.0, -2.0, 0.0, 3.0])
    exact = found(reference, reference)
    assert exact.pop("sqnr_db") == math.inf
    assert exact == {"cosine": 1, "bias_coefficient": 1, "orthogonal_noise": 0, "sign_agreement": 1}


def test_a_gradient_that_underflowed_throughout() -> None:
    gone = found(torch.zeros(3), torch.tensor([1e-9, -1e-9, 0]))
    assert math.isnan(gone.pop("cosine"))
    assert gone == {"sqnr_db": 0, "bias_coefficient": 0, "orthogonal_noise": 0 + 0, "sign_agreement": 0}


def test_a_zero_or_non_finite_reference_has_no_fidelity(adversarial: dict[str, Tensor]) -> None:
    for case, reference in adversarial.items():
        values = found(torch.ones_like(reference), reference)
        unknown = case in ("zeros", "inf", "NaN", "mixed", "empty")
        for name in ("cosine", "sqnr_db", "bias_coefficient", "orthogonal_noise"):
            assert math.isnan(values[name]) == unknown, (case, name)
        assert math.isnan(values["sign_agreement"]) == (case in ("zeros", "empty"))
    assert math.isnan(found(torch.tensor([1.0, math.nan]), torch.ones(2))["cosine"])
    assert found(torch.tensor([1.0, math.nan]), torch.ones(2))["sign_agreement"] == 0.5


def test_sums_of_pieces_add_up() -> None:
    torch.manual_seed(4)
    reference = torch.randn(90, 4)
    gradient = round_to(reference, "e4m3fn")
    parts = [fidelity_sums(a, b) for a, b in zip(gradient.split(7), reference.split(7), strict=True)]
    total = {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}
    whole = {name: float(value) for name, value in fidelity(total).items()}
    assert whole == pytest.approx(found(gradient, reference), rel=1e-9)


def test_fidelity_is_traced_into_one_graph(assert_one_graph: object) -> None:
    assert callable(assert_one_graph)
    torch.manual_seed(0)
    assert_one_graph(lambda g, r: fidelity(fidelity_sums(g, r)), torch.randn(20), torch.randn(20))
