"""How true a gradient is: g8, of the quantised backward, against g32, of the same weights and batch with casts off.

    cosine              <g8, g32> / (|g8| |g32|)
    SQNR                10 log10(|g32|^2 / |g8 - g32|^2)  dB
    bias coefficient    a = <g8, g32> / |g32|^2: the part of the reference that is left; 1 is unbiased
    orthogonal noise    |g8 - a g32| / |g32|: the rest, which a learning rate cannot mend
    sign agreement      share of g32 != 0 where g8 has the same sign; a g8 of zero agrees with neither

All follow from sums that add up over pieces and tensors. The error e = g8 - g32 has sums of its own, since the noise is

    |g8 - a g32|^2 = |g8|^2 - <g8, g32>^2 / |g32|^2 = |e|^2 - <e, g32>^2 / |g32|^2,

differences of nearly equal numbers, the first for a nearly exact gradient, the second for one that is much too small;
the smaller of |g8| and |e| keeps its digits.

Sums are float64, in which squares of float32 neither overflow nor vanish, so no result depends on a common scale. A
reference of zeros makes everything NaN, as does an entry that is not finite, but for the sign agreement.
"""

import torch
from torch import Tensor

from altgrad.measures.share import share
from altgrad.measures.sqnr import decibels


def fidelity_sums(gradient: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """The sums that `fidelity` needs: float64 scalars, and int64 counts signed (g32 != 0) and agreeing.

    gradient, reference: one shape, float32, bf16 or fp16 (each its own).
    """
    g, r = gradient.detach().to(torch.float64), reference.detach().to(torch.float64)
    error = g - r
    same = ((g > 0) & (r > 0)) | ((g < 0) & (r < 0))
    return {
        "energy": g.square().sum(),
        "reference_energy": r.square().sum(),
        "error_energy": error.square().sum(),
        "overlap": (g * r).sum(),
        "error_overlap": (error * r).sum(),
        "signed": torch.count_nonzero((r < 0) | (r > 0)),
        "agreeing": torch.count_nonzero(same),
    }


def fidelity(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """cosine, sqnr_db, bias_coefficient, orthogonal_noise, sign_agreement from `fidelity_sums`: float64 scalars.

    A gradient of zeros against a reference that is not has no cosine (NaN), a bias coefficient of 0 and 0 dB.
    """
    reference, error = sums["reference_energy"], sums["error_energy"]
    bias = share(sums["overlap"], reference)
    from_gradient = sums["energy"] - sums["overlap"].square() / reference
    from_error = error - sums["error_overlap"].square() / reference
    noise = torch.where(sums["energy"] < error, from_gradient, from_error).clamp(min=0)
    found = {
        "cosine": share(sums["overlap"], sums["energy"].sqrt() * reference.sqrt()).clamp(-1, 1),
        "sqnr_db": decibels(reference, error),
        "bias_coefficient": bias,
        "orthogonal_noise": (noise / reference).sqrt(),
    }
    known = (reference > 0) & (reference + error).isfinite()
    found = {name: torch.where(known, value, torch.nan) for name, value in found.items()}
    return found | {"sign_agreement": share(sums["agreeing"], sums["signed"])}
