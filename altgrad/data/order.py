"""The order in which training sees its examples: a permutation per epoch, computed and never drawn.

    order(seed, epoch) = argsort of hash(seed, epoch, i) over i = 0 .. count-1

The hash is splitmix64's output function (Steele, Lea and Flood, OOPSLA 2014) applied to the three numbers in turn: a
counter-based generator, so nothing is advanced and nothing must be saved. A seeded `torch.Generator` with `randperm`
was the road not taken: PyTorch does not promise the same numbers from one release to the next, and the order of the
data is what two runs of a comparison must share.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["counted_bits", "visiting_order"]

_STEP = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mixed(value: int) -> int:
    """splitmix64's output function on one integer modulo 2^64; a bijection."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def counted_bits(*numbers: int) -> int:
    """64 well-mixed bits that are a function of the given integers and their order; integers count modulo 2^64."""
    state = 0
    for number in numbers:
        state = _mixed((state + _STEP + _mixed(number & _MASK)) & _MASK)
    return state


def visiting_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """A permutation of 0..count-1 that is a pure function of its arguments; equal hashes keep their order.

    Element i is hashed as splitmix64 would: the i-th output of a generator seeded with `counted_bits(seed, epoch)`.
    """
    start = np.full(count, counted_bits(seed, epoch), np.uint64)
    bits = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(bits ^ (bits >> np.uint64(31)), kind="stable")
