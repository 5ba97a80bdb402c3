"""The worst of values that may be NaN, in every order of them, and in the tables that name one."""

import itertools
import math
from typing import Any

from altgrad.diagnosis.departure import departure
from altgrad.diagnosis.page import _attribution
from altgrad.reports.rates import choose_rate
from altgrad.spec.ranking import badness
from altgrad.sweeps.forecast import _best

VALUES = (math.nan, -math.inf, -1.0, 0.0, 3.0, math.inf)


def test_nan_is_the_worst_and_never_the_best_in_any_order() -> None:
    for order in itertools.permutations(VALUES):
        assert math.isnan(max(order, key=lambda value: badness(value, "lower")))
        assert math.isnan(max(order, key=lambda value: badness(value, "higher")))
        assert min(order, key=lambda value: badness(value, "lower")) == math.inf
        assert min(order, key=lambda value: badness(value, "higher")) == -math.inf
        ordered = sorted(order, key=lambda value: badness(value, "higher"))
        assert ordered[:5] == [-math.inf, -1.0, 0.0, 3.0, math.inf] and math.isnan(ordered[5])


def test_a_rate_whose_mean_is_nan_is_never_chosen() -> None:
    losses = {1e-3: {0: math.nan, 1: 1.0}, 2e-3: {0: 2.0, 1: 2.0}, 4e-3: {0: 3.0, 1: 3.0}}
    chosen = choose_rate(losses, {0, 1})
    assert chosen is not None and chosen.rate == 2e-3
    assert {cell for cell, _ in _best({("a", 0): math.nan, ("b", 0): 1.0})} == {"b"}


def test_losses_that_are_both_nan_do_not_hide_the_widest_gap() -> None:
    ours = [{"step": step, "train/loss": math.nan if step == 0 else 1.0} for step in range(9)]
    theirs = [row | {"train/loss": row["train/loss"] + 0.25 * (row["step"] == 4)} for row in ours]
    assert departure(ours, theirs, [ours, [row | {"train/loss": 2.0} for row in ours]]).difference == 0.25


def test_a_share_that_is_nan_stands_first_and_is_drawn() -> None:
    rows = [{"site": name, "format": "e4m3fn", "share": share, "loss": 0.0}
            for name, share in (("a", 0.5), ("b", math.nan), ("c", 0.7))]  # fmt: skip
    facts: dict[str, Any] = {"attribution": rows, "attribution_batches": 1}
    shown = [line.text for line in _attribution(facts, 100)]
    places = [next(n for n, line in enumerate(shown) if line.split()[:1] == [name]) for name in ("b", "c", "a")]
    assert places == sorted(places)
