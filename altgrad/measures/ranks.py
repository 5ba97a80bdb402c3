"""How many directions a matrix uses, from its singular values sigma_1 >= sigma_2 >= ...

    stable      sum sigma^2 / sigma_1^2
    effective   exp(entropy of sigma / sum sigma)                       (Roy & Vetterli 2007)
    r99         least k for which the largest k hold 99 % of sum sigma^2
    numerical   #{sigma > max(m, n) eps32 sigma_1}

All are ratios of singular values, so no scale of the weights matters, and none is guarded by an epsilon, which would
make weights of 1e-13 look rank-deficient: the matrix is divided by its largest magnitude before anything is squared. A
matrix of zeros has rank 0 in all four; one with inf or NaN, an empty one, or a tensor of fewer than two dimensions has
none (NaN). More than two dimensions are flattened to [first, rest], as a convolution applies them.

Cheap forms. `stable_rank_step` needs no decomposition: the Frobenius norm, and one power iteration from where the last
call stopped. `gram_singular_values` takes the eigenvalues of the smaller side's Gram matrix in float64, whose squares
cost half the digits: sigma below 3e-7 sigma_1 (6e-7 at 1536) come out as 0.

Measured on one CPU core, 384 x 384, 1536 x 384 and 384 x 1152; Gaussian, 1/k, k^-1/2, exp(-k/20) and deficient spectra:

    svdvals, float64     18, 55, 75 ms
    svdvals, float32     13, 25, 51 ms    effective rank to 4e-6, stable to 1e-6
    Gram, float64        13, 34, 21 ms    effective rank to 1e-5 where sigma decay below float32's own noise, else to
                                          1e-14; stable to 4e-13; r99 and numerical equal
    power step           0.3, 1.2, 0.8 ms after 20 steps from the start: 0.7 to 6 % too high on a Gaussian, 4 % on
                                          exp(-k/20), 2e-7 on 1/k and k^-1/2; after 200 more, one for each 1e-3 of
                                          drift in the weights: 1e-3 on a Gaussian, 3e-7 elsewhere
    one step, no start   up to 9 times too high: not to be shown
"""

import torch
from torch import Tensor

from altgrad.quantize.noise import counted_bits

_EPS32 = torch.finfo(torch.float32).eps
_EPS64 = torch.finfo(torch.float64).eps


def singular_values(weights: Tensor) -> Tensor:
    """Singular values, descending, over the largest magnitude: float64 [min(m, n)]; by svdvals in float64.

    weights: [m, ...], any float dtype. All NaN if an entry is inf or NaN; [0] for fewer than two dimensions or none.
    """
    matrix, finite = _normalised(weights)
    return torch.where(finite, torch.linalg.svdvals(matrix), torch.nan)


def gram_singular_values(weights: Tensor) -> Tensor:
    """As `singular_values`, in 1/4 to 3/4 of the time; those below sqrt(max(m, n) eps64) sigma_1 are 0."""
    matrix, finite = _normalised(weights)
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    squares = torch.linalg.eigvalsh(small @ small.T).flip(0)
    if squares.numel():
        squares = torch.where(squares > max(matrix.shape) * _EPS64 * squares[0], squares, 0.0)
    return torch.where(finite, squares.sqrt(), torch.nan)


def matrix_ranks(sigma: Tensor, shape: torch.Size) -> dict[str, Tensor]:
    """stable, effective, r99, numerical: float64 scalars.

    sigma: descending, from either function above; shape: that of the weights, for the numerical rank's threshold.
    """
    if sigma.numel() == 0:
        return {name: sigma.new_full((), torch.nan) for name in ("stable", "effective", "r99", "numerical")}
    top, energy, squares = sigma[0], sigma.square().sum(), sigma.square().cumsum(0)
    threshold = max(shape[0], shape[1:].numel()) * _EPS32 * top
    found = {
        "stable": energy / top.square(),
        "effective": torch.special.entr(sigma / sigma.sum()).sum().exp(),
        # A hair less than 99 %, lest the rounding of a sum of equal values decide.
        "r99": torch.count_nonzero(squares < (0.99 - 1e-12) * energy) + 1.0,
        "numerical": torch.count_nonzero(sigma > threshold).to(torch.float64),
    }
    zero, known = top == 0, energy.isfinite()
    return {
        name: torch.where(known, torch.where(zero, 0.0, value.to(torch.float64)), torch.nan)
        for name, value in found.items()
    }


def stable_rank(weights: Tensor) -> Tensor:
    """sum sigma^2 / sigma_1^2 by svdvals: a float64 scalar; edges as in the module's opening."""
    return matrix_ranks(singular_values(weights), weights.shape)["stable"]


def effective_rank(weights: Tensor) -> Tensor:
    """exp(entropy of sigma / sum sigma) by svdvals: a float64 scalar; edges as in the module's opening."""
    return matrix_ranks(singular_values(weights), weights.shape)["effective"]


def r99(weights: Tensor) -> Tensor:
    """Singular values that hold 99 % of the energy, by svdvals: a float64 scalar; edges as above."""
    return matrix_ranks(singular_values(weights), weights.shape)["r99"]


def numerical_rank(weights: Tensor) -> Tensor:
    """Singular values above max(m, n) eps32 sigma_1, by svdvals: a float64 scalar; edges as above."""
    return matrix_ranks(singular_values(weights), weights.shape)["numerical"]


def power_start(weights: Tensor) -> Tensor:
    """A unit vector [n] for the first `stable_rank_step`: counted bits, the same for every matrix of this width.

    A row of the matrix would be closer to its first singular vector, but can be exactly another one.
    """
    bits = counted_bits((weights.shape[1:].numel(),), 0, device=weights.device)
    return _unit((bits.to(torch.float32) + 0.5) * 2.0**-23 - 1)[0]


def stable_rank_step(weights: Tensor, vector: Tensor, steps: int = 1) -> tuple[Tensor, Tensor]:
    """The stable rank by `steps` power iterations from `vector`, and the vector for the next call.

    weights: [m, ...], float32, bf16 or fp16; vector: float32 [n], from `power_start` or the last call. The estimate
    never falls below the stable rank by more than rounding; give the first call some 20 steps. Products are float32;
    norms are float64, so no scale overflows. A matrix without a direction (zeros, inf, NaN) leaves the vector as it is.
    """
    matrix = weights.detach().flatten(1).to(torch.float32)
    energy = torch.linalg.vector_norm(matrix, dtype=torch.float64).square()
    squares, start = torch.zeros_like(energy), vector
    for _ in range(steps):
        left, _ = _unit(matrix @ vector)
        vector, length = _unit(left @ matrix)
        squares = length.square()
    known = (squares > 0) & energy.isfinite()
    rank = torch.where(known, energy / squares, torch.where(energy == 0, 0.0, torch.nan))
    return rank, torch.where(known, vector, start)


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """x over its length, and the length in float64."""
    length = torch.linalg.vector_norm(x, dtype=torch.float64)
    return (x / length).to(torch.float32), length


def _normalised(weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weights as a float64 matrix over their largest magnitude, and whether all are finite; zeros if not."""
    exact = weights.detach().to(torch.float64)
    if weights.ndim < 2 or weights.numel() == 0:
        return exact.new_zeros((0, 0)), torch.ones((), dtype=torch.bool, device=weights.device)
    matrix = exact.flatten(1)
    finite = matrix.isfinite().all()
    matrix = torch.where(finite, matrix, 0.0)
    top = matrix.abs().amax()
    return matrix / torch.where(top > 0, top, 1.0), finite
