"""python -m bench.scaled_mm: the emulated 8-bit product beside the machine's own, `torch._scaled_mm`.

    forward   y = x W^T           x, W in e4m3fn
    backward  dx = g W            g in e5m2, W in e4m3fn

Operands have the same codes on both sides (that is checked), so what differs is how a product adds up: ours in float32,
the machine's as its units do. Both are compared with the exact sum in float64, in units of 2^-24 sum |a_i b_i|, one
rounding of a float32 sum whose terms do not cancel: a float32 accumulator stays within some units, one that retains
about 14 bits (Hopper's, DeepSeek-AI 2024, arXiv 2412.19437, section 3.3.2) within hundreds to thousands.
"""

import argparse

import torch
from torch import Tensor

from altgrad.quantize import round_to
from bench.timing import in_turn, machine, summary

DTYPES = {"e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
PRODUCTS = (("forward", "e4m3fn", "e4m3fn"), ("backward", "e5m2", "e4m3fn"))


def machine_product(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, *, fast: bool = False) -> Tensor:
    """a b^T of 8-bit operands [m, k] and [n, k], at one scale each, in float32 out of the machine's own product."""
    out = torch.bfloat16 if fast else torch.float32
    found: Tensor = torch._scaled_mm(a, b.t(), scale_a=scale_a, scale_b=scale_b, out_dtype=out, use_fast_accum=fast)
    return found.float()


def operands(fmt: str, rows: int, columns: int, scale: float) -> tuple[Tensor, Tensor]:
    """Random numbers on the grid of fmt at the scale: as float32 values, and as torch's 8-bit codes of value / scale.

    ValueError if a code does not have the value.
    """
    values = round_to(torch.randn(rows, columns), fmt, scale=torch.tensor(scale))
    codes = (values / scale).to(DTYPES[fmt])
    if not torch.equal(codes.float() * scale, values):
        raise ValueError(f"torch's {fmt} has other values")
    return values, codes


def units(found: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """How far found is from the exact a b^T, in 2^-24 sum |a_i b_i|; a [m, k], b [n, k]."""
    exact, size = a.double() @ b.double().t(), a.double().abs() @ b.double().abs().t()
    return (found.double() - exact).abs() / size * 2.0**24


def compare(m: int, n: int, k: int, rounds: int) -> None:
    """Print one table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"\n[{m}, {k}] x [{n}, {k}]^T, {device}\n")
    print("| product | error of ours, rms (max) | of the machine's | ... fast | time, ours / machine's (quartiles) |")
    print("|---|---|---|---|---|")
    for name, left, right in PRODUCTS:
        a, a8 = operands(left, m, k, 2.0**-8)
        b, b8 = operands(right, n, k, 2.0**-6)
        x, w, a8, b8 = a.to(device), b.to(device), a8.to(device), b8.to(device)
        s, t = torch.tensor(2.0**-8, device=device), torch.tensor(2.0**-6, device=device)
        torch.backends.cuda.matmul.allow_tf32 = False
        errors = [units((x @ w.t()).cpu(), a, b), units(machine_product(a8, b8, s, t).cpu(), a, b)]
        if device == "cuda":
            errors.append(units(machine_product(a8, b8, s, t, fast=True).cpu(), a, b))
        told = [f"{e.square().mean().sqrt():.3g} ({e.max():.3g})" for e in errors] + ["-"] * (3 - len(errors))

        def ours(
            x: Tensor = x, w: Tensor = w, s: Tensor = s, t: Tensor = t, f: tuple[str, str] = (left, right)
        ) -> Tensor:
            return round_to(x, f[0], scale=s) @ round_to(w, f[1], scale=t).t()

        def theirs(a8: Tensor = a8, b8: Tensor = b8, s: Tensor = s, t: Tensor = t) -> Tensor:
            return machine_product(a8, b8, s, t)

        tasks = {"ours": ours, "machine": theirs}
        _, low, ratio, high = summary(in_turn(tasks, rounds=rounds), "machine")["ours"]
        print(f"| {name}: {left} x {right} | {' | '.join(told)} | {ratio:.2f} ({low:.2f}-{high:.2f}) |")


def main() -> None:
    """Parse the options and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 4096], help="k, the length of a sum")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(machine())
    torch.manual_seed(0)
    for k in options.sizes:
        compare(512, 512, k, options.rounds)


if __name__ == "__main__":
    main()
