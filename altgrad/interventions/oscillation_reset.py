"""oscillation_reset: masters whose cast jumps to and fro become their cast value (OsciReset, arXiv 2510.27527).

    ratio = sum |Q(w_t) - Q(w_t-1)| / sum |w_t - w_t-1|  over `window` steps;      w <- Q(w)  where ratio >= `ratio`

A weight that goes straight on has a ratio about 1: its cast travels as far as itself. One that wavers around a midpoint
crosses it with small steps, and each time its cast jumps by a whole gap. On its grid value it is as far from both
midpoints as it can be. Optimizer states stay: the authors leave the moments alone, too.

A window begins after step `not_before` and after each `every`-th step since; the step after its last one resets. The
authors begin after 64 to 70 % of training (steps 8,001 of 12,505, 15,001 of 25,500, 35,001 of 50,500), since resetting
weights that still have far to go costs progress. Q is the cast of forward's weight as it is after the step, of both
weights alike: a scale or an average that moves is no path of the weight. A path of 0 has a ratio of 0; outliers that
are carried in another format are left alone.

Only masters are reset, and only where their cast draws nothing: a weight that is stored on a grid is where it can be,
and what is rounded stochastically jumps without wavering. During a window it keeps the last weights and both paths, 12
bytes a weight, and casts each weight twice a step; between windows nothing.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from altgrad.interventions.intervention import NOTHING_DONE, Action, Answer, Intervention, InterventionSpec, Subject
from altgrad.measures import share
from altgrad.measures.metric import Metric
from altgrad.nn import weight_quantizers
from altgrad.quantize import Cast, Quantizer, StackedCasts
from altgrad.spec.run_step import RunStep, step_of


class OscillationResetSpec(InterventionSpec):
    """Set masters whose cast jumps to and fro to their cast value; TetraJet-v2's OsciReset."""

    kind: ClassVar[str] = "oscillation_reset"
    alike: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("reset_share", "ratio", "masters set to their cast value", "#(ratio >= limit) / n", "higher"),
        Metric(
            "path_ratio", "ratio", "how much farther casts travelled than masters, in the window",
            "sum |Q(w) - Q(w-)| / sum |w - w-|", "higher",
        ),
    )  # fmt: skip
    ratio: Annotated[float, Field(gt=1)] = 8.0
    """How many times farther than itself a weight's cast must have travelled."""
    window: Annotated[int, Field(ge=1)] = 50
    """Steps over which both are measured."""
    every: Annotated[int, Field(ge=3)] = 200
    """Steps from the beginning of a window to that of the next."""
    not_before: RunStep = 1
    """The step after which the first window begins, or a percentage of the run's steps such as 64%."""

    @property
    def by_share(self) -> bool:
        return isinstance(self.not_before, str)

    @model_validator(mode="after")
    def _windows_follow_one_another(self) -> "OscillationResetSpec":
        if self.every < self.window + 2:
            raise ValueError(
                f"every is {self.every}; a window of {self.window} and the step that resets take at least "
                f"{self.window + 2}."
            )
        return self


class _Site:
    """One weight: its cast, and within a window where it was and how far it and its cast have come."""

    def __init__(self, weight: Tensor, casts: Quantizer | StackedCasts) -> None:
        self.weight, self.casts = weight, casts
        self.trail: dict[str, Tensor] = {}

    def begin(self) -> None:
        last = self.weight.detach().to(torch.float32, copy=True)
        self.trail = {"last": last, "path": torch.zeros_like(last), "cast_path": torch.zeros_like(last)}

    def follow(self) -> None:
        """One step on. Q of both by the cast as it is now."""
        now, last = self.weight.detach().to(torch.float32), self.trail["last"]
        self.trail["path"] += (now - last).abs()
        self.trail["cast_path"] += (self._cast(now)[0] - self._cast(last)[0]).abs()
        last.copy_(now)

    def reset(self, ratio: float) -> Tensor:
        """Set what oscillates to its cast value. Returns how many did, and both paths in all, float64."""
        path, cast_path = self.trail["path"], self.trail["cast_path"]
        values, outlier = self._cast(self.weight.detach().to(torch.float32))
        oscillates = (torch.where(path == 0, 0.0, cast_path / path) >= ratio) & ~outlier
        self.weight.copy_(torch.where(oscillates, values.to(self.weight.dtype), self.weight))
        self.trail = {}
        return torch.stack([each.sum(dtype=torch.float64) for each in (oscillates, cast_path, path)])

    def _cast(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What forward makes of a weight, float32, and which elements it carries in another format."""
        if isinstance(self.casts, Quantizer):
            return _values(self.casts.cast(weight, live=False))
        pairs = [_values(cast.cast(each, live=False)) for cast, each in zip(self.casts.casts, weight, strict=True)]
        values, outlier = zip(*pairs, strict=True)
        return torch.stack(values), torch.stack(outlier)


def _values(made: Cast) -> tuple[Tensor, Tensor]:
    values = made.values(torch.float32)
    none = torch.zeros_like(values, dtype=torch.bool)
    return values, none if made.parts is None else made.parts.chosen.expand_as(values)


class OscillationReset(Intervention):
    """Follows every master that is cast, window by window."""

    def __init__(self, spec: OscillationResetSpec, subject: Subject) -> None:
        self.spec, self.begun = spec, 0
        """The step after which the present window began; 0 between windows."""
        if subject.steps is None and spec.by_share:
            raise ValueError(
                f"not_before is {spec.not_before} of a run's steps, and there is no run; use a number of steps."
            )
        self.first = max(1, step_of(spec.not_before, subject.steps or 0))
        optimizer, self.sites = subject.optimizer, dict[str, _Site]()
        pairs = zip(optimizer.param_groups, optimizer.storages, strict=True)
        masters = {p for group, storage in pairs if not storage.on_grid for p in group["params"]}
        parameters = dict(subject.model.named_parameters(remove_duplicate=False))
        for name, casts in weight_quantizers(subject.model, outliers=True).items():
            each = casts.casts if isinstance(casts, StackedCasts) else (casts,)
            p = parameters[name]
            if p in masters and not any(cast.draws for cast in each):
                masters.remove(p)  # of several names the first
                self.sites[name] = _Site(p, casts)
        if not self.sites:
            raise ValueError(
                "oscillation_reset sets masters to what they are cast to, and no rule casts one deterministically; "
                "leave it out."
            )

    @torch.no_grad()
    def finish(self) -> Answer:
        spec, age = self.spec, self.step - self.begun
        if not self.begun:
            if self.step >= self.first and (self.step - self.first) % spec.every == 0:
                self.begun = self.step
                for site in self.sites.values():
                    site.begin()
        elif age <= spec.window:
            for site in self._followed().values():
                site.follow()
        else:
            return self._reset()
        return NOTHING_DONE

    def _followed(self) -> dict[str, _Site]:
        """The weights whose window is whole: not those that were first cast in its midst."""
        return {name: site for name, site in self.sites.items() if site.trail}

    def _reset(self) -> Answer:
        followed, first = self._followed(), self.begun + 1
        self.begun = 0
        if not followed:
            return NOTHING_DONE
        rows = torch.stack([site.reset(self.spec.ratio) for site in followed.values()]).tolist()
        metrics, reset, weights = {}, 0, 0
        for (name, site), (count, cast_path, path) in zip(followed.items(), rows, strict=True):
            metrics[f"{name}/reset_share"] = share(count, site.weight.numel())
            metrics[f"{name}/path_ratio"] = share(cast_path, path)
            reset, weights = reset + int(count), weights + site.weight.numel()
        if not reset:
            return Answer(metrics)
        message = (
            f"{reset:,} of {weights:,} weights ({reset / weights:.2%}) oscillated between steps {first} and "
            f"{self.step - 1} and were set to their cast values."
        )
        return Answer(metrics, [Action(message, {"reset": reset, "weights": weights})])

    def state(self) -> dict[str, Any]:
        trails = {f"{name}:{part}": t for name, site in self.sites.items() for part, t in site.trail.items()}
        return {"begun": self.begun, **trails}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.begun = int(state["begun"])
        for name, site in self.sites.items():
            kept = {part: state.get(f"{name}:{part}") for part in ("last", "path", "cast_path")}
            site.trail = {part: t.clone() for part, t in kept.items() if t is not None}
