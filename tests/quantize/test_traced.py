"""Claims about what compiled graphs do otherwise: kept in memory or computed where it is used, numbers are the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.quantize.noise import counted_bits, fold
from altgrad.quantize.traced import held

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
