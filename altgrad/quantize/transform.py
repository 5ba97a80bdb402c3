"""Transforms of a product's operands: both are turned alike along the axis that the product sums over.

    (x R)(w R)^T = x w^T    for an orthogonal R, here block by block    R = D H  (side: input)  or  H D  (side: output)

The product is what it was, but a cast in between meets numbers that are spread evenly: an outlier is shared out over
its run, and what rounds away is noise instead of a direction (arXiv 2502.20586, 2509.25149, 2505.14669, 2601.22813).

H is the Hadamard matrix of a power of two d in Sylvester's order, entries +-1/sqrt(d); D a diagonal of signs: none, the
vector that was published with NVFP4 training, one's own, or drawn: once for each layer, for each step, or for each
micro-batch. Both operands of a product have the same signs. On the side of the outputs signs mix nothing anew: they
change those of turned values and no magnitude, so a cast to nearest comes out the same for every draw.

What backward alone uses of forward, such as the matrix of its products, a compiler makes there, from the counter as the
graph found it; but forward has advanced that buffer in place, and autograd refuses it. So in a graph one operation,
`altgrad::used_up`, gives signs of each call their key and the counter behind it: forward needs the one, and the other
is kept for backward, since what is no operation of torch's is never made again.

Computed as a float32 product with the d x d matrix. A butterfly takes log2(d) additions for its d and is slower all the
same, since it reads and writes the tensor as often (2^20 elements on one core: 1.2 ms by matrix, 28 ms by butterfly and
15 ms by a compiled one for d = 16; 12, 29 and 43 ms for d = 128); and only the matrix product has the bits of the
references, which compute it so. Its sums run over k in order, one fused multiply-add each, but that products of one to
three rows may take another way; so a tensor has at least `FEWEST` rows. Reduced float32 precision (TF32 and the like)
would round the values before the cast does, and is refused.
"""

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from altgrad.quantize.counted import Counted
from altgrad.quantize.grid import in_float32
from altgrad.quantize.noise import counted_bits, fold
from altgrad.quantize.passes import process_key
from altgrad.quantize.traced import held
from altgrad.spec import Kind, LocatedError

PUBLISHED = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)
"""The fixed signs of NVFP4 training (arXiv 2509.25149), as NVIDIA's code has them."""
FOR_EVER = torch.tensor(0)  # folded with a layer's key for signs that do not change: those of step 0
FEWEST = 8
"""Runs in a product with the matrix."""
Sign = Literal[1, -1]
Side = Literal["input", "output"]


class TransformSpec(Kind, family="transform", package="altgrad.quantize"):
    """How both operands of a product are turned along the axis it sums over, before they are cast."""

    size: int

    @property
    def draws(self) -> bool:
        """Whether it draws other signs as training goes on."""
        return False

    @property
    def text(self) -> str:
        """In a few characters, for tables."""
        return f"{self.kind}/{self.size}"

    def build(self, site: str | None, seed: int) -> "Transform":
        """The transform at one product of one layer, named `<module>/<product>`, which with the seed keys its signs."""
        made: Transform = self.product()(self, site, seed)
        return made


class Transform(Counted, ABC):
    """Draws the matrix of each pass, and turns operands by it."""

    def __init__(self, spec: Any, site: str | None, seed: int) -> None:
        super().__init__(site, "input", seed, "transform")
        self.spec = spec

    @abstractmethod
    def matrix(self, x: Tensor, live: bool) -> Tensor:
        """The orthogonal matrix of this pass, float32 [size, size], on the device of x. live: the pass counts."""

    @abstractmethod
    def matrix_of(self, x: Tensor, number: int) -> Tensor:
        """That of micro-batch `number` of the step that is not committed yet. Draws nothing."""

    @abstractmethod
    def turn(self, x: Tensor, matrix: Tensor) -> Tensor:
        """x [..., n] turned along its last axis, run by run, in float32. ValueError where the runs do not fill it."""

    @abstractmethod
    def turn_back(self, x: Tensor, matrix: Tensor) -> Tensor:
        """The inverse, by the transpose."""

    @abstractmethod
    def check(self, length: int) -> None:
        """ValueError, naming what would help, for an axis of this length that it cannot turn."""


class HadamardSpec(TransformSpec):
    """Hadamard matrices on consecutive runs of `size` elements, with a diagonal of signs."""

    kind: ClassVar[str] = "hadamard"
    size: Annotated[int, Field(ge=2, le=4096)] = 16
    """Elements of a run, a power of two."""
    signs: Literal["none", "fixed", "layer", "step", "call"] | tuple[Sign, ...] = "none"
    """none; fixed: the published 16; a list of 1 and -1; drawn once for a layer, for each step, or for each call."""
    side: Side = "input"
    """Whether signs change the values before they are mixed, or the mixed values."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the turned values are rounded to before they are cast."""
    rest: Literal["refuse", "leave"] = "refuse"
    """What becomes of a last run that is not full: an error, or it stays as it is."""

    @model_validator(mode="after")
    def _agree(self) -> "HadamardSpec":
        if self.size & (self.size - 1):
            raise LocatedError(("size",), f"size is {self.size}; a Hadamard matrix is made for powers of two.")
        if self.vector is not None and len(self.vector) != self.size:
            given = "signs: fixed has" if self.signs == "fixed" else "signs has"
            raise ValueError(
                f"{given} {len(self.vector)} signs and size is {self.size}; list as many, or use signs: step."
            )
        return self

    @property
    def draws(self) -> bool:
        return self.signs in ("step", "call")

    @property
    def text(self) -> str:
        return f"{super().text} signs layer" if self.signs == "layer" else super().text

    @property
    def vector(self) -> tuple[int, ...] | None:
        """The signs, where they are fixed."""
        if isinstance(self.signs, tuple):
            return self.signs
        return PUBLISHED if self.signs == "fixed" else None


class Hadamard(Transform):
    spec: HadamardSpec

    def __init__(self, spec: HadamardSpec, site: str | None, seed: int) -> None:
        super().__init__(spec, site, seed)
        if spec.draws:
            self.count_passes()

    def matrix(self, x: Tensor, live: bool) -> Tensor:
        if self.spec.signs == "layer":
            return self._drawn(x, fold(self.key, FOR_EVER))
        if not self.draws:
            return hadamard(self.spec.size, x.device, self.spec.vector, self.spec.side)
        return self._drawn(x, self._key_of_step() if self.spec.signs == "step" else self._key_of_call(live))

    def matrix_of(self, x: Tensor, number: int) -> Tensor:
        if not self.draws:
            return self.matrix(x, False)
        if self.spec.signs == "step":
            return self._drawn(x, self._key_of_step())
        counter = (self.counter >> 16 << 16) + number
        return self._drawn(x, fold(self.key if self.dealt else process_key(self.key, self.role), counter))

    def _key_of_step(self) -> Tensor:
        return fold(self.key, self.counter >> 16)

    def _key_of_call(self, live: bool) -> Tensor:
        if not (torch.compiler.is_compiling() and live):
            return self.key_of_pass(live)
        key: Tensor
        key, counter = used_up(self.key if self.dealt else process_key(self.key, self.role), self.counter)
        self.counter.copy_(counter)
        return key

    def _drawn(self, x: Tensor, key: Tensor) -> Tensor:
        spec = self.spec
        bits = counted_bits((spec.size,), key, device=x.device)
        diagonal = torch.diag(1.0 - 2.0 * (bits & 1).to(torch.float32))
        plain = hadamard(spec.size, x.device)
        with torch.autocast(x.device.type, enabled=False):
            return diagonal @ plain if spec.side == "input" else plain @ diagonal

    @property
    def draws_each_pass(self) -> bool:
        return self.spec.signs == "call"

    def turn(self, x: Tensor, matrix: Tensor) -> Tensor:
        turned = self._by_runs(x, matrix)
        return held(turned if self.spec.dtype == "float32" else to_bfloat16(turned))

    def turn_back(self, x: Tensor, matrix: Tensor) -> Tensor:
        return self._by_runs(x, matrix.T.contiguous())

    def _by_runs(self, x: Tensor, matrix: Tensor) -> Tensor:
        x, size = in_float32(x), self.spec.size
        self.check(x.shape[-1])
        whole = x.shape[-1] // size * size
        runs = x[..., :whole].reshape(-1, size)
        if not torch.compiler.is_compiling():
            refuse_reduced_precision()
        with torch.autocast(x.device.type, enabled=False):
            if len(runs) >= FEWEST:
                turned = runs @ matrix
            else:
                turned = (functional.pad(runs, (0, 0, 0, FEWEST - len(runs))) @ matrix)[: len(runs)]
        turned = turned.reshape(*x.shape[:-1], whole)
        return turned if whole == x.shape[-1] else torch.cat((turned, x[..., whole:]), -1)

    def check(self, length: int) -> None:
        if length % self.spec.size and self.spec.rest == "refuse":
            raise ValueError(
                f"{self.site}: transform.size {self.spec.size} does not divide {length}, the elements that the product "
                "sums over; use a size that does, or transform.rest: leave."
            )

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        signs = self.spec.signs if isinstance(self.spec.signs, str) else "own"
        return f"{self.spec.size}, signs={signs}, side={self.spec.side}"


@torch.library.custom_op("altgrad::used_up", mutates_args=())
def used_up(key: Tensor, counter: Tensor) -> tuple[Tensor, Tensor]:
    """The key of a pass, and the counter behind it; see the head of this file."""
    return fold(key, counter), counter + 1


@used_up.register_fake
def _(key: Tensor, counter: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(counter), torch.empty_like(counter)


_MATRICES: dict[tuple[Any, ...], Tensor] = {}


def hadamard(size: int, device: torch.device, signs: tuple[int, ...] | None = None, side: Side = "input") -> Tensor:
    """The matrix of +-1/sqrt(size) in Sylvester's order: entry i, j is negative where i & j has an odd number of ones.

    signs: of its rows (side: input) or columns. float32 [size, size]; the same tensor each time, not to be changed.
    """
    traced, key = torch.compiler.is_compiling(), (size, device, signs, side)
    found = None if traced else _MATRICES.get(key)
    if found is not None:
        return found
    with torch.inference_mode(False):
        index = torch.arange(size, dtype=torch.int32, device=device)
        ones = index[:, None] & index
        for shift in (8, 4, 2, 1):
            ones = ones ^ (ones >> shift)
        made = (1 - 2 * (ones & 1)).to(torch.float32) * size**-0.5
        if signs is not None:
            made = _signed(made, torch.tensor(signs, dtype=torch.float32, device=device), side)
        made = held(made)
    if not traced and type(made) is Tensor:
        _MATRICES[key] = made
    return made


def _signed(matrix: Tensor, signs: Tensor, side: Side) -> Tensor:
    return signs[:, None] * matrix if side == "input" else matrix * signs


def to_bfloat16(x: Tensor) -> Tensor:
    """x rounded to bfloat16, as float32. By its bits, since a compiler may leave a conversion there and back out."""
    bits = x.view(torch.int32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1)) & -0x10000).view(torch.float32)
    return torch.where(x == x, rounded, x)


def refuse_reduced_precision() -> None:
    """RuntimeError where torch may multiply float32 in fewer bits."""
    if torch.get_float32_matmul_precision() != "highest":
        raise RuntimeError(
            f"torch's float32 matmul precision is {torch.get_float32_matmul_precision()}, which would round a "
            "Hadamard transform before the cast; use torch.set_float32_matmul_precision('highest')."
        )
