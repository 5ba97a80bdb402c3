"""python -m bench.step: what a recipe's casts cost a whole training step, as a ratio to the same step without casts.

A GPT of 6 layers, 384 wide, on 4 x 256 tokens with a vocabulary of 8192, float32, AdamW included; every Linear of every
block cast as the recipe has it. Steps of all arms take turns, round by round; a ratio is the median over rounds, with
the 95 % interval of that median, and the limit is for the interval's upper end.

    compiled    one graph for the whole model (`--how blocks`: one for each block), to the uncast model as one graph
    eager       to the uncast eager model; limit 2.5 for each recipe
    native      products on torch's 8-bit product (`engine: native`), where a recipe has one

Peers, where they are installed, cast the same Linears of the same model by their own emulation: torchao (Float8Linear
with `emulate`, MXFP8 emulated) and fouroversix (NVFP4 with squares, its torch backends). Transformer Engine's reference
for NVFP4 is written in Python, but its package loads its CUDA library first, so it runs on no CPU.

    python -m bench.step --rounds 40 --page            # all of it, into bench/RESULTS.md
    python -m bench.step --only fp8 nvfp4 --no-eager
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from altgrad.models.model import ModelSpec
from altgrad.monitors import MonitorSpec
from altgrad.nn import PrecisionPolicy, commit, quantize_model, quantizers, use_engine
from altgrad.optim import AdamW
from altgrad.quantize.engine import ready_compiler
from altgrad.training.memory import keep_freed_memory
from altgrad.training.regions import Regions, run_plainly
from altgrad.watching import MonitorSet
from bench.page import Results
from bench.timing import in_turn, machine, median_interval

VOCABULARY, BATCH, CONTEXT = 8192, 4, 256
E4M3, E5M2 = {"format": "e4m3fn"}, {"format": "e5m2"}
ROWS = {"format": "e4m3fn", "scaling": {"kind": "block", "size": 128}}
SQUARES = {"format": "e4m3fn", "scaling": {"kind": "block", "size": 128, "shape": "square"}}
MX = {"format": "e4m3fn", "scaling": "mx"}
NV = {"format": "e2m1", "scaling": "nvfp4"}
RECIPES: dict[str, Any] = {
    "fp8": {"weight": E4M3, "input": E4M3, "grad_output": E5M2},
    "mxfp8": {"weight": MX, "input": MX, "grad_output": MX, "operands": "per_product"},
    "deepseek": {"weight": SQUARES, "input": ROWS, "grad_output": ROWS, "operands": "per_product"},
    "nvfp4": {
        "weight": {"format": "e2m1", "scaling": {"kind": "nvfp4", "shape": "square"}},
        "input": NV, "grad_output": NV | {"rounding": "stochastic"}, "operands": "per_product",
        "grad_weight": {"transform": {"kind": "hadamard", "size": 16, "signs": "fixed"}},
    },
}  # fmt: skip
LIMITS = {"fp8": 1.05, "mxfp8": 1.20, "deepseek": 1.20, "nvfp4": 1.45}
EAGER = 2.5
Step = Callable[[], float]


def gpt(layers: int = 6, width: int = 384) -> nn.Module:
    """The model of every arm, with the same weights."""
    torch.manual_seed(0)
    shape = {"kind": "gpt", "layers": layers, "width": width, "heads": width // 64, "context": CONTEXT}
    return ModelSpec.of(shape).build(VOCABULARY, VOCABULARY)


def policy(recipe: str) -> PrecisionPolicy | None:
    """A recipe for the blocks' Linears; None for `none`."""
    return None if recipe == "none" else PrecisionPolicy(rules=[{"match": "blocks.*", **RECIPES[recipe]}])  # type: ignore[arg-type]


def training(
    model: nn.Module,
    *,
    how: str,
    device: str = "cpu",
    engine: str = "eager",
    monitors: Sequence[MonitorSpec] = (),
    dtype: str = "float32",
) -> Step:
    """One training step of a model, casts included, as a function that gives the loss. how: eager, model or blocks.
    monitors: those that look at each step. dtype: what products run in, by autocast.
    """
    model, casts = model.to(device), bool(quantizers(model))
    use_engine(model, engine)
    optimizer = AdamW(model.parameters(), lr=1e-4)
    watch = MonitorSet(monitors, model, optimizer) if monitors else None
    tokens = torch.randint(VOCABULARY, (BATCH, CONTEXT + 1), device=device)
    ready_compiler()
    if how == "blocks":
        blocks = Regions(model, plain=True)
        run_plainly(model, lambda: model(tokens[:, :-1]))
    forward: Any = torch.compile(model, fullgraph=True) if how == "model" else model

    def passes() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = functional.cross_entropy(forward(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        torch.autograd.backward(loss)
        return loss

    def step() -> float:
        if watch is not None:
            watch.begin(1)
        if how == "blocks":
            with blocks.at_work():
                loss = passes()
        else:
            loss = passes()
        optimizer.step()
        optimizer.zero_grad()
        if casts:
            commit(model)
        if watch is not None:
            watch.finish()
        return float(loss.detach()) if device == "cpu" else 0.0  # a GPU is not waited for

    return step


def arm(recipe: str, *, layers: int = 6, **options: Any) -> Step:
    """A training step of a fresh model under a recipe; see `training`."""
    model, chosen = gpt(layers), policy(recipe)
    return training(model if chosen is None else quantize_model(model, chosen), **options)


def in_blocks(module: nn.Module, name: str) -> bool:
    """What a peer converts: the Linears that the recipes cast."""
    return isinstance(module, nn.Linear) and name.startswith("blocks.")


def _torchao_fp8() -> nn.Module:
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    found: nn.Module = convert_to_float8_training(
        gpt(), config=Float8LinearConfig(emulate=True), module_filter_fn=in_blocks
    )
    return found


def _torchao_mxfp8() -> nn.Module:
    from torchao.prototype.moe_training import mxfp8_linear as mx

    class Layer(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            how = mx.KernelPreference.EMULATED, mx.ScaleCalculationMode.RCEIL
            product: Tensor = mx._to_mxfp8_then_scaled_mm(x, self.weight, *how)
            return product if self.bias is None else product + self.bias

    model = gpt()
    for name, module in model.named_modules():
        if in_blocks(module, name):
            module.__class__ = Layer
    return model


def _fouroversix() -> nn.Module:
    import fouroversix
    from fouroversix.quantize.pytorch import backend

    matrix = backend.get_rht_matrix(device="cpu")  # its default is a GPU
    backend.get_rht_matrix = lambda *_, **__: matrix
    model = gpt()
    others = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    config = fouroversix.ModelQuantizationConfig(
        quantize_backend="pytorch", matmul_backend="pytorch", keep_master_weights=True, weight_scale_2d=True,
        modules_to_not_convert=[name for name in others if not name.startswith("blocks.")],
    )  # fmt: skip
    fouroversix.quantize_model(model, config)
    return model


PEERS: dict[str, tuple[str, str, Callable[[], nn.Module]]] = {
    "torchao Float8Linear, emulated": ("fp8", "torchao", _torchao_fp8),
    "torchao MXFP8, emulated": ("mxfp8", "torchao", _torchao_mxfp8),
    "fouroversix NVFP4, torch backends": ("nvfp4", "fouroversix", _fouroversix),
}
"""By name: the recipe it is beside, its package, and the converted model."""


def peers(recipes: list[str], *, how: str) -> dict[str, Step]:
    """The steps of peers that are installed and run here; a first step tells."""
    found: dict[str, Step] = {}
    for name, (recipe, package, made) in PEERS.items():
        if recipe not in recipes or not find_spec(package):
            continue
        try:
            step = training(made(), how=how)
            step()
        except Exception as error:  # a peer that fails here is a row without figures, whatever went wrong
            print(f"{name}, {how}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            continue
        found[name] = step
    return found


def table(taken: dict[str, list[float]], against: str, limits: dict[str, float]) -> str:
    """A Markdown table of ratios to one of the arms. limits: by arm, for the upper end of the interval."""
    lines = [f"| step | seconds | x {against} (95 % of the median) | limit |", "|---|---|---|---|"]
    for name, seconds in taken.items():
        ratios = [a / b for a, b in zip(seconds, taken[against], strict=True)]
        low, high = median_interval(ratios)
        told = f"{limits[name]:.2f}{'' if high <= limits[name] else ', over'}" if name in limits else ""
        middle = statistics.median(ratios)
        lines.append(f"| {name} | {statistics.median(seconds):.3f} | {middle:.3f} ({low:.3f}-{high:.3f}) | {told} |")
    return "\n".join(lines)


def main() -> None:
    """Time the arms and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", nargs="+", metavar="RECIPE", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--how", choices=["model", "blocks"], default="model")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of products, by autocast")
    parser.add_argument("--no-eager", action="store_true")
    parser.add_argument("--no-compile", action="store_true", help="only the eager arms")
    parser.add_argument("--native", action="store_true", help="also fp8 under engine: native")
    parser.add_argument("--peers", action="store_true", help="also what is installed of torchao and fouroversix")
    parser.add_argument("--cpu", action="store_true", help="seconds of the processor, where others use it")
    parser.add_argument("--json", metavar="FILE", help="keep the seconds of every round there")
    parser.add_argument("--page", action="store_true", help="write the tables into bench/RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as `altgrad train` does
    device = "cuda" if torch.cuda.is_available() else "cpu"
    head = f"{machine()}, {options.threads} thread(s), {device}; {options.rounds} rounds, {options.layers} layers"
    results, kept = Results("steps", head), {}
    for how in ["eager"] * (not options.no_eager) + [options.how] * (not options.no_compile):
        word = "eager" if how == "eager" else "compiled"
        made = partial(arm, device=device, layers=options.layers, dtype=options.dtype)
        arms = {f"none, {word}": made("none", how="eager" if how == "eager" else "model")}
        arms |= {f"{name}, {word}": made(name, how=how) for name in options.only}
        if options.native and "fp8" in options.only:
            arms[f"fp8 native, {word}"] = made("fp8", how=how, engine="native")
        if options.peers and device == "cpu":
            arms |= {f"{name}, {word}": step for name, step in peers(options.only, how=how).items()}
        clock = time.process_time if options.cpu else time.perf_counter
        kept[word] = taken = in_turn(arms, rounds=options.rounds, clock=clock)
        limits = {f"{name}, {word}": EAGER if how == "eager" else limit for name, limit in LIMITS.items()}
        results.add(table(taken, f"none, {word}", limits))
        if options.json:
            with open(options.json, "w", encoding="utf-8") as file:
                json.dump(kept, file)
    results.write(options.page)


if __name__ == "__main__":
    main()
