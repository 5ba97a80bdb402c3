"""The gradients of each micro-batch on its own, in a loop that says nothing.

A hook on each parameter is given what one backward pass makes of it, before it is added to `.grad`, and before other
processes, a loss scaler or clipping have had a part in it. What is left is to know where a micro-batch ends. Each call
of `backward` is one, and autograd numbers them (its graph tasks); but reentrant activation checkpointing calls
`backward` within `backward`, and there the number is another. Such a call runs inside the backward of an autograd
Function, which the stack tells. And a forward of the model that records, outside any backward, begins a micro-batch,
whatever the calls of `backward` are numbered. `with watch.micro_batch():` overrules all this: what is within it is one.

Costs a copy of the gradients, at steps where a monitor asks for it, and nothing at others.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import function

Show = Callable[[Mapping[str, Tensor]], None]


class OwnGradients:
    """Calls `show` with each micro-batch's gradients by name, between `start` and `stop`."""

    def __init__(self, model: nn.Module, names: Mapping[Tensor, str], show: Show) -> None:
        self.model, self.names, self.show = model, names, show
        self.gradients: dict[str, Tensor] = {}
        self._tasks: set[int] = set()
        self._marked = False
        self._handles: list[Any] = []

    def start(self) -> None:
        """Look from now on."""
        for p, name in self.names.items():
            if p.requires_grad:
                self._handles.append(cast(Any, p).register_hook(lambda g, name=name: self._add(name, g)))
        if self._handles:
            self._handles.append(self.model.register_forward_pre_hook(self._forward))

    def stop(self) -> None:
        """Show the last micro-batch, and look no more."""
        self.end()
        while self._handles:
            self._handles.pop().remove()

    def forget(self) -> None:
        """Drop what was not shown yet."""
        self.gradients, self._tasks = {}, set()

    def end(self) -> None:
        """A micro-batch is done."""
        gradients = self.gradients
        self.forget()
        if gradients:
            self.show(gradients)

    @contextmanager
    def marked(self) -> Iterator[None]:
        """Around what is one micro-batch."""
        self.end()
        self._marked = True
        try:
            yield
        finally:
            self._marked = False
            self.end()

    def _forward(self, model: nn.Module, _: Any) -> None:
        if torch.compiler.is_compiling() or self._marked or not (model.training and torch.is_grad_enabled()):
            return
        if torch._C._current_graph_task_id() == -1:
            self.end()

    def _add(self, name: str, gradient: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        if task not in self._tasks:
            if not self._marked and self._tasks and not _within_backward():
                self.end()
            self._tasks.add(task)
        own = gradient.detach()
        self.gradients[name] = self.gradients[name] + own if name in self.gradients else own.clone()


def _within_backward() -> bool:
    """Whether the caller runs inside the backward of an autograd Function written in Python."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == function.__file__ and frame.f_code.co_name == "apply":
            return True
        frame = cast(Any, frame.f_back)
    return False
