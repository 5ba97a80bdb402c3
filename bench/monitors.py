"""python -m bench.monitors: what watching costs a training step, as a ratio to the same step without monitors.

A GPT of 6 layers, 384 wide, on 4 x 256 tokens with a vocabulary of 8192; weight and input e4m3fn, grad_output e5m2, one
compiled graph, AdamW included. Steps of all arms take turns, round by round:

    none due       every monitor there, none of them due
    default set    range and finite, both due
    cheap          all but those that look at a step every 100 steps, all due
    all            every monitor due

"averaged" is what default cadences come to: 1 + (cheap - 1) / 10 + (all - cheap) / 100.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from altgrad.models.model import ModelSpec
from altgrad.monitors import MonitorSpec, Replay, Watch
from altgrad.nn import PrecisionPolicy, commit, quantize_model
from altgrad.optim import AdamW
from bench.timing import in_turn, machine, summary

VOCABULARY = 8192


def arm(kinds: Sequence[str], *, due: bool, compiled: bool, device: str) -> Callable[[], None]:
    """One training step of a fresh model, as a function."""
    torch.manual_seed(0)
    spec = ModelSpec.of({"kind": "gpt", "layers": 6, "width": 384, "heads": 6, "context": 256})
    model: Any = spec.build(VOCABULARY, VOCABULARY).to(device)
    policy = PrecisionPolicy.uniform(match="blocks.*", weight="e4m3fn", input="e4m3fn", grad_output="e5m2")
    quantize_model(model, policy)
    optimizer = AdamW(model.named_parameters(), lr=1e-4)
    watch = Watch([MonitorSpec.of({"kind": kind, "every": 1 << 30}) for kind in kinds], model, optimizer)
    forward = torch.compile(model, fullgraph=True) if compiled else model
    tokens = torch.randint(VOCABULARY, (4, 257), device=device)

    def loss(run: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(run(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def step() -> None:
        watch.begin(1 if due else 2)
        with watch.micro_batch():
            (found := loss(forward)).backward()
        named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(list(named.values()))
        watch.gradients(found, norm, named, Replay(model, named, lambda: iter([loss(model)])))
        optimizer.step()
        optimizer.zero_grad()
        commit(model)
        watch.finish()

    return step


def main() -> None:
    """Time the arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--each", action="store_true", help="also every monitor on its own")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    every = {kind: spec.model_fields["every"].default for kind, spec in MonitorSpec.kinds().items()}
    cheap = [kind for kind, cadence in every.items() if cadence < 100]
    sets = {"none": ([], False), "none due": (list(every), False), "default set": (["range", "finite"], True)}
    sets |= {"cheap": (cheap, True), "all": (list(every), True)}
    sets |= {kind: ([kind], True) for kind in every if options.each}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arms = {
        name: arm(kinds, due=due, compiled=not options.no_compile, device=device) for name, (kinds, due) in sets.items()
    }
    found = summary(in_turn(arms, rounds=options.rounds, warm_up=2), "none")
    how = "eager" if options.no_compile else "compiled"
    print(f"{machine()}, {options.threads} thread(s), {device}, {how}\n")
    print("| monitors | seconds | x none (quartiles) |\n|---|---|---|")
    for name, (seconds, low, middle, high) in found.items():
        print(f"| {name} | {seconds:.3f} | {middle:.3f} ({low:.3f}-{high:.3f}) |")
    some, whole = found["cheap"][2], found["all"][2]
    print(f"| averaged at default cadence | | {1 + (some - 1) / 10 + (whole - some) / 100:.3f} |")


if __name__ == "__main__":
    main()
