"""The power-of-two scale under which a stored weight lies on its grid, and how it moves.

    fixed      found once, when the optimizer is made, with the margin of its scaling as headroom
    tracked    no margin: grown in the step that needs it, so that nothing is ever clipped, and halved as long as
               amax <= max s / 4, so that less than two binades are ever to spare

with amax that of w~, what the step asks for, over all elements that share the scale.

**A weight that starts at zero** has no amax. Its first scale is that of the bound

    1 / sqrt(fan_in),     fan_in = elements / first axis, of a vector its length

which is how far PyTorch's default initialisation of a layer reaches (uniform, `nn.Linear` and convolutions). A channel
or block of zeros in a weight that has others takes the largest magnitude of the weight instead. Later on, elements that
share a scale and are all asked to be zero leave it as it is.

A parameter may be bfloat16 or float16 where its grid fits in there: enough mantissa bits, and a scale within the
range that `scale_range` gives. Then every stored value is one of the dtype, and nothing is rounded twice.
"""

import math

import torch
from torch import Tensor

from altgrad.formats import NumberFormat
from altgrad.optim.whole_tensor import whole_tensor
from altgrad.quantize import Grid, ScalingSpec
from altgrad.quantize.block import block_amax
from altgrad.quantize.block_scale import SmallScale
from altgrad.quantize.scaling import finite_amax, finite_magnitude, scale_of

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fan_in_bound(shape: torch.Size) -> float:
    """1 / sqrt(fan_in): how far PyTorch's default initialisation of a weight of this shape reaches."""
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
    return 1 / math.sqrt(max(1, fan_in))


def own_grid(w: Tensor, fmt: NumberFormat) -> Grid:
    """The format at w's own power-of-two amax scale; for a w of zeros, at that of its fan-in bound."""
    return Grid(fmt, scale_of(_amax_or_bound(w), fmt))


def first_scale(scaling: ScalingSpec, fmt: NumberFormat, w: Tensor) -> Tensor:
    """The scale of a weight that has none yet, by `scaling`: float32, broadcasts with w."""
    module = scaling.build(fmt, None)
    found = module.find((w.detach(),))
    if found is None:
        return torch.ones((), device=w.device)
    empty = _amax(w, found) == 0
    if not w.is_meta and bool(empty.any()):
        filled = torch.where(empty, _amax_or_bound(w), w.detach().to(torch.float32))
        found = module.find((filled,)) or found
    return found.spread(tuple(w.shape))


def snug(scaling: ScalingSpec) -> ScalingSpec:
    """The same scaling without headroom."""
    return scaling.model_copy(update={"margin": 0}) if getattr(scaling, "margin", 0) else scaling


def tracked_scale(scaling: ScalingSpec, fmt: NumberFormat, held: Tensor, wanted: Tensor) -> Tensor:
    """The scale for `wanted`, after `held`; no host sync. `mse` chooses what fits, as it may clip; others by amax."""
    found = snug(scaling).build(fmt, None).find((wanted,))
    if found is None:
        return held
    amax = _amax(wanted, found)
    fitting = found.spread(tuple(wanted.shape)) if scaling.kind == "mse" else scale_of(amax, fmt)
    now = torch.where(fitting > held, fitting, torch.where(fitting * 4 <= held, fitting * 2, held))
    return torch.where(amax > 0, now, held)


def scale_range(fmt: NumberFormat, dtype: torch.dtype) -> tuple[float, float]:
    """The least and the largest power of two under which all values of a format are values of the dtype.

    The least is above the largest where there is none.
    """
    info = torch.finfo(dtype)
    if fmt.mantissa_bits > round(-math.log2(info.eps)):
        return math.inf, 0.0
    least = info.smallest_normal * info.eps / float(fmt.min_positive)
    return least, 2.0 ** math.floor(math.log2(info.max / max(-float(fmt.lowest), float(fmt.highest))))


def check_dtype(kind: str, fmt: NumberFormat, scaling: ScalingSpec, w: Tensor, name: str) -> None:
    """ValueError, in one line, if w cannot be kept on a grid of this format."""
    if w.dtype not in _DTYPES:
        raise ValueError(f"{name} is {w.dtype}; storage {kind} takes float32, bfloat16 and float16. Convert it first.")
    if w.dtype == torch.float32:
        return
    least, largest = scale_range(fmt, w.dtype)
    scale = torch.ones(()) if w.is_meta else first_scale(scaling, fmt, whole_tensor(w))
    if least > largest or float(scale.min()) < least or float(scale.max()) > largest:
        at = "" if least > largest else f" at its scale of 2^{math.log2(float(scale.min())):g}"
        raise ValueError(
            f"{name} is {w.dtype}, which does not hold every value of {fmt}{at}; keep it in float32, or store it in a "
            "format of fewer bits."
        )


def _amax_or_bound(w: Tensor) -> Tensor:
    amax = finite_amax(w)
    return torch.where(amax > 0, amax, fan_in_bound(w.shape))


def _amax(w: Tensor, scale: SmallScale) -> Tensor:
    """The largest finite magnitude of the elements that share each entry of a scale; float32, broadcasts with w."""
    if scale.entries.ndim == 0:
        return finite_amax(w)
    if w.numel() == 0:
        return w.new_zeros(scale.spread(tuple(w.shape)).shape, dtype=torch.float32)
    found = finite_magnitude(w)
    for axis, (count, step) in enumerate(zip(scale.entries.shape, scale.block, strict=True)):
        if count == 1:
            found = found.amax(axis, keepdim=True)
        elif step > 1:
            found = block_amax(found.movedim(axis, -1), step).movedim(-1, axis)
    return SmallScale(found, scale.block).spread(tuple(w.shape))
