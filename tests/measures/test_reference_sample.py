"""Claims about the samples that formats are compared on, against printed tables and each density's own integral."""

import math

import pytest
import torch

from altgrad.measures.reference_sample import DISTRIBUTIONS, reference_sample

EVERY = pytest.mark.parametrize("name", list(DISTRIBUTIONS))
T5 = math.sqrt(5 / 3)  # its standard deviation, by which the sample is divided


@pytest.mark.parametrize(
    ("name", "tail", "value"),
    [
        ("normal", 0.025, 1.9599640),
        ("normal", 0.0005, 3.2905267),
        ("laplace", 0.025, -math.log(0.05) / math.sqrt(2)),
        ("t5", 0.025, 2.5705818 / T5),
        ("t5", 0.005, 4.0321430 / T5),
        ("t5", 0.0005, 6.8688266 / T5),
    ],
)
def test_quantiles_are_those_of_the_tables(name: str, tail: float, value: float) -> None:
    found = DISTRIBUTIONS[name](torch.tensor([tail], dtype=torch.float64))
    assert found.item() == pytest.approx(value, rel=2e-8)


@pytest.mark.parametrize("tail", [0.499999, 0.3, 0.025, 2.0**-21, 2.0**-30])
def test_the_density_of_t5_integrates_to_the_tail_beyond_its_quantile(tail: float) -> None:
    """With t = sqrt(5) / tan(phi) the density is 8 / (3 pi) sin^4 phi; trapezia, once extrapolated."""
    t = DISTRIBUTIONS["t5"](torch.tensor([tail], dtype=torch.float64)).item() * T5
    found = []
    for pieces in (2000, 4000):
        phi = torch.linspace(0, math.atan2(math.sqrt(5), t), pieces + 1, dtype=torch.float64)
        found.append(torch.trapezoid(phi.sin() ** 4, phi).item() * 8 / (3 * math.pi))
    assert (4 * found[1] - found[0]) / 3 == pytest.approx(tail, rel=1e-11)


@EVERY
def test_a_sample_ascends_is_symmetric_and_has_unit_variance(name: str) -> None:
    x = reference_sample(name).double()
    assert x.numel() == 1 << 20
    assert bool((x.diff() >= 0).all())
    assert torch.equal(x, -x.flip(0))
    assert x.square().mean().item() == pytest.approx(1, abs=1e-3)


@EVERY
def test_a_sample_is_the_same_every_time_whatever_the_generator(name: str) -> None:
    torch.manual_seed(1)
    first = reference_sample(name, 1000)
    torch.manual_seed(2)
    assert torch.equal(first, reference_sample(name, 1000))


def test_a_mistake_says_what_there_is() -> None:
    with pytest.raises(ValueError, match="'cauchy' is not a distribution here; choose from normal, laplace, t5."):
        reference_sample("cauchy")
    with pytest.raises(ValueError, match="size 7; a symmetric sample has an even number"):
        reference_sample("normal", 7)
