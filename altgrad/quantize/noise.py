"""Random bits that are counted, not drawn: a pure function of a key and an element's index.

Stochastic rounding takes its bits from a keyed integer hash of the element's flat index: two rounds of a 32-bit
avalanche mix (constants found by C. Wellons' prospector search, https://github.com/skeeto/hash-prospector, public
domain), the first keyed by one word and the second by another. There is no generator state, so the bits are the same on
CPU and GPU, eager and compiled, on one thread or many, whatever else ran before; resuming a run needs nothing saved.
A generator (`torch.rand`) is serial, has state, and differs between devices.

Torch has no arithmetic on uint32, so words are int32 that wrap around; `_shift` is the logical shift. A key alone is
hashed in Python's integers where it is at hand: 6 us where tensors of one element take 130.
"""

import hashlib

import torch
from torch import Tensor

from altgrad.quantize.traced import held

_M1, _M2 = 0x7FEB352D, 0x846CA68B - (1 << 32)
_WORD = 0xFFFFFFFF


def site_key(seed: int, site: str) -> int:
    """A 63-bit key for a run seed and the name of a site: the same in every process and on every machine."""
    digest = hashlib.blake2b(f"{seed}\0{site}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def fold(key: Tensor | int, counter: Tensor | int) -> Tensor:
    """A new key from a key and a counter (a step, a micro-batch): int64 scalar tensor; counters of any size.

    In a compiled graph the counter is a tensor: of a number Inductor makes another key (torch 2.13).
    """
    assert isinstance(counter, Tensor) or not torch.compiler.is_compiling()
    device = counter.device if isinstance(counter, Tensor) else key.device if isinstance(key, Tensor) else None
    known, count = _at_hand(key), _at_hand(counter)
    if known is not None and count is not None:
        lower = _mixed_word(_mixed_word(known ^ count) + (count >> 32))
        upper = _mixed_word(_mixed_word((known >> 32) + count) ^ _mixed_word((count >> 32) + lower))
        return torch.tensor(lower | (upper & (_WORD >> 1)) << 32, dtype=torch.int64, device=device)
    low, high = _words(torch.as_tensor(key, dtype=torch.int64, device=device))
    first, second = _words(torch.as_tensor(counter, dtype=torch.int64, device=device))
    low = _mixed(_mixed(low ^ first) + second)
    high = _mixed(_mixed(high + first) ^ _mixed(second + low))
    return (low.to(torch.int64) & _WORD) | ((high.to(torch.int64) & (_WORD >> 1)) << 32)


def counted_bits(
    shape: torch.Size | tuple[int, ...], key: Tensor | int, *, offset: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """24 uniform bits for each element: int32 in [0, 2^24), of the given shape.

    key: int or int64 scalar tensor. Element i of the flattened shape uses index `offset + i`, so a tensor may be done
    in pieces. Distinct keys give unrelated bits.
    """
    # But for the hash in `high`, keys 0 and 1 would give the same bits with every pair of neighbours swapped.
    low: Tensor | int
    high: Tensor | int
    known = _at_hand(key)
    if known is not None:
        words = known & _WORD, _mixed_word(known >> 32 ^ _mixed_word(known))
        low, high = (word - (word >> 31 << 32) for word in words)
    else:
        low, second = _words(torch.as_tensor(key, dtype=torch.int64, device=device))
        high = _mixed(second ^ _mixed(low))
    count = torch.Size(shape).numel()
    if offset + count <= 1 << 31:
        index = torch.arange(offset, offset + count, dtype=torch.int32, device=device).view(shape)
    else:
        wide = torch.arange(offset, offset + count, dtype=torch.int64, device=device).view(shape)
        index, upper = _words(wide)
        high = high ^ _mix(upper)
    return _shift(_mix(held(_mix(index ^ low)) + high), 8)


def _at_hand(x: Tensor | int) -> int | None:
    """x where reading it waits for nothing and is no part of a graph: a number, or a plain scalar on a CPU."""
    if torch.compiler.is_compiling():
        return None
    if not isinstance(x, Tensor):
        return x
    return int(x) if type(x) is Tensor and x.ndim == 0 and x.device.type == "cpu" else None


def _words(x: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high 32 bits of int64, each as a wrapped int32."""
    return x.to(torch.int32), (x >> 32).to(torch.int32)


def _shift(x: Tensor, count: int) -> Tensor:
    return (x >> count).bitwise_and_((1 << (32 - count)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Avalanche: every bit of the result depends on every bit of x; a bijection of 32-bit words; 0 goes to 0."""
    x = (x ^ _shift(x, 16)).mul_(_M1)
    x = x.bitwise_xor_(_shift(x, 15)).mul_(_M2)
    return x.bitwise_xor_(_shift(x, 16))


def _mixed_word(x: int) -> int:
    """`_mix` of one word's lowest 32 bits, unsigned."""
    x &= _WORD
    x = (x ^ x >> 16) * _M1 & _WORD
    x = (x ^ x >> 15) * _M2 & _WORD
    return x ^ x >> 16


def _mixed(x: Tensor) -> Tensor:
    """`_mix` of one word, whose expression a compiled graph would double three times over."""
    if not torch.compiler.is_compiling():
        return _mix(x)
    x = held((x ^ _shift(x, 16)) * _M1)
    x = (x ^ _shift(x, 15)) * _M2
    return held(x ^ _shift(x, 16))
