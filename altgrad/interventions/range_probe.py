"""What the casts of a step say about their range: which need another bit of exponent, and which could spare one.

The step is run again, in eager, with every cast shown to nobody else and every buffer put back. That is a pass over
whole tensors, and it happens when a run has failed already; until then it costs nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from altgrad.formats.neighbour import neighbour
from altgrad.measures import share
from altgrad.measures.range import range_counts
from altgrad.nn import fresh_gradients, observed, quantizers
from altgrad.quantize import Cast, Quantizer


@dataclass(frozen=True)
class RangeLook:
    """One cast in one step. Rates are shares of finite (non-zero) values, NaN where there are none.

    saturation, underflow: in the present format. finer_loss: what would underflow or saturate with one bit moved from
    the exponent to the mantissa, under a scale of its own; NaN where no bit can be moved. fatal: saturated values
    become inf or NaN here.
    """

    saturation: float
    underflow: float
    finer_loss: float
    fatal: bool = False

    def needs_range(self, saturation: float, underflow: float) -> bool:
        """Whether a rate is above its limit, or anything at all has been lost for good."""
        return self.saturation > (0.0 if self.fatal else saturation) or self.underflow > underflow

    def spares_range(self, loss: float) -> bool:
        """Whether a bit less of exponent would lose at most that share."""
        return self.finer_loss <= loss


def look_at_casts(model: nn.Module, losses: Callable[[], Iterator[Tensor]]) -> dict[str, RangeLook]:
    """Every cast of a step run again, by site. `.grad`, buffers and generators stay what they were."""
    known = {quantizer.site: quantizer for quantizer in quantizers(model)}
    counts: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def see(cast: Cast) -> None:
        found = range_counts(cast.exact, cast.unbounded, cast.rounded, cast.format)
        found["finer_lost"] = _lost_when_finer(known[cast.site], cast)
        sums = counts.setdefault(cast.site, {})
        for name, value in found.items():
            sums[name] = sums[name] + value if name in sums else value

    devices = [p.device for p in (next(model.parameters()),) if p.device.type == "cuda"]
    with torch.random.fork_rng(devices), observed(model, see):
        fresh_gradients(model, losses)
    return {site: _rates(known[site], {k: float(v) for k, v in sums.items()}) for site, sums in counts.items()}


def _rates(quantizer: Quantizer, sums: Mapping[str, float]) -> RangeLook:
    return RangeLook(
        share(sums["saturated"], sums["finite"]),
        share(sums["underflow"], sums["nonzero"]),
        share(sums["finer_lost"], sums["nonzero"]),
        quantizer.spec.overflow == "inf",
    )


def _lost_when_finer(quantizer: Quantizer, cast: Cast) -> Tensor:
    """How many values of this cast the next finer format would lose; NaN where there is none."""
    finer = neighbour(cast.format, -1)
    if finer is None or not finer.in_tensor_domain:
        return cast.exact.new_full((), torch.nan)
    x = cast.exact if cast.scale is None else cast.exact * cast.scale
    spec = type(quantizer.spec).made_from(quantizer.spec.tree() | {"format": str(finer), "outliers": None})
    other = Quantizer(
        spec, cast.site, quantizer.role, rows=quantizer.rows, reduced=quantizer.reduced, run=quantizer.run,
        shape=tuple(x.shape),
    ).to(x.device)  # fmt: skip
    other.average = quantizer.average
    made = other.cast(x, live=False)
    counts = range_counts(made.exact, made.unbounded, made.rounded, finer)
    return counts["underflow"] + counts["saturated"]
