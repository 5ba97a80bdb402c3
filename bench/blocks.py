"""python -m bench.blocks: what a cast with block scales costs, ours and torchao's, eager and compiled.

    block       e4m3fn, runs of 128, real scales        torchao, with triton: torch_blockwise_scale_act_quant_lhs
    mxfp8       e4m3fn, runs of 32, e8m0 by floor       torchao: to_mx and to_dtype
    mxfp4       e2m1, runs of 32, e8m0 by floor         the same
    nvfp4       e2m1, runs of 16, two levels            torchao: NVFP4Tensor.to_nvfp4 and dequantize
    nvfp4 4/6   the better of two scales by squares

All of a table take turns with `clone`, which reads and writes once, round by round (`bench.timing`); ratios are medians
over rounds with their quartiles. Every row is a whole cast: scales found, values rounded, and values back in the type
that went in, float32 for ours and bfloat16 for torchao's, as its users have them; `bf16` is ours on that. Where torchao
is not installed (`pip install "altgrad[peers]"`) it is left out; what torch.compile cannot trace is said in its row.
Two more have no rows: fouroversix builds CUDA code when it is installed, and microxcaling is not on PyPI. `--page`
writes each table into bench/RESULTS.md, where it replaces that of the same size and engine.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from altgrad.quantize import Quantizer
from altgrad.quantize.engine import ready_compiler
from bench.page import Results
from bench.timing import in_turn, machine, summary

COLUMNS = 1024
OURS: dict[str, dict[str, Any]] = {
    "block": {"format": "e4m3fn", "scaling": {"kind": "block", "scale": "real"}},
    "mxfp8": {"format": "e4m3fn", "scaling": "mx"},
    "mxfp4": {"format": "e2m1", "scaling": "mx"},
    "nvfp4": {"format": "e2m1", "scaling": "nvfp4"},
    "nvfp4 stochastic": {"format": "e2m1", "scaling": "nvfp4", "rounding": "stochastic"},
    "nvfp4 4/6": {"format": "e2m1", "scaling": {"kind": "nvfp4", "choose": [6, 4], "scale_max": 256.0}},
}
COMPARED = ("block", "mxfp8", "mxfp4", "nvfp4")
"""What torchao has, too."""
Cast = Callable[[Tensor], object]


def torchao_casts() -> Iterator[tuple[str, Cast]]:
    """Casts and back by torchao's own functions in torch."""
    from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    def block(x: Tensor) -> Tensor:
        from torchao.prototype.blockwise_fp8_training.kernels import torch_blockwise_scale_act_quant_lhs

        codes, inverse = torch_blockwise_scale_act_quant_lhs(x, 128)
        return (codes.to(torch.float32).view(len(x), -1, 128) * inverse[..., None]).view(x.shape).to(x.dtype)

    def mx(element: Any) -> Cast:
        def cast(x: Tensor) -> Tensor:
            scale, codes = to_mx(x, element, 32)
            return to_dtype(codes, scale, element, 32, x.dtype)

        return cast

    def nvfp4(x: Tensor) -> Tensor:
        return NVFP4Tensor.to_nvfp4(x, per_tensor_scale=per_tensor_amax_to_scale(x.abs().max())).dequantize(x.dtype)

    if find_spec("triton"):  # which that file imports
        yield "block", block
    yield "mxfp8", mx(torch.float8_e4m3fn)
    yield "mxfp4", mx(torch.float4_e2m1fn_x2)
    yield "nvfp4", nvfp4


def ours() -> Iterator[tuple[str, str, Cast, torch.dtype]]:
    """(scaling, row, cast, type of its input) of our casts."""
    for name, words in OURS.items():
        quantizer = Quantizer(words, "bench")  # type: ignore[arg-type]
        for row, dtype in (("altgrad", torch.float32), ("altgrad bf16", torch.bfloat16)):
            if row == "altgrad" or name in COMPARED:
                yield name, row, lambda x, q=quantizer: q.values(x, False, x.dtype), dtype  # type: ignore[misc]


def peers() -> Iterator[tuple[str, str, Cast, torch.dtype]]:
    """The same of torchao, if it is there."""
    for name, cast in torchao_casts() if find_spec("torchao") else ():
        yield name, "torchao", cast, torch.bfloat16


def ready(cast: Cast, x: Tensor, engine: str) -> Cast | str:
    """The cast under an engine, warmed up; in a few words why it does not run."""
    try:
        ready_compiler()
        run = torch.compile(cast, dynamic=False, fullgraph=True) if engine == "compiled" else cast
        run(x)
    except Exception as error:  # another package's, whatever it raises
        return f"{type(error).__name__}"
    return run


def measure(exponent: int, engine: str, rounds: int, device: str) -> str:
    """One table."""
    x = torch.randn((1 << exponent) // COLUMNS, COLUMNS, generator=torch.Generator().manual_seed(0)).to(device)
    inputs = {dtype: x.to(dtype) for dtype in (torch.float32, torch.bfloat16)}
    tasks: dict[str, Callable[[], object]] = {"clone": x.clone}
    failed: dict[str, str] = {}
    for name, row, cast, dtype in [*ours(), *peers()]:
        found = ready(cast, inputs[dtype], engine)
        if isinstance(found, str):
            failed[f"{name}: {row}"] = found
        else:
            tasks[f"{name}: {row}"] = lambda run=found, given=inputs[dtype]: run(given)  # type: ignore[misc]
    seconds_of = in_turn(tasks, rounds=rounds)
    taken = summary(seconds_of, "clone")
    lines = [f"2^{exponent} elements, {engine}, {device}", "", "| cast | ns an element | times clone | next to ours |"]
    lines.append("|---|---|---|---|")
    for label, (seconds, low, middle, high) in sorted(taken.items()):
        own, beside = f"{label.partition(':')[0]}: altgrad bf16", ""
        if own in taken and "altgrad" not in label:
            beside = "{1:.2f} ({0:.2f} to {2:.2f})".format(*statistics.quantiles(
                [theirs / ours for theirs, ours in zip(seconds_of[label], seconds_of[own], strict=True)], n=4
            ))  # fmt: skip
        ratio = f"{middle:.1f} ({low:.1f} to {high:.1f})"
        lines.append(f"| {label} | {seconds / (1 << exponent) * 1e9:.2f} | {ratio} | {beside} |")
    lines += [f"| {label} | does not run: {why} | | |" for label, why in sorted(failed.items())]
    return "\n".join(lines)


def main() -> None:
    """Parse the options and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 24], help="log2 of the numbers of elements")
    parser.add_argument("--engines", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--page", action="store_true", help="write the tables into bench/RESULTS.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    there = f"torchao {version('torchao')}" if find_spec("torchao") else "torchao is not installed"
    for exponent in given.sizes:
        for engine in given.engines:
            found = Results(f"blocks {engine} {exponent}", f"{machine()}; one thread; {there}.")
            found.add(measure(exponent, engine, given.rounds, given.device))
            found.write(given.page)


if __name__ == "__main__":
    main()
