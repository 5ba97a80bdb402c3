"""What a compiled graph computes in another way than eager code, with the same bits.

Binades, from which spacings follow: 2^floor(log2|u|) between the lowest and the highest of a format. The exponent field
of float32 is that number; where reading it is slow, it is computed.

Small tensors that large ones are combined with (scales, keys of random bits): torch's compiler writes what they are
computed from into the loop over the large one, once for every use of every intermediate result. A key of random bits is
a hash, and its expression doubles a dozen times over: without `held` two layers of NVFP4 compile for minutes.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from altgrad.formats import FloatFormat

_EXPONENT_FIELD = 0x7F800000
F = TypeVar("F", bound=Callable[..., Any])


def cached(function: F) -> F:
    """`functools.cache` of a function that graphs call, too. They compute it once, when they are traced, without the
    cache, which Dynamo leaves out with a warning of silent errors."""
    kept = functools.cache(function)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args) if torch.compiler.is_compiling() else kept(*args)

    return cast(F, call)


def binade(u: Tensor, lowest: float | Tensor, highest: float | Tensor) -> Tensor:
    """2^floor(log2|u|), clamped; u float32."""
    if torch.compiler.is_compiling() and u.device.type == "cpu" and isinstance(lowest, float):
        assert isinstance(highest, float)
        if lowest > 2.0**-100 and highest < 2.0**100:
            return computed_binade(u, lowest, highest)
    return (u.view(torch.int32) & _EXPONENT_FIELD).view(torch.float32).clamp_(lowest, highest)  # type: ignore[arg-type]


def computed_binade(u: Tensor, lowest: float, highest: float) -> Tensor:
    """The same without looking at bits, which Inductor's C++ does for one number at a time.

    2^-100 < lowest <= highest < 2^100, powers of two. With q = (2^23 + 1) |u|, the difference of q and (1 - 2^-24) q is
    2^floor(log2|u|) (Rump, Ogita and Oishi, SIAM J. Sci. Comput. 31(1), 2008), unless q overflows, which the clamp
    before it prevents, or the difference loses bits below 2^-126, where the clamp after it decides.
    """
    q = u.abs().clamp(max=highest) * (2.0**23 + 1)
    found = (q - q * (1 - 2.0**-24)).clamp(lowest, highest)
    return torch.where(u == u, found, highest)


def binades(fmt: FloatFormat) -> tuple[float, float]:
    """The lowest and the highest binade in which the format has a spacing of its own, in grid units."""
    return 2.0**fmt.e_min, 2.0 ** max(fmt.e_min, fmt.max_binade)


def named_once(x: Tensor) -> Tensor:
    """x, for an autograd Function to give back: in a graph under a name that nothing else has, without a copy.

    A conversion of x to what it is already, say, is a second name of one tensor. Torch 2.11 gives back all that such a
    Function computes, takes the gradient of one name for that of the other, and 0 comes out, with nothing said.
    """
    return torch.ops.aten._unsafe_view(x, x.shape) if torch.compiler.is_compiling() else x


def repeated(x: Tensor, times: int, axis: int, length: int) -> Tensor:
    """x with each entry `times` times along an axis, the first `length` of them.

    Where they are cut off within an entry, a graph keeps the whole in memory. Else an element of the cut tensor is
    number i // times of x, and Inductor's C++ (torch 2.13), which walks such a tensor in `length // times` rounds of
    `times`, leaves the rest of whatever it computes from it unwritten.
    """
    whole = x.repeat_interleave(times, axis)
    return whole if whole.shape[axis] == length else held(whole).narrow(axis, 0, length)


def held(x: Tensor) -> Tensor:
    """x itself, which a compiled graph keeps in memory instead of computing it where it is used.

    What a view is taken of by strides has to lie in memory.
    """
    if torch.compiler.is_compiling() and x.ndim > 1 and x.mT.is_contiguous():
        return in_rows(x.mT).mT
    return in_rows(x)


def in_rows(x: Tensor) -> Tensor:
    """x itself, which a compiled graph keeps in memory row by row, however what it is computed from lies."""
    if not torch.compiler.is_compiling():
        return x
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride())
