"""The catalog is consistent data, and the outside world's names mean what it says."""

import ml_dtypes
import numpy as np
import pytest
from gfloat import Domain
from gfloat.formats import format_info_p3109

from altgrad.formats import CATALOG, AmbiguousFormatError, FloatFormat
from altgrad.formats.catalog import ALIASES, AMBIGUOUS, OUTSIDE

EVERY = pytest.mark.parametrize("line", CATALOG, ids=lambda line: line.name)


@EVERY
def test_every_name_is_canonical(line):
    assert str(FloatFormat.parse(line.name)) == line.name


@EVERY
def test_every_alias_is_the_same_format_in_any_case(line):
    for alias in line.aliases:
        assert FloatFormat.parse(alias) == FloatFormat.parse(alias.upper()) == FloatFormat.parse(line.name)


def test_no_spelling_is_taken_twice():
    spellings = [line.name for line in CATALOG] + [alias for line in CATALOG for alias in line.aliases]
    assert len(spellings) == len({*spellings, *AMBIGUOUS, *OUTSIDE}) - len(AMBIGUOUS) - len(OUTSIDE)
    assert len(ALIASES) == len(spellings) - len(CATALOG)


def test_the_mission_and_the_seven_bit_ablation_are_named():
    named = {line.name for line in CATALOG}
    assert {"e0m7", "e1m6", "e3m4", "e5m2", "e7m0"} <= named
    assert {str(FloatFormat.parse(f"e{e}m{7 - e}f")) for e in range(8)} <= named


@pytest.mark.parametrize(
    "spelling", [line.name for line in CATALOG] + list(ALIASES), ids=lambda spelling: f"as_{spelling}"
)
def test_names_that_ml_dtypes_knows_have_its_limits(spelling):
    dtype = getattr(ml_dtypes, spelling, None) or getattr(np, spelling, None)
    if spelling == "half" or dtype is None:
        dtype = {"half": np.float16}.get(spelling)
    if dtype is None:
        return
    info = (np.finfo if dtype is np.float16 else ml_dtypes.finfo)(dtype)
    fmt = FloatFormat.parse(spelling)
    assert (fmt.max, fmt.min_normal, fmt.bits) == (float(info.max), float(info.smallest_normal), info.bits)
    assert fmt.min_subnormal == float(info.smallest_subnormal)


@pytest.mark.parametrize("precision", range(1, 8))
@pytest.mark.parametrize(("domain", "suffix"), [(Domain.Extended, "p3109"), (Domain.Finite, "fnuz")])
def test_p3109_extended_is_p3109_and_p3109_finite_is_fnuz(precision, domain, suffix, as_gfloat):
    theirs = format_info_p3109(8, precision, domain=domain)
    ours = as_gfloat(FloatFormat.parse(f"e{8 - precision}m{precision - 1}{suffix}"))
    assert {**vars(theirs), "name": ""} == {**vars(ours), "name": ""}


def test_every_signed_p3109_name_is_the_format_gfloat_builds_under_it(as_gfloat):
    names = [alias for alias in ALIASES if alias.startswith("p3109_")]
    assert len(names) == 9
    for name in names:
        domain = Domain.Extended if name.endswith("se") else Domain.Finite
        theirs = format_info_p3109(8, int(name[len("p3109_k8p")]), domain=domain)
        assert theirs.name == name
        assert {**vars(theirs), "name": ""} == {**vars(as_gfloat(FloatFormat.parse(name))), "name": ""}


@pytest.mark.parametrize("width", range(2, 17))
@pytest.mark.parametrize(("domain", "suffix"), [(Domain.Extended, "se"), (Domain.Finite, "sf")])
def test_signed_p3109_names_of_every_width_are_grammar(width, domain, suffix, as_gfloat):
    for precision in range(1, width):
        if (width, suffix) == (2, "se"):
            continue  # +-infinity takes the only codes but zero's
        theirs = format_info_p3109(width, precision, domain=domain)
        fmt = FloatFormat.parse(theirs.name)
        assert fmt == FloatFormat.parse(f"binary{width}p{precision}{suffix}")
        assert {**vars(theirs), "name": ""} == {**vars(as_gfloat(fmt)), "name": ""}


@pytest.mark.parametrize(("name", "formats"), [("MXFP8", ("e4m3fn", "e5m2")), ("mxfp6", ("e2m3", "e3m2"))])
def test_a_name_of_formats_with_block_scales_says_both_and_the_scaling(name, formats):
    with pytest.raises(AmbiguousFormatError, match=f"^{name} means different formats.*with scaling: mx") as caught:
        FloatFormat.parse(name)
    assert caught.value.choices == formats


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("p3109_k8p8se", "p3109_k8p8se has no exponent bit; signed P3109 at 8 bits goes from p1 to p7."),
        ("binary17p3", "e14m2 has 17 bits; AltGrad emulates 2 to 16."),
        (
            "p3109_k8p4ue",
            "p3109_k8p4ue is an unsigned scale format, not one for values; ask for it as a block's scale.",
        ),
        ("mxint8", "mxint8 is two's complement; without its lone -2 it is twice e0m7"),
    ],
)
def test_names_that_are_no_signed_format_say_why(name, message):
    with pytest.raises(ValueError) as caught:
        FloatFormat.parse(name)
    assert message in str(caught.value)
