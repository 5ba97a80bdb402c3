"""correlation: do large steps meet stiff weights? log2 of |requested| and of |gradient| against log2 of the spacing S.

Pearson on the logarithms and Spearman (`altgrad.measures.correlation`), of 2^14 well-spread weights of a parameter, or
of all, if it has no more: the standard error is then below 0.008. Plain Adam has no reason for either to be far from 0;
multiplicative rules push the first towards 1. A constant side, or fewer than three elements, has none (NaN). The
gradient is what the optimizer was given; clipping by the norm is a common factor and changes nothing.

Beside them, over the whole parameter: which requests are below half a spacing, by the binade of the spacing.
"""

from typing import ClassVar

from altgrad.measures import below_half_by_binade, log_correlation, share, stiffness_exponents
from altgrad.measures.metric import Metric
from altgrad.measures.quantiles import sample_on
from altgrad.monitors.monitor import NOTHING, Context, Every, Found, MonitorSpec, Report, UpdateMonitor, Values, at
from altgrad.optim import Update
from altgrad.quantize import spacing

NAMES = tuple(f"{what}_{how}" for what in ("requested", "gradient") for how in ("pearson", "spearman"))


class CorrelationSpec(MonitorSpec):
    """The correlation of requests and of gradients with the spacing at the weight, and small requests by binade."""

    kind: ClassVar[str] = "correlation"
    metrics: ClassVar[tuple[Metric, ...]] = (
        *(
            Metric(f"{what}_{how}", "ratio", f"{how.title()} correlation of {noun} with stiffness", formula)
            for what, noun in (("requested", "requests"), ("gradient", "gradients"))
            for how, formula in (("pearson", "corr(log2 |a|, log2 S)"), ("spearman", "corr(rank |a|, rank S)"))
        ),
        Metric(
            "binade_*_below_half", "ratio", "requests below half a spacing, where S = 2^* in grid units",
            "#(|requested| < S / 2) / #(requested != 0)", "higher",
        ),
    )  # fmt: skip
    every: Every = 100

    def build(self, context: Context = NOTHING) -> "Correlation":
        return Correlation()


class Correlation(UpdateMonitor):
    """Correlations over a sample, and counts by binade over all of each parameter on a grid."""

    alike: ClassVar[tuple[str, ...]] = (*NAMES, "below_half_*", "attempted_*")

    def measure(self, update: Update, kept: Found) -> Found:
        if update.grid is None:
            return {}
        fmt = update.grid.format
        counts = below_half_by_binade(update.requested, update.start, fmt, scale=update.grid.scale)
        exponents = stiffness_exponents(fmt)
        return {
            f"{name}_{exponent}": number
            for name, tally in counts.items()
            for exponent, number in zip(exponents, tally.unbind(), strict=True)
        }

    def sample(self, update: Update) -> Found:
        if update.grid is None:
            return {}
        gradient = update.requested if update.gradient is None else update.gradient
        grid, (weights, asked, slope) = sample_on(update.grid, update.start, update.requested, gradient)
        stiffness = spacing(weights, grid.format, scale=grid.scale)
        found: Found = {}
        for what, a in (("requested", asked), ("gradient", slope)):
            ties = log_correlation(a, stiffness)
            found |= {f"{what}_{how}": ties[how] for how in ("pearson", "spearman")}
        return found

    def report(self, site: str, values: Values) -> Report:
        metrics = {name: values[name] for name in NAMES}
        for name, attempted in values.items():
            if name.startswith("attempted_") and attempted:
                binade = name.removeprefix("attempted_")
                metrics[f"binade_{binade}_below_half"] = share(values[f"below_half_{binade}"], attempted)
        return Report(at(site, metrics))
