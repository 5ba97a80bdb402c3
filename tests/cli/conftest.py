"""One recorded run, told to whatever listens."""

import math
import random
from collections.abc import Callable, Iterator

import pytest

from altgrad.cli.panel import PlainLines, RunPanel
from altgrad.cli.run_view import Watched

Listener = Watched | RunPanel | PlainLines


def calls(until: int = 300) -> Iterator[tuple[int, dict[str, float]]]:
    """Metrics of a run in which blocks.3.mlp.up/input is the worst site and the loss has one spike and one NaN."""
    generator = random.Random(0)
    for step in range(1, until + 1):
        loss = 1.2 + 4.3 * math.exp(-step / 50) + generator.gauss(0, 0.02)
        loss = 9.5 if step == 150 else math.nan if step == 200 else loss
        yield (
            step,
            {
                "train/loss": loss,
                "train/lr": 3e-4,
                "train/gradient_norm": 1.25,
                "train/tokens": step * 8192,
                "time/tokens_per_second": 63_000.0,
                "time/wall_seconds": step * 0.5,
            },
        )
        if step % 10 == 0:
            rates = {}
            for block in range(6):
                for slot in ("input", "weight", "grad_output"):
                    site = f"range/blocks.{block}.mlp.up/{slot}"
                    rates[f"{site}/underflow_rate"] = 0.25 if (block, slot) == (3, "input") else 0.001 * block
                    rates[f"{site}/saturation_rate"] = 0.5 if (block, slot) == (2, "grad_output") else 0.0
                rates[f"range/blocks.{block}.mlp.up.weight/requested/underflow_rate"] = math.nan if block else 0.75
            yield step, rates
        if step % 50 == 0:
            loss = 1.5 + step / 1000
            yield step, {"validation/loss": loss, "validation/bits_per_byte": 2.345, "validation/perplexity": 5.432}


def told(sink: Listener, until: int = 300) -> None:
    sink.event(0, "started", "2.4 M parameters on cpu")
    for step, values in calls(until):
        sink.metrics(step, values)
        if step == 100 and "validation/loss" in values:
            sink.event(step, "checkpoint", "step 100 saved")
        if step in (120, 130) and "train/loss" in values:
            sink.event(step, "alarm", f"underflow_rate is {step / 1000}", monitor="range", site="blocks.3.mlp.up/input")


@pytest.fixture
def tell() -> Callable[[Listener], None]:
    """Tells a listener the whole recorded run."""
    return told


@pytest.fixture
def keys() -> list[str]:
    """The keys of a training step."""
    return list(next(calls())[1])


@pytest.fixture(scope="session")
def watched() -> Watched:
    """The recorded run after 300 of 400 steps."""
    watched = Watched("quickstart-1f3a-s0", 400, {"unigram": 4.47, "order-6 n-gram": 1.17}, clock=lambda: 0.0)
    told(watched)
    return watched
