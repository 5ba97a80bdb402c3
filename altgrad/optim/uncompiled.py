"""torch's optimizers without torch's compiler, until something else loads it.

Four methods of `torch.optim.Optimizer` are kept out of graphs by a wrapper that loads the compiler when one of them is
first called, which is when an optimizer is made: 1.3 s before the first step of a run that compiles nothing. While the
compiler is not loaded nothing can be in a graph, so until then these methods are called as they are. (Checking a run
that stores weights in a format loads it anyway: torch's functions on the meta device do.)
"""

import sys
from collections.abc import Callable
from typing import Any

import torch

METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
KEPT = "__dynamo_disable"
"""Where torch's wrapper keeps what it calls instead of the method, on the method itself."""


def wait_for_compiler() -> None:
    """See the head of this file; harmless when repeated, and where torch has no such wrapper."""
    for name in METHODS:
        wrapper = getattr(torch.optim.Optimizer, name)
        method = getattr(wrapper, "__wrapped__", None)
        if method is not None and not hasattr(method, KEPT):
            setattr(method, KEPT, _as_it_is(method, wrapper))


def _as_it_is(method: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """The method itself until the compiler is there; then the wrapper, as if it had never been called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return method(*args, **kwargs)
        delattr(method, KEPT)
        return wrapper(*args, **kwargs)

    return call
