"""Optimizer states in a format: what is carried from one step to the next is rounded, the step itself is not.

    exp_avg:    {format: e4m3fn, scaling: {kind: block, size: 128, scale: real}}
    exp_avg_sq: {format: dynamic8_unsigned, scaling: {kind: block, size: 256, scale: real}, min_size: 4096}

A state is cast as any tensor is, on every axis that needs no history and no product. Its blocks are runs of the
*flattened* state, as those of torchao, bitsandbytes and COAT are: a state belongs to no product, so it has no summed
axis. A step takes the state as it has just been moved (`step_takes: unrounded`), as all three do, or what is kept of it
(`rounded`). Second moments that are cast move by v + (1 - b2) (g^2 - v), as torchao's do; torch's own b2 v + (1 - b2)
g^2 has other last bits.

States are emulated in float32, whatever the parameter's dtype: after a step each value is one of its grid. `packed`
makes checkpoints hold codes and scales. Random bits are counted per seed, parameter, state and rounding (`state_step`).
Where `expansion` is set, the range of each block is stretched first (`range_expansion`).

Published: 8-bit Adam (arXiv 2110.02861), torchao's AdamWFp8, AdamW8bit and AdamW4bit, FP8-LM (arXiv 2310.18313), COAT
(arXiv 2410.19313), m e4m3 and v e5m2 (arXiv 2409.12517), 8-bit Muon (arXiv 2509.23106).
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from altgrad.formats import NumberFormat, Rounding
from altgrad.optim.range_expansion import RangeExpansion
from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.quantize.block import BlockSpec
from altgrad.quantize.block_scale import SmallScale
from altgrad.quantize.engine import Engine
from altgrad.quantize.gradient import Identity
from altgrad.quantize.noise import fold
from altgrad.spec import Since

NEVER_NEGATIVE = ("exp_avg_sq", "max_exp_avg_sq")
"""States that are sums of squares."""
SCALE, CENTRE, EXPONENT = "scale", "centre", "exponent"


class StateSpec(QuantizerSpec):
    """How a state of the optimizer is kept between steps: a cast, and when it is made."""

    min_size: Annotated[int, Field(ge=0), Since(2)] = 0
    """States of fewer elements stay float32."""
    step_takes: Annotated[Literal["unrounded", "rounded"], Since(2)] = "unrounded"
    """Which state the step is taken with: as it was moved, or what is kept of it."""
    expansion: Annotated[bool, Since(2)] = False
    """Stretch the range of each block to that of the format first, as COAT does."""
    packed: Annotated[bool, Since(2)] = False
    """Checkpoints hold codes and scales, at their real size, instead of float32."""

    noun: ClassVar[str] = "a state"

    @model_validator(mode="after")
    def _fits_a_state(self) -> "StateSpec":
        has = {
            "rounding: toward_average": self.rounding is Rounding.toward_average,
            f"scaling: {self.scaling.kind}": self.scaling.kind == "delayed",
            "correction: eden": self.correction != "none",
            "outliers": self.outliers is not None,
            f"source: {self.source}": self.source != "original",
            "gradient": self.gradient != Identity(),
        }
        if wrong := next((word for word, present in has.items() if present), None):
            raise ValueError(f"{wrong} belongs to the casts of a layer; a state of the optimizer has none of it.")
        if self.expansion and self.block_size is None:
            raise ValueError("expansion stretches blocks; use scaling: {kind: block, size: 128, scale: real}.")
        if self.packed and not self.scaling.is_plain:
            raise ValueError(
                "packed keeps codes and scales, of which arithmetic: "
                f"{self.scaling.tree().get('arithmetic')} needs more; use arithmetic: divide."
            )
        return self

    @property
    def block_size(self) -> int | None:
        """Elements of a block, where blocks are runs."""
        scaling = self.scaling
        return scaling.size if isinstance(scaling, BlockSpec) and scaling.shape == "row" else None


class Kept(NamedTuple):
    """What is kept of a state: values, float32 and of its shape, and if it is packed what codes need beside them."""

    values: Tensor
    beside: dict[str, Tensor]


class StateCast:
    """One state in its format, for all parameters of a group."""

    def __init__(self, spec: StateSpec, name: str) -> None:
        self.spec, self.name = spec, name
        self.quantizer = Quantizer(spec, f"states/{name}", "optimizer_state")

    @property
    def draws(self) -> bool:
        """Whether it uses random bits."""
        return self.spec.draws

    def takes(self, p: Tensor) -> bool:
        """Whether the state of this parameter is large enough to be cast."""
        return p.numel() >= max(1, self.spec.min_size)

    def kept(self, state: Tensor, key: Tensor | None) -> Kept:
        """The state on its grid. key: of this rounding's random bits. ValueError for a dtype without its values."""
        if state.dtype != torch.float32 and not self.spec.fits(state.dtype):
            raise ValueError(
                f"{self.name} is {state.dtype}, which does not hold every value of its format here; train "
                "float32 weights, or use format: bf16 with scaling: unscaled."
            )
        seen = self._seen(state.detach().to(torch.float32))
        expansion = None
        if self.spec.expansion and self.spec.block_size is not None:
            expansion = RangeExpansion.of(seen, self.spec.block_size, self.spec.format)
            seen = expansion.stretched(seen)
        values = self.quantizer.values(seen, False, torch.float32, key)
        beside: dict[str, Tensor] = {}
        if self.spec.packed:
            if (scale := self.quantizer.find_scale(seen, key=key)) is not None:
                beside[SCALE] = scale.entries
            if expansion is not None:
                beside |= {CENTRE: expansion.centre, EXPONENT: expansion.exponent}
        if expansion is not None:
            values = expansion.back(values)
        return Kept(values.view(state.shape), beside)

    def units(self, values: Tensor, beside: Mapping[str, Tensor]) -> Tensor:
        """Kept values in grid units, seen as the cast sees them; the nearest grid values are those that made them."""
        seen = self._seen(values)
        if CENTRE in beside:
            seen = self._expansion(beside).stretched(seen)
        return seen if SCALE not in beside else seen / self._scale(seen, beside)

    def values(self, units: Tensor, beside: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
        """What `kept` gave, from grid values and what is beside them."""
        seen = self._seen(units.view(shape))
        values = seen if SCALE not in beside else seen * self._scale(seen, beside)
        return (self._expansion(beside).back(values) if CENTRE in beside else values).view(shape)

    def bytes_of(self, p: Tensor) -> int:
        """What the state of a parameter takes as codes, packed to whole bytes, and scales."""
        codes = -(-p.numel() * self.spec.format.bits // 8)
        scale = self.quantizer.find_scale(self._seen(torch.empty(p.shape, device="meta")))
        if scale is None:
            return codes
        form = getattr(self.spec.scaling, "scale", "real")
        width = 1 if form == "e8m0" else -(-form.bits // 8) if isinstance(form, NumberFormat) else 4
        return codes + scale.entries.numel() * (width + 8 * self.spec.expansion)

    def _seen(self, x: Tensor) -> Tensor:
        """The state as its blocks cut it: flat, or with the two axes that squares need."""
        if self.spec.block_size is not None:
            return x.reshape(-1)
        return x.reshape(1, -1) if x.ndim < 2 and isinstance(self.spec.scaling, BlockSpec) else x

    def _scale(self, seen: Tensor, beside: Mapping[str, Tensor]) -> Tensor:
        entries = beside[SCALE]
        scaling = self.spec.scaling
        size = scaling.size if isinstance(scaling, BlockSpec) else 1
        square = isinstance(scaling, BlockSpec) and self.spec.block_size is None
        block = (*(1,) * (entries.ndim - 1 - square), *(size,) * (1 + square)) if entries.ndim else ()
        return SmallScale(entries, block).spread(tuple(seen.shape))

    def _expansion(self, beside: Mapping[str, Tensor]) -> RangeExpansion:
        assert self.spec.block_size is not None
        return RangeExpansion(beside[CENTRE], beside[EXPONENT], self.spec.block_size)


StateLosses = dict[Tensor, dict[str, dict[str, Tensor]]]
"""What `state_losses` found, by parameter and state."""


def state_losses(before: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """Sums over a state that say what rounding made of it, float64."""
    x, q = before.to(torch.float64), kept.to(torch.float64)
    used = x.isfinite() & (x != 0)
    x, q = torch.where(x.isfinite(), x, 0), torch.where(x.isfinite(), q, 0)
    return {
        "signal": x.square().sum(), "noise": (q - x).square().sum(), "sum": x.sum(), "kept": q.sum(),
        "used": used.sum(), "zeroed": (used & (q == 0)).sum(),
    }  # fmt: skip


States = Mapping[str, StateCast]
"""The casts of a group's states, by the state's name."""


def state_casts(specs: Any, known: tuple[str, ...] | None, kind: str) -> States:
    """The casts that a group asks for (`{name: StateSpec or plain data}` or None). ValueError for what does not go.

    known: the states there are, None where that is not known yet.
    """
    made = {name: StateSpec.made_from(spec, name) for name, spec in (specs or {}).items()}
    for name, spec in made.items():
        check_state(name, spec, tuple(made) if known is None else known, kind)
    return {name: StateCast(spec, name) for name, spec in made.items()}


def check_state(name: str, spec: StateSpec, known: tuple[str, ...], kind: str) -> None:
    """ValueError, in one line, for a state that the optimizer does not keep or a format that it does not fit."""
    if name not in known:
        has = f"it keeps {' and '.join(known)}" if known else "it keeps none"
        raise ValueError(f"'{name}' is not a state of {kind} as it is set; {has}.")
    if spec.format.lowest >= 0 and name not in NEVER_NEGATIVE:
        raise ValueError(f"{name} has both signs, and {spec.format} has no value below 0; use another format.")


def keep(
    cast: StateCast, state: Tensor, own: dict[str, Any], key: int | None, engine: Engine, *, measuring: bool
) -> dict[str, Tensor]:
    """Round a state in place, and put its scales into `own`, all that is kept of its parameter.

    key: of the random bits, if it draws any. Returns `state_losses` if `measuring`, else nothing.
    """
    bits = None
    if key is not None:
        if "state_step" not in own:
            own["state_step"] = torch.zeros((), dtype=torch.int64, device=state.device)
        bits = fold(key, own["state_step"])
    cast.quantizer.engine = engine
    kept = cast.kept(state, bits)
    lost = state_losses(state, kept.values) if measuring else {}
    state.copy_(kept.values)
    own |= {f"{cast.name}.{part}": tensor for part, tensor in kept.beside.items()}
    return lost
