"""Claims about ranks, against closed forms and scipy's singular values."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from altgrad.measures import effective_rank, numerical_rank, r99, stable_rank
from altgrad.measures.ranks import (
    gram_singular_values,
    matrix_ranks,
    power_start,
    singular_values,
    stable_rank_step,
)

ALL = {"stable": stable_rank, "effective": effective_rank, "r99": r99, "numerical": numerical_rank}


def spectrum(sigma: Tensor, rows: int, columns: int) -> Tensor:
    """A matrix with these singular values."""
    generator = torch.Generator().manual_seed(5)
    drawn = (torch.randn(n, len(sigma), generator=generator, dtype=torch.float64) for n in (rows, columns))
    left, right = (torch.linalg.qr(x)[0] for x in drawn)
    return ((left * sigma.double()) @ right.T).float()


def matrices() -> dict[str, Tensor]:
    k = torch.arange(1, 31).double()
    return {
        "gaussian": torch.randn(50, 30, generator=torch.Generator().manual_seed(6)),
        "wide": torch.randn(20, 70, generator=torch.Generator().manual_seed(7)),
        "1/k": spectrum(1 / k, 40, 30),
        "exponential": spectrum(torch.exp(-k / 4), 30, 40),
        "deficient": spectrum((k < 9).double(), 40, 35),
        "kernel": torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(8)),
    }


def oracle(w: Tensor) -> dict[str, float]:
    sigma = scipy.linalg.svdvals(w.flatten(1).double().numpy())
    p = sigma[sigma > 0] / sigma.sum()
    energy = np.cumsum(sigma**2) / (sigma**2).sum()
    threshold = max(w.shape[0], w.shape[1:].numel()) * np.finfo(np.float32).eps * sigma[0]
    return {
        "stable": (sigma**2).sum() / sigma[0] ** 2,
        "effective": math.exp(-(p * np.log(p)).sum()),
        "r99": int(np.argmax(energy >= 0.99)) + 1,
        "numerical": int((sigma > threshold).sum()),
    }


@pytest.mark.parametrize("case", list(matrices()))
def test_ranks_are_those_of_scipys_singular_values(case: str) -> None:
    w = matrices()[case]
    expected = oracle(w)
    assert {name: float(rank(w)) for name, rank in ALL.items()} == pytest.approx(expected, rel=1e-9)
    cheap = matrix_ranks(gram_singular_values(w), w.shape)
    assert {name: float(value) for name, value in cheap.items()} == pytest.approx(expected, rel=2e-5)
    assert float(cheap["stable"]) == pytest.approx(expected["stable"], rel=1e-9)


@pytest.mark.parametrize("case", list(matrices()))
@pytest.mark.parametrize("factor", [1e-13, 1e13, 2.0**-100, 2.0**100, -1.0])
def test_no_scale_of_the_weights_matters(case: str, factor: float) -> None:
    w = matrices()[case]
    for name, rank in ALL.items():
        assert float(rank(w * factor)) == pytest.approx(float(rank(w)), rel=1e-5), name
    start = power_start(w)
    assert float(stable_rank_step(w * factor, start, 20)[0]) == pytest.approx(
        float(stable_rank_step(w, start, 20)[0]), rel=1e-5
    )


def test_a_rotation_does_not_matter_nor_does_the_transpose() -> None:
    w = matrices()["1/k"].double()
    turn = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(9), dtype=torch.float64))[0]
    for rank in ALL.values():
        assert float(rank(turn @ w)) == pytest.approx(float(rank(w)), rel=1e-9)
        assert float(rank(w.T)) == pytest.approx(float(rank(w)), rel=1e-9)


def test_closed_forms() -> None:
    eye, one = torch.eye(100), torch.outer(torch.arange(1.0, 8), torch.arange(1.0, 5))
    assert [float(rank(eye)) for rank in ALL.values()] == pytest.approx([100, 100, 99, 100], rel=1e-12)
    assert [float(rank(one)) for rank in ALL.values()] == pytest.approx([1, 1, 1, 1], rel=1e-6)
    equal = torch.full((100,), 0.3, dtype=torch.float64)  # whose squares, summed up, round to either side of 99 %
    assert float(matrix_ranks(equal, torch.Size((100, 100)))["r99"]) == 99
    two = torch.diag(torch.tensor([3.0, 4.0]))
    entropy = -(3 / 7 * math.log(3 / 7) + 4 / 7 * math.log(4 / 7))
    assert [float(rank(two)) for rank in ALL.values()] == pytest.approx([25 / 16, math.exp(entropy), 2, 2], rel=1e-12)


def test_zeros_have_rank_0_and_what_is_not_finite_or_no_matrix_has_none(adversarial: dict[str, Tensor]) -> None:
    unknown = ("inf", "NaN", "mixed", "empty")
    for case, w in {**adversarial, "vector": torch.ones(3), "number": torch.tensor(2.0)}.items():
        cheap = matrix_ranks(gram_singular_values(w), w.shape)
        for name, rank in ALL.items():
            for value in (float(rank(w)), float(cheap[name])):
                if case in (*unknown, "vector", "number"):
                    assert math.isnan(value), case
                else:
                    assert value == 0 if case == "zeros" else 1 <= value * (1 + 1e-12) <= min(w.shape) + 1e-9, case
    assert float(stable_rank(torch.full((3, 3), 1e-45))) == pytest.approx(1)


def test_a_power_step_leaves_its_vector_where_there_is_no_direction(adversarial: dict[str, Tensor]) -> None:
    for case in ("zeros", "inf", "NaN", "mixed", "empty"):
        w = adversarial[case]
        start = power_start(w)
        rank, vector = stable_rank_step(w, start)
        assert torch.equal(vector, start), case
        assert float(rank) == 0 if case in ("zeros", "empty") else math.isnan(rank), case


@pytest.mark.parametrize("case", list(matrices()))
def test_power_steps_come_down_to_the_stable_rank_and_stay_with_drifting_weights(case: str) -> None:
    w = matrices()[case]
    rank, vector = stable_rank_step(w, power_start(w), 20)
    flat = case in ("gaussian", "wide", "deficient", "kernel")
    assert 1 - 1e-5 <= float(rank / stable_rank(w)) <= (1.2 if flat else 1 + 1e-4)
    assert float(vector.norm()) == pytest.approx(1, rel=1e-5)
    generator = torch.Generator().manual_seed(10)
    for _ in range(300):
        w = w + 1e-3 * w.std() * torch.randn(w.shape, generator=generator)
        rank, vector = stable_rank_step(w, vector)
    assert 1 - 1e-5 <= float(rank / stable_rank(w)) <= (1.01 if flat else 1 + 1e-5)


def test_the_start_is_the_same_every_time_and_needs_no_generator() -> None:
    torch.manual_seed(0)
    first = power_start(torch.zeros(4, 6))
    torch.manual_seed(1)
    assert torch.equal(first, power_start(torch.ones(9, 2, 3)))


def test_singular_values_are_descending_and_relative_to_the_largest_entry() -> None:
    w = matrices()["wide"]
    expected = scipy.linalg.svdvals((w / w.abs().amax()).double().numpy())
    for values in (singular_values(w), gram_singular_values(w)):
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-6)


def test_ranks_are_traced_into_one_graph(assert_one_graph: object) -> None:
    assert callable(assert_one_graph)

    def every(w: Tensor) -> object:
        return matrix_ranks(singular_values(w), w.shape)["r99"], stable_rank_step(w, power_start(w), 2)

    def rounded(w: Tensor) -> object:  # LAPACK's last bits follow the alignment of its input
        ranks = [*matrix_ranks(gram_singular_values(w), w.shape).values(), stable_rank(w), effective_rank(w)]
        return [(rank * 1e6).round() for rank in ranks]

    w = matrices()["1/k"]
    assert_one_graph(every, w)
    assert_one_graph(rounded, w)
