"""dead: units that do nothing.

    dead_share       features of what enters a layer that are 0 for every token of the window
    cast_dead_share  the same after the layer's cast: what is dead here and alive before was killed by the format
    dormant_share    features with a mean magnitude of at most 0.025 of the layer's mean
    grad_dead_share  rows of the weight's gradient that were exactly 0 throughout the window

A unit is a feature as the next layer receives it, behind its non-linearity, which is where it can be zero. The step is
run forward again, casts on and unrecorded; gradients are the step's own. Layers are the Linear layers, quantised or not
(`altgrad.measures.dead`). A window is `window` observations, and is reported when it is full.
"""

import warnings
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from altgrad.measures import activation_sums, alive_features, alive_rows, dead_share, dormant_share
from altgrad.measures.metric import Metric
from altgrad.monitors.alarm import AlarmLatch
from altgrad.monitors.monitor import (
    NOTHING,
    Context,
    Every,
    Found,
    MonitorSpec,
    Replay,
    ReplayMonitor,
    Report,
    Values,
    at,
)  # fmt: skip
from altgrad.nn import Processes, QuantizedLayer, weight_names
from altgrad.nn.layers import is_layer, is_turned
from altgrad.optim import whole_tensor
from altgrad.symptoms import MOSTLY_DEAD, Phase

NAMES = ("dead_share", "cast_dead_share", "dormant_share", "grad_dead_share")
DEAD = "{site}: {value:.0%} of its units are {which}."


class DeadSpec(MonitorSpec):
    """Dead and dormant features of what enters each layer, before and after its cast, and rows without gradient."""

    kind: ClassVar[str] = "dead"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("dead_share", "ratio", "features 0 for every token", "#(all x = 0) / features", "higher",
               "above `share`"),
        Metric("cast_dead_share", "ratio", "features 0 for every token after the cast", "#(all Q(x) = 0) / features",
               "higher", "above `share`"),
        Metric("dormant_share", "ratio", "features that hardly fire", "#(mean |x| <= 0.025 layer mean) / features",
               "higher"),
        Metric("grad_dead_share", "ratio", "rows without any gradient", "#(row of dW = 0) / rows", "higher",
               "above `share`"),
    )  # fmt: skip
    every: Every = 100
    window: Annotated[int, Field(ge=1)] = 1
    """Observations that are taken together."""
    share: Annotated[float, Field(gt=0, le=1)] = MOSTLY_DEAD
    """The dead share (0 to 1) above which it alarms."""

    def build(self, context: Context = NOTHING) -> "Dead":
        return Dead(self.window, self.share)


class Dead(ReplayMonitor):
    """Masks of what was alive, joined over a window, and sums of magnitudes."""

    alike: ClassVar[tuple[str, ...]] = NAMES
    phase: ClassVar[Phase] = "forward"
    phases: ClassVar[Mapping[str, Phase]] = {"grad_dead_share": "backward"}

    def __init__(self, window: int, limit: float) -> None:
        self.window, self.limit = window, limit
        self.observed = 0
        self.masks: dict[str, Tensor] = {}
        self.latches = {name: AlarmLatch() for name in NAMES if name != "dormant_share"}

    @torch.no_grad()
    def measure(self, replay: Replay) -> dict[str, Found]:
        window, self.masks = self.masks, {}
        layers = {name: module for name, module in replay.model.named_modules() if is_layer(module)}
        handles = [
            layer.register_forward_pre_hook(lambda module, given, name=name: self._see(name, module, given[0]))
            for name, layer in layers.items()
        ]
        try:
            with warnings.catch_warnings():
                # Of reentrant checkpointing, which takes a forward without gradients for a mistake.
                warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
                for _ in replay.losses():
                    pass
        finally:
            for handle in handles:
                handle.remove()
        self._merge(replay.processes, next(replay.model.parameters()).device)
        weights = weight_names(replay.model)
        for key, value in window.items():
            self._join(key, value)
        for name, layer in layers.items():
            gradient = replay.gradients.get(weights.get(name, ""))
            if gradient is not None:
                gradient = whole_tensor(gradient)
                self._join(f"{name}/rows", alive_rows(gradient.T if is_turned(layer) else gradient))
        self.observed += 1
        if self.observed < self.window:
            return {}
        found = {name: self._shares(name) for name in layers if f"{name}/before" in self.masks}
        self.observed, self.masks = 0, {}
        return found

    def report(self, site: str, values: Values) -> Report:
        alarms = [
            self.alarm(site, name, values[name], self.limit, DEAD, which=name.removesuffix("_share").replace("_", "-"))
            for name, latch in self.latches.items()
            if latch.see(site, values[name] > self.limit)
        ]
        return Report(at(site, values), alarms)

    def state(self) -> dict[str, Any]:
        latches = {name: latch.state() for name, latch in self.latches.items()}
        return {"observed": self.observed, "latches": latches, **self.masks}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.observed = int(state["observed"])
        self.masks = {key: value.clone() for key, value in state.items() if isinstance(value, Tensor)}
        for name, latch in self.latches.items():
            latch.restore(state["latches"][name])

    def _see(self, name: str, layer: nn.Module, x: Tensor) -> None:
        self._join(f"{name}/before", alive_features(x))
        seen = layer.input_as_cast(x) if isinstance(layer, QuantizedLayer) else x
        self._join(f"{name}/after", alive_features(seen))
        for part, value in activation_sums(x).items():
            self._join(f"{name}/{part}", value)

    def _join(self, key: str, value: Tensor) -> None:
        """Masks of what was alive are joined, sums added."""
        if key in self.masks:
            value = self.masks[key] | value if value.dtype == torch.bool else self.masks[key] + value
        self.masks[key] = value

    def _merge(self, processes: Processes, device: torch.device) -> None:
        """What the tokens of all processes make of the step; an expert may have had none on one of them."""
        if processes.size == 1:
            return
        kinds: dict[str, tuple[torch.Size, torch.dtype]] = {}
        for each in processes.words({key: (value.shape, value.dtype) for key, value in self.masks.items()}):
            kinds |= each
        nothing = {key: torch.zeros(shape, dtype=dtype, device=device) for key, (shape, dtype) in kinds.items()}
        self.masks = nothing | self.masks
        alive = {key: mask.to(torch.uint8) for key, mask in self.masks.items() if mask.dtype == torch.bool}
        processes.join([value for key, value in self.masks.items() if key not in alive], list(alive.values()))
        self.masks |= {key: mask.to(torch.bool) for key, mask in alive.items()}

    def _shares(self, name: str) -> Found:
        part = {key: self.masks.get(f"{name}/{key}") for key in ("before", "after", "magnitude", "tokens", "rows")}
        before, after, magnitude, tokens = (part[key] for key in ("before", "after", "magnitude", "tokens"))
        assert before is not None and after is not None and magnitude is not None and tokens is not None
        rows = torch.zeros(0, dtype=torch.bool, device=before.device) if part["rows"] is None else part["rows"]
        found = dead_share(before, tokens), dead_share(after, tokens), dormant_share(magnitude, tokens)
        return dict(zip(NAMES, (*found, dead_share(rows, tokens)), strict=True))
