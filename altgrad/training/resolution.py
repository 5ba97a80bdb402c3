"""What a spec leaves to the machine, decided once, when a run is first made: threads and the engine of the casts.

Compiling pays only when what it saves over the whole run is more than several compilations cost:

    auto  ->  compiled   if steps * elements cast per step * 0.3 ns > 60 s, and a C++ compiler is there
              eager      otherwise

0.3 ns is what a fused cast saved per element against the eager one (2^20 elements, two threads; see bench/), 60 s what
about ten graphs take to build. Both numbers only decide how fast a run is: the bits are the same.
"""

import torch
from torch import nn

from altgrad.nn import QuantizedLayer
from altgrad.quantize.engine import missing_compiler
from altgrad.training.run import RunSpec

SAVED_PER_ELEMENT = 0.3e-9
WORTH_COMPILING = 60.0


def elements_cast(model: nn.Module, tokens: int) -> int:
    """How many elements one forward and backward pass over so many tokens casts, each operand counted once."""
    shapes = [module.weight.shape for module in model.modules() if isinstance(module, QuantizedLayer)]
    return sum(tokens * (rows + columns) + rows * columns for rows, columns in shapes)


def resolve(spec: RunSpec, model: nn.Module, tokens: int, device: torch.device) -> tuple[RunSpec, str | None]:
    """The resolved spec, and a notice for people if it is not what was asked for.

    model: as the spec builds it, on any device. tokens: of one micro-batch.
    """
    threads = spec.threads or torch.get_num_threads()
    why = missing_compiler(device)
    engine, notice = spec.engine, None
    if engine == "auto":
        saved = spec.steps * spec.accumulate * elements_cast(model, tokens) * SAVED_PER_ELEMENT
        engine = "compiled" if saved > WORTH_COMPILING and why is None else "eager"
    elif engine == "compiled" and why is not None:
        engine, notice = "eager", f"engine: eager instead of compiled, because {why}"
    return spec.model_copy(update={"threads": threads, "engine": engine}), notice
