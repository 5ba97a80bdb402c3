"""Gradients in a format before they are added: over the micro-batches of a step, and over processes.

    gradients:
      micro_batch: {format: bf16, scaling: unscaled, sums: rounded}     each micro-batch's, and each partial sum
      reduce: {format: e4m3fn, processes: 8, factor: auto}              what 8 processes would send, and each sum

Micro-batch m of a step belongs to process m mod `processes`, as torchrun deals them out. What each process has added up
enters the format at one scale for the tensor, that of the largest amax of all, times a factor; then they are added in
the order of their numbers, 0 + 1 + 2 ..., and each partial sum enters the grid again (`sums: rounded`), as where the
adding itself is done in 8 bits. The order is stated because it decides bits: rings and trees have others. So one
process says what many would get, and many that share the run (a divisor of `processes`) get the same bits.

FP8-LM (Peng et al., arXiv 2310.18313) sends gradients so. Its factor keeps sums from saturating: `root` is its
library's, 1 / sqrt(processes) (MS-AMP, `_reduce_bucket`); `auto` is the paper's, which is halved in the step after one
where more than 0.001 % of a tensor's values were at the largest value, and otherwise grows by 2^(1/1000) a step.
Factors are kept beside the optimizer's state (`reduce_factor`). Random bits are counted per seed, parameter, step and
micro-batch or process.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from altgrad.formats import Rounding
from altgrad.nn import Processes
from altgrad.optim import whole_tensor
from altgrad.quantize import Quantizer, QuantizerSpec, round_to
from altgrad.quantize.noise import fold, site_key
from altgrad.quantize.scaling import finite_amax, scale_of
from altgrad.spec import Format, RoundingMode, Since, Spec

Sums = Literal["float32", "rounded"]
_SHARE, _GROWTH = 1e-5, 2.0**0.001


class MicroBatchCast(QuantizerSpec):
    """How a micro-batch's gradient enters a format before it is added to those before it."""

    sums: Annotated[Sums, Since(2)] = "float32"
    """Whether each partial sum enters the format, too."""

    noun: ClassVar[str] = "a cast of gradients"

    @model_validator(mode="after")
    def _is_of_gradients(self) -> "MicroBatchCast":
        if self.scaling.kind == "delayed" or self.outliers is not None or self.correction != "none":
            raise ValueError(
                "a gradient that is added up has no history, outliers or correction; use scaling: current."
            )
        if self.rounding is Rounding.toward_average:
            raise ValueError("rounding: toward_average is for weights; use nearest_even or stochastic.")
        return self


class ReduceCast(Spec):
    """How each process's gradient enters a format before they are added over processes."""

    format: Format
    """What is sent."""
    processes: Annotated[int, Field(ge=1, le=65_536)]
    """How many processes there are, or are to be emulated; micro-batches are dealt out to them in turn."""
    rounding: RoundingMode = Rounding.nearest_even
    """How gradients and partial sums enter the format."""
    scale: Literal["power_of_two", "real"] = "power_of_two"
    """The scale of the tensor, from the largest amax of all processes."""
    factor: Annotated[float, Field(gt=0, le=1e30)] | Literal["root", "auto"] = 1.0
    """What gradients are multiplied by before the cast: a number, 1 / sqrt(processes), or FP8-LM's automatic one."""
    sums: Sums = "rounded"
    """Whether each partial sum enters the format, too."""

    noun: ClassVar[str] = "a cast of gradients"

    @model_validator(mode="after")
    def _has_a_rounding(self) -> "ReduceCast":
        self.format.require_tensor_domain()
        if self.rounding is Rounding.toward_average:
            raise ValueError("rounding: toward_average is for weights; use nearest_even or stochastic.")
        return self


class GradientCasts(Spec):
    """In what gradients are before they are added; null: float32."""

    micro_batch: MicroBatchCast | None = None
    """The cast of each micro-batch's gradient, before it is added to those of the step before it."""
    reduce: ReduceCast | None = None
    """The cast of each process's gradient, before they are added up."""

    noun: ClassVar[str] = "gradients"


class GradientSums:
    """Adds a step's gradients up as a spec says: `take` after each backward pass, `give` after the last.

    states: the optimizer's, by parameter, where automatic factors are kept.
    """

    def __init__(
        self, spec: GradientCasts, named: Mapping[str, Tensor], states: Mapping[Tensor, dict[str, Any]], *,
        seed: int, processes: Processes,
    ) -> None:  # fmt: skip
        self.spec, self.named, self.states, self.processes = spec, named, states, processes
        self.keys = {name: site_key(seed, f"{name}/gradient") for name in named}
        self.cast = None if spec.micro_batch is None else Quantizer(spec.micro_batch, "gradients", "grad_weight")
        self.count = processes.size if spec.reduce is None else spec.reduce.processes
        self.sums: dict[str, dict[int, Tensor]] = {}

    @torch.no_grad()
    def take(self, step: int, micro: int) -> None:
        """Take the gradients of one micro-batch away from the parameters."""
        for name, p in self.named.items():
            if p.grad is None:
                continue
            gradient, p.grad = whole_tensor(p.grad).to(torch.float32), None
            sums, process = self.sums.setdefault(name, {}), micro % self.count
            gradient = self._cast(gradient, name, step, 2 * micro)
            if process in sums:
                gradient = sums[process] + gradient
                if self.spec.micro_batch is not None and self.spec.micro_batch.sums == "rounded":
                    gradient = self._cast(gradient, name, step, 2 * micro + 1)
            sums[process] = gradient

    @torch.no_grad()
    def give(self, step: int) -> None:
        """Leave the sums over micro-batches and, where they are cast, over processes as the parameters' gradients."""
        for name, p in self.named.items():
            sums = self.sums.get(name, {})
            if self.spec.reduce is not None:
                total = self._reduced(name, p, sums, step)
            else:
                total = next(iter(sums.values()), None)
            if total is not None:
                p.grad = total.to(p.dtype)
        self.sums.clear()

    def _cast(self, x: Tensor, name: str, step: int, number: int) -> Tensor:
        if self.cast is None:
            return x
        return self.cast.values(x, False, torch.float32, self._key(name, step, number) if self.cast.draws else None)

    def _key(self, name: str, step: int, number: int) -> Tensor:
        return fold(fold(self.keys[name], torch.tensor(step)), torch.tensor(number))

    def _reduced(self, name: str, p: Tensor, sums: Mapping[int, Tensor], step: int) -> Tensor | None:
        """The sum over processes, in their order; None where no process has a gradient."""
        reduce = self.spec.reduce
        assert reduce is not None
        whole = self._of_all(p, sums)
        if not whole:
            return None
        amax = torch.stack([finite_amax(each) for each in whole.values()]).amax()
        scale = scale_of(amax, reduce.format, power_of_two=reduce.scale == "power_of_two")
        factor = self._factor(p)
        total: Tensor | None = None
        full = torch.zeros((), dtype=torch.int64, device=p.device)
        for process, gradient in whole.items():
            sent = self._rounded(gradient * factor, scale, name, step, 2 * process)
            full = full + torch.count_nonzero(sent.abs() == scale * float(reduce.format.max))
            total = sent if total is None else total + sent
            if process and reduce.sums == "rounded":
                total = self._rounded(total, scale, name, step, 2 * process + 1)
        if reduce.factor == "auto":
            often = full > _SHARE * p.numel() * len(whole)
            self.states[p]["reduce_factor"].copy_(torch.where(often, factor / 2, factor * _GROWTH))
        assert total is not None
        return total / factor

    def _rounded(self, x: Tensor, scale: Tensor, name: str, step: int, number: int) -> Tensor:
        reduce = self.spec.reduce
        assert reduce is not None
        key = None
        if reduce.rounding is Rounding.stochastic:
            key = fold(self._key(name, step, number), torch.tensor(1 << 20))
        return round_to(x, reduce.format, reduce.rounding, scale=scale, key=key, nonfinite="keep")

    def _factor(self, p: Tensor) -> Tensor:
        """What the gradient of a parameter is multiplied by in this step."""
        assert self.spec.reduce is not None
        asked = self.spec.reduce.factor
        if asked == "auto":
            one = torch.ones((), device=p.device)
            return torch.clone(self.states[p].setdefault("reduce_factor", one))
        return torch.tensor(self.count**-0.5 if asked == "root" else asked, device=p.device, dtype=torch.float32)

    def _of_all(self, p: Tensor, sums: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The gradients of all processes, emulated ones among them, by number and in order."""
        if self.processes.size == 1:
            return dict(sorted(sums.items()))
        own = range(self.processes.index, self.count, self.processes.size)
        there = torch.tensor([float(number in sums) for number in own], device=p.device)
        nothing = torch.zeros(p.shape, device=p.device)
        stacked = torch.stack([sums.get(number, nothing) for number in own])
        having, given = self.processes.gather(there), self.processes.gather(stacked)
        found: dict[int, Tensor] = {}
        for index in range(self.processes.size):
            for place, number in enumerate(range(index, self.count, self.processes.size)):
                if having[index][place]:
                    found[number] = given[index][place]
        return dict(sorted(found.items()))
