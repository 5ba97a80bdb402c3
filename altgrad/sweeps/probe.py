"""What a run will take, from a few of its own steps: for `--dry-run`.

Three steps are trained in a folder that is thrown away, with the evaluation before them; the last two are timed, since
the first pays for what is built once. A run of S steps with an evaluation every e then takes

    start + S * step + (floor(S / e) + 1) * evaluation          (and monitors and checkpoints as they were due)
"""

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from altgrad.store import RunStore
from altgrad.store.tracker import JSON
from altgrad.training import RunSpec, train_run

STEPS = 3
START_SECONDS = 2.0


@dataclass
class _Stopwatch:
    """A sink that notes when each step's numbers arrived."""

    began: float = field(default_factory=time.perf_counter)
    evaluated: float = 0.0
    at: dict[int, float] = field(default_factory=dict)

    def metrics(self, step: int, values: object) -> None:
        now = time.perf_counter()
        if step == 0:
            self.evaluated = now - self.began
            self.at[0] = now
        else:
            self.at.setdefault(step, now)

    def event(self, step: int, event: str, message: str, **details: JSON) -> None:
        if event == "started":
            self.began = time.perf_counter()

    def close(self) -> None:
        """Nothing to do."""


def seconds(spec: RunSpec, device: str = "cpu") -> float:
    """Seconds that a run of this resolved spec would take alone on this machine."""
    short = spec.model_copy(
        update={"steps": STEPS, "evaluate_every": 10**9, "log_every": 1, "checkpoint_every": 10**9,
                "schedule": type(spec.schedule)()}
    )  # fmt: skip
    watch = _Stopwatch()
    with tempfile.TemporaryDirectory(prefix="altgrad-probe-") as folder:
        run = RunStore(Path(folder)).run("probe", "probe").create(short.to_yaml(), {"steps": STEPS})
        data = short.data.build(short.seed, short.model.context)
        train_run(short, run, data, device=device, sinks=[watch])
    step = (watch.at[STEPS] - watch.at[1]) / (STEPS - 1)
    return START_SECONDS + spec.steps * step + (spec.steps // spec.evaluate_every + 1) * watch.evaluated
