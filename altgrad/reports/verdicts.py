"""Five verdicts about a difference B = L(standard) - L(manifold-aware), in nats, from its interval [l, u].

    l >= d               benefit
    u <= -d              harm
    -d < l and u < d     no practical benefit
    l > 0 or u < 0       direction only: a sign, but not yet a size that matters
    otherwise            undecided

d = 0.01 nats is the margin below which a difference is of no practical use, declared before the study.
"""

from typing import Literal, get_args

from altgrad.reports.intervals import Interval

MARGIN = 0.01
Verdict = Literal["benefit", "harm", "no practical benefit", "direction only", "undecided"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


def judge(found: Interval, margin: float = MARGIN) -> Verdict:
    """The verdict of one interval; without pairs, or with a single one, undecided."""
    if found.n < 2:
        return "undecided"
    if found.low >= margin:
        return "benefit"
    if found.high <= -margin:
        return "harm"
    if -margin < found.low and found.high < margin:
        return "no practical benefit"
    return "direction only" if found.low > 0 or found.high < 0 else "undecided"
