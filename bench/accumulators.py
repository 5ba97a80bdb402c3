"""python -m bench.accumulators errors | llama | step | machine: what accumulators lose, and what emulating costs.

errors    by k: rms(emulated - exact) / rms(exact) and the cosine of a product with the exact one, exact being
          float64; terms are cast normal numbers
llama     the same of the operands of a Llama's own products, from a .gguf (needs the package gguf)
step      a training step of a 6 x 384 GPT, all products of its body emulated, as a ratio to the float32 step; on a
          CPU in the processor's seconds, whatever else the machine does
machine   equal bits with `torch._scaled_mm`, use_fast_accum both ways, by k; needs a GPU that knows FP8
"""

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from altgrad.data.documents import locate
from altgrad.nn import PrecisionPolicy, quantize_model
from altgrad.nn.accumulated import operand_values
from altgrad.quantize import Quantizer
from altgrad.quantize.accumulator import AccumulatorSpec, Digits, Factor
from altgrad.quantize.accumulator_engine import accumulate
from bench import step as steps
from bench.scaled_mm import machine_product, operands
from bench.timing import in_turn, machine, summary

CHIPS = ("hopper_fast", "hopper_promote_128", "ada", "blackwell")
DRAWS, SIDE, WINDOW = 8, 48, 512


def factor(x: Tensor, fmt: str = "e4m3fn") -> Factor:
    """A matrix cast as a whole, its scale a power of two."""
    made = Quantizer(fmt).cast(x, False)
    return Factor(made.rounded, Digits.of(made.format), after=made.scale)


class Lost(NamedTuple):
    """What a product's sums lost, relative to the exact product."""

    error: float
    """The root of its mean square."""
    cosine: float
    """1 less the cosine of the sums with the exact ones."""
    shrinks: float
    """By how much the sums are shorter along the exact ones."""


def lost(a: Factor, b: Factor, how: AccumulatorSpec) -> Lost:
    """What the accumulator loses, against float64."""
    exact = operand_values(a).double() @ operand_values(b).double().T
    found = accumulate(a, b, how).double()
    along = float((found * exact).sum() / exact.square().sum())
    cosine = float((found * exact).sum() / (found.norm() * exact.norm()))
    return Lost(float((found - exact).norm() / exact.norm()), 1 - cosine, 1 - along)


def half_width(values: Sequence[float]) -> float:
    """Of the 95 % interval of the mean (Student's t)."""
    return float(stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5)


def interval(values: Sequence[float]) -> str:
    """The mean and its interval, as powers of two."""
    logs = [math.log2(each) for each in values]
    return f"2^{statistics.mean(logs):.2f} +- {half_width(logs):.2f}"


def plain_interval(values: Sequence[float]) -> str:
    """The mean and its interval, as they are."""
    return f"{statistics.mean(values):.1e} +- {half_width(values):.0e}"


def errors() -> None:
    """Print the error by k, of normal terms."""
    heads = ["k", *CHIPS, "the casts' own", "1 - cosine, fast", "shrinks by, fast"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for k in (256, 512, 1024, 2048, 4096, 8192, 16384):
        found: dict[str, list[Lost]] = {chip: [] for chip in CHIPS}
        casts = []
        for draw in range(DRAWS):
            torch.manual_seed(draw)
            x, w = torch.randn(SIDE, k), torch.randn(SIDE, k)
            a, b = factor(x), factor(w)
            exact = x.double() @ w.double().T
            casts.append(
                float((operand_values(a).double() @ operand_values(b).double().T - exact).norm() / exact.norm())
            )
            for chip in CHIPS:
                found[chip].append(lost(a, b, AccumulatorSpec.model_validate(chip)))
        cells = [interval([each.error for each in found[chip]]) for chip in CHIPS]
        fast = found["hopper_fast"]
        cells += [interval(casts), interval([each.cosine for each in fast])]
        print(f"| {k} | {' | '.join(cells)} | {plain_interval([each.shrinks for each in fast])} |", flush=True)


def llama(file: Path, tokens: int, blocks: int) -> None:
    """Print the error of the products of a model's own operands, by the number of terms."""
    heads = ["product", "k", *CHIPS[:2], "ratio", "1 - cosine, fast", "shrinks by, fast"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for (name, k), taken in sorted(real_products(file, tokens, blocks).items()):
        by_chip = [[lost(a, b, AccumulatorSpec.model_validate(chip)) for a, b in taken] for chip in CHIPS[:2]]
        fast, promoted = ([each.error for each in found] for found in by_chip)
        ratio = 2 ** statistics.mean(math.log2(x / y) for x, y in zip(fast, promoted, strict=True))
        cosine, shrinks = [each.cosine for each in by_chip[0]], [each.shrinks for each in by_chip[0]]
        rest = f"{interval(cosine)} | {plain_interval(shrinks)}"
        print(f"| {name} | {k} | {interval(fast)} | {interval(promoted)} | {ratio:.1f} | {rest} |", flush=True)


def real_products(file: Path, tokens: int, blocks: int) -> dict[tuple[str, int], list[tuple[Factor, Factor]]]:
    """The operands of products of the first blocks of a Llama in a .gguf, by product and k; 48 rows of each.

    x and g of a sample text's tokens, g under the head that the file has, behind these blocks. A weight's gradient sums
    over tokens: as many as are asked, and the first half, quarter and so on of them.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    model.model.layers = model.model.layers[:blocks]
    text = "\n\n".join(pq.read_table(locate("eulaw"), columns=["text"])["text"].to_pylist()[:200])
    ids = torch.tensor(AutoTokenizer.from_pretrained(**where)(text)["input_ids"][: tokens + 1])
    linears = {name: layer for name, layer in model.model.named_modules() if isinstance(layer, nn.Linear)}
    x: dict[str, list[Tensor]] = {name: [] for name in linears}
    g: dict[str, list[Tensor]] = {name: [] for name in linears}
    for name, layer in linears.items():
        layer.register_forward_hook(lambda _, given, __, name=name: x[name].append(given[0].detach()[0]))
        layer.register_full_backward_hook(lambda _, __, given, name=name: g[name].append(given[0].detach()[0]))
    for start in range(0, tokens, WINDOW):
        part = ids[start : start + WINDOW + 1]
        logits = model(part[None, :-1]).logits[0]
        functional.cross_entropy(logits, part[1:]).backward()
    found: dict[tuple[str, int], list[tuple[Factor, Factor]]] = {}

    def keep(product: str, a: Tensor, b: Tensor, fmt: str = "e4m3fn") -> None:
        cut = (factor(each[:: len(each) // SIDE][:SIDE], of) for each, of in ((a, fmt), (b, "e4m3fn")))
        found.setdefault((product, a.shape[1]), []).append((next(cut), next(cut)))

    for name, layer in linears.items():
        each_x, each_g, w = torch.cat(x[name]), torch.cat(g[name]), layer.weight.detach()
        keep("forward", each_x, w)
        keep("grad_input", each_g, w.T, "e5m2")
        k = tokens
        while k >= 256:
            keep("grad_weight", each_g[:k].T, each_x[:k].T, "e5m2")
            k //= 2
    return found


def step(rounds: int, threads: int) -> None:
    """Print the ratio of steps."""
    torch.set_num_threads(threads)
    casts = {"match": "blocks.*", "weight": "e4m3fn", "input": "e4m3fn", "grad_output": "e5m2"}
    policies = {"float32 products": casts}
    for chip in ("hopper_fast", "hopper_promote_128", "blackwell"):
        adding = {product: {"accumulator": chip} for product in ("forward", "grad_input", "grad_weight")}
        policies[chip] = {**casts, **adding}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arms = {"float32": steps.training(steps.gpt(), how="eager", device=device)}
    for name, rule in policies.items():
        policy = PrecisionPolicy.made_from({"rules": [rule]})
        arms[name] = steps.training(quantize_model(steps.gpt(), policy), how="eager", device=device)
    print(f"{machine()}, {threads} thread(s), {device}\n\n| step | seconds | x float32 (quartiles) |\n|---|---|---|")
    clock = time.perf_counter if device == "cuda" else time.process_time
    taken = in_turn(arms, rounds=rounds, warm_up=1, clock=clock)
    for name, (seconds, low, middle, high) in summary(taken, "float32").items():
        print(f"| {name} | {seconds:.3f} | {middle:.2f} ({low:.2f}-{high:.2f}) |")


def against_machine() -> None:
    """Print how many of 10^4 products by k differ from the machine's."""
    if not torch.cuda.is_available():
        raise SystemExit("no GPU is here, and a CPU's torch._scaled_mm adds up in float32.")
    print("| k | fast: differ from hopper_fast | split: differ from hopper_promote_128 |\n|---|---|---|")
    digits, one = Digits(3, -6, 8), torch.ones((), device="cuda")
    for k in (32, 64, 96, 128, 256, 512, 1024, 2048, 4096):
        a, a8 = (each.cuda() for each in operands("e4m3fn", 112, k, 1.0))
        b, b8 = (each.cuda() for each in operands("e4m3fn", 96, k, 1.0))
        cells = []
        for fast, chip in ((True, "hopper_fast"), (False, "hopper_promote_128")):
            how = AccumulatorSpec.model_validate(chip)
            ours = accumulate(Factor(a, digits), Factor(b, digits), how)
            theirs = machine_product(a8, b8, one, one, fast=fast)
            differ = int((ours.to(torch.bfloat16).float() if fast else ours).ne(theirs).sum())
            cells.append(f"{differ} of {ours.numel()}")
        print(f"| {k} | {' | '.join(cells)} |")


def main() -> None:
    """Parse the options and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["errors", "llama", "step", "machine"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, help="a .gguf, for llama")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--blocks", type=int, default=2)
    options = parser.parse_args()
    if options.what == "step":
        step(options.rounds, options.threads)
    elif options.what == "llama":
        llama(options.model, options.tokens, options.blocks)
    else:
        {"errors": errors, "machine": against_machine}[options.what]()


if __name__ == "__main__":
    main()
