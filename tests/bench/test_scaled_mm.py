"""The emulated product and the machine's own have the same operands, and differ by how sums are rounded alone."""

import pytest
import torch

from altgrad import PrecisionPolicy, quantize_model
from bench.scaled_mm import PRODUCTS, machine_product, operands, units


def supported() -> bool:
    """Whether this build of torch has 8-bit products for this processor."""
    one = torch.tensor(1.0)
    codes = torch.zeros(16, 16).to(torch.float8_e4m3fn)
    try:
        machine_product(codes, codes, one, one)
    except (RuntimeError, NotImplementedError):
        return False
    return True


pytestmark = pytest.mark.skipif(not supported(), reason="torch has no 8-bit product on this processor")


@pytest.mark.parametrize(("name", "left", "right"), PRODUCTS)
def test_both_are_within_the_rounding_of_a_float32_sum(name: str, left: str, right: str) -> None:
    """A sum of k terms in float32, in any order, is off by at most k units; in practice by a few."""
    torch.manual_seed(0)
    a, a8 = operands(left, 64, 256, 2.0**-8)
    b, b8 = operands(right, 48, 256, 2.0**-6)
    theirs = machine_product(a8, b8, torch.tensor(2.0**-8), torch.tensor(2.0**-6))
    for found in (a @ b.t(), theirs):
        assert units(found, a, b).max() < 16, name
    assert units(theirs * (1 + 2.0**-12), a, b).max() > 16, "an error of 13 bits would be seen"


def test_a_quantised_linear_is_the_machines_own_product_of_the_codes() -> None:
    torch.manual_seed(1)
    x, layer = torch.randn(32, 64), torch.nn.Linear(64, 48, bias=False)
    weight = layer.weight.detach().clone()
    policy = PrecisionPolicy.uniform(weight="e4m3fn", input="e4m3fn")
    found = quantize_model(torch.nn.Sequential(layer), policy)(x).detach()
    scales = [2.0 ** torch.ceil(torch.log2(t.abs().amax() / 448)) for t in (x, weight)]
    codes = [(t / s).to(torch.float8_e4m3fn) for t, s in zip((x, weight), scales, strict=True)]
    theirs = machine_product(*codes, *scales)
    size = (codes[0].double() * scales[0]).abs() @ (codes[1].double() * scales[1]).abs().t()
    assert ((found - theirs).double().abs() / size).max() < 16 * 2.0**-24
