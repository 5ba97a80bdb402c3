"""State that casts keep (amax histories, counters of random bits), with the manners of a torch module's own state.

torch moves, copies, averages and loads the buffers of any module, but it knows of parameters alone how they begin:
`reset_parameters`. What casts keep begins without data, so it can begin whenever there is none: when it is reset, when
memory is allotted for a model that was made on meta, and when a state dict has weights trained without casts.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

from torch import Tensor, nn

LOGGER = logging.getLogger("altgrad")
_said: Any = None


class CastState(nn.Module):
    """A module of casts. See the head of this file; that a state dict has none of its state is logged, once a load."""

    def reset_parameters(self) -> None:
        """Start over, without history."""
        return

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `.to`, `.half` and `.cuda` do. A scale rounded to bf16 is another scale, so only devices change."""
        unmade = [name for name, buffer in self._buffers.items() if buffer is not None and buffer.is_meta]

        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        if any(not cast(Tensor, self._buffers[name]).is_meta for name in unmade):
            self.reset_parameters()
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        own = [f"{prefix}{name}" for name in self._buffers]
        if not own or any(name in state_dict for name in own):
            super()._load_from_state_dict(state_dict, prefix, *rest)
            return
        self.reset_parameters()
        _say_once(rest[2])


def _say_once(load: Any) -> None:
    """Log, once for a load, that casts start over. load: what is one object during a load and not another's."""
    global _said
    if load is not _said:
        _said = load
        LOGGER.warning("The loaded state lacks that of the model's casts; their scales and random bits start over.")
