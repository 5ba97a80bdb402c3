"""Claims about the one division that turns counts into ratios."""

import math

import torch

from altgrad.measures import share


def test_a_share_of_nothing_is_nan() -> None:
    assert math.isnan(share(0, 0))
    found = share(torch.tensor([0, 3, 0]), torch.tensor([0, 4, 5]))
    assert math.isnan(found[0]) and found[1:].tolist() == [0.75, 0]


def test_counts_beyond_float32_are_divided_exactly() -> None:
    whole = (1 << 24) + 1
    assert float(share(torch.tensor(whole), torch.tensor(whole))) == 1
    assert float(share(torch.tensor(1 << 24), torch.tensor(whole))) == (1 << 24) / whole < 1
