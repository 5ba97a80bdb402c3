"""python -m bench.hadamard: what turning a tensor costs, by the matrix as we do it, and by butterflies.

    matrix      runs of d as rows, times the d x d matrix: 2 d operations an element, one reading and one writing
    butterfly   log2(d) additions an element, each with a reading and a writing; compiled, in one loop if it can be

beside `clone`, which reads and writes once, and an NVFP4 cast of the same tensor, which follows it in a product. Rows
take turns, round by round; ratios to `clone` are medians over rounds with their quartiles. The matrix is what the
library takes: see `altgrad.quantize.transform` for the reason that decides, which is the references' bits.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from altgrad.quantize import Quantizer
from altgrad.quantize.transform import HadamardSpec
from bench.page import Results
from bench.timing import in_turn, machine, summary

SIZES = (16, 128)


def butterfly(x: Tensor, size: int) -> Tensor:
    """x turned in runs of `size`: sums and differences of neighbours at distances 1, 2, 4, ..."""
    turned, distance = x.reshape(-1, size), 1
    while distance < size:
        pairs = turned.view(-1, size // (2 * distance), 2, distance)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        turned = torch.stack((first + second, first - second), 2).view(-1, size)
        distance *= 2
    return (turned * size**-0.5).view(x.shape)


def tasks(x: Tensor) -> dict[str, Callable[[], object]]:
    """What takes turns."""
    cast = Quantizer({"format": "e2m1", "scaling": "nvfp4"})  # type: ignore[arg-type]
    found: dict[str, Callable[[], object]] = {"clone": x.clone, "nvfp4 eager": lambda: cast(x)}
    fused = torch.compile(butterfly, dynamic=False, fullgraph=True)
    for size in SIZES:
        transform = HadamardSpec(size=size).build("bench/forward", 0)
        matrix = transform.matrix(x, False)
        found[f"matrix {size}"] = lambda t=transform, m=matrix: t.turn(x, m)  # type: ignore[misc]
        found[f"matrix {size} transposed"] = lambda t=transform, m=matrix: t.turn(x.mT, m)  # type: ignore[misc]
        found[f"butterfly {size} eager"] = lambda size=size: butterfly(x, size)  # type: ignore[misc]
        found[f"butterfly {size} compiled"] = lambda size=size: fused(x, size)  # type: ignore[misc]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 24], help="log2 of the numbers of elements")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--page", action="store_true", help="write the tables into bench/RESULTS.md")
    given = parser.parse_args()
    found = Results("hadamard", f"{machine()}; {torch.get_num_threads()} threads.")
    for exponent in given.sizes:
        rows = 1 << exponent // 2
        x = torch.randn(rows, (1 << exponent) // rows, device=given.device)
        taken = in_turn(tasks(x), rounds=given.rounds)
        lines = [f"2^{exponent} elements", "", "| what | ms | times clone | quartiles |", "|---|---|---|---|"]
        for name, (seconds, low, middle, high) in summary(taken, "clone").items():
            lines.append(f"| {name} | {seconds * 1e3:.2f} | {middle:.1f} | {low:.1f} to {high:.1f} |")
        found.add("\n".join(lines))
    found.write(given.page)


if __name__ == "__main__":
    main()
