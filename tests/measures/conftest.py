"""What tests of measures share: tensors that are hard on them, and the check that one graph computes the same."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@pytest.fixture(scope="session")
def adversarial() -> dict[str, Tensor]:
    """Float32 tensors by what is hard about them; those called inf, NaN and mixed are not finite."""
    generator = torch.Generator().manual_seed(7)
    plain = torch.randn(12, 10, generator=generator)
    return {
        "plain": plain,
        "zeros": torch.tensor([[0.0, -0.0], [0.0, 0.0]]),
        "equal": torch.full((4, 4), -0.375),
        "sub-normals": torch.tensor([[1e-44, -1e-40], [1e-39, 0.0]]),
        "saturated": 1e30 * plain,
        "tiny": 1e-13 * plain,
        "inf": torch.tensor([[math.inf, -math.inf], [1.0, 0.0]]),
        "NaN": torch.tensor([[math.nan, 1.0], [0.0, -2.0]]),
        "mixed": torch.tensor([[math.nan, math.inf], [1e-45, 3e38]]),
        "empty": torch.empty(0, 3),
        "one": torch.tensor([[-1.5]]),
    }


@pytest.fixture(scope="session")
def assert_one_graph() -> Callable[..., None]:
    """`assert_one_graph(function, *tensors)`: traced without a break, it gives what it gives in eager."""

    def check(function: Callable[..., object], *tensors: Tensor) -> None:
        torch.compiler.reset()
        traced = torch.compile(function, fullgraph=True, backend="aot_eager")
        found, expected = pytree.tree_leaves(traced(*tensors)), pytree.tree_leaves(function(*tensors))
        assert len(found) == len(expected) > 0
        for a, b in zip(found, expected, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0, equal_nan=True)

    return check
