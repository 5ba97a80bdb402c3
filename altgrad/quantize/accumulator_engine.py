"""The engines of `accumulator.py`: a C++ kernel on a CPU, Triton's on a GPU, and the definition where neither serves.

All give the same bits. To torch the product is one operator, `altgrad::accumulated`, which a compiled graph calls
without a break. The kernel is compiled by the machine's own C++ compiler when it is first asked for, into torch's cache
of compiled code, by the name of what went into it: source, compiler, flags and the processor's vectors. Without a
compiler the definition does the work, some hundred times slower, and a warning says so once.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from altgrad.quantize.accumulator import AccumulatorSpec, Digits, Factor, Terms, by_definition, with_nonfinite
from altgrad.quantize.accumulator_triton import on_gpu

FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-std=c++17", "-shared", "-fPIC", "-pthread")
SOURCE = Path(__file__).with_name("accumulator.cpp")
_Floats = ctypes.c_void_p


class _Product(ctypes.Structure):
    """`Product` of accumulator.cpp."""

    _fields_ = (
        *((name, _Floats) for name in ("a", "b", "within_a", "within_b", "after_a", "after_b", "start", "out")),
        *((name, ctypes.c_int64) for name in ("m", "n", "k", "steps", "promotions")),
        *(
            (name, ctypes.c_int32)
            for name in ("lowest_a", "lowest_b", "bits", "chunk", "group", "result_bits", "promote", "wide")
        ),
    )


def accumulate(
    a: Factor, b: Factor, spec: AccumulatorSpec, *, start: Tensor | None = None, term_by_term: bool = False
) -> Tensor:
    """a b^T, float32 [m, n], as this accumulator adds it up.

    start: what the accumulator holds at first, float32 [m, n]. term_by_term: as products of wide formats are added.
    """
    made: Tensor = accumulated(
        a.units, b.units, a.within, b.within, a.after, b.after, start,
        [*a.digits, a.within_block, a.after_block, *b.digits, b.within_block, b.after_block, int(term_by_term)],
        spec_numbers(spec),
    )  # fmt: skip
    return made


def is_narrow(a: Digits, b: Digits) -> bool:
    """Whether products of these have at most 24 bits, and exponents that fit the kernels for narrow formats."""
    exponents = all(each.lowest >= -16 and each.highest <= 31 for each in (a, b))
    return exponents and a.fraction + b.fraction + 2 <= 24


def spec_numbers(spec: AccumulatorSpec) -> list[int]:
    """What an operator can take of it."""
    return [
        spec.bits, spec.chunk, spec.group, int(spec.alignment == "product"), int(spec.rounding == "nearest_even"),
        spec.result_bits, spec.promote or 0, int(spec.scales == "within"),
    ]  # fmt: skip


@cache
def _spec_of(numbers: tuple[int, ...]) -> AccumulatorSpec:
    bits, chunk, group, product, nearest, result_bits, promote, within = numbers
    return AccumulatorSpec(
        bits=bits, chunk=chunk, group=group, alignment="product" if product else "exponents",
        rounding="nearest_even" if nearest else "toward_zero", result_bits=result_bits, promote=promote or None,
        scales="within" if within else "after", formats=("e2m1",) if group > 1 else (),
    )  # fmt: skip


@torch.library.custom_op("altgrad::accumulated", mutates_args=())
def accumulated(
    a: Tensor,
    b: Tensor,
    within_a: Tensor | None,
    within_b: Tensor | None,
    after_a: Tensor | None,
    after_b: Tensor | None,
    start: Tensor | None,
    factors: list[int],
    spec: list[int],
) -> Tensor:
    """`accumulate`, of the fields of its factors and its spec."""
    x = Factor(a.detach().contiguous(), Digits(*factors[:3]), within_a, factors[3], after_a, factors[4])
    w = Factor(b.detach().contiguous(), Digits(*factors[5:8]), within_b, factors[8], after_b, factors[9])
    narrow = is_narrow(x.digits, w.digits) and not factors[10]
    asked = _spec_of(tuple(spec))
    if asked.alignment == "exponents" and asked.rounding == "toward_zero" and x.units.numel() and w.units.numel():
        if x.units.device.type == "cuda" and narrow and start is None:
            return with_nonfinite(on_gpu(x, w, asked), x, w, start)
        kernel = _kernel() if x.units.device.type == "cpu" else None
        if kernel is not None:
            return with_nonfinite(_on_cpu(kernel, x, w, asked, start, narrow), x, w, start)
    return by_definition(x, w, asked, start)


@accumulated.register_fake
def _(a: Tensor, b: Tensor, *rest: Any) -> Tensor:
    return torch.empty((a.shape[0], b.shape[0]), dtype=torch.float32, device=a.device)


def _on_cpu(kernel: Any, a: Factor, b: Factor, spec: AccumulatorSpec, start: Tensor | None, narrow: bool) -> Tensor:
    x, w = Terms.pair(a, b, spec)
    steps = 0 if x.within is None else x.within.shape[-1]
    promotions = max((part.shape[-1] for part in (x.after, w.after) if part is not None), default=1)
    out = a.units.new_empty(len(a.units), len(b.units))
    begun = None if start is None else start.contiguous()
    given = [x.units, w.units, x.within, w.within, x.after, w.after, begun, out]
    product = _Product(
        *(None if each is None else each.data_ptr() for each in given),
        len(a.units), len(b.units), a.units.shape[-1], steps, promotions,
        x.lowest, w.lowest, spec.bits, spec.chunk, spec.group, spec.result_bits, spec.promote or 0,
        int(spec.group > 1 or spec.bits > 29 or not narrow),
    )  # fmt: skip
    kernel.altgrad_accumulate(ctypes.byref(product), torch.get_num_threads())
    return out


@cache
def _kernel() -> Any:
    """The compiled kernel, or None where it cannot be had."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        warnings.warn("no C++ compiler is here; accumulators run by their definition, which is slow.", stacklevel=2)
        return None
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    vectors = torch.backends.cpu.get_cpu_capability() + platform.machine() + platform.processor() + _processor()
    made_of = "\0".join((SOURCE.read_text(), version, *FLAGS, vectors))
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder = Path(cache_dir()) / "altgrad"
    library = folder / f"accumulator-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as made:
            new = Path(made) / library.name
            done = subprocess.run(
                [compiler, *FLAGS, str(SOURCE), "-o", str(new)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                told = (done.stderr.strip().splitlines() or ["it failed"])[0]
                warnings.warn(f"accumulators run by their definition, which is slow: {compiler}: {told}", stacklevel=2)
                return None
            new.replace(library)
    loaded = ctypes.CDLL(str(library))
    loaded.altgrad_accumulate.argtypes = [ctypes.POINTER(_Product), ctypes.c_int32]
    loaded.altgrad_accumulate.restype = None
    return loaded


def _processor() -> str:
    """What `-march=native` goes by, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return "".join(next((line for line in lines if line.startswith(key)), "") for key in ("model name", "flags"))
