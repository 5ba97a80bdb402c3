"""The sums of `accumulator.py` on a GPU, in Triton: the same bits as its definition.

A program has a tile of the result and goes through k chunk by chunk: once for the largest exponent of each element's
terms, once for the terms, which are exact in float32 and truncated by conversion; sums are int64, and what follows is
float64, as in accumulator.cpp. It serves formats whose products have at most 24 bits, and group sums of e2m1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from altgrad.quantize.accumulator import AccumulatorSpec, Factor, Terms

try:
    import triton
    import triton.language as tl
except ImportError:  # it comes with torch for GPUs, and nothing here runs without one
    triton = None

TILE = 32
_jit: Callable[[Any], Any] = (lambda function: function) if triton is None else triton.jit


def on_gpu(a: Factor, b: Factor, spec: AccumulatorSpec) -> Tensor:
    """a b^T, float32 [m, n]; finite operands that lie contiguous."""
    x, w = Terms.pair(a, b, spec)
    m, n, k = len(a.units), len(b.units), a.units.shape[-1]
    out = torch.empty(m, n, dtype=torch.float32, device=a.units.device)
    within, after = (x.within, w.within), (x.after, w.after)
    promotions = max((part.shape[-1] for part in after if part is not None), default=1)
    none = x.units
    tensors = [x.units, w.units, *(none if part is None else part for part in (*within, *after)), out]
    _kernel[(-(-m // TILE), -(-n // TILE))](
        *tensors, m, n, k, 0 if x.within is None else x.within.shape[-1], promotions, x.lowest, w.lowest,
        BITS=spec.bits, CHUNK=spec.chunk, GROUP=spec.group, RESULT=spec.result_bits, PROMOTE=spec.promote or 1 << 30,
        WITHIN=x.within is not None, AFTER_A=x.after is not None, AFTER_B=w.after is not None,
        CHANGES=promotions > 1, TILE=TILE,
    )  # fmt: skip
    return out


@_jit
def _exponent(x, lowest):  # of float32; a zero's is below all others
    bits = x.to(tl.int32, bitcast=True)
    found = tl.maximum(((bits >> 23) & 255) - 127, lowest)
    return tl.where((bits & 0x7FFFFFFF) == 0, -4096, found)


@_jit
def _power(k):  # float64
    k = tl.minimum(tl.maximum(k.to(tl.int64), -1022), 1023)
    return ((k + 1023) << 52).to(tl.float64, bitcast=True)


@_jit
def _truncated(x):  # float64 below 2^63
    return x.to(tl.int64).to(tl.float64)


@_jit
def _scale(at_a, here_a, at_b, here_b, HAS_A: tl.constexpr, HAS_B: tl.constexpr):  # fl(s_a s_b)
    by = tl.where(here_a[:, None] & here_b[None, :], 1.0, 0.0)
    if HAS_A:
        by = by * tl.load(at_a, mask=here_a, other=0.0)[:, None]
    if HAS_B:
        by = by * tl.load(at_b, mask=here_b, other=0.0)[None, :]
    return by


@_jit
def _kernel(
    a, b, within_a, within_b, after_a, after_b, out, m, n, k, steps, promotions, lowest_a, lowest_b,
    BITS: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr, RESULT: tl.constexpr, PROMOTE: tl.constexpr,
    WITHIN: tl.constexpr, AFTER_A: tl.constexpr, AFTER_B: tl.constexpr, CHANGES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    i = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)
    j = (tl.program_id(1) * TILE + tl.arange(0, TILE)).to(tl.int64)
    here_i, here_j = i < m, j < n
    c = tl.zeros((TILE, TILE), dtype=tl.float64)
    total = tl.zeros((TILE, TILE), dtype=tl.float32)
    step: tl.constexpr = CHUNK if GROUP == 1 else GROUP
    for start in range(0, k, CHUNK):
        top = tl.full((TILE, TILE), -126, dtype=tl.int32)
        own = ((c.to(tl.int64, bitcast=True) >> 52) & 2047) - 1023
        top = tl.maximum(top, own.to(tl.int32))
        terms = tl.zeros((TILE, TILE), dtype=tl.int64)
        for second in tl.static_range(2):  # first the largest exponent, then the terms
            for first in range(start, tl.minimum(start + CHUNK, k), GROUP):
                scale = tl.zeros((TILE, TILE), dtype=tl.int32)
                x_scale = tl.full((TILE,), 1.0, dtype=tl.float32)
                w_scale = tl.full((TILE,), 1.0, dtype=tl.float32)
                if WITHIN:
                    x_scale = tl.load(within_a + i * steps + first // step, mask=here_i, other=0.0)
                    w_scale = tl.load(within_b + j * steps + first // step, mask=here_j, other=0.0)
                    e = _exponent(x_scale, -127)[:, None] + _exponent(w_scale, -127)[None, :]
                    scale = tl.where(e < -2048, -8192, e)
                value = tl.zeros((TILE, TILE), dtype=tl.float32)
                e = scale
                for at in range(first, tl.minimum(first + GROUP, k)):
                    x = tl.load(a + i * k + at, mask=here_i, other=0.0)
                    w = tl.load(b + j * k + at, mask=here_j, other=0.0)
                    value += x[:, None] * w[None, :]
                    if GROUP == 1:
                        e += _exponent(x, lowest_a)[:, None] + _exponent(w, lowest_b)[None, :]
                if second == 0:
                    top = tl.maximum(top, tl.where(e < -2048, -4096, e))
                elif GROUP == 1:
                    shift = tl.minimum(tl.maximum(BITS - top + scale, -126), 127)
                    factor = ((shift + 127) << 23).to(tl.float32, bitcast=True)
                    terms += (value * factor).to(tl.int64)
                else:
                    whole = value.to(tl.float64) * x_scale.to(tl.float64)[:, None] * w_scale.to(tl.float64)[None, :]
                    terms += (whole * _power(BITS - top)).to(tl.int64)
        d = (terms.to(tl.float64) + _truncated(c * _power(BITS - top))) * _power(top - BITS)
        last = tl.maximum(((d.to(tl.int64, bitcast=True) >> 52) & 2047) - 1023, -126)
        d = _truncated(d * _power(RESULT - last)) * _power(last - RESULT)
        d = tl.where(tl.abs(d) >= _power(tl.full((TILE, TILE), 128, dtype=tl.int64)), d * float("inf"), d)
        c = tl.where(own == 1024, c, d)
        if (start + CHUNK) % PROMOTE == 0 or start + CHUNK >= k:  # what is not promoted is once, at the end: c itself
            at = (start // PROMOTE) if CHANGES else 0
            by = _scale(after_a + i * promotions + at, here_i, after_b + j * promotions + at, here_j, AFTER_A, AFTER_B)
            total = tl.fma(by, c.to(tl.float32), total) if CHANGES else total + c.to(tl.float32)
            c = tl.zeros((TILE, TILE), dtype=tl.float64)
    if not CHANGES:
        total = total * _scale(after_a + i, here_i, after_b + j, here_j, AFTER_A, AFTER_B)
    tl.store(out + i[:, None] * n + j[None, :], total, mask=here_i[:, None] & here_j[None, :])
