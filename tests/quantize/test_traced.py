"""Claims about what compiled graphs do otherwise: kept in memory or computed where it is used, numbers are the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.quantize.noise import counted_bits, fold
from altgrad.quantize.traced import held, repeated

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")


def spread(x: Tensor, way: str) -> Tensor:
    """Something computed from x whose layout may be any, kept and combined with what has another."""
    y = {"plain": x, "turned": x.mT, "permuted": x.permute(2, 0, 1), "cut": x[:, 1:, ::2]}[way]
    kept = held(y.mul(3).add(1).abs())
    return (kept * y).mT.sum(-1) + held(kept.mT.amax(-1))


OTHER = torch.tensor(0x5CA1E)
WAYS = ["plain", "turned", "permuted", "cut"]


@pytest.mark.parametrize("way", WAYS)
def test_eagerly_it_is_the_tensor_itself(way: str) -> None:
    x = torch.randn(2, 3, 4)
    assert held(x) is x and spread(x, way).shape


@pytest.mark.long
@pytest.mark.needs("c++")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("after", [False, True])
def test_compiled_it_is_the_same_whatever_the_layout(way: str, after: bool) -> None:
    """Also of a product, whose result the compiler may lay out as it likes."""
    torch._dynamo.reset()

    def run(x: Tensor) -> Tensor:
        return spread(torch.relu(x) @ x.mT @ x if after else x, way)

    x = torch.randn(4, 6, 8)
    torch.testing.assert_close(torch.compile(run, fullgraph=True)(x), run(x), rtol=1e-5, atol=1e-5)


@pytest.mark.long
@pytest.mark.needs("c++")
def test_random_bits_are_counted_alike() -> None:
    torch._dynamo.reset()

    def run(key: Tensor, counter: Tensor) -> Tensor:
        return counted_bits((3, 5, 7), fold(key, counter))

    key, counter = torch.tensor(0x1234_5678_9ABC_DEF0), torch.tensor((7 << 16) + 3)
    assert torch.equal(torch.compile(run, fullgraph=True)(key, counter), run(key, counter))


@pytest.mark.needs("c++")
def test_a_key_folded_twice_is_the_same_key_in_a_graph() -> None:
    """By tensors: of a number Inductor made another key (torch 2.13), so a number is refused there."""

    def run(key: Tensor, counter: Tensor) -> Tensor:
        return counted_bits((4, 3), fold(fold(key, counter), OTHER))

    given = torch.tensor(123456789012345678), torch.tensor(1 << 16)
    assert torch.equal(torch.compile(run, fullgraph=True)(*given), run(*given))
    with pytest.raises(Exception, match="AssertionError|assert"):
        torch.compile(lambda key: fold(key, 3), fullgraph=True)(given[0])


@pytest.mark.needs("c++")
def test_repeated_entries_that_are_cut_off_leave_nothing_unwritten() -> None:
    """As 10 entries of 16 do with 152 columns: torch's own way leaves the last 8 of each row as memory was."""

    def run(x: Tensor, scale: Tensor) -> Tensor:
        return x / repeated(scale, 16, -1, x.shape[-1])

    x, scale = torch.randn(3, 152), torch.rand(3, 10) + 1
    assert torch.equal(run(x, scale), x / scale.repeat_interleave(16, -1)[:, :152])
    assert torch.equal(torch.compile(run, fullgraph=True)(x, scale), run(x, scale))


def block(**more: Any) -> dict[str, Any]:
    return {"format": "e4m3fn", "scaling": {"kind": "block", "size": 128, "scale": "real", **more}}


RAGGED: dict[str, dict[str, Any]] = {
    "rows": block(),
    "squares": block(shape="square"),
    "std": block(statistic="std"),
    "mx": {"format": "e4m3fn", "scaling": "mx"},
    "mx stochastic": {"format": "e4m3fn", "scaling": "mx", "rounding": "stochastic"},
    "nvfp4": {"format": "e2m1", "scaling": "nvfp4"},
    "outer row": {"format": "e2m1", "scaling": {"kind": "nvfp4", "outer": "row"}},
    "outer 256": {"format": "e2m1", "scaling": {"kind": "nvfp4", "outer": 256}},
    "choose": {"format": "e2m1", "scaling": {"kind": "nvfp4", "choose": [6, 4]}},
    "choose squares": {"format": "e2m1", "scaling": {"kind": "nvfp4", "choose": [6, 4], "shape": "square"}},
    "table": {"format": "nf4", "scaling": {"kind": "block", "size": 64, "scale": "real"}},
}


@pytest.mark.long
@pytest.mark.needs("c++")
@pytest.mark.parametrize("axis", ["last", "first"])
@pytest.mark.parametrize("name", RAGGED)
def test_a_last_block_that_is_not_full_has_the_same_bits_in_a_graph(name: str, axis: Any) -> None:
    torch._dynamo.reset()
    x = torch.randn(48, 152) if axis == "last" or "squares" in name else torch.randn(152, 48)
    rows = x.shape[0] if axis == "last" else x.shape[1]
    quantizer = Quantizer(RAGGED[name], reduced=axis, rows=rows).eval()

    def run(x: Tensor) -> Tensor:
        return quantizer.values(x, False, torch.float32)

    assert torch.equal(torch.compile(run, fullgraph=True)(x), run(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
@pytest.mark.parametrize(
    "spec",
    [
        {"format": "e4m3fn"},
        {"format": "e4m3fn", "gradient": "clipped"},
        {"format": "int8", "scaling": {"kind": "current", "scale": "real"}},
    ],
)
def test_a_graph_gives_back_the_gradient_of_what_it_gave(spec: dict[str, Any]) -> None:
    """Torch 2.11 takes the gradient of a second name of a result for the result's own, and 0 came out."""
    torch._dynamo.reset()
    x = torch.randn(4, 32, requires_grad=True)
    found = []
    for compiled in (False, True):
        quantizer = Quantizer(QuantizerSpec.made_from(spec), "site")
        run = torch.compile(quantizer, backend="eager", fullgraph=True) if compiled else quantizer
        x.grad = None
        run(x).square().sum().backward()
        assert x.grad is not None and x.grad.any()
        found.append(x.grad)
    assert torch.equal(*found)
