"""python -m bench.optimizers: what a step costs beside torch.optim.AdamW(foreach=True), 25 M parameters.

The parameters are those of a 12-layer GPT-2-shaped decoder, 384 wide, with a vocabulary of 10,000 (25 M in 148
tensors). Every row took turns with AdamW, round by round; ratios are medians over rounds with their quartiles. Peers
that are not installed are named and left out.
"""

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from altgrad.optim import SGD, AdamW, GridOptim, Lion, Madam, ManifoldAdamW
from bench.timing import in_turn, machine, summary

E4M3 = {"format": "e4m3fn"}
FP8_STATE = {"format": "e4m3fn", "scaling": {"kind": "block", "size": 256, "scale": "real"}, "min_size": 4096}
EIGHT_BITS = {
    "exp_avg": {**FP8_STATE, "format": "dynamic8"},
    "exp_avg_sq": {**FP8_STATE, "format": "dynamic8_unsigned"},
}


def tensors(device: str) -> list[nn.Parameter]:
    """25 M parameters with gradients, the same each time."""
    torch.manual_seed(0)
    width, layers, vocabulary = 384, 12, 10_000
    shapes: list[tuple[int, ...]] = [(vocabulary, width), (1024, width)]
    for _ in range(layers):
        shapes += [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)]
        shapes += [(width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    shapes += [(width,), (width,)]
    found = [nn.Parameter(0.02 * torch.randn(shape, device=device)) for shape in shapes]
    for p in found:
        p.grad = 0.01 * torch.randn_like(p)
    return found


def arms(device: str, engine: Any, wanted: Callable[[str], bool]) -> dict[str, Callable[[], object]]:
    """A step of each optimizer under one engine."""
    makers: dict[str, Callable[[list[nn.Parameter]], Any]] = {
        "AdamW": lambda p: AdamW(p),
        "ManifoldAdamW, master": lambda p: ManifoldAdamW(p, format="e4m3fn"),
        "ManifoldAdamW, stochastic": lambda p: ManifoldAdamW(p, storage={"kind": "stochastic", **E4M3}),
        "AdamW, nearest": lambda p: AdamW(p, storage={"kind": "nearest", **E4M3}),
        "AdamW, stochastic": lambda p: AdamW(p, storage={"kind": "stochastic", **E4M3}),
        "AdamW, kahan": lambda p: AdamW(p, storage={"kind": "kahan", **E4M3}),
        "AdamW, eco": lambda p: AdamW(p, storage={"kind": "eco", **E4M3}),
        "GridOptim, stochastic": lambda p: GridOptim(p, storage={"kind": "stochastic", **E4M3}, track=False),
        "AdamW, FP8 states": lambda p: AdamW(p, states={"exp_avg": FP8_STATE, "exp_avg_sq": FP8_STATE}),
        "AdamW, 8-bit states": lambda p: AdamW(p, states=EIGHT_BITS),
        "Lion": lambda p: Lion(p),
        "Madam": lambda p: Madam(p),
        "SGD": lambda p: SGD(p, momentum=0.9),
    }
    found: dict[str, Callable[[], object]] = {}
    for name, make in makers.items():
        if wanted(f"{name}, {engine}"):
            optimizer = make(tensors(device))
            optimizer.engine = engine
            found[f"{name}, {engine}"] = optimizer.step
    return found


def peers(device: str) -> tuple[dict[str, Callable[[], object]], list[str]]:
    """Other packages' nearest relatives, and the names of those that are not installed."""
    found: dict[str, Callable[[], object]] = {"torch SGD": torch.optim.SGD(tensors(device), momentum=0.9).step}
    absent = []
    if importlib.util.find_spec("torchao"):
        from torchao.optim import AdamW8bit, AdamWFp8, _AdamW

        bf16 = [nn.Parameter(p.detach().to(torch.bfloat16)) for p in tensors(device)]
        for p in bf16:
            p.grad = 0.01 * torch.randn_like(p)
        found["torchao AdamW, bf16 stochastic rounding"] = _AdamW(bf16, bf16_stochastic_round=True).step
        found["torchao AdamWFp8"] = AdamWFp8(tensors(device)).step
        found["torchao AdamW8bit"] = AdamW8bit(tensors(device)).step
    else:
        absent.append("torchao")
    if importlib.util.find_spec("bitsandbytes"):
        import bitsandbytes

        found["bitsandbytes AdamW8bit"] = bitsandbytes.optim.AdamW8bit(tensors(device)).step
    else:
        absent.append("bitsandbytes")
    if importlib.util.find_spec("optimi"):
        import optimi

        bf16 = [nn.Parameter(p.detach().to(torch.bfloat16)) for p in tensors(device)]
        for p in bf16:
            p.grad = 0.01 * torch.randn_like(p)
        found["optimi AdamW, bf16 Kahan"] = optimi.AdamW(bf16, lr=1e-3, kahan_sum=True).step
    else:
        absent.append("torch-optimi")
    return found, absent


def main() -> None:
    """Time the arms in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--engines", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled"])
    parser.add_argument("--only", nargs="+", default=[], help="parts of names of rows to keep")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = "torch AdamW(foreach)"
    tasks: dict[str, Callable[[], object]] = {base: torch.optim.AdamW(tensors(device), foreach=True).step}
    for engine in options.engines:
        tasks |= arms(device, engine, lambda name: not options.only or any(part in name for part in options.only))
    others, absent = peers(device)
    tasks |= others
    if options.only:
        tasks = {name: task for name, task in tasks.items() if name == base or any(o in name for o in options.only)}
    taken = in_turn(tasks, rounds=options.rounds)
    count = sum(p.numel() for p in tensors(device))
    print(f"{machine()}, {options.threads} thread(s), {device}, {count / 1e6:.1f} M parameters\n")
    print(f"| step | seconds | x {base} (quartiles) |\n|---|---|---|")
    for name, (seconds, low, middle, high) in summary(taken, base).items():
        print(f"| {name} | {seconds:.3f} | {middle:.2f} ({low:.2f}-{high:.2f}) |")
    if absent:
        print(f"\nNot installed: {', '.join(absent)}.")


if __name__ == "__main__":
    main()
