"""Names, limits and the domain of formats; every split of 2 to 16 bits."""

import copy
import itertools
import pickle
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altgrad.formats import AmbiguousFormatError, FloatFormat


def defaults():
    """Every format of 2 to 16 bits with its default bias, by its full name."""
    for e in range(16):
        for m in range(16 - e):
            for specials in ("ieee", "fn", "fnuz", "p3109", "f"):
                try:
                    yield FloatFormat.parse(f"e{e}m{m}{specials}")
                except ValueError:
                    assert e + m < 1 or (specials == "ieee" and (e < 2 or m < 1)) or e + m == 1


DEFAULTS = tuple(defaults())


@st.composite
def formats(draw):
    e = draw(st.integers(0, 15))
    m = draw(st.integers(max(0, 1 - e), 15 - e))
    choices = ["f", *["fnuz"], *["fn", "p3109"] * (e + m > 1), *["ieee"] * (e > 1 and m > 0)]
    bias = draw(st.integers(-400, 400)) if e else 0
    return FloatFormat(e, m, bias, draw(st.sampled_from(choices)))


def test_every_default_format_parses_back_and_no_two_share_a_name():
    assert all(FloatFormat.parse(str(fmt)) == fmt for fmt in DEFAULTS)
    assert len({str(fmt) for fmt in DEFAULTS}) == len(set(DEFAULTS)) == len(DEFAULTS) - 3  # LLVM's three fn spellings


@settings(max_examples=400)
@given(formats())
def test_any_format_parses_back(fmt):
    assert FloatFormat.parse(str(fmt)) == fmt
    assert FloatFormat.parse(str(fmt).upper()) == fmt


@pytest.mark.parametrize("name", ["e4m3fn", "e11m4", "e0m7"])
def test_a_format_survives_copy_and_pickle(name):
    fmt = FloatFormat.parse(name)
    for twin in (copy.deepcopy(fmt), pickle.loads(pickle.dumps(fmt))):
        assert twin == fmt
        assert hash(twin) == hash(fmt)
        assert twin.magnitudes == fmt.magnitudes
    assert eval(repr(fmt)) == fmt


@pytest.mark.parametrize(
    ("name", "full"),
    [("e5m2", "e5m2ieee"), ("e3m4", "e3m4ieee"), ("e5m10", "e5m10ieee"), ("e8m7", "e8m7ieee"), ("fp16", "e5m10ieee")]
    + [(f"e{e}m{m}", f"e{e}m{m}f") for e, m in ((0, 7), (1, 6), (2, 5), (6, 1), (7, 0), (2, 1), (3, 3), (0, 1))]
    + [("e2m1fn", "e2m1f"), ("e2m3fn", "e2m3f"), ("e3m2fn", "e3m2f"), ("e4m3b7fn", "e4m3fn"), (" E4M3FN ", "e4m3fn")],
)
def test_a_short_name_means(name, full):
    assert FloatFormat.parse(name) == FloatFormat.parse(full)


def test_the_true_fn_form_under_an_llvm_spelling_has_a_name_of_its_own():
    fmt = FloatFormat(2, 1, 1, "fn")
    assert str(fmt) == "e2m1b1fn"
    assert FloatFormat.parse("e2m1b1fn") == fmt != FloatFormat.parse("e2m1fn")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("e9m9", "e9m9 has 19 bits; AltGrad emulates 2 to 16."),
        ("e0m0", "e0m0 has 1 bit; AltGrad emulates 2 to 16."),
        ("e1m3ieee", "ieee needs E >= 2 and M >= 1"),
        ("e4m0ieee", "ieee needs E >= 2 and M >= 1"),
        ("e1m0fn", "no finite value but zero"),
        ("e0m1p3109", "no finite value but zero"),
        ("e0m7b3", "e0m7 has no exponent to bias by 3; scale the tensor instead."),
        ("e4m3b99999fn", "bias 99999 is out of reach"),
        ("e4m3fnu", "'e4m3fnu' is not a format: .*Did you mean 'e4m3fnuz'?"),
        ("e04m3fn", "is not a format"),
        ("", "is not a format: write e<E>m<M>"),
        ("qqqqq", "`altgrad formats list` shows those with a name"),
        ("e8m0fnu", "unsigned scale"),
    ],
)
def test_what_is_no_format_says_why(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        FloatFormat.parse(name)
    assert "\n" not in str(caught.value)


def test_specials_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match="'fnu' is not a choice of specials; choose one of ieee, fn"):
        FloatFormat(4, 3, 7, "fnu")


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("e4m3", ("e4m3fn", "e4m3ieee")),
        ("E4M3", ("e4m3fn", "e4m3ieee")),
        ("fp8", ("e4m3fn", "e5m2")),
        ("e4m3b11", ("e4m3b11fn", "e4m3b11ieee")),
    ],
)
def test_an_ambiguous_name_lists_its_meanings(name, choices):
    with pytest.raises(AmbiguousFormatError, match=f"{choices[0]} .* or {choices[1]} ") as caught:
        FloatFormat.parse(name)
    assert caught.value.choices == choices
    assert all(str(FloatFormat.parse(choice)) == choice for choice in choices)


def test_limits_agree_with_gfloat_for_every_default_format_of_float64(as_gfloat):
    checked = 0
    for fmt in DEFAULTS:
        if fmt.exponent_bits > 10:
            continue
        theirs = as_gfloat(fmt)
        assert (fmt.max, fmt.bits, fmt.e_min) == (theirs.max, theirs.k, 1 - theirs.bias), fmt
        assert fmt.max_binade == theirs.emax, fmt
        assert fmt.min_subnormal == theirs.smallest, fmt
        assert fmt.min_normal == (theirs.smallest_normal if fmt.exponent_bits else None), fmt
        assert fmt.max_code == theirs.code_of_max, fmt
        assert fmt.has_inf == (theirs.num_posinfs > 0), fmt
        assert fmt.has_nan == (theirs.num_nans > 0), fmt
        assert fmt.has_negative_zero == theirs.has_nz, fmt
        assert fmt.code_count == 2**theirs.k - theirs.num_nans - theirs.num_infs, fmt
        checked += 1
    assert checked > 400


@given(formats())
def test_limits_are_exact_for_any_bias(fmt):
    assert Fraction(fmt.max) == fmt.magnitude(fmt.max_code)
    assert Fraction(fmt.min_subnormal) == fmt.magnitude(1) == Fraction(2) ** (fmt.e_min - fmt.mantissa_bits)
    assert Fraction(2) ** fmt.max_binade <= Fraction(fmt.max) < Fraction(2) ** (fmt.max_binade + 1)
    if fmt.min_normal is not None:
        assert Fraction(fmt.min_normal) == fmt.magnitude(1 << fmt.mantissa_bits) == Fraction(2) ** fmt.e_min


def test_the_magnitudes_ascend_from_zero_and_are_floats_where_float64_holds_them():
    for fmt in DEFAULTS:
        if fmt.bits <= 9:
            assert len(fmt.magnitudes) == fmt.max_code + 1
            assert fmt.magnitudes[0] == 0.0
            assert all(a < b for a, b in itertools.pairwise(fmt.magnitudes))
            assert all(type(value) is float for value in fmt.magnitudes)
    wide = FloatFormat.parse("e11m0").magnitudes
    assert type(wide[0]) is float
    assert wide[-1] == Fraction(2) ** 1024


def test_beyond_float64_a_limit_is_the_exact_fraction():
    fmt = FloatFormat.parse("e15m0")
    assert (fmt.max, fmt.min_subnormal) == (Fraction(2) ** 16384, Fraction(1, 2**16382))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("e10m5", r"e10m5 spans 2\^-515\.\.2\^512; casts run in float32 \(2\^-149\.\.2\^128\)\."),
        ("e8m0", r"e8m0 spans 2\^-126\.\.2\^128; casts"),
        ("e5m2b140f", r"e5m2b140f spans 2\^-141\.\.2\^-109|e5m2b140f has normals from 2\^-139; casts run in float32"),
        ("e2m1b150", r"e2m1b150 spans 2\^-150\.\."),
    ],
)
def test_a_format_outside_float32_is_refused_for_tensors(name, message):
    fmt = FloatFormat.parse(name)
    assert not fmt.in_tensor_domain
    with pytest.raises(ValueError, match=message):
        fmt.require_tensor_domain()


@settings(max_examples=300)
@given(formats())
def test_the_tensor_domain_is_what_float32_holds_with_normals_as_normals(fmt):
    held = fmt.e_min >= -126 and fmt.min_subnormal >= 2.0**-149 and fmt.max < 2**128
    assert fmt.in_tensor_domain == held
    if held:
        fmt.require_tensor_domain()


@pytest.mark.parametrize("name", ["e8m7", "e5m10", "e7m0", "e0m7", "e4m3fn"])
def test_formats_in_use_are_in_the_tensor_domain(name):
    FloatFormat.parse(name).require_tensor_domain()


def test_grid_shift_is_what_comparing_all_values_finds():
    small = [fmt for fmt in DEFAULTS if fmt.bits <= 6] + [FloatFormat.parse(name) for name in ("e3m2b9", "e1m4b-2")]
    values = {fmt: [fmt.magnitude(rung) for rung in range(fmt.max_code + 1)] for fmt in small}
    for a in small:
        for b in small:
            ratio = values[a][1] / values[b][1]
            equal = values[a] == [ratio * value for value in values[b]]
            shift = a.grid_shift(b)
            assert (shift is not None) == equal, (a, b)
            assert shift is None or Fraction(2) ** shift == ratio, (a, b)


def test_e1m6_is_four_times_e0m7():
    assert FloatFormat.parse("e1m6").grid_shift(FloatFormat.parse("e0m7")) == 2
    assert FloatFormat.parse("e1m6").magnitudes == tuple(4 * value for value in FloatFormat.parse("e0m7").magnitudes)


def test_e7m0_is_zero_and_the_powers_from_minus_62_to_64():
    assert FloatFormat.parse("e7m0").magnitudes == (0.0, *(2.0**k for k in range(-62, 65)))
