"""Format advice from one pass, against one pass for each format: seconds, and decibels apart.

    python -m bench.advice [--elements 10000000] [--write]

One pass: the histogram of `altgrad.measures.value_histogram`, and on it every format of the catalog with 8 bits or
fewer at the power-of-two amax scale: SQNR, underflow, saturation, code utilisation. One pass per format, twice: `cast`
is the least that could give an SQNR, the cast and the sum of squared errors; `fit` is `fit_cast`, which gives the same
four figures. Both are timed on three formats and multiplied. Distances are over the four scales of `fit_formats`, on
samples of 2^20 of three distributions and on the matrices of all-MiniLM-L6-v2 where its package is installed.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from altgrad.diagnosis.advice import CANDIDATES
from altgrad.formats import CATALOG, FloatFormat
from altgrad.measures.format_fit import fit_cast, fit_formats
from altgrad.measures.reference_sample import reference_sample
from altgrad.measures.value_histogram import ValueHistogram, fit_histogram
from altgrad.quantize import round_to
from altgrad.quantize.scaling import scale_of
from altgrad.training.weights import find_weights
from bench.minilm import model_folder
from bench.page import refresh
from bench.timing import machine

PAGE = Path(__file__).resolve().parents[1] / "docs" / "DIAGNOSE.md"
ROUNDS = 3


def seconds(task: Callable[[], object]) -> float:
    """Median over the rounds."""
    taken = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        task()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def snug(x: Tensor, fmt: FloatFormat) -> float:
    """The power of two that puts amax at the largest value."""
    return float(scale_of(x.abs().amax(), fmt))


def squared_error(x: Tensor, fmt: FloatFormat) -> Tensor:
    """The least that gives an SQNR."""
    return (round_to(x, fmt, scale=snug(x, fmt)) - x).square_().sum(dtype=torch.float64)


def one_pass(x: Tensor, formats: list[FloatFormat]) -> None:
    """All figures of all formats."""
    histogram = ValueHistogram()
    histogram.add(x)
    amax = torch.tensor(histogram.amax)
    for fmt in formats:
        histogram.fit(fmt, float(scale_of(amax, fmt)))


def speed(elements: int) -> list[str]:
    """Rows of the table of seconds."""
    formats = [fmt for entry in CATALOG if (fmt := FloatFormat.parse(entry.name)).bits <= 8]
    x = torch.randn(elements, generator=torch.Generator().manual_seed(0))
    few = formats[:: max(1, len(formats) // 3)][:3]
    together = seconds(lambda: one_pass(x, formats))
    tasks: Mapping[str, Callable[[], object]] = {
        "cast and squared error, per format": lambda: [squared_error(x, fmt) for fmt in few],
        "`fit_cast`, per format": lambda: [fit_cast(x, fmt, snug(x, fmt)) for fmt in few],
    }
    rows = [f"| one pass, {len(formats)} formats | {together:.2f} | 1 |"]
    for name, task in tasks.items():
        taken = seconds(task) / len(few) * len(formats)
        rows.append(f"| {name}, times {len(formats)} | {taken:.1f} | {taken / together:.0f} |")
    return rows


def distance(x: Tensor) -> tuple[float, float]:
    """The largest distance in SQNR at power-of-two scales, and at real ones."""
    formats = [FloatFormat.parse(name) for name in (*CANDIDATES, "e2m1", "e1m6")]
    histogram = ValueHistogram()
    histogram.add(x)
    found, brute = fit_histogram(histogram, formats), fit_formats(x.float(), formats)
    exact = estimated = 0.0
    for name, fit in found.items():
        for scale, cast in fit._asdict().items():
            true = fit_cast(x.float(), FloatFormat.parse(name), cast.scale)
            apart = max(abs(cast.sqnr_db - true.sqnr_db), abs(true.sqnr_db - getattr(brute[name], scale).sqnr_db))
            if scale.endswith("power_of_two"):
                exact = max(exact, apart)
            else:
                estimated = max(estimated, apart)
    return exact, estimated


def distances() -> list[str]:
    """Rows of the table of decibels."""
    rows = []
    for name in ("normal", "laplace", "t5"):
        exact, estimated = distance(reference_sample(name))
        rows.append(f"| {name}, 2^20 values | {exact:.1e} | {estimated:.4f} |")
    folder = model_folder()
    if folder is not None:
        found = [
            distance(t.load()) for t in find_weights(folder).tensors if len(t.shape) == 2 and "embed" not in t.name
        ]
        exact, estimated = (max(column) for column in zip(*found, strict=True))
        rows.append(f"| all-MiniLM-L6-v2, the worst of {len(found)} matrices | {exact:.1e} | {estimated:.4f} |")
    return rows


def main() -> None:
    """Print both tables; with --write put them into docs/DIAGNOSE.md."""
    parser = argparse.ArgumentParser(description="Format advice against brute force.")
    parser.add_argument("--elements", type=int, default=10_000_000)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = [
        f"{options.elements:,} normal elements, one thread, median of {ROUNDS} rounds; {machine()}.", "",
        "| | seconds | times one pass |", "|---|---|---|", *speed(options.elements), "",
        "| tensor | largest distance in dB, power-of-two scales | real scales (estimates) |", "|---|---|---|",
        *distances(),
    ]  # fmt: skip
    print("\n".join(table))
    if options.write:
        refresh(PAGE, "advice", "\n".join(table))


if __name__ == "__main__":
    main()
