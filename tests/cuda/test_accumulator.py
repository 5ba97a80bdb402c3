"""Claims about accumulators on a GPU: the bits of the definition, and those of the machine's own FP8 product.

Skipped where torch sees no GPU. `make cuda` runs these alone.
"""

from typing import Any

import pytest
import torch

from altgrad.quantize import Quantizer
from altgrad.quantize.accumulator import AccumulatorSpec, Digits, Factor, by_definition
from altgrad.quantize.accumulator_engine import accumulate
from bench.scaled_mm import machine_product, operands

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore"),  # what torch says of its compiler and of CUDA is no claim of ours
]
FREE = {"bits": 9, "chunk": 24, "result_bits": 11, "promote": 48}


def factor(fmt: str, rows: int, k: int, within: int = 0, after: int = 0) -> Factor:
    made = Quantizer(fmt).cast(torch.randn(rows, k) * torch.exp2(torch.randint(-9, 9, (rows, k)).float()), False)
    blocks = torch.exp2(torch.randint(-9, 9, (rows, -(-k // max(within, 1)))).float()) if within else None
    scale = torch.rand(rows, -(-k // after)) if after else made.scale
    return Factor(made.rounded, Digits.of(made.format), blocks, within, scale, after)


def there(made: Factor) -> Factor:
    moved = (x.cuda() if isinstance(x, torch.Tensor) else x for x in made[2:])
    return Factor(made.units.cuda(), made.digits, *moved)


@pytest.mark.parametrize(
    ("left", "right", "how", "within", "after"),
    [
        ("e4m3fn", "e4m3fn", "hopper_fast", 0, 0), ("e5m2", "e4m3fn", "hopper_promote_128", 0, 128),
        ("e5m2", "e5m2", "ada", 0, 0), ("e4m3fn", "e4m3fn", "blackwell", 32, 0), ("e4m3fn", "e2m3", FREE, 0, 48),
        ("e2m1", "e2m1", "blackwell_fp4", 16, 0), ("bf16", "bf16", {"bits": 24, "chunk": 16}, 0, 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("k", [32, 100, 512])
def test_it_has_the_bits_of_the_definition(left: str, right: str, how: Any, within: int, after: int, k: int) -> None:
    torch.manual_seed(k)
    spec = AccumulatorSpec.model_validate(how)
    a, b = factor(left, 70, k, within, after), factor(right, 90, k, within)
    found = accumulate(there(a), there(b), spec).cpu()
    assert torch.equal(found.view(torch.int32), by_definition(a, b, spec).view(torch.int32))


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="no Hopper is here"
)
@pytest.mark.parametrize("k", [32, 64, 128, 256, 1024, 4096])
@pytest.mark.parametrize(("fast", "how"), [(True, "hopper_fast"), (False, "hopper_promote_128")])
def test_it_has_the_bits_of_the_machine(fast: bool, how: str, k: int) -> None:
    """10^4 products. Fast ones come in bfloat16."""
    torch.manual_seed(k)
    a, a8 = operands("e4m3fn", 112, k, 1.0)
    b, b8 = operands("e4m3fn", 96, k, 1.0)
    one, digits = torch.ones((), device="cuda"), Digits(3, -6, 8)
    theirs = machine_product(a8.cuda(), b8.cuda(), one, one, fast=fast)
    ours = accumulate(Factor(a.cuda(), digits), Factor(b.cuda(), digits), AccumulatorSpec.model_validate(how))
    assert torch.equal(ours.to(torch.bfloat16).float() if fast else ours, theirs)
