"""Claims about orders of operations: one grid whatever the order, few last bits apart, and the same bits compiled."""

from itertools import cycle, product
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from altgrad.quantize import Quantizer
from altgrad.quantize.arithmetic import Arithmetic, halved

NAMES = get_args(Arithmetic)
TWO_LEVELS: dict[str, Any] = {"kind": "nvfp4", "size": 16}
ONE_LEVEL: dict[str, Any] = {"kind": "block", "size": 16, "scale": "real"}


def sample(rows: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 64, generator=generator) * torch.exp2(torch.randint(-9, 9, (rows, 1), generator=generator))
    x[0] = 0
    x[1, :16] = -0.0
    return x


@pytest.mark.parametrize("scaling", [TWO_LEVELS, ONE_LEVEL, {"kind": "block", "size": 16}, {"kind": "mx"}])
@pytest.mark.parametrize("name", NAMES)
def test_whatever_the_order_the_cast_is_that_of_its_scale(name: str, scaling: dict[str, Any]) -> None:
    """Values are q * scale up to float32, and q the nearest to x / scale but where that is all but a tie."""
    quantizer = Quantizer({"format": "e2m1", "scaling": {**scaling, "arithmetic": name}}, "s")
    x = sample()
    made = quantizer.cast(x, False)
    assert made.scale is not None
    values, given_up = made.values(torch.float32), made.scale == 0
    assert torch.allclose(values, made.rounded * made.scale, rtol=1e-6, atol=0)
    assert bool((values[given_up.expand_as(x)] == 0).all())
    units = x / torch.where(given_up, 1.0, made.scale)
    error = (
        (made.rounded - units.clamp(-6, 6)).abs() / torch.where(units.abs() < 2, 0.5, units.abs() / 2)
    ).masked_fill(given_up, 0)
    assert float(error.max()) <= 0.5 * (1 + 1e-5)
    assert torch.equal(values, quantizer.values(x, False, torch.float32))


@pytest.mark.parametrize("name", NAMES)
def test_a_common_power_of_two_changes_no_code(name: str) -> None:
    quantizer = Quantizer({"format": "e2m1", "scaling": {**TWO_LEVELS, "arithmetic": name}}, "s")
    x = sample()
    assert torch.equal(quantizer.cast(x, False).rounded, quantizer.cast(x * 2.0**-20, False).rounded)


@pytest.mark.parametrize("name", NAMES)
def test_infinities_and_nans_pass_and_change_no_other_element(name: str) -> None:
    quantizer = Quantizer({"format": "e2m1", "scaling": {**TWO_LEVELS, "arithmetic": name}}, "s")
    x = sample()
    plain = x.clone()
    x[5, 5], x[6, 6], plain[5, 5], plain[6, 6] = torch.inf, torch.nan, 0, 0
    values, expected = quantizer(x), quantizer(plain)
    assert values[5, 5] == torch.inf and bool(values[6, 6].isnan())
    rest = torch.ones_like(x, dtype=torch.bool)
    rest[5, 5] = rest[6, 6] = False
    assert torch.equal(values[rest], expected[rest])
    assert bool(quantizer.cast(plain, False).exact.isfinite().all())


def test_sums_by_halves_are_sums() -> None:
    x = torch.randint(0, 100, (3, 11)).float()
    assert torch.equal(halved(x), x.sum(-1)) and torch.equal(halved(x[:, :1]), x[:, 0])


CHOICES: list[dict[str, Any]] = [
    *({**TWO_LEVELS, "arithmetic": name} for name in NAMES),
    {**TWO_LEVELS, "shape": "square", "choose": [6, 4], "arithmetic": "te"},
    {**TWO_LEVELS, "outer": 32},
    {"kind": "mx", "statistic": "std"},
    {"kind": "current", "scale": "real", "arithmetic": "torchao", "floor": 1e-12},
    {"kind": "current", "scale": "real", "statistic": "absmean"},
    {"kind": "current", "scale": "bf16", "granularity": "channel", "arithmetic": "reciprocal"},
    {"kind": "current", "scale": "fp16", "scale_rounding": "stochastic", "arithmetic": "jetfire"},
    {"kind": "block", "size": 16, "shape": "square", "scale": "fp16", "arithmetic": "jetfire"},
    {"kind": "mx", "prescale": 0.75, "arithmetic": "reciprocal"},
]


@pytest.mark.long
@pytest.mark.needs("c++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
@pytest.mark.parametrize("scaling", CHOICES, ids=lambda scaling: " ".join(map(str, scaling.values())))
def test_compiled_it_is_the_same_to_the_last_bit(scaling: dict[str, Any]) -> None:
    """Within a whole graph, and by the engine."""
    torch._dynamo.reset()
    x = sample(128)
    eager = Quantizer({"format": "e2m1", "scaling": scaling}, "s")
    expected = eager.values(x, False, torch.float32)
    graph = torch.compile(lambda x: eager.values(x, False, torch.float32), fullgraph=True)
    assert torch.equal(graph(x), expected)
    other = Quantizer({"format": "e2m1", "scaling": scaling}, "s")
    other.engine = "compiled"
    assert torch.equal(other.values(x, False, torch.float32), expected)


def all_in_one_graph(specs: list[dict[str, Any]]) -> None:
    """Casts under each of these, eager and in one graph: equal to the last bit."""
    torch._dynamo.reset()
    x = sample(40)
    quantizers = [Quantizer({"format": "e2m1", **spec}, "s") for spec in specs]  # type: ignore[arg-type]

    def run(x: Tensor) -> list[Tensor]:
        return [quantizer.values(x, False, torch.float32) for quantizer in quantizers]

    for spec, found, expected in zip(specs, torch.compile(run, fullgraph=True)(x), run(x), strict=True):
        assert torch.equal(found, expected), spec


@pytest.mark.long
@pytest.mark.needs("c++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
def test_compiled_a_choice_of_drawn_scales_under_two_levels_has_the_same_bits() -> None:
    scaling = {**TWO_LEVELS, "outer": 32, "choose": [6, 4], "by": "mae", "scale_rounding": "stochastic"}
    tried = {**TWO_LEVELS, "choose": [6, 4], "trial_rounding": "stochastic", "arithmetic": "fouroversix"}
    all_in_one_graph([{"scaling": scaling}, {"scaling": tried, "rounding": "stochastic"}])


@pytest.mark.long
@pytest.mark.needs("c++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
@pytest.mark.parametrize("outer", ["none", "tensor", "row", 32])
@pytest.mark.parametrize("arithmetic", NAMES)
def test_compiled_every_two_levels_have_the_same_bits(arithmetic: str, outer: Any) -> None:
    """With and without a choice, under every rounding of scales; the errors that choose take turns."""
    errors = cycle(("mse", "mae", "amax"))
    common = {**TWO_LEVELS, "arithmetic": arithmetic, "outer": outer}
    all_in_one_graph([
        {"scaling": {**common, "scale_rounding": way, **({"choose": [6, 4], "by": next(errors)} if chooses else {})}}
        for chooses, way in product((False, True), ("nearest", "up", "stochastic"))
    ])  # fmt: skip
