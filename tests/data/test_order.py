"""The order of the data: a permutation, a pure function, and the same in every release."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from altgrad.data.dataset import mixed_bits, visiting_order

MASK = (1 << 64) - 1
GOLDEN = [0, 7, 8, 2, 5, 9, 4, 6, 3, 1]


def splitmix64(state: int, count: int) -> list[int]:
    """The published generator, step by step."""
    found = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        found.append(z ^ (z >> 31))
    return found


def test_the_oracle_is_splitmix64() -> None:
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.integers(0, 2**63), st.integers(0, 10**6), st.integers(0, 300))
def test_order_sorts_by_the_published_generator(seed: int, epoch: int, count: int) -> None:
    bits = splitmix64(mixed_bits(seed, epoch), count)
    assert visiting_order(seed, epoch, count).tolist() == sorted(range(count), key=bits.__getitem__)


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**40), st.integers(0, 2000))
def test_order_is_a_permutation_and_a_function_of_its_arguments(seed: int, epoch: int, count: int) -> None:
    order = visiting_order(seed, epoch, count)
    assert np.array_equal(np.sort(order), np.arange(count))
    assert np.array_equal(order, visiting_order(seed, epoch, count))


def test_neighbouring_seeds_and_epochs_give_unrelated_orders() -> None:
    orders = [visiting_order(seed, epoch, 1000) for seed in range(5) for epoch in range(5)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            # Two independent permutations agree in one place on average (Poisson with mean 1).
            assert (one == other).sum() < 10


def test_order_is_uniform_over_all_permutations_of_three() -> None:
    found = [tuple(visiting_order(seed, 0, 3).tolist()) for seed in range(6000)]
    counts = [found.count(permutation) for permutation in set(found)]
    assert len(counts) == 6
    # 6 cells of 1000 expected: chi-squared with 5 degrees of freedom stays below 20.5 with probability 0.999.
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 20.5


def test_the_order_of_numbers_matters_to_the_bits() -> None:
    assert mixed_bits(1, 2) != mixed_bits(2, 1)
    assert mixed_bits(0) != mixed_bits(0, 0)


def test_a_released_order_never_changes() -> None:
    assert visiting_order(0, 0, 10).tolist() == GOLDEN
