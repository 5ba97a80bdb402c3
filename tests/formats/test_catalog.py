"""The catalog is consistent data, and the outside world's names mean what it says."""

import ml_dtypes
import numpy as np
import pytest
from gfloat import Domain
from gfloat.formats import format_info_p3109

from altgrad.formats import CATALOG, FloatFormat
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
