"""The numbers of an optimizer: their types in specs, and those of a parameter group as plain numbers in range."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from torch import Tensor

MOST = 1e30
"""Whatever multiplies a float32 tensor stays well below 2^128, where torch raises instead of overflowing."""


def _fits(value: float) -> float:
    if value > MOST:
        raise ValueError(f"{value:g} is beyond {MOST:g}, where products of float32 have no meaning.")
    return value


NonNegative = Annotated[float, Field(ge=0), AfterValidator(_fits)]
LearningRate = NonNegative
Positive = Annotated[float, Field(gt=0), AfterValidator(_fits)]
WeightDecay = Annotated[float, Field(ge=0, lt=1)]


def plain_numbers(group: dict[str, Any]) -> dict[str, Any]:
    """The group with tensors of one element as numbers. ValueError for others."""
    return {name: value if name == "params" else _number(name, value) for name, value in group.items()}


def _number(name: str, value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_number(name, each) for each in value)
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1:
        raise ValueError(f"{name} is a tensor of {value.numel()} elements; it must be a number or a tensor of one.")
    return value.item()


def check_rates(group: dict[str, Any]) -> None:
    """ValueError for an lr or weight_decay out of range, also one that became NaN."""
    for name in ("lr", "weight_decay"):
        if name in group and not 0 <= group[name] <= MOST:
            raise ValueError(f"{name} is {group[name]}; it must be from 0 to {MOST:g}.")


def check_decays(group: Mapping[str, Any], name: str) -> None:
    """ValueError for how much of an average is kept, one number or several, where that is not in [0, 1)."""
    several = isinstance(group[name], tuple | list)
    if not all(0 <= each < 1 for each in (group[name] if several else (group[name],))):
        raise ValueError(f"{name} is {group[name]}; it must be {'both ' * several}in [0, 1).")
