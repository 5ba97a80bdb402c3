"""python -m bench.step: what casting costs a whole training step, as a ratio to the same step without casts.

A GPT of 6 layers, 384 wide, on 4 x 256 tokens with a vocabulary of 8192; weight and input e4m3fn, grad_output e5m2,
per-tensor power-of-two current scaling, AdamW included. Steps of all arms take turns, round by round.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from altgrad.models.model import ModelSpec
from altgrad.nn import PrecisionPolicy, commit, quantize_model, quantizers
from altgrad.optim import AdamW
from bench.timing import in_turn, machine, summary

VOCABULARY = 8192


def arm(policy: PrecisionPolicy | None, *, compiled: bool, engine: Any, device: str) -> Callable[[], None]:
    """One training step of a fresh model, as a function."""
    torch.manual_seed(0)
    spec = ModelSpec.of({"kind": "gpt", "layers": 6, "width": 384, "heads": 6, "context": 256})
    model: nn.Module = spec.build(VOCABULARY, VOCABULARY).to(device)
    if policy is not None:
        quantize_model(model, policy)
        for quantizer in quantizers(model):
            quantizer.engine = engine
    forward = torch.compile(model, fullgraph=True) if compiled else model
    optimizer = AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(VOCABULARY, (4, 257), device=device)

    def step() -> None:
        logits = forward(tokens[:, :-1])
        functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if policy is not None:
            commit(model)

    return step


def main() -> None:
    """Time the arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-compile", action="store_true", help="only the eager arms")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = PrecisionPolicy.uniform(match="blocks.*", weight="e4m3fn", input="e4m3fn", grad_output="e5m2")
    arms = {
        "eager": arm(None, compiled=False, engine="eager", device=device),
        "eager, casts eager": arm(policy, compiled=False, engine="eager", device=device),
    }
    if not options.no_compile:
        arms["eager, casts compiled"] = arm(policy, compiled=False, engine="compiled", device=device)
        arms["model compiled"] = arm(None, compiled=True, engine="eager", device=device)
        arms["model compiled, with casts"] = arm(policy, compiled=True, engine="eager", device=device)
    taken = in_turn(arms, rounds=options.rounds)
    print(f"{machine()}, {options.threads} thread(s), {device}\n")
    print("| step | seconds | x eager (quartiles) | x model compiled (quartiles) |\n|---|---|---|---|")
    base = summary(taken, "eager")
    other = summary(taken, "model compiled") if not options.no_compile else None
    for name, (seconds, low, middle, high) in base.items():
        beside = "-"
        if other is not None:
            _, compiled_low, compiled_middle, compiled_high = other[name]
            beside = f"{compiled_middle:.3f} ({compiled_low:.3f}-{compiled_high:.3f})"
        print(f"| {name} | {seconds:.3f} | {middle:.3f} ({low:.3f}-{high:.3f}) | {beside} |")


if __name__ == "__main__":
    main()
