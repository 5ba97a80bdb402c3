"""From rows to words: what each test of a claim comes to.

    expect above      reproduced          the simultaneous interval lies above 0
                      not reproduced      it lies below 0
                      not seen at this size    it reaches 0 but not the margin: whatever is there is smaller
                      undecided           otherwise
    expect below      the same with the sign turned
    expect inside     reproduced          within the margin;  not reproduced: beyond it on a side;  undecided: otherwise

A descriptive test has an interval and no word, and a test whose runs are not all in is `missing`. Intervals are
Student's at Bonferroni's level of the claim's judged tests. Where arms are draws they are a random effect besides
seeds: with y the table [seeds, draws],

    var(mean y) = (MS_draws + MS_seeds - MS_rest) / (S D), at least the larger of the first two;  df = min(S, D) - 1

A share of a gap is given with Fieller's interval, and only where the gap is at least 5 standard errors.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from altgrad.numerals import signed
from altgrad.statistics.distributions import student_quantile
from altgrad.statistics.intervals import Interval, interval_of_mean
from claims.arms import arms
from claims.plan import Rows, contrast_of, pairs_of
from claims.registration import LEVEL, LOSS, Claim, ClaimTest, critical

KNOWN_GAP = 5.0
"""Standard errors that a gap must have before shares of it are told."""


@dataclass(frozen=True)
class Judged:
    """One test: its interval, the seeds it has and those it takes, and the word; share: of its gap, with both ends."""

    test: ClaimTest
    interval: Interval
    takes: int
    word: str
    share: tuple[float, float, float] | None = None

    @property
    def told(self) -> str:
        """In a cell of a table."""
        found = self.interval
        if found.n == 0:
            return "no seed yet"
        ends = f" [{signed(found.low)}, {signed(found.high)}]" if found.n > 1 else ""
        return f"{signed(found.mean)}{ends}, n = {found.n} of {self.takes}"


def judge(test: ClaimTest, claim: Claim, rows: Rows) -> Judged:
    """What the rows that are in say of a test."""
    values = rows.values(test, arms())
    found, size = contrast_of(test, values), claim.size
    takes = pairs_of(test, claim, rows, arms()) if test.measure == LOSS else test.n
    numbers = np.array([value for value in found.values() if math.isfinite(value)])
    interval = interval_of_mean(numbers, critical(len(numbers), size) if len(numbers) > 1 else math.inf)
    if test.draws and len(numbers) > 1:
        interval = _over_draws(test, values, list(found), size)
    whole = interval.n >= takes
    word = "missing" if not whole else "descriptive" if test.descriptive else decided(interval, test)
    share = None
    if test.share_of and interval.n > 1:
        gap = contrast_of(test, values, share=True)
        share = fieller(numbers, np.array([gap[seed] for seed in found if seed in gap]))
    return Judged(test, interval, takes, word, share)


def decided(interval: Interval, test: ClaimTest) -> str:
    """The word of an interval."""
    low, high = interval.low, interval.high
    if test.expect == "inside":
        if -test.margin < low and high < test.margin:
            return "reproduced"
        return "not reproduced" if low >= test.margin or high <= -test.margin else "undecided"
    low, high = (low, high) if test.expect == "above" else (-high, -low)
    if low > 0:
        return "reproduced"
    if high < 0:
        return "not reproduced"
    return "not seen at this size" if high < test.margin else "undecided"


def claim_word(words: list[str]) -> str:
    """Of a claim by those of its judged tests, the first of which is the claim itself; `missing` while it is."""
    return words[0] if words else "descriptive"


def _over_draws(test: ClaimTest, values: Mapping[str, Mapping[int, float]], seeds: list[int], size: int) -> Interval:
    drawn = [arm for arm, weight in test.contrast.items() if weight < 0]
    (fixed,) = (arm for arm, weight in test.contrast.items() if weight > 0)
    y = np.array([[values[fixed][seed] - values[arm][seed] for arm in drawn] for seed in seeds])
    s, d = y.shape
    mean = float(y.mean())
    by_seed, by_draw = y.mean(axis=1) - mean, y.mean(axis=0) - mean
    ms_seed, ms_draw = d * float(by_seed @ by_seed) / (s - 1), s * float(by_draw @ by_draw) / (d - 1)
    rest = y - mean - by_seed[:, None] - by_draw
    ms_rest = float((rest**2).sum()) / ((s - 1) * (d - 1))
    error = math.sqrt(max(ms_seed + ms_draw - ms_rest, ms_seed, ms_draw) / (s * d))
    half = student_quantile(1 - (1 - LEVEL) / (2 * size), min(s, d) - 1) * error
    return Interval(mean, error * math.sqrt(s), s, mean - half, mean + half)


def fieller(over: np.ndarray, under: np.ndarray) -> tuple[float, float, float] | None:
    """mean over / mean under with Fieller's 95 % interval, pairs; None where the gap is not known well enough."""
    n = len(over)
    if n < 2 or n != len(under):
        return None
    a, b = float(over.mean()), float(under.mean())
    covariance = np.cov(over, under) / n
    if abs(b) < KNOWN_GAP * math.sqrt(covariance[1, 1]) or b == 0:
        return None
    t2 = student_quantile((1 + LEVEL) / 2, n - 1) ** 2
    top, bottom = a * b - t2 * covariance[0, 1], b * b - t2 * covariance[1, 1]
    if bottom <= 0:
        return None
    root = math.sqrt(max(top**2 - bottom * (a * a - t2 * covariance[0, 0]), 0.0))
    return a / b, (top - root) / bottom, (top + root) / bottom
