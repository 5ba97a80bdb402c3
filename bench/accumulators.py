"""python -m bench.accumulators errors | llama | step | machine: what accumulators lose, and what emulating costs.

errors    by k: rms(emulated - exact) / rms(exact) and the cosine of a product with the exact one, exact being
          float64; terms are cast normal numbers, or the operands of the products of a small Llama in training
step      a training step of a 6 x 384 GPT, all products of its body emulated, as a ratio to the float32 step
machine   equal bits with `torch._scaled_mm`, use_fast_accum both ways, by k; needs a GPU that knows FP8
"""

import argparse
import math
import statistics

import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from altgrad.nn import PrecisionPolicy, QuantizedLayer, quantize_model
from altgrad.nn.accumulated import operand_values
from altgrad.quantize import Quantizer
from altgrad.quantize.accumulator import AccumulatorSpec, Digits, Factor
from altgrad.quantize.accumulator_engine import accumulate
from bench import step as steps
from bench.scaled_mm import machine_product, operands
from bench.timing import in_turn, machine, summary

CHIPS = ("hopper_fast", "hopper_promote_128", "ada", "blackwell")
DRAWS, SIDE = 8, 48


def factor(x: Tensor, fmt: str = "e4m3fn") -> Factor:
    """A matrix cast as a whole, its scale a power of two."""
    made = Quantizer(fmt).cast(x, False)
    return Factor(made.rounded, Digits.of(made.format), after=made.scale)


def lost(a: Factor, b: Factor, how: AccumulatorSpec) -> tuple[float, float]:
    """The relative error of a product's sums, and 1 - the cosine with the exact one."""
    exact = operand_values(a).double() @ operand_values(b).double().T
    found = accumulate(a, b, how).double()
    cosine = (found * exact).sum() / (found.norm() * exact.norm())
    return float((found - exact).norm() / exact.norm()), float(1 - cosine)


def interval(values: list[float]) -> str:
    """The mean and its 95 % interval (Student's t), as powers of two."""
    logs = [math.log2(each) for each in values]
    half = stats.t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / len(logs) ** 0.5
    return f"2^{statistics.mean(logs):.2f} +- {half:.2f}"


def errors() -> None:
    """Print the error by k, of normal terms."""
    print("| k | " + " | ".join(CHIPS) + " | 1 - cosine, fast |\n|---|" + "---|" * (len(CHIPS) + 1))
    for k in (256, 512, 1024, 2048, 4096, 8192, 16384):
        cells, cosines = [], []
        for chip in CHIPS:
            how, found = AccumulatorSpec.model_validate(chip), []
            for draw in range(DRAWS):
                torch.manual_seed(draw)
                error, cosine = lost(factor(torch.randn(SIDE, k)), factor(torch.randn(SIDE, k)), how)
                found.append(error)
                cosines += [cosine] if chip == "hopper_fast" else []
            cells.append(interval(found))
        print(f"| {k} | {' | '.join(cells)} | {statistics.mean(cosines):.1e} |", flush=True)


def llama() -> None:
    """Print the error of a model's own products."""
    print("| product of a Llama | k | hopper_fast | hopper_promote_128 | ratio |\n|---|---|---|---|---|")
    for (name, k), taken in llama_products().items():
        fast, promoted = ([lost(a, b, AccumulatorSpec.model_validate(chip))[0] for a, b in taken] for chip in CHIPS[:2])
        ratio = statistics.mean(fast) / statistics.mean(promoted)
        print(f"| {name} | {k} | {interval(fast)} | {interval(promoted)} | {ratio:.1f} |")


def llama_products() -> dict[tuple[str, int], list[tuple[Factor, Factor]]]:
    """The operands of products of the last of some training steps of a small Llama, by product and k; up to 48 rows."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=512, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=8
    )
    model: nn.Module = LlamaForCausalLM(config)
    policy = {product: {"accumulator": "hopper_fast"} for product in ("forward", "grad_input", "grad_weight")}
    casts = {"weight": "e4m3fn", "input": "e4m3fn", "grad_output": "e5m2"}
    quantize_model(model, PrecisionPolicy.made_from({"rules": [{"match": "*layers*", **casts, **policy}]}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found: dict[tuple[str, int], list[tuple[Factor, Factor]]] = {}

    def keep(name: str, a: Factor, b: Factor, y: Tensor) -> None:
        cut = [each._replace(units=each.units[: 48 * max(1, len(each.units) // 48) : max(1, len(each.units) // 48)])
               for each in (a, b)]  # fmt: skip
        found.setdefault((name, a.units.shape[1]), []).append((cut[0], cut[1]))

    for number in range(12):
        for layer in model.modules():
            if isinstance(layer, QuantizedLayer) and number == 11:
                layer.shown = keep
        tokens = (torch.randint(64, (8, 257)).cumsum(1) * 7) % 512
        logits = model(tokens[:, :-1]).logits
        functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(sorted(found.items()))


def step(rounds: int, threads: int) -> None:
    """Print the ratio of steps."""
    torch.set_num_threads(threads)
    casts = {"match": "blocks.*", "weight": "e4m3fn", "input": "e4m3fn", "grad_output": "e5m2"}
    policies = {"float32 products": casts}
    for chip in ("hopper_fast", "hopper_promote_128", "blackwell"):
        adding = {product: {"accumulator": chip} for product in ("forward", "grad_input", "grad_weight")}
        policies[chip] = {**casts, **adding}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arms = {"float32": steps.arm(None, compiled=False, engine="eager", device=device)}
    for name, rule in policies.items():
        policy = PrecisionPolicy.made_from({"rules": [rule]})
        arms[name] = steps.arm(policy, compiled=False, engine="eager", device=device)
    print(f"{machine()}, {threads} thread(s), {device}\n\n| step | seconds | x float32 (quartiles) |\n|---|---|---|")
    for name, (seconds, low, middle, high) in summary(in_turn(arms, rounds=rounds, warm_up=1), "float32").items():
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
    options = parser.parse_args()
    if options.what == "step":
        step(options.rounds, options.threads)
    else:
        {"errors": errors, "llama": llama, "machine": against_machine}[options.what]()


if __name__ == "__main__":
    main()
