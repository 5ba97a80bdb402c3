"""partition_clip: a weight gradient that outgrows its format is clipped where the format ends.

    t = s x_max  (mode range),        t = s x_max min(1, R_F / R_e5m2)  (mode norm)        |p.grad| <= t, elementwise

For every layer that casts its grad_output for the weight gradient; the format is that cast's, and s the delayed
power-of-two scale of p.grad *itself* (role grad_weight: it is looked at as if it were cast, and stays what it is).
It acts in a step in which the saturation rate of p.grad at that scale is above `saturation` for the `patience`-th time
in a row, and before the optimizer and before clipping by the norm, which would let one entry shrink all others.

The history takes p.grad as backward made it. So after one step the scale has caught up with a jump, and a second
saturated step in a row means that the gradient has grown by a binade again: patience 1 catches spikes, a larger one
gradients that go on exploding. Thresholds follow the bias and powers of two in the gradient exactly.

Of little use under Adam and its kin: each coordinate is divided by its own root mean square, so a steady factor on the
largest ones cancels (norm mode is little else than such a factor), and what is left is the shorter memory of a single
spike. It is made for SGD and for GridOptim, whose steps are as long as the gradient.

Where a format's range ends, in the units of a scaled tensor: the threshold of partition-relative clipping.

    range mode    t = s x_max
    norm mode     t = s x_max min(1, R_F / R_e5m2),        R_F = log2(x_max / x_min>0)

with s the scale and x_min>0 the smallest positive value. R_F counts binades, sub-normals included; e5m2 has 31.8 of
them, e4m3fn 17.8, e0m7 7.0, and e7m0 126, for which both modes agree. A bias multiplies x_max and x_min alike and
divides s, so neither mode depends on it; and a gradient times 2^k has a threshold times 2^k.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from altgrad.formats import FloatFormat, NumberFormat
from altgrad.interventions.intervention import Action, Answer, Intervention, InterventionSpec, Moment, Subject
from altgrad.measures import share
from altgrad.measures.metric import Metric
from altgrad.measures.range import range_counts
from altgrad.nn import QuantizedLayer, weight_names
from altgrad.quantize import DelayedSpec, Quantizer, QuantizerSpec

ClipMode = Literal["range", "norm"]
_REFERENCE = FloatFormat.parse("e5m2")


def range_in_binades(fmt: NumberFormat) -> float:
    """R_F = log2(largest / smallest positive value)."""
    return math.log2(float(fmt.max)) - math.log2(float(fmt.min_positive))


def clip_threshold(fmt: NumberFormat, scale: Tensor, mode: ClipMode = "range") -> Tensor:
    """The magnitude at which a tensor of this scale is clipped; of the scale's shape and dtype."""
    factor = 1.0 if mode == "range" else min(1.0, range_in_binades(fmt) / range_in_binades(_REFERENCE))
    return scale * float(fmt.max) * factor


class PartitionClipSpec(InterventionSpec):
    """Clip weight gradients at the end of their format's range while they saturate; nearly inert under Adam."""

    kind: ClassVar[str] = "partition_clip"
    alike: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "saturation_rate", "ratio", "of p.grad, as if it were cast", "#(|p.grad / s rounded| > max) / #(finite)",
            "higher",
        ),
        Metric("threshold", "gradient's own", "where it is clipped if it is", "s max [min(1, R / R_e5m2)]"),
        Metric("clipped_share", "ratio", "entries that were clipped", "#(|p.grad| > threshold) / n; else 0"),
    )  # fmt: skip
    mode: ClipMode = "range"
    """range: clip at the end of the format; norm: earlier in formats of few binades."""
    saturation: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """The saturation rate (0 to 1) above which a gradient is clipped."""
    patience: Annotated[int, Field(ge=1)] = 1
    """Saturated steps in a row before it acts."""
    margin: Annotated[int, Field(ge=-16, le=16)] = 0
    """Binades left free above the scale's amax."""
    history: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Steps whose amaxes decide the scale."""
    every: Annotated[int, Field(ge=1)] = 10
    """At which steps numbers are reported, besides those at which it acts; it looks at each."""


@dataclass
class _Site:
    """One weight: its name, the quantizer that keeps the scale of its gradient, saturated steps in a row."""

    parameter: str
    quantizer: Quantizer
    held: int = 0


class PartitionClip(Intervention):
    """Keeps an amax history for each weight gradient."""

    def __init__(self, spec: PartitionClipSpec, subject: Subject) -> None:
        self.spec = spec
        self.sites: list[_Site] = []
        device, weights = next(subject.model.parameters()).device, weight_names(subject.model)
        for name, layer in subject.model.named_modules():
            cast = layer.slot_casts.get(("grad_weight", "grad_output")) if isinstance(layer, QuantizedLayer) else None
            if cast is not None and name in weights:
                monitored = QuantizerSpec(
                    format=cast.spec.format, scaling=DelayedSpec(history=spec.history, margin=spec.margin)
                )
                quantizer = Quantizer(monitored, f"{name}/grad_weight" if name else "grad_weight", "grad_weight")
                self.sites.append(_Site(weights[name], quantizer.to(device)))
        if not self.sites:
            raise ValueError("partition_clip clips in the format of grad_output, and no rule casts it; leave it out.")

    @torch.no_grad()
    def gradients(self, moment: Moment) -> Answer:
        """A step that is skipped anyway, or whose loss is not finite, is not looked at."""
        if moment.skipped or not math.isfinite(moment.loss):
            return Answer()
        present = [site for site in self.sites if site.parameter in moment.gradients]
        looked = [self._look(site, moment.gradients[site.parameter]) for site in present]
        if not looked:
            return Answer()
        numbers = torch.stack([entry for row in looked for entry in row]).tolist()
        metrics: dict[str, float] = {}
        actions, clipped = [], False
        for index, site in enumerate(present):
            gradient, threshold = moment.gradients[site.parameter], looked[index][2]
            saturated, finite, limit, beyond = numbers[4 * index : 4 * index + 4]
            rate = share(saturated, finite)
            site.held = site.held + 1 if rate > self.spec.saturation else 0
            acts = site.held >= self.spec.patience
            if acts:
                bound = threshold.to(gradient.dtype)
                gradient.clamp_(-bound, bound)
                clipped = True
            if site.held == self.spec.patience:
                actions.append(self._action(site, rate, limit))
            if acts or self.step == 1 or self.step % self.spec.every == 0:
                told = {"saturation_rate": rate, "threshold": limit}
                told["clipped_share"] = beyond / gradient.numel() if acts else 0.0
                metrics |= {f"{site.quantizer.site}/{name}": value for name, value in told.items()}
        return Answer(metrics, actions, clipped=clipped)

    def _look(self, site: _Site, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Saturated and finite entries, the threshold, entries beyond it; the gradient then enters the history."""
        fmt = site.quantizer.spec.format
        cast = site.quantizer.cast(gradient, live=True)
        assert cast.scale is not None
        counts = range_counts(cast.exact, cast.unbounded, cast.rounded, fmt)
        threshold = clip_threshold(fmt, cast.scale, self.spec.mode).to(torch.float64)
        beyond = torch.count_nonzero(gradient.abs() > threshold)
        site.quantizer.commit()
        return counts["saturated"].to(threshold), counts["finite"].to(threshold), threshold, beyond.to(threshold)

    def _action(self, site: _Site, rate: float, threshold: float) -> Action:
        fmt = site.quantizer.spec.format
        steps = f", {site.held} steps in a row" if self.spec.patience > 1 else ""
        return Action(
            f"{site.quantizer.site}: {rate:.1%} of it saturates {fmt}{steps}; clipped at {threshold:.3g}.",
            {"site": site.quantizer.site, "saturation_rate": rate, "threshold": threshold, "mode": self.spec.mode},
        )

    def state(self) -> dict[str, Any]:
        histories = {
            f"{site.quantizer.site}:{name}": tensor
            for site in self.sites
            for name, tensor in site.quantizer.state_dict().items()
        }
        return {"held": {site.quantizer.site: site.held for site in self.sites}, **histories}

    def restore(self, state: Mapping[str, Any]) -> None:
        for site in self.sites:
            site.held = int(state["held"][site.quantizer.site])
            for name, tensor in site.quantizer.state_dict().items():
                tensor.copy_(state[f"{site.quantizer.site}:{name}"])
