"""Metric: what a number that a monitor or an intervention reports means, as data that docs, panel and report read.

A key is `<kind>/<site or parameter>/<quantity>`; a Metric describes a quantity. `docs/METRICS.md` is printed from these
records by `altgrad kinds monitor --markdown`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

Worse = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Metric:
    """One quantity. `*` in `quantity` stands for what varies, as the exponent of a binade.

    unit: `ratio` for a plain one. formula: in the notation of `altgrad.measures`. worse: the direction to worry about.
    alarm: when the monitor raises one; empty for never. elsewhere: Transformer Engine's name and how it differs.
    """

    quantity: str
    unit: str
    meaning: str
    formula: str
    worse: Worse = "neither"
    alarm: str = ""
    elsewhere: str = ""


def headline(metrics: Iterable[Metric]) -> Metric | None:
    """The quantity to look at first: of those that can be worse in one direction, the first with an alarm, or else the
    first; families of quantities (`*`) are none.
    """
    judged = [metric for metric in metrics if metric.worse != "neither" and "*" not in metric.quantity]
    return next((metric for metric in judged if metric.alarm), judged[0] if judged else None)


def describing(metrics: Iterable[Metric], quantity: str) -> Metric | None:
    """The first record that describes a quantity."""
    return next((metric for metric in metrics if fnmatchcase(quantity, metric.quantity)), None)
