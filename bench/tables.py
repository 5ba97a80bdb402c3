"""python -m bench.tables: what a cast to a table of 256 values costs beside one to an ExMy, eager and compiled.

All casts take turns, round by round (`bench.timing`); ratios are medians over rounds with their quartiles, to the
ExMy's cast of the same engine and rounding. The bound that is kept: at most 3.

    e4m3fn          the formula: the general definition, which compiled is fused, and the engine's short form
    e4m3fn values   the same values as a table, look-up instead of arithmetic: the same bits
    int8, posit8    other tables of 256 values
    lns8            one whose midpoints have all of a float32's bits: two look-ups instead of one
    bisected        the same table by torch.bucketize alone, the road not taken
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from altgrad.formats import FloatFormat, NumberFormat, Rounding, TableFormat, parse_format
from altgrad.quantize.engine import cast_values
from altgrad.quantize.grid import bound_units, round_units
from altgrad.quantize.noise import counted_bits
from bench.page import Results
from bench.patterns import as_table
from bench.timing import in_turn, machine, summary

E4M3FN = FloatFormat.parse("e4m3fn")
FORMATS: dict[str, NumberFormat] = {
    "e4m3fn": E4M3FN,
    "e4m3fn values": as_table(E4M3FN),
    "int8": parse_format("int8"),
    "posit8": parse_format("posit8"),
    "lns8": parse_format("lns8"),
}


def cast(fmt: NumberFormat, rounding: Rounding) -> Callable[[Tensor, Tensor], Tensor]:
    """What a Quantizer does that has no short form: rounded, then bounded."""

    def run(x: Tensor, key: Tensor) -> Tensor:
        noise = counted_bits(x.shape, key, device=x.device) if rounding is Rounding.stochastic else None
        return bound_units(round_units(x, fmt, rounding, noise), fmt, in_place=True)

    return run


def bisected(fmt: TableFormat) -> Callable[[Tensor, Tensor], Tensor]:
    """The same by bisection."""
    thresholds, values = torch.tensor(fmt.thresholds("nearest_even")), torch.tensor(fmt.extended)

    def run(x: Tensor, key: Tensor) -> Tensor:
        return values.index_select(0, torch.bucketize(x, thresholds, out_int32=True))

    return run


def measure(size: int, rounding: Rounding, engine: str, rounds: int) -> str:
    """One table."""
    x = torch.randn(size, generator=torch.Generator().manual_seed(0)) * 20
    key = torch.tensor(1)
    tasks: dict[str, Callable[[], Any]] = {}
    for name, fmt in FORMATS.items():
        run = cast(fmt, rounding)
        run = torch.compile(run, dynamic=False, fullgraph=True) if engine == "compiled" else run
        tasks[name] = lambda run=run: run(x, key)  # type: ignore[misc]
    tasks["e4m3fn short form"] = lambda: cast_values(
        x,
        None,
        E4M3FN,
        rounding,
        exact_reciprocal=True,
        key=key,
        engine="compiled" if engine == "compiled" else "eager",
    )
    values = FORMATS["e4m3fn values"]
    if engine == "eager" and rounding is Rounding.nearest_even and isinstance(values, TableFormat):
        road = bisected(values)
        tasks["bisected"] = lambda: road(x, key)
    assert rounding is Rounding.stochastic or tasks["e4m3fn"]().equal(tasks["e4m3fn values"]())
    lines = [
        f"2^{size.bit_length() - 1} elements, {rounding}, {engine}",
        "",
        "| cast | ms | of e4m3fn |",
        "|---|---|---|",
    ]
    for name, (seconds, low, middle, high) in summary(in_turn(tasks, rounds=rounds), "e4m3fn").items():
        lines.append(f"| {name} | {seconds * 1e3:.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    return "\n".join(lines)


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[20, 24], help="powers of two of elements")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--page", action="store_true", help="write the tables into bench/RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = Results("tables", f"{machine()}; one thread.")
    for size in options.sizes:
        for engine in ("eager", "compiled"):
            for rounding in (Rounding.nearest_even, Rounding.stochastic):
                found.add(measure(1 << size, rounding, engine, options.rounds))
    found.write(options.page)


if __name__ == "__main__":
    main()
