"""Claims about counted bits: exactly the documented function, the same in pieces, and statistically uniform.

The statistics are those of fixed keys, so they either always pass or never. Bounds are five standard deviations.
"""

import math

import pytest
import torch

from altgrad.quantize.noise import counted_bits, fold, site_key

COUNT = 1 << 20
KEYS = [0, 1, 2, (1 << 63) - 1, site_key(0, "blocks.0.mlp.up/weight")]
WORD = (1 << 32) - 1


def mix(x):
    """The avalanche step in Python's integers, from its publication."""
    x = ((x ^ x >> 16) * 0x7FEB352D) & WORD
    x = ((x ^ x >> 15) * 0x846CA68B) & WORD
    return x ^ x >> 16


def reference_bits(key, index):
    low, high = key & WORD, key >> 32 & WORD
    high = mix(high ^ mix(low))
    if index >> 32:
        high ^= mix(index >> 32)
    return mix((mix((index & WORD) ^ low) + high) & WORD) >> 8


def reference_fold(key, counter):
    low, high, first, second = key & WORD, key >> 32 & WORD, counter & WORD, counter >> 32 & WORD
    low = mix((mix(low ^ first) + second) & WORD)
    high = mix(mix((high + first) & WORD) ^ mix((second + low) & WORD))
    return low | (high & WORD >> 1) << 32


def ones(words):
    """How often each of the 24 bits is set."""
    return torch.stack([(words >> bit & 1).sum() for bit in range(24)])


def assert_balanced(words):
    deviation = (ones(words) - words.numel() / 2).abs().max().item()
    assert deviation < 5 * math.sqrt(words.numel()) / 2


def in_common(a, b):
    """How many entries of b occur in a; two unrelated sets of n words share about n^2 / 2^24."""
    return int(torch.isin(b, a).sum())


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("start", [0, (1 << 31) - 4, (1 << 32) - 4, 5 << 40])
def test_the_bits_are_those_of_the_published_hash(key, start):
    found = counted_bits((8,), key, offset=start)
    assert found.dtype == torch.int32
    assert found.tolist() == [reference_bits(key, start + i) for i in range(8)]
    assert counted_bits((8,), torch.tensor(key), offset=start).tolist() == found.tolist()


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("counter", [0, 1, 3 << 16, (1 << 16) + 5, 7 << 33])
def test_fold_is_the_documented_function_for_numbers_and_tensors(key, counter):
    expected = reference_fold(key, counter)
    pairs = [(key, counter), (torch.tensor(key), counter), (key, torch.tensor(counter))]
    for folded in (fold(*pair) for pair in pairs):
        assert folded.dtype == torch.int64 and folded.shape == () and int(folded) == expected
    assert 0 <= expected < 1 << 63


def test_site_keys_are_the_same_in_every_process_and_differ_by_seed_and_site():
    assert site_key(0, "a") == 7635241192072670218
    names = {(seed, site) for seed in range(100) for site in ("", "a", "b", "a/weight", "1", "11")}
    keys = {site_key(seed, site) for seed, site in names}
    assert len(keys) == len(names)
    assert all(0 <= key < 1 << 63 for key in keys)


@pytest.mark.parametrize("start", [0, 12_345, (1 << 31) - 500, (1 << 32) - 500, (1 << 31) + 7])
def test_a_tensor_may_be_done_in_pieces_across_every_boundary(start):
    whole = counted_bits((10, 100), 99, offset=start).flatten()
    for size in (1, 7, 500, 999):
        pieces = [counted_bits((min(size, 1000 - at),), 99, offset=start + at) for at in range(0, 1000, size)]
        assert torch.equal(torch.cat(pieces), whole)
    assert counted_bits((), 99, offset=start) == whole[0]
    assert counted_bits((3, 0), 99, offset=start).shape == (3, 0)


def test_the_bits_do_not_depend_on_the_number_of_threads():
    one = counted_bits((COUNT,), 5)
    torch.set_num_threads(2)
    assert torch.equal(counted_bits((COUNT,), 5), one)


@pytest.mark.parametrize("key", KEYS)
def test_every_bit_is_balanced_and_uncorrelated_with_its_neighbours(key):
    bits = counted_bits((COUNT,), key)
    assert bits.min() >= 0 and bits.max() < 1 << 24
    assert_balanced(bits)
    centred = bits.double() - (2**23 - 0.5)
    sd = 2**24 / math.sqrt(12)
    assert abs(centred.mean().item()) < 5 * sd / math.sqrt(COUNT)
    for lag in (1, 2, 3, 8, 64, 768, 1024, 1 << 16):
        assert_balanced(bits[lag:] ^ bits[:-lag])
        correlation = (centred[lag:] * centred[:-lag]).mean().item() / sd**2
        assert abs(correlation) < 5 / math.sqrt(COUNT - lag)


@pytest.mark.parametrize("key", KEYS)
def test_values_and_pairs_of_values_are_uniform_by_chi_square(key):
    bits = counted_bits((COUNT,), key)
    for cells in (
        bits >> 16,
        bits & 255,
        (bits[::2] >> 20) * 16 + (bits[1::2] >> 20),
        bits[::2] % 16 * 16 + bits[1::2] % 16,
    ):
        observed = torch.bincount(cells.long(), minlength=256).double()
        expected = cells.numel() / 256
        chi_square = ((observed - expected) ** 2 / expected).sum().item()
        assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255)


@pytest.mark.parametrize("key", KEYS)
def test_keys_that_differ_in_one_bit_give_unrelated_bits(key):
    """A key of small numbers too: 0 and 1 must not give the same bits in another order."""
    count = 1 << 16
    bits = counted_bits((count,), key)
    for bit in range(63):
        other = counted_bits((count,), key ^ 1 << bit)
        assert_balanced(bits ^ other)
        expected = count**2 / 2**24
        assert in_common(bits, other) < expected + 8 * math.sqrt(expected)


def test_bits_of_successive_steps_and_micro_batches_are_unrelated():
    site = site_key(3, "head/input")
    base = counted_bits((COUNT,), fold(site, 0))
    for counter in (1, 2, 1 << 16, 2 << 16, (1 << 16) + 1, 1 << 32):
        assert_balanced(base ^ counted_bits((COUNT,), fold(site, counter)))
    # one index over many steps is as uniform as many indices at one step
    over_steps = torch.stack([counted_bits((1,), fold(site, step << 16))[0] for step in range(1024)])
    assert_balanced(over_steps)
    assert_balanced(over_steps[1:] ^ over_steps[:-1])


def test_folded_keys_are_distinct():
    counters = torch.cat([torch.arange(1 << 18), torch.arange(1 << 18) << 16, torch.arange(1, 1 << 16) << 32]).unique()
    for key in KEYS:
        assert fold(key, counters).unique().numel() == counters.numel()
    folded = torch.stack([fold(key, counters[:1000]) for key in range(1000)])
    assert folded.unique().numel() == folded.numel()
    assert int(fold(fold(5, 1), 2)) != int(fold(fold(5, 2), 1))
