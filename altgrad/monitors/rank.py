"""rank: how many directions each weight matrix uses, and whether it falls away from its twin's.

    stable_rank                       every `every` steps, by one power iteration from where the last one stopped: half
                                      a percent too high on flat spectra, exact on decaying ones
    effective_rank, r99, numerical    every `full_every` steps, through the eigenvalues of the Gram matrix in float64

Definitions in `altgrad.measures.ranks`; tensors of more than two dimensions are flattened to [first, rest], vectors
have no rank. Stable ranks fall a lot in healthy training, so the alarm compares with the run's *twin*, usually the same
in bfloat16 (`twin` in the run spec), whose `rank/.../stable_rank` is read from its metrics at the same steps
(`altgrad.measures.trend`): a heuristic, not a test at a level, since successive ranks are correlated. It is raised once
a matrix, when the rank has declined away from the twin's by more than `drop`, or `sensitive_drop` for the layers that
`sensitive_layers` match. Without a twin the same test on the run's own past gives a notice.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from altgrad.measures import (
    RankTrend,
    gram_singular_values,
    matrix_ranks,
    observe_rank,
    power_start,
    stable_rank_step,
)  # fmt: skip
from altgrad.measures.metric import Metric
from altgrad.monitors.monitor import NOTHING, Context, Found, MonitorSpec, Report, Values, Weight, WeightMonitor, at

FIRST_STEPS = 20
"""Power iterations of a matrix that is seen for the first time."""
FALLEN = "{site}: its stable rank, {value:.3g}, has fallen {drop:.0%} below {whose}."
_Drop = Annotated[float, Field(gt=0, lt=1)]


class RankSpec(MonitorSpec):
    """Stable, effective and numerical rank and r99 of every matrix, with an alarm against a twin run."""

    kind: ClassVar[str] = "rank"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "stable_rank", "directions", "energy over that of the first direction", "sum sigma^2 / sigma_1^2", "lower",
            "a sustained decline from the twin's by more than `drop` (sensitive layers `sensitive_drop`); a notice "
            "without a twin",
        ),
        Metric("effective_rank", "directions", "directions by entropy", "exp(H(sigma / sum sigma))", "lower"),
        Metric("r99", "directions", "directions with 99 % of the energy", "least k: 99 % of sum sigma^2", "lower"),
        Metric("numerical_rank", "directions", "above float32's noise", "#(sigma > max(m, n) eps sigma_1)", "lower"),
    )  # fmt: skip
    full_every: Annotated[int, Field(ge=1)] = 100
    """Steps between two observations of the whole spectrum."""
    drop: _Drop = 0.2
    """The relative decline of a rank (0 to 1), against the twin's, above which it alarms."""
    sensitive_drop: _Drop = 0.1
    """The relative decline (0 to 1) above which it alarms for the layers of `sensitive_layers`."""
    sensitive_layers: tuple[str, ...] = ("*classifier*", "*lm_head*", "*c_proj*")
    """Patterns of layer names whose ranks matter more."""

    def build(self, context: Context = NOTHING) -> "Rank":
        """ValueError for a twin that has no ranks."""
        if context.twin is None:
            return Rank(self, None)
        twin: dict[tuple[int, str], float] = {}
        for row in context.twin(["rank/*/stable_rank"]):
            twin |= {(int(row["step"]), key): value for key, value in row.items() if key != "step"}
        if not twin:
            raise ValueError("rank: the twin has no rank metrics; train it with the monitor rank.")
        return Rank(self, twin)


class Rank(WeightMonitor):
    """Keeps the first singular direction of every matrix, and the trend of its stable rank."""

    alike: ClassVar[tuple[str, ...]] = ("stable_rank", "effective_rank", "r99", "numerical_rank")
    of_grids: ClassVar[bool] = False

    def __init__(self, spec: RankSpec, twin: Mapping[tuple[int, str], float] | None) -> None:
        self.spec, self.twin = spec, twin
        self.vectors: dict[str, Tensor] = {}
        self.trends: dict[str, RankTrend] = {}
        self.raised: set[str] = set()

    def measure(self, weight: Weight) -> Found:
        name, values = weight.name, weight.values
        if values.ndim < 2 or values.numel() == 0:
            return {}
        first = name not in self.vectors
        vector = power_start(values) if first else self.vectors[name]
        found: Found = {}
        found["stable_rank"], self.vectors[name] = stable_rank_step(values, vector, FIRST_STEPS if first else 1)
        if self.step == 1 or self.step % self.spec.full_every == 0:
            full = matrix_ranks(gram_singular_values(values), values.shape)
            found |= {"effective_rank": full["effective"], "r99": full["r99"], "numerical_rank": full["numerical"]}
        return found

    def report(self, site: str, values: Values) -> Report:
        beside = None if self.twin is None else self.twin.get((self.step, f"rank/{site}/stable_rank"), math.nan)
        sensitive = any(fnmatchcase(site, pattern) for pattern in self.spec.sensitive_layers)
        drop = self.spec.sensitive_drop if sensitive else self.spec.drop
        trend = self.trends.get(site, RankTrend())
        self.trends[site], verdict = observe_rank(trend, values["stable_rank"], beside, drop=drop)
        if not verdict.raised or site in self.raised:
            return Report(at(site, values))
        self.raised.add(site)
        whose = "its twin's" if verdict.certain else "where it was early in the run"
        limit = math.nan if beside is None else beside * (1 - drop)
        details = {"drop": verdict.drop, "whose": whose}
        alarm = self.alarm(site, "stable_rank", values["stable_rank"], limit, FALLEN, **details)
        if verdict.certain:
            return Report(at(site, values), [alarm])
        return Report(at(site, values), notices=[str(alarm)])

    def state(self) -> dict[str, Any]:
        trends = {site: asdict(trend) for site, trend in self.trends.items()}
        return {"trends": trends, "raised": sorted(self.raised), **self.vectors}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.trends = {site: RankTrend(**trend) for site, trend in state["trends"].items()}
        self.raised = set(state["raised"])
        self.vectors = {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}
