"""python -m bench.cast: what a cast costs beside a copy of the same tensor, ours and those of what pip installs.

Every row of a table took turns with `copy_` into an existing tensor and with `clone`, round by round; the ratios are
medians over rounds with their quartiles. "counted" is the cast together with every count of the range monitor and amax,
the same pure functions fused. Peers that are not installed are named and left out. Times include writing the result:
into fresh pages or into memory that was used before, which `--memory` decides, since a large copy costs six times as
much in the one as in the other.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from altgrad.formats import FloatFormat, Rounding
from altgrad.measures import range_counts
from altgrad.quantize.engine import cast_values
from altgrad.quantize.grid import bound_units, round_to, round_units
from bench.peers import PEERS, Cast
from bench.timing import in_turn, machine, memory, summary

SCALE = 2.0**-6


def counted(x: Tensor, scale: Tensor, fmt: FloatFormat) -> tuple[Tensor, Tensor, Tensor]:
    """The cast, the counts of the range monitor, and the largest finite magnitude."""
    u = x * scale.reciprocal()
    unbounded = round_units(u, fmt, Rounding.nearest_even)
    q = bound_units(unbounded, fmt)
    magnitude = u.abs()
    amax = torch.where(magnitude < torch.inf, magnitude, 0).amax()
    return q * scale, torch.stack([c.to(torch.int32) for c in range_counts(u, unbounded, q, fmt).values()]), amax


def ours(x: Tensor, name: str) -> dict[str, Callable[[], object]]:
    """Our casts of x under both engines."""
    fmt, scale, key = FloatFormat.parse(name), torch.tensor(SCALE, device=x.device), torch.tensor(1, device=x.device)
    tasks: dict[str, Callable[[], object]] = {}
    for engine in ("eager", "compiled"):
        for mode in (Rounding.nearest_even, Rounding.stochastic):

            def task(engine: Any = engine, mode: Rounding = mode) -> Tensor:
                return cast_values(x, scale, fmt, mode, exact_reciprocal=True, key=key, engine=engine)

            tasks[f"altgrad {engine} {mode}"] = task
    fused = torch.compile(counted, dynamic=False, fullgraph=True)
    tasks["altgrad eager counted"] = lambda: counted(x, scale, fmt)
    tasks["altgrad compiled counted"] = lambda: fused(x, scale, fmt)
    tasks["altgrad round_to"] = lambda: round_to(x, fmt, scale=scale)
    return tasks


def peers(x: Tensor, name: str) -> tuple[dict[str, Callable[[], object]], list[str]]:
    """Casts of x by other packages, and the names of those that are not installed."""
    fmt, tasks = FloatFormat.parse(name), {}
    present = [peer for peer in PEERS if peer.version is not None]
    for peer in present:
        held = x if peer.on_tensors else x.cpu()
        for mode, adapter in ((Rounding.nearest_even, peer.nearest), (Rounding.stochastic, peer.stochastic)):
            cast = adapter(fmt)
            if cast is None:
                continue

            def task(cast: Cast = cast, held: Tensor = held) -> Tensor:
                return cast(held * (1 / SCALE)) * SCALE

            tasks[f"{peer.name} {mode}"] = task
    return tasks, [peer.name for peer in PEERS if peer not in present]


def table(size: int, threads: int, name: str, rounds: int, with_peers: bool, kind: str) -> None:
    """Print one table as Markdown."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(size, device=device)
    target = torch.empty_like(x)
    others, absent = peers(x, name) if with_peers else ({}, [])
    tasks = {"copy_": lambda: target.copy_(x), "clone": lambda: x.clone()} | ours(x, name) | others
    taken = in_turn(tasks, rounds=rounds)
    to_copy, to_clone = summary(taken, "copy_"), summary(taken, "clone")
    print(f"\n{name}, 2^{size.bit_length() - 1} elements, {threads} thread(s), {device}, memory {kind}\n")
    print("| | ns/element | x copy_ (quartiles) | x clone (quartiles) |\n|---|---|---|---|")
    for task in tasks:
        seconds, low, middle, high = to_copy[task]
        _, clone_low, clone, clone_high = to_clone[task]
        copied, cloned = f"{middle:.2f} ({low:.2f}-{high:.2f})", f"{clone:.2f} ({clone_low:.2f}-{clone_high:.2f})"
        print(f"| {task} | {seconds / size * 1e9:.3f} | {copied} | {cloned} |")
    if absent:
        print(f"\nNot installed: {', '.join(absent)}.")


def main() -> None:
    """Parse the options and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 20, 24], help="log2 of the sizes")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--formats", nargs="+", default=["e5m2", "e4m3fn", "e3m4"])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--memory", choices=["fresh", "kept"], default="kept", help="where results are written")
    parser.add_argument("--peers", action="store_true", help="also time what other packages do (slow)")
    options = parser.parse_args()
    print(machine())
    kind = options.memory if memory(options.memory == "fresh") else "as malloc has it"
    for size in options.bits:
        for threads in options.threads:
            for name in options.formats:
                table(1 << size, threads, name, max(5, min(options.rounds, (100 << 22) >> size)), options.peers, kind)


if __name__ == "__main__":
    main()
