"""ulp: steps measured in spacings of the format at each weight, as requested and as realised.

    ulps = delta / spacing(w)

Below 1/2, nearest storage drops a step (but for the finer side of a power of two); 0.01 flips one weight in a hundred
under stochastic storage. The realised step is the change of the stored weight: whole numbers on a grid, and what the
optimizer asked for under masters. Quantiles need a sort, so all figures are of 2^12 well-spread weights of a parameter
(a share of 1/2 then has a standard error of 0.008), or of all, if it has no more.
"""

from typing import ClassVar

from altgrad.measures import quantiles, share, ulp_counts, ulps
from altgrad.measures.metric import Metric
from altgrad.measures.quantiles import sample_on
from altgrad.measures.ulp import SHARES
from altgrad.monitors.monitor import NOTHING, Context, Found, MonitorSpec, Report, UpdateMonitor, Values, at
from altgrad.optim import Update

SIZE = 1 << 12
NAMES = tuple(f"q{round(100 * share):02d}_ulp" for share in SHARES)


class UlpSpec(MonitorSpec):
    """Quantiles of requested and realised steps in ulp of the format, and the share below one half."""

    kind: ClassVar[str] = "ulp"
    metrics: ClassVar[tuple[Metric, ...]] = tuple(
        metric
        for what, step in (("requested", "asked for"), ("realised", "made"))
        for metric in (
            *(
                Metric(f"{what}_{name}", "ulp", f"size of the steps {step}, quantile", "|delta| / spacing(w)")
                for name in NAMES
            ),
            Metric(f"{what}_below_half", "ratio", f"steps {step} below half an ulp", "#(|ulps| < 1/2) / n", "higher"),
        )
    )

    def build(self, context: Context = NOTHING) -> "Ulp":
        return Ulp()


class Ulp(UpdateMonitor):
    """Quantiles and counts over a sample of each parameter on a grid."""

    alike: ClassVar[tuple[str, ...]] = ("requested_*", "realised_*")

    def sample(self, update: Update) -> Found:
        if update.grid is None:
            return {}
        grid, (w, requested, after) = sample_on(update.grid, update.start, update.requested, update.after, size=SIZE)
        found: Found = {}
        for what, delta in (("requested", requested), ("realised", after - w)):
            steps = ulps(delta, w, grid.format, scale=grid.scale).abs()
            found |= {f"{what}_{n}": q for n, q in zip(NAMES, quantiles(steps, SHARES).unbind(), strict=True)}
            found |= {f"{what}_{name}": number for name, number in ulp_counts(steps).items()}
        return found

    def report(self, site: str, values: Values) -> Report:
        metrics: dict[str, float] = {}
        for what in ("requested", "realised"):
            metrics |= {f"{what}_{name}": values[f"{what}_{name}"] for name in NAMES}
            metrics[f"{what}_below_half"] = share(values[f"{what}_below_half"], values[f"{what}_finite"])
        return Report(at(site, metrics))
