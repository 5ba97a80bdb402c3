"""Casts to tables of values: an ExMy given as one equals its formula, and the formats' own code agrees."""

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from altgrad.formats import CATALOG, TABLES, FloatFormat, Rounding, TableFormat, parse_format, round_value
from altgrad.nn import PrecisionPolicy, quantize_model
from altgrad.quantize import Quantizer, QuantizerSpec, at_rung, gap, round_to, rung, spacing
from altgrad.quantize.codes import from_codes, from_storage, storage_dtype, to_codes, to_storage
from altgrad.quantize.grid import round_units
from altgrad.quantize.noise import counted_bits
from altgrad.quantize.scaling import finite_amax, scale_of
from bench.patterns import as_table

NAMES = [line.name for line in TABLES]
FORMULAS = ["e2m1", "e0m7", "e4m3fn", "e7m0p3109", "e3m2"]
BITS8 = [line.name for line in CATALOG if FloatFormat.parse(line.name).bits <= 8]


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    return load_file(Path(__file__).with_name("table_references.safetensors"))


def table(name: str) -> TableFormat:
    found = parse_format(name)
    assert isinstance(found, TableFormat)
    return found


def points(fmt: TableFormat) -> Tensor:
    """Every value, midpoint and quarter of a gap, `next` and beyond, and the float32 on either side of each."""
    ends = torch.tensor(fmt.extended, dtype=torch.float64)
    parts = [ends, *(ends[:-1].lerp(ends[1:], part) for part in (0.25, 0.5, 0.75)), ends * 3]
    exact = torch.cat([*parts, torch.tensor([0.0, 2.0**-149, 1e-30])]).float()
    exact = torch.cat((exact, -exact))
    both = [torch.nextafter(exact, torch.full_like(exact, side)) for side in (-math.inf, math.inf)]
    return torch.cat((exact, *both)).unique()


def near_by(x: Tensor) -> Tensor:
    """For each of sorted points one a few places on, or on the other side of zero."""
    return torch.where(torch.arange(len(x)) % 5 == 0, -x, x.roll(3))


def check_against_formula(fmt: FloatFormat, x: Tensor, same: Callable[..., None]) -> None:
    own = as_table(fmt)
    x = torch.cat((x, torch.tensor([math.inf, -math.inf, math.nan, -0.0])))
    average = torch.nan_to_num(x.flip(0))
    for rounding in Rounding:
        for overflow in ("saturate", "inf") if fmt.has_inf or fmt.has_nan else ("saturate",):
            for nonfinite in ("saturate", "keep"):
                options = {"overflow": overflow, "nonfinite": nonfinite, "key": 3, "average": average}
                same(round_to(x, own, rounding, **options), round_to(x, fmt, rounding, **options), x)
    drawn = {"key": 5, "random_bits": 3, "scale": 0.7}
    same(round_to(x, own, "stochastic", **drawn), round_to(x, fmt, "stochastic", **drawn), x)
    assert rung(x, own).equal(rung(x, fmt)) and to_codes(round_to(x[:-4], own), own).equal(
        to_codes(round_to(x[:-4], fmt), fmt)
    )
    inside = x[x.abs() <= float(fmt.max)]
    on_grid = round_to(inside, fmt)
    same(spacing(inside, own), spacing(inside, fmt), inside)
    for direction in (-1.0, 0.0, 1.0):
        same(gap(on_grid, own, direction), gap(on_grid, fmt, direction), on_grid)
    same(at_rung(rung(x, fmt), own), at_rung(rung(x, fmt), fmt), x)


@pytest.mark.parametrize("name", FORMULAS)
def test_an_exmy_given_as_a_table_equals_the_formula(
    name: str, critical_points: Callable[..., Tensor], assert_same_bits: Callable[..., None]
) -> None:
    fmt = FloatFormat.parse(name)
    check_against_formula(fmt, critical_points(fmt), assert_same_bits)
    codes = torch.arange(1 << fmt.bits)
    assert_same_bits(from_codes(codes, as_table(fmt)), from_codes(codes, fmt), codes.float())
    for facts in ("bits", "max", "lowest", "code_count", "has_inf", "has_nan", "has_negative_zero"):
        assert getattr(as_table(fmt), facts) == getattr(fmt, facts)
    assert [*chain(*as_table(fmt).finite_codes)] == [*chain(*fmt.finite_codes)]
    assert (as_table(fmt).end_codes, as_table(fmt).zero_codes) == (fmt.end_codes, fmt.zero_codes)
    assert as_table(fmt).spacing_binades == fmt.spacing_binades and as_table(fmt).max_binade == fmt.max_binade


@pytest.mark.long
@pytest.mark.parametrize("name", BITS8)
def test_on_sampled_patterns_a_table_equals_the_formula(
    name: str, critical_points: Callable[..., Tensor], assert_same_bits: Callable[..., None]
) -> None:
    fmt = FloatFormat.parse(name)
    check_against_formula(fmt, critical_points(fmt), assert_same_bits)
    generator, own = torch.Generator().manual_seed(1), as_table(fmt)
    for _ in range(16):
        bits = torch.randint(-(1 << 31), 1 << 31, (1 << 20,), dtype=torch.int64, generator=generator).to(torch.int32)
        x = bits.view(torch.float32)
        for rounding in (Rounding.nearest_even, Rounding.stochastic):
            assert_same_bits(round_to(x, own, rounding, key=1), round_to(x, fmt, rounding, key=1), x)


@pytest.mark.parametrize("name", [*NAMES, "[-1,-0.5,0.3,2]", "[0,0.25,1,3]"])
def test_every_rounding_of_a_tensor_is_that_of_numbers(name: str, assert_same_bits: Callable[..., None]) -> None:
    fmt = table(name)
    x = points(fmt)
    x = x[:: max(1, len(x) // 300)]
    average = near_by(x)
    for rounding in Rounding:
        bits = counted_bits(x.shape, 9)
        draws = [Fraction(int(each), 1 << 24) if rounding is Rounding.stochastic else None for each in bits]
        expected = [
            float(round_value(fmt, float(value), rounding, u=draw, average=float(goal)))
            for value, draw, goal in zip(x, draws, average, strict=True)
        ]
        found = round_to(x, fmt, rounding, key=9, average=average)
        assert found.equal(torch.tensor(expected)), rounding


def test_stochastic_rounding_goes_up_iff_the_draw_is_below_the_passed_part() -> None:
    fmt, k = table("nf4"), 16
    x = torch.tensor([-0.9, -0.21, -1e-3, 0.03, 0.5, 0.99]).float()
    for value in x:
        low, high = (max(v for v in fmt.ranked if v <= value), min(v for v in fmt.ranked if v >= value))
        passed = (Fraction(float(value)) - Fraction(low)) / (Fraction(high) - Fraction(low))
        away = passed if value > 0 else 1 - passed
        edge = int(away * (1 << 24))
        noise = torch.cat((torch.arange(0, 1 << 24, 1 << (24 - k)), torch.tensor([edge - 1, edge, edge + 1]))).int()
        found = round_units(value.expand(len(noise)), fmt, Rounding.stochastic, noise)
        goes_away = noise < math.ceil(away * (1 << 24))
        far, near = (high, low) if value > 0 else (low, high)
        assert found.equal(torch.where(goes_away, far, near).float())


@pytest.mark.parametrize("name", NAMES)
def test_grid_points_stay_and_have_their_rung_code_and_storage_again(name: str) -> None:
    fmt = table(name)
    x = torch.tensor(fmt.ranked)
    for rounding in Rounding:
        assert round_to(x, fmt, rounding, key=1, average=x).equal(x)
    places = rung(x, fmt)
    assert places.diff().eq(1).all() and not places[x == 0].any() and at_rung(places, fmt).equal(x)
    assert at_rung(torch.tensor([-(1 << 30), 1 << 30]), fmt).tolist() == [fmt.lowest, fmt.highest]
    codes = to_codes(x, fmt)
    assert from_codes(codes, fmt).equal(x)
    assert from_codes(from_storage(to_storage(codes, fmt), fmt), fmt).equal(x)
    up = gap(x[:-1], fmt, 1.0)
    assert up.equal(x[1:] - x[:-1]) and gap(x[1:], fmt, -1.0).equal(x[1:] - x[:-1])
    assert spacing(x[1:-1], fmt).equal(torch.where(x >= 0, gap(x, fmt, 1.0), gap(x, fmt, -1.0))[1:-1])


def test_int8_is_stored_as_torch_stores_it_and_no_code_is_made_up() -> None:
    x = torch.tensor([-128.0, -1.0, 0.0, 127.0])
    stored = to_storage(to_codes(x, table("int8")), table("int8"))
    assert storage_dtype(table("int8")) == torch.int8 and stored.tolist() == [-128, -1, 0, 127]
    assert storage_dtype(table("nf4")) == torch.uint8
    with pytest.raises(ValueError, match="3 is not a code of ternary; its codes are 0 to 2"):
        from_codes(torch.tensor([3]), table("ternary"))
    with pytest.raises(ValueError, match="nf4 has no NaN"):
        to_codes(torch.tensor([math.nan]), table("nf4"))


def test_scales_bring_amax_to_where_neither_sign_saturates(reference: dict[str, Tensor]) -> None:
    assert float(scale_of(torch.tensor(254.0), table("int8"), power_of_two=False)) == 2
    assert float(scale_of(torch.tensor(128.0), table("int8"))) == 2
    quantizer = Quantizer(
        QuantizerSpec.model_validate({"format": "[-1,0,3]", "scaling": {"kind": "current", "scale": "real"}})
    )
    assert quantizer(torch.tensor([-6.0, 4.0, 1.0])).tolist() == [-6.0, 0.0, 0.0]  # 4 lies below the midpoint, 9
    x = torch.tensor([[-1.0, 0.5], [0.25, 2.0]])
    assert QuantizerSpec.model_validate("int8").scaling.kind == "current"
    assert Quantizer("int8")(x).equal(x)


def test_softposit_agrees_in_full(reference: dict[str, Tensor]) -> None:
    for name in ("posit8", "posit8_es0"):
        values = torch.tensor(table(name).values).nan_to_num(nan=math.inf)
        assert values.equal(reference[f"softposit.{name}.values"])
        x, theirs = reference[f"softposit.{name}.in"], reference[f"softposit.{name}.out"]
        assert len(x) > 3000 and round_to(x, name).equal(theirs)


def test_hifloat8_agrees_in_full(reference: dict[str, Tensor]) -> None:
    fmt = table("hif8")
    assert torch.tensor(fmt.values[:128]).sort().values.equal(reference["hif8.values"])
    for inputs in ("lognormal", "midpoints", "range"):
        x, theirs = reference[f"hif8.{inputs}.in"], reference[f"hif8.{inputs}.out"]
        assert round_to(x, fmt, "nearest_away", overflow="inf").equal(theirs)


def test_bitsandbytes_agrees_in_full(reference: dict[str, Tensor]) -> None:
    for name, theirs in (("nf4", "nf4"), ("bnb_fp4", "fp4")):
        fmt = table(name)
        assert torch.tensor(fmt.values).equal(reference[f"bitsandbytes.{name}.values"])
        x, codes = reference[f"bitsandbytes.{name}.in"], reference[f"bitsandbytes.{name}.codes"]
        assert round_to(x, fmt).equal(from_codes(codes, fmt))
        for inputs in ("normal", "lognormal"):
            x = reference[f"bitsandbytes.blocks.{inputs}.in"]
            packed = reference[f"bitsandbytes.blocks.{inputs}.{theirs}.codes"]
            codes = torch.stack((packed >> 4, packed & 15), -1).flatten()
            spec = {"format": name, "scaling": {"kind": "block", "size": 64, "scale": "real"}}
            quantizer = Quantizer(QuantizerSpec.model_validate(spec))
            scale = quantizer.grid(x).scale
            assert scale is not None and scale.view(-1, 64)[:, 0].equal(
                reference[f"bitsandbytes.blocks.{inputs}.{theirs}.absmax"]
            )
            assert quantizer.cast(x, live=False).rounded.flatten().equal(from_codes(codes, fmt))


def test_ml_dtypes_int4_agrees_in_full() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = points(table("int4"))
    x = x[x.abs() <= 7.5]  # it saturates only since 0.5, and wraps before
    theirs = torch.from_numpy(x.round().clamp(-8, 7).numpy().astype(ml_dtypes.int4).astype("float32"))
    assert round_to(x, "int4").equal(theirs)


def test_torchao_int8_rows_agree_but_for_their_reciprocal(reference: dict[str, Tensor]) -> None:
    x = reference["torchao.in"]
    spec = {"format": "int8", "scaling": {"kind": "current", "scale": "real", "granularity": "channel"}}
    quantizer = Quantizer(QuantizerSpec.model_validate(spec))
    scale = quantizer.grid(x).scale
    assert scale is not None and scale.flatten().equal(reference["torchao.scale"].flatten())
    codes = to_codes(round_to(x * (1 / scale), "int8"), table("int8")).to(torch.int8)
    assert codes.equal(reference["torchao.codes"])  # it multiplies with 1 / scale


def test_a_table_too_fine_for_a_look_up_is_bisected_with_the_same_result() -> None:
    fmt = TableFormat((-2.0, -0.0, 0.0, *(1 + k / 4096 for k in range(300))))
    x = torch.cat((points(fmt)[::5], torch.tensor([-0.0, 0.2, -0.2])))
    for rounding in (Rounding.nearest_even, Rounding.nearest_away):
        expected = torch.tensor([float(round_value(fmt, float(value), rounding)) for value in x])
        found = round_to(x, fmt, rounding)
        assert found.equal(expected) and found.signbit().equal(expected.signbit())


def test_half_precision_stays_on_an_asymmetric_grid() -> None:
    x = torch.tensor([60000.0, -60000.0, 100.0], dtype=torch.float16)
    spec = QuantizerSpec.model_validate({"format": "nf4", "scaling": "current"})
    found = Quantizer(spec)(x)
    assert found.dtype == torch.float16 and found.isfinite().all()
    at_scale = torch.tensor(table("nf4").ranked) * 65536
    assert all(bool((each == at_scale.half()).any()) for each in found)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
def test_layers_cast_to_tables_with_the_same_bits_compiled_and_eager() -> None:
    rules = (
        {"match": "*", "weight": "nf4", "input": {"format": "int8", "rounding": "stochastic"}, "grad_output": "posit8"},
    )
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = quantize_model(
            torch.nn.Sequential(torch.nn.Linear(64, 80)), PrecisionPolicy.model_validate({"rules": rules})
        )
        run = torch.compile(model, fullgraph=True) if compiled else model
        x = torch.randn(70, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = run(x)
        y.sin().sum().backward()
        weight = model.get_submodule("0").weight.grad
        assert weight is not None and x.grad is not None
        results.append((y.detach(), x.grad, weight))
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(eager, other, rtol=1e-5, atol=1e-6)


FOUR = (Rounding.nearest_ties_up, Rounding.stochastic, Rounding.toward_zero, Rounding.toward_average)
TORCHS_OWN = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")


@TORCHS_OWN
@pytest.mark.parametrize("modes", [FOUR[1:2], pytest.param(FOUR, marks=pytest.mark.long)], ids=["one", "four"])
def test_a_cast_of_a_table_is_one_graph_with_the_same_bits(modes: tuple[Rounding, ...]) -> None:
    x = points(HIF8)

    def cast(x: Tensor) -> list[Tensor]:
        rounded = [round_to(x, HIF8, mode, key=1, average=near_by(x)) for mode in modes]
        return [*rounded, spacing(x, HIF8), rung(x, HIF8)]

    for eager, compiled in zip(cast(x), torch.compile(cast, fullgraph=True)(x), strict=True):
        assert eager.equal(compiled)


HIF8 = table("hif8")


def test_an_amax_of_a_table_is_kept_by_a_scale_that_is_a_power_of_two() -> None:
    x = torch.randn(40, 30, generator=torch.Generator().manual_seed(3))
    for name in NAMES:
        scale = scale_of(finite_amax(x), table(name))
        assert float((x / scale).abs().max()) <= table(name).max
