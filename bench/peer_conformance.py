"""python -m bench.peer_conformance: what installable emulators of number formats get wrong, by the checker we face.

To nearest: for every catalog format of at most 8 bits that a package knows (`bench.peers`), every value, midpoint and
quarter point, sub-normals and ties among them, with the float32 on either side, and a million random numbers over the
binades of the format and three below; finite and in range only, since beyond it conventions differ. Right is what
`bench.oracle` says, bit for bit; a zero of the other sign is counted apart, because some packages have no such notion.

Stochastically: whether any of a million draws moves a number that is on the grid already, whether a result is ever
other than one of the two neighbours, and how far the mean of 2^20 draws is from the number, in gaps and in standard
errors, at points of each kind. AltGrad's own cast goes through the same. The page docs/CONFORMANCE.md is refreshed.
Packages that are not installed are named and left out; nothing here judges our own code, so the exit code is 0.
"""

import argparse
import itertools
import math
import sys
import warnings
from collections.abc import Iterator
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from altgrad.formats import CATALOG, FloatFormat
from altgrad.quantize import round_to
from bench.exhaustive import PAGE
from bench.oracle import SIGN, Bits, Mismatch, Table, bits_of, first_from
from bench.page import refresh
from bench.peers import PEERS, Adapter, Cast, Peer
from bench.timing import machine

DRAWS, RANDOM = 1 << 20, 1_000_000
STOCHASTIC = ("e4m3fn", "e4m3f", "e4m3ieee", "e4m3fnuz")
"""One of these, the first a package knows, is rounded to stochastically: near enough to one another to compare."""


class Nearest(NamedTuple):
    """What one package's nearest cast to one format does to the critical points."""

    points: int
    wrong: int
    zeros: int
    """Zeros of the other sign than the format's."""
    first: Mismatch | None
    failure: str = ""


class Drawn(NamedTuple):
    """What one package's stochastic cast does at one number."""

    kind: str
    x: float
    stray: int
    """Draws that gave neither neighbour."""
    error: float
    """Mean minus x, away from zero, in gaps."""
    deviations: float
    """The same in standard errors."""


def critical_patterns(fmt: FloatFormat) -> Bits:
    """The points to judge by, as patterns of both signs, none beyond the largest value; always the same."""
    ladder = [fmt.magnitude(rung) for rung in range(fmt.max_code + 1)]
    exact = [low + (high - low) * Fraction(q, 4) for low, high in itertools.pairwise(ladder) for q in range(4)]
    near = np.array([first_from(point) if point else 0 for point in [*exact, ladder[-1]]], dtype=np.int64)
    random = np.random.default_rng(0)
    lowest = max(-149, fmt.e_min - fmt.mantissa_bits - 3)
    exponent = random.integers(lowest, fmt.max_binade + 1, RANDOM)
    drawn = np.ldexp(random.integers(1 << 23, 1 << 24, RANDOM).astype(np.float64), exponent - 23).astype(np.float32)
    everything = np.concatenate([near - 1, near, near + 1, drawn.view(np.uint32).astype(np.int64)])
    up = np.unique(everything.clip(0, bits_of(float(fmt.max)))).astype(np.uint32)
    return np.concatenate([up, up | np.uint32(SIGN)])


def judge(adapter: Adapter, fmt: FloatFormat) -> Nearest | None:
    """Compare a nearest cast with the table at the critical points; None where the package does not know the format."""
    patterns = np.zeros(0, np.uint32)
    try:
        cast = adapter(fmt)
        if cast is None:
            return None
        patterns = critical_patterns(fmt)
        found = cast(torch.from_numpy(patterns.view(np.float32))).numpy().view(np.uint32)
    except Exception as error:  # whatever another package raises is a finding, not our failure
        return Nearest(len(patterns), 0, 0, None, f"{type(error).__name__}: {error}".splitlines()[0])
    expected = Table(fmt).expected(patterns)
    differs = found != expected
    zeros = differs & (((found | expected) & np.uint32(SIGN - 1)) == 0)
    wrong = differs & ~zeros
    at = int(wrong.argmax())
    first = Mismatch(int(patterns[at]), int(found[at]), int(expected[at])) if wrong.any() else None
    return Nearest(len(patterns), int(wrong.sum()), int(zeros.sum()), first)


def moved(cast: Cast, fmt: FloatFormat) -> int:
    """How many of about a million draws move a number that is on the grid."""
    up = torch.tensor(fmt.magnitudes, dtype=torch.float32)
    x = torch.cat([up, -up]).repeat(DRAWS // (2 * len(up)))
    return int((cast(x.clone()) != x).sum())


def points(fmt: FloatFormat) -> Iterator[tuple[str, int, Fraction]]:
    """Kind, rung below and fraction of the gap passed of the numbers whose mean is taken."""
    one = (fmt.bias if fmt.exponent_bits else 0) << fmt.mantissa_bits
    yield "normal", one + 1, Fraction(3, 10)
    yield "next below a power of two", one - 1, Fraction(9, 10)
    yield "next above a power of two", one, Fraction(1, 10)
    if fmt.mantissa_bits:
        yield "sub-normal", 1, Fraction(3, 10)
        yield "largest sub-normal", (1 << fmt.mantissa_bits) - 1, Fraction(3, 10)
    yield "below the smallest", 0, Fraction(3, 10)
    yield "far below the smallest", 0, Fraction(1, 100)


def draw(cast: Cast, fmt: FloatFormat) -> Iterator[Drawn]:
    """Round each point, of either sign, a million times."""
    for (kind, rung, fraction), sign in itertools.product(points(fmt), (1, -1)):
        low, high = float(fmt.magnitude(rung)), float(fmt.magnitude(rung + 1))
        x = float(np.float32(low + (high - low) * float(fraction)))
        found = cast(torch.full((DRAWS,), sign * x)).double() * sign
        passed = (x - low) / (high - low)
        error = (found.mean().item() - x) / (high - low)
        deviations = error / math.sqrt(passed * (1 - passed) / DRAWS)
        yield Drawn(kind, sign * x, int(((found != low) & (found != high)).sum()), error, deviations)


def _ours_stochastic(fmt: FloatFormat) -> Cast:
    keys = itertools.count()
    return lambda x: round_to(x, fmt, "stochastic", key=next(keys))


OURS = Peer(
    "altgrad", "altgrad", "altgrad", "any with values in float32", "`round_to(x, format)`",
    lambda fmt: lambda x: round_to(x, fmt), _ours_stochastic,
)  # fmt: skip


def nearest_rows(peer: Peer) -> tuple[str, list[str]]:
    """A summary row and one row for each format that is wrong somewhere."""
    exact, rows, known = [], [], 0
    for entry in CATALOG:
        fmt = FloatFormat.parse(entry.name)
        found = judge(peer.nearest, fmt) if fmt.bits <= 8 else None
        if found is None:
            continue
        known += 1
        print(f"{peer.name:15} {entry.name:12} {found.wrong} wrong, {found.zeros} zeros", flush=True)
        if found.wrong == found.zeros == 0 and not found.failure:
            exact.append(entry.name)
            continue
        first = found.failure or (str(found.first) if found.first else "")
        rows.append(f"| {peer.name} | {entry.name} | {found.wrong} | {found.zeros} | {found.points:,} | {first} |")
    listed = "all" if len(exact) == known else ", ".join(exact) or "none"
    summary = f"| {peer.name} | {peer.version} | {peer.emulates} | {known} | {listed} | {peer.configured} |"
    return summary, rows


def stochastic_row(peer: Peer) -> str | None:
    """One row about stochastic rounding; None where the package has none."""
    for name in STOCHASTIC:
        fmt = FloatFormat.parse(name)
        cast = peer.stochastic(fmt)
        if cast is None:
            continue
        drawn = list(draw(cast, fmt))
        worst = max(drawn, key=lambda point: abs(point.deviations))
        biased = [point for point in drawn if abs(point.deviations) > 4]
        print(f"{peer.name:15} {name:12} stochastic, worst {worst}", flush=True)
        listed = "; ".join(f"{p.kind} ({p.x:.4g}): {p.error:+.4f}" for p in biased) or "none"
        return (
            f"| {peer.name} | {name} | {moved(cast, fmt):,} | {sum(p.stray for p in drawn):,} | {listed} "
            f"| {abs(worst.deviations):.1f} |"
        )
    return None


def report(peers: list[Peer], absent: list[str]) -> str:
    """Everything found, as Markdown."""
    torch.manual_seed(0)
    summaries, wrong, stochastic = [], [], []
    for peer in peers:
        summary, rows = nearest_rows(peer)
        summaries.append(summary)
        wrong += rows
        stochastic += [row for row in [stochastic_row(peer)] if row]
    return "\n".join(
        [
            f"{date.today().isoformat()}; {machine()}.",
            *([f"Not installed, so not looked at: {', '.join(absent)}."] if absent else []),
            "",
            "| package | version | emulates other ExMy | knows | bit-exact on finite in-range inputs | asked by |",
            "|---|---|---|---|---|---|",
            *summaries,
            "",
            "Where a package is not bit-exact:",
            "",
            "| package | format | wrong values | zeros of the other sign | points | first wrong value |",
            "|---|---|---|---|---|---|",
            *wrong,
            "",
            "Stochastic rounding:",
            "",
            "| package | format | grid values moved, of 2^20 draws | neither neighbour "
            "| biased at (mean error in gaps) | largest error in standard errors |",
            "|---|---|---|---|---|---|",
            *stochastic,
        ]
    )


def main() -> None:
    """Look at what is installed and refresh the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to refresh")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # other packages' deprecations
    torch.set_num_threads(1)
    absent = [peer.name for peer in PEERS if peer.version is None]
    if absent:
        print(f"not installed: {', '.join(absent)}", file=sys.stderr)
    refresh(options.page, "peers", report([OURS, *(peer for peer in PEERS if peer.version)], absent))


if __name__ == "__main__":
    main()
