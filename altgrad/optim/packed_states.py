"""States as a checkpoint holds them: those with `packed` as codes and scales, at the size they would really have.

    <state>.codes                         torch's dtype of the format, else uint8; two codes of up to 4 bits a byte, the
                                          first in the high bits
    <state>.scale, .centre, .exponent     float32, one for each block, channel or tensor

What comes back is what was there, to the last bit: that is tried when it is packed, and a state that would not come
back (after an infinity, say) is written as it is.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from altgrad.optim.states import CENTRE, EXPONENT, SCALE, StateCast, States
from altgrad.quantize.codes import finite_codes, from_codes, from_storage, to_storage

CODES = "codes"


def packed_state(state: Mapping[str, Any], casts: States) -> dict[str, Any]:
    """A parameter's state as it is written."""
    found = dict(state)
    for name, cast in casts.items():
        if not (cast.spec.packed and name in state):
            continue
        beside = _beside(state, name)
        codes = _codes(cast, state[name], beside)
        if codes is not None:
            found[f"{name}.{CODES}"] = codes
            del found[name]
    return found


def unpacked_state(state: Mapping[str, Tensor], casts: States, shape: torch.Size) -> dict[str, Tensor]:
    """The state that `packed_state` was given. ValueError for codes of a state that is not cast."""
    found = dict(state)
    for key in [key for key in state if key.endswith(f".{CODES}")]:
        name = key.removesuffix(f".{CODES}")
        if name not in casts:
            raise ValueError(f"{name} was saved as codes, and this optimizer does not cast it")
        found[name] = _values(casts[name], found.pop(key), _beside(state, name), shape)
    return found


def _beside(state: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    keys = {part: f"{name}.{part}" for part in (SCALE, CENTRE, EXPONENT)}
    return {part: state[key] for part, key in keys.items() if key in state}


def _codes(cast: StateCast, values: Tensor, beside: Mapping[str, Tensor]) -> Tensor | None:
    """None where the values would not come back."""
    fmt = cast.spec.format
    codes = finite_codes(cast.units(values, beside), fmt).reshape(-1)
    if fmt.bits <= 4:
        codes = torch.nn.functional.pad(codes, (0, codes.numel() % 2)).view(-1, 2)
        stored = (codes[:, 0] * 16 + codes[:, 1]).to(torch.uint8)
    else:
        stored = to_storage(codes, fmt)
    same = torch.equal(_values(cast, stored, beside, values.shape), values)
    return stored if same else None


def _values(cast: StateCast, stored: Tensor, beside: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
    fmt = cast.spec.format
    if fmt.bits <= 4:
        whole = stored.to(torch.int32)
        codes = torch.stack([whole >> 4, whole & 15], -1).view(-1)[: shape.numel()]
    else:
        codes = from_storage(stored, fmt)
    return cast.values(from_codes(codes, fmt), beside, shape)
