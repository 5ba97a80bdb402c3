"""Claims about codes of tensors, against the exact scalar arithmetic of altgrad.formats and torch's own dtypes."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from altgrad.formats import CATALOG, FloatFormat, decode, encode
from altgrad.quantize import round_to
from altgrad.quantize.codes import from_codes, from_storage, storage_dtype, to_codes, to_storage

NAMES = [entry.name for entry in CATALOG]
FORMATS = [*NAMES, "e4m3b1fn", "e0m1", "e1m0", "e2m1b1fn", "e5m9f", "e6m9ieee", "e8m7f"]
NATIVE = {
    "e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "e4m3fnuz": torch.float8_e4m3fnuz,
    "e5m2fnuz": torch.float8_e5m2fnuz, "fp16": torch.float16, "bf16": torch.bfloat16,
}  # fmt: skip


def tensor_formats() -> list[FloatFormat]:
    formats = [FloatFormat.parse(name) for name in FORMATS]
    return [fmt for fmt in formats if fmt.in_tensor_domain]


def every_code(fmt: FloatFormat) -> Tensor:
    return torch.arange(1 << fmt.bits, dtype=torch.int32)


@pytest.mark.parametrize("fmt", tensor_formats(), ids=str)
def test_every_code_has_the_value_that_exact_decoding_gives(
    fmt: FloatFormat, assert_same_bits: Callable[..., None]
) -> None:
    codes = every_code(fmt)
    assert_same_bits(from_codes(codes, fmt), [float(decode(fmt, code)) for code in codes.tolist()], codes)


@pytest.mark.parametrize("fmt", tensor_formats(), ids=str)
def test_every_value_has_its_code_again_and_nan_the_canonical_one(fmt: FloatFormat) -> None:
    codes = every_code(fmt)
    values = from_codes(codes, fmt)
    expected = codes.masked_fill(values.isnan(), encode(fmt, math.nan)) if fmt.has_nan else codes
    assert torch.equal(to_codes(values, fmt), expected)


@pytest.mark.parametrize("fmt", tensor_formats(), ids=str)
def test_what_rounding_gives_survives_its_codes_bit_for_bit(
    fmt: FloatFormat, critical_points: Callable[..., Tensor], assert_same_bits: Callable[..., None]
) -> None:
    x = critical_points(fmt, every=97 if fmt.bits > 10 else 1)
    values = round_to(x, fmt)
    assert_same_bits(from_codes(from_storage(to_storage(to_codes(values, fmt), fmt), fmt), fmt), values, x)


@pytest.mark.parametrize(("name", "dtype"), NATIVE.items())
def test_stored_codes_are_the_values_of_torch_where_torch_has_the_format(
    name: str, dtype: torch.dtype, assert_same_bits: Callable[..., None]
) -> None:
    fmt = FloatFormat.parse(name)
    codes = every_code(fmt)
    stored = to_storage(codes, fmt)
    assert stored.dtype == dtype == storage_dtype(fmt)
    assert_same_bits(stored.to(torch.float32), from_codes(codes, fmt), codes)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("e2m1", torch.uint8), ("e3m4", torch.uint8), ("e4m3p3109", torch.uint8), ("e4m4", torch.uint16)],
)
def test_other_formats_are_stored_as_the_narrowest_unsigned_integers(name: str, dtype: torch.dtype) -> None:
    fmt = FloatFormat.parse(name)
    assert to_storage(every_code(fmt), fmt).dtype == dtype
    with pytest.raises(ValueError, match=f"does not store {fmt}"):
        from_storage(torch.zeros(2), fmt)


def test_what_a_format_has_no_code_for_is_refused() -> None:
    for name, value in [("e2m1", math.nan), ("e2m1", math.inf), ("e4m3fn", -math.inf)]:
        with pytest.raises(ValueError, match=f"{name} has no"):
            to_codes(torch.tensor([1.0, value]), FloatFormat.parse(name))
    for code in (16, -1):
        with pytest.raises(ValueError, match="is not a code of e2m1"):
            from_codes(torch.tensor([0, code]), FloatFormat.parse("e2m1"))


def test_empty_and_scalar_tensors_have_codes() -> None:
    fmt = FloatFormat.parse("e4m3fn")
    assert (
        to_codes(torch.empty(0, 3), fmt).shape == from_codes(torch.empty(0, 3, dtype=torch.uint8), fmt).shape == (0, 3)
    )
    assert int(to_codes(torch.tensor(-448.0), fmt)) == 0xFE
