"""Claims about scales without repetitions: each entry once, and the whole again when spread."""

import pytest
import torch

from altgrad.quantize.block_scale import SmallScale

BLOCKS = [((1, 32), (3, 96)), ((4, 4), (9, 7)), ((1, 5), (2, 12)), ((3, 1), (7, 4)), ((2, 2), (2, 4))]


@pytest.mark.parametrize(("block", "shape"), BLOCKS)
def test_entries_come_back_repeated_and_turn_with_their_tensor(block: tuple[int, int], shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    once = torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    scale = once.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[: shape[0], : shape[1]]
    small = SmallScale(once, block)
    assert torch.equal(small.spread(shape).expand(shape), scale)
    assert torch.equal(small.turned.spread(shape[::-1]).expand(shape[::-1]), scale.T)


@pytest.mark.parametrize(("block", "shape"), [*BLOCKS, ((32, 1), (96, 3)), ((4, 4), (8, 12)), ((1, 16), (5, 16))])
def test_where_it_meets_a_tensor_products_are_those_with_the_scale_spread(
    block: tuple[int, int], shape: tuple[int, int]
) -> None:
    """In views of whole blocks, of the same elements in the same order; where blocks are ragged, as it is."""
    torch.manual_seed(0)
    small = SmallScale(torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1])), block)
    for x in (torch.randn(shape), torch.randn(shape[::-1]).T):
        seen, (scale, *_) = small.meet(x)
        assert torch.equal((seen * scale).reshape(shape), x * small.spread(shape))
        assert torch.equal(seen.reshape(shape), x) and (seen.ndim == 2 or scale.numel() == small.entries.numel())
    whole = all(size % step == 0 or size <= step for size, step in zip(shape, block, strict=True))
    assert (small.meet(torch.randn(shape))[0].ndim > 2) <= whole
    if len(small.entries) > 1:
        with pytest.raises(ValueError, match=r"does not fit"):
            small.meet(torch.randn(shape[0] + block[0], shape[1]))


def test_a_scale_for_the_tensor_has_no_axes() -> None:
    small = SmallScale(torch.tensor(2.0), ())
    assert float(small.rows(3, 5).spread((2, 4))) == 2.0 and small.turned is small


@pytest.mark.parametrize("step", [3, 4, 13])
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
