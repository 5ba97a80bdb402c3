"""One run in several processes: what torchrun says in the environment, made a process group.

    torchrun --nproc-per-node 2 --no-python altgrad train spec.yaml

torchrun numbers its processes in RANK and LOCAL_RANK and gives WORLD_SIZE; without them a process is on its own. Ranks
on CPUs talk through gloo, on GPUs through NCCL, each process with the GPU of its local number.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from altgrad.cli import console
from altgrad.nn import ALONE, Processes


def size() -> int:
    """How many processes torchrun started; 1 without it. Leaves, with 3, where the environment makes no sense."""
    if "RANK" not in os.environ:
        return 1
    count = _number("WORLD_SIZE", "1", least=1)
    _number("RANK", "0", below=count)
    _number("LOCAL_RANK", "0", below=count)
    return count


def _number(variable: str, default: str, least: int = 0, below: int | None = None) -> int:
    """A whole number that torchrun put into the environment."""
    text = os.environ.get(variable, default)
    if not text.isdecimal() or int(text) < least or (below is not None and int(text) >= below):
        limit = "" if below is None else f", below WORLD_SIZE {below}"
        console.fail(f"{variable} is {text[:20]!r}; torchrun sets it to a whole number, {least} or more{limit}.", 3)
    return int(text)


def own_device(name: str) -> str:
    """`auto` and `cuda` as the GPU that is this process's own; anything else as it is."""
    if size() > 1 and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return name


@contextmanager
def together(device: torch.device) -> Iterator[Processes]:
    """The processes of this run, for the length of a block. A process that loses the others says so in one line, and
    leaves with 1.
    """
    if size() == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        processes = Processes.present()
        yield processes
    except RuntimeError as error:
        process = os.environ["RANK"]
        lost = any(word in str(error) for word in ("Connection", "connection", "NCCL", "Socket", "timed out"))
        if not lost:
            raise
        console.fail(f"process {process} lost the others: {str(error).splitlines()[0][:160]}.", 1)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
