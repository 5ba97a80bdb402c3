"""Every float32 bit pattern through a cast, a chunk at a time, judged by the table of `bench.oracle`.

The casts are ours (the general definition, and the engine's short form eager and compiled where it serves the format)
and, to judge the table itself, those of ml_dtypes and torch where they know the format. A chunk is 1 MiB, so that the
temporaries of a cast stay in the cache.
"""

import functools
from collections.abc import Callable

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from altgrad.formats import FloatFormat, Rounding, TableFormat, decode
from altgrad.quantize import round_to
from altgrad.quantize.engine import Engine, cast_values, missing_compiler, serves
from bench.oracle import SIGN, Bits, Mismatch, Table

CHUNK = 1 << 18
ORACLES = ("ml_dtypes", "torch")
"""Casts that judge the table, on the finite patterns in range only: beyond it they follow rules of their own."""
ML_DTYPES = {
    "e4m3fn": "float8_e4m3fn", "e5m2": "float8_e5m2", "e4m3fnuz": "float8_e4m3fnuz", "e5m2fnuz": "float8_e5m2fnuz",
    "e4m3b11fnuz": "float8_e4m3b11fnuz", "e4m3ieee": "float8_e4m3", "e3m4": "float8_e3m4",
}  # fmt: skip
TORCH_DTYPES = {
    "e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2,
    "e4m3fnuz": torch.float8_e4m3fnuz, "e5m2fnuz": torch.float8_e5m2fnuz,
}  # fmt: skip

KEEPING = ("eager", "compiled")
"""Casts made as those of training are, which keep infinities; the others saturate them."""

AS_TABLES = ("e4m3fn", "e7m0")
"""Formats that are also cast to as tables of their values."""

Cast = Callable[[Tensor], Bits]


def as_table(fmt: FloatFormat) -> TableFormat:
    """An ExMy as the table of its values: the same codes, and what would follow the largest one."""
    following = float(fmt.magnitude(fmt.max_code + 1))
    return TableFormat(tuple(float(decode(fmt, code)) for code in range(1 << fmt.bits)), next=(-following, following))


def _bits(x: Tensor) -> Bits:
    return x.numpy().view(np.uint32)


def casts(fmt: FloatFormat) -> dict[str, Cast]:
    """The checks that apply to this format here: from a float32 tensor to the bits of its cast."""
    found: dict[str, Cast] = {"round_to": lambda x: _bits(round_to(x, fmt))}
    mode = Rounding.nearest_even
    if str(fmt) in AS_TABLES:
        values = as_table(fmt)
        found["table"] = lambda x: _bits(round_to(x, values))
    if serves(fmt, mode):
        engines: tuple[Engine, ...] = ("eager",) if missing_compiler(torch.device("cpu")) else ("eager", "compiled")
        for engine in engines:
            short = functools.partial(
                cast_values, scale=None, fmt=fmt, rounding=mode, exact_reciprocal=True, nonfinite="keep"
            )
            found[engine] = lambda x, cast=short, engine=engine: _bits(cast(x, engine=engine))  # type: ignore[misc]
    if str(fmt) in ML_DTYPES:
        kind = getattr(ml_dtypes, ML_DTYPES[str(fmt)])
        decoded = np.arange(256, dtype=np.uint8).view(kind).astype(np.float32).view(np.uint32)
        found["ml_dtypes"] = lambda x: decoded[x.numpy().astype(kind).view(np.uint8)]
    if str(fmt) in TORCH_DTYPES:
        dtype = TORCH_DTYPES[str(fmt)]
        floats = torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float32).numpy().view(np.uint32)
        found["torch"] = lambda x: floats[x.to(dtype).view(torch.uint8).numpy()]
    return found


def tables(fmt: FloatFormat) -> dict[str, Table]:
    """What judges each of the checks of `casts`."""
    saturating, keeping = Table(fmt), Table(fmt, "keep")
    return {kind: keeping if kind in KEEPING else saturating for kind in casts(fmt)}


def check_patterns(
    cast: Cast, table: Table, start: int, stop: int, limit: int = SIGN
) -> tuple[int, int, Mismatch | None]:
    """Patterns compared, mismatches and the first of them over start..stop, of which each sign's first `limit` count.

    start, stop: multiples of CHUNK.
    """
    base, patterns = torch.arange(CHUNK, dtype=torch.int32), torch.empty(CHUNK, dtype=torch.int32)
    compared, mismatches, first = 0, 0, None
    for at in range(start, stop, CHUNK):
        count = min(CHUNK, limit - (at & (SIGN - 1)))
        if count <= 0:
            continue
        torch.add(base, at - (1 << 32) if at >= SIGN else at, out=patterns)
        wrong, example = table.wrong(cast(patterns.view(torch.float32))[:count], at)
        compared, mismatches, first = compared + count, mismatches + wrong, first or example
    return compared, mismatches, first
