"""python -m bench.monitors: what watching costs a training step, as a ratio to the same step without monitors.

A GPT of 6 layers, 384 wide, on 4 x 256 tokens with a vocabulary of 8192; weight and input e4m3fn, grad_output e5m2, one
compiled graph, AdamW included. Steps of all arms take turns, round by round:

    none due       every monitor there, none of them due
    default set    range and finite, both due: a step as the 10th
    cheap          all but those that look at a step every 100 steps, all due: as the 10th
    sampled        the same, with `sample: 1/16` where a monitor has it
    all            every monitor due: as the 100th, when `rank` takes its decompositions, too

Steps are numbered as monitors at their default cadences want them, the same one over and over. "averaged" is what these
cadences come to: 1 + (cheap - 1) / 10 + (all - cheap) / 100.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from altgrad.models.model import ModelSpec
from altgrad.monitors import MonitorSpec, Replay
from altgrad.monitors.sample import SampledSpec
from altgrad.nn import PrecisionPolicy, commit, quantize_model
from altgrad.optim import AdamW
from altgrad.training.memory import keep_freed_memory
from altgrad.watching import MonitorSet
from bench.timing import in_turn, machine, summary

VOCABULARY = 8192
NONE_DUE = 2


def arm(
    kinds: Sequence[str], number: int, *, layers: int, compiled: bool, device: str, sampled: bool = False,
    waits: bool = False,
) -> Callable[[], None]:  # fmt: skip
    """Training step `number` of a fresh model, as a function. waits: the host reads before the update in any case."""
    torch.manual_seed(0)
    spec = ModelSpec.of({"kind": "gpt", "layers": layers, "width": 384, "heads": 6, "context": 256})
    model: Any = spec.build(VOCABULARY, VOCABULARY).to(device)
    policy = PrecisionPolicy.uniform(match="blocks.*", weight="e4m3fn", input="e4m3fn", grad_output="e5m2")
    quantize_model(model, policy)
    optimizer = AdamW(model.named_parameters(), lr=1e-4)
    optimizer.engine = "compiled" if compiled else "eager"
    cadence = {"every": 1 << 30} if number == NONE_DUE else {}
    few = {kind: {"sample": "1/16"} for kind, spec in MonitorSpec.kinds().items() if issubclass(spec, SampledSpec)}
    specs = [{"kind": kind, **cadence, **(few.get(kind, {}) if sampled else {})} for kind in kinds]
    watch = MonitorSet([MonitorSpec.of(spec) for spec in specs], model, optimizer)
    forward = torch.compile(model, fullgraph=True) if compiled else model
    tokens = torch.randint(VOCABULARY, (4, 257), device=device)

    def loss(run: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(run(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def step() -> None:
        watch.begin(number)
        with watch.micro_batch():
            (found := loss(forward)).backward()
        named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(list(named.values()))
        watch.look(found, norm, named, Replay(model, named, lambda: iter([loss(model)])))
        if waits or not watch.defer():
            watch.read()
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
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--only", nargs="+", metavar="SET", help="these sets, and none")
    parser.add_argument("--cpu", action="store_true", help="seconds of the processor, where others use it")
    parser.add_argument("--waits", action="store_true", help="also each with two transfers instead of one")
    parser.add_argument("--each", action="store_true", help="also every monitor on its own")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as `altgrad train` does
    every = {kind: spec.model_fields["every"].default for kind, spec in MonitorSpec.kinds().items()}
    cheap = [kind for kind, cadence in every.items() if cadence < 100]
    sets = {"none": ([], NONE_DUE), "none due": (list(every), NONE_DUE), "default set": (["range", "finite"], 10)}
    sets |= {"cheap": (cheap, 10), "sampled": (cheap, 10), "all": (list(every), 100)}
    sets |= {kind: ([kind], max(10, cadence)) for kind, cadence in every.items() if options.each}
    if options.only:
        sets = {name: sets[name] for name in ("none", *options.only)}
    if options.waits:
        sets |= {f"{name}, waits": given for name, given in sets.items() if name != "none"}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arms = {
        name: arm(
            kinds,
            number,
            layers=options.layers,
            compiled=not options.no_compile,
            device=device,
            sampled=name.startswith("sampled"),
            waits=name.endswith(", waits"),
        )
        for name, (kinds, number) in sets.items()
    }
    clock = time.process_time if options.cpu else time.perf_counter
    found = summary(in_turn(arms, rounds=options.rounds, warm_up=2, clock=clock), "none")
    how = "eager" if options.no_compile else "compiled"
    print(f"{machine()}, {options.threads} thread(s), {device}, {how}, {options.layers} layers\n")
    print("| monitors | seconds | x none (quartiles) |\n|---|---|---|")
    for name, (seconds, low, middle, high) in found.items():
        print(f"| {name} | {seconds:.3f} | {middle:.3f} ({low:.3f}-{high:.3f}) |")
    if {"cheap", "all"} <= found.keys():
        some, whole = found["cheap"][2], found["all"][2]
        print(f"| averaged at default cadence | | {1 + (some - 1) / 10 + (whole - some) / 100:.3f} |")


if __name__ == "__main__":
    main()
