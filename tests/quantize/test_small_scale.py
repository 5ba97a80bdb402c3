"""Claims about scales without repetitions: each entry once, and the whole again when spread."""

import pytest
import torch

from altgrad.quantize.small_scale import SmallScale

BLOCKS = [((1, 32), (3, 96)), ((4, 4), (9, 7)), ((1, 5), (2, 12)), ((3, 1), (7, 4)), ((2, 2), (2, 4))]


@pytest.mark.parametrize(("block", "shape"), BLOCKS)
def test_repeated_entries_are_kept_once_and_come_back(block: tuple[int, int], shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    once = torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    scale = once.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[: shape[0], : shape[1]]
    small = SmallScale.of(scale)
    assert small.block == block and torch.equal(small.entries, once)
    assert torch.equal(small.spread(shape).expand(shape), scale)


@pytest.mark.parametrize("scale", [torch.full((6, 8), 2.0), torch.full((6, 8), torch.nan), torch.full((6, 1), 2.0)])
def test_equal_entries_are_one_even_if_they_are_nan(scale: torch.Tensor) -> None:
    small = SmallScale.of(scale)
    assert small.entries.shape == (1, 1)
    assert torch.equal(small.spread((6, 8)).expand(6, 8).isnan(), scale.expand(6, 8).isnan())


def test_a_scale_for_the_tensor_has_no_axes() -> None:
    small = SmallScale.of(torch.tensor(2.0))
    assert small.entries.shape == () and small.block == ()
    assert float(small.rows(3, 5).spread((2, 4))) == 2.0


@pytest.mark.parametrize("step", [4, 8])
def test_rows_of_a_scale_are_the_scale_of_the_rows(step: int) -> None:
    torch.manual_seed(0)
    small = SmallScale(torch.rand(4, 2), (4, 3))
    whole = small.spread((13, 5))
    for start in range(0, 13, step):
        stop = min(start + step, 13)
        part = small.rows(start, stop).spread((stop - start, 5))
        assert torch.equal(part.expand(stop - start, 5), whole[start:stop])


@pytest.mark.parametrize(
    ("stored", "block", "shape"),
    [((2, 2), (1, 32), (2, 65)), ((2, 1), (1,), (2, 1)), ((1, 1), (0, 1), (4, 4)), ((2, 1), (2, 1), (5, 9))],
)
def test_a_scale_that_does_not_fit_is_refused(
    stored: tuple[int, ...], block: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        SmallScale(torch.ones(stored), block).spread(shape)
