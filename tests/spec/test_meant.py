"""Claims about suggestions: what is suggested is what was meant, or nothing, for every name of every family."""

import string
from collections.abc import Iterator

import pytest

from altgrad.formats import CATALOG, Rounding
from altgrad.formats.meant import meant
from altgrad.spec import Kind, SpecError
from altgrad.sweeps import LauncherSpec
from altgrad.training import RunSpec

OTHERS = [
    "nadam", "radam", "adan", "adamax", "adamp", "adamg", "adagrad", "adadelta", "adafactor", "asgd", "rmsprop",
    "rprop", "lamb", "lars", "sophia", "shampoo", "soap", "novograd", "yogi", "lbfgs",
]  # fmt: skip


def roots(cls: type[Kind] = Kind) -> Iterator[type[Kind]]:
    for child in cls.__subclasses__():
        if child.is_root() and child.__module__.startswith("altgrad."):
            yield child
        yield from roots(child)


assert LauncherSpec in roots() and RunSpec  # what imports every family
FAMILIES = {root.family: list(root.kinds()) for root in roots()} | {
    "rounding": [str(each) for each in Rounding], "format": [entry.name for entry in CATALOG],
}  # fmt: skip


def slips(name: str) -> Iterator[str]:
    """Every beginning, and every letter left out, doubled, swapped, replaced or put in."""
    yield from (name[:n] for n in range(2, len(name)))
    for n in range(len(name)):
        yield from (
            name[:n] + name[n + 1 :],
            name[: n + 1] + name[n:],
            name[:n] + name[n : n + 2][::-1] + name[n + 2 :],
        )
        for letter in string.ascii_lowercase + string.digits:
            yield from (name[:n] + letter + name[n + 1 :], name[:n] + letter + name[n:])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_slip_of_one_letter_suggests_the_name_itself_or_none(family: str) -> None:
    known = FAMILIES[family]
    for name in known:
        for said in {*slips(name)} - {*known}:
            found = meant(said, known)
            # What is itself the beginning of another name, or goes on after one, is as likely that one.
            begun = found is not None and (found.startswith(said) or said.startswith(found))
            by_name = found is not None and said in ("adam", "rd", "rz", "sr", "ru")
            assert found in (None, name) or begun or by_name, f"{said}: {found} for {name}"


def test_slips_are_understood_more_often_than_not() -> None:
    for family, known in FAMILIES.items():
        if family != "format":
            right = [meant(name[:3] + name[4:], known) == name for name in known if len(name) > 5]
            assert sum(right) >= 0.8 * len(right), family


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("adam", "adamw"), ("Adam", "adamw"), ("AdamW", "adamw"), ("adamw8bit", "adamw"), ("sgdm", "sgd"),
        ("ManifoldAdamW", "manifold_adamw"), ("manifold-adamw", "manifold_adamw"), ("manifold", "manifold_adamw"),
        ("gridoptim", "grid_optim"), ("mad", "madam"), ("ma", None), *((other, None) for other in OTHERS),
    ],
)  # fmt: skip
def test_no_optimizer_is_suggested_for_another(said: str, name: str | None) -> None:
    assert meant(said, FAMILIES["optimizer"]) == name


@pytest.mark.parametrize(
    ("said", "name"),
    [("nearest_odd", None), ("nearest", None), ("toward_inf", None), ("toward_infinity", None), ("rne", "nearest_even"),
     ("NearestEven", "nearest_even"), ("stochastik", "stochastic"), ("towards_zero", "toward_zero")],
)  # fmt: skip
def test_no_rounding_is_suggested_for_another(said: str, name: str | None) -> None:
    assert meant(said, FAMILIES["rounding"]) == name


@pytest.mark.parametrize("said", ["float8", "bfloat8", "float32", "fp5", "nvfp8"])
def test_no_format_is_suggested_for_one_of_another_width(said: str) -> None:
    with pytest.raises(ValueError, match="is not a format") as error:
        RunSpec.parse(f"{{precision: {{rules: [{{weight: {said}}}]}}}}")
    assert "Did you mean" not in str(error.value)


def test_a_wrong_kind_without_a_suggestion_lists_all() -> None:
    with pytest.raises(SpecError, match=r"'nadam' is not an optimizer\. There are adamw, grid_optim, lion, madam"):
        RunSpec.parse("optimizer: nadam")
