"""Processes: those that train one run together, and the few things they say to one another.

A step's micro-batches are dealt out: of W processes, process r takes micro-batches r, r + W, r + 2 W, ... of the
`accumulate` that the spec names. So the number of processes is where a run happens and no part of it: data order,
dropout and random bits are functions of the global micro-batch, a scale from the present tensor is that of a
micro-batch on any number of processes, and what is summed is summed over the same micro-batches, in another order at
most.

    after backward    gradients, loss and token counts add up                      (a collective for each 64 MiB)
    at the commit     delayed scales' amaxes (the largest), monitors' sums and maxima     (one collective)
    where due         what a monitor has to merge; whether somebody asked for a stop

Every process then takes the same optimizer step on the same bits, and no weight is ever sent. Torch's
DistributedDataParallel (buffers not broadcast) was the road not taken: it reduces `.grad` in the course of backward,
while `gsnr` must see each micro-batch's own gradient, it divides by W where a sum is wanted, and it cuts a compiled
model at its buckets, which would be more graphs than two. What it has over this is communication during backward.

Where one primitive serves, it is a gather in process order, reduced locally: sums and maxima go together, and every
process adds in the same order. This needs W times the (small) tensor. Sharded parameters (FSDP2) would change `add`
alone.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from altgrad.spec import LostProcessesError, MachineError

Said = TypeVar("Said")

BUCKET_BYTES = 64 << 20


@dataclass(frozen=True)
class Processes:
    """One process among `size`; the default is a process on its own, for which everything is as it is."""

    index: int = 0
    size: int = 1

    @classmethod
    def present(cls) -> "Processes":
        """Those of the process group, if one was initialised."""
        if not dist.is_available() or not dist.is_initialized():
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @classmethod
    def launched(cls) -> "Processes":
        """Those that torchrun started, by its environment; a process on its own without it.

        MachineError where the environment makes no sense.
        """
        if "RANK" not in os.environ:
            return cls()
        size = _number("WORLD_SIZE", "1", least=1)
        _number("LOCAL_RANK", "0", below=size)
        return cls(_number("RANK", "0", below=size), size)

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.index == 0

    def share_of(self, micro_batches: int) -> range:
        """The micro-batches of a step that this process takes. ValueError if they cannot be dealt out evenly."""
        if micro_batches % self.size:
            raise ValueError(
                f"accumulate is {micro_batches}, on {self.size} processes; each takes whole micro-batches, so it must "
                f"be a multiple of {self.size}."
            )
        return range(self.index, micro_batches, self.size)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors that all processes gave, in their order; one shape and dtype throughout."""
        if self.size == 1:
            return [tensor]
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(found, tensor.contiguous())
        return found

    def words(self, said: Said) -> list[Said]:
        """What each process has to say: plain data."""
        if self.size == 1:
            return [said]
        all_said = [said] * self.size
        dist.all_gather_object(all_said, said)
        return all_said

    def any(self, flag: bool) -> bool:
        """Whether any process says yes; then all hear it."""
        return any(answer is not None for answer in self.words("yes" if flag else None))

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor, in place, becomes the sum over processes."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            for tensor, total in zip(bucket, _pieces(flat, bucket), strict=True):
                tensor.copy_(total.view_as(tensor))

    def join(self, sums: Sequence[Tensor], maxima: Sequence[Tensor]) -> None:
        """Sums add up over processes and of maxima the largest counts, in place, by one collective; in float64."""
        both = [*sums, *maxima]
        if self.size == 1 or not both:
            return
        told = torch.stack(self.gather(torch.cat([tensor.reshape(-1).to(torch.float64) for tensor in both])))
        count = sum(tensor.numel() for tensor in sums)
        whole = torch.cat([told[:, :count].sum(0), told[:, count:].amax(0)])
        for tensor, part in zip(both, _pieces(whole, both), strict=True):
            tensor.copy_(part.view_as(tensor))


ALONE = Processes()


@contextmanager
def process_group(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun started as a process group, for the length of a block; or the group that there is.

        torchrun --nproc-per-node 2 --no-python altgrad train spec.yaml

    torchrun numbers its processes in RANK and LOCAL_RANK and gives WORLD_SIZE. On CPUs they talk through gloo, on GPUs
    through NCCL. LostProcessesError for a process that loses the others.
    """
    if Processes.launched().size == 1 or dist.is_initialized():
        yield Processes.present()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        yield Processes.present()
    except RuntimeError as error:
        if not any(word in str(error) for word in ("Connection", "connection", "NCCL", "Socket", "timed out")):
            raise
        said = str(error).splitlines()[0][:160]
        raise LostProcessesError(f"process {os.environ['RANK']} lost the others: {said}.") from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def own_device(name: str) -> str:
    """`auto` and `cuda` as the GPU that is this process's own of several; anything else as it is."""
    if Processes.launched().size > 1 and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return name


def _number(variable: str, default: str, least: int = 0, below: int | None = None) -> int:
    """A whole number that torchrun put into the environment."""
    text = os.environ.get(variable, default)
    if not text.isdecimal() or int(text) < least or (below is not None and int(text) >= below):
        limit = "" if below is None else f", below WORLD_SIZE {below}"
        raise MachineError(f"{variable} is {text[:20]!r}; torchrun sets it to a whole number, {least} or more{limit}.")
    return int(text)


def _pieces(flat: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What of the flat tensor belongs to each of these."""
    return tuple(torch.split_with_sizes(flat, [tensor.numel() for tensor in tensors]))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, in runs of one dtype and at most BUCKET_BYTES (or one tensor)."""
    bucket: list[Tensor] = []
    held = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if bucket and (held + size > BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, held = [], 0
        bucket.append(tensor)
        held += size
    if bucket:
        yield bucket
