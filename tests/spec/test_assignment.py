"""`--set path=value` changes a spec as it would be read, and is checked like everything else."""

from typing import Any

import pytest

from altgrad.spec import Document, Spec, SpecError

BASE = "steps: 1\nname: a\nshapes: [circle, {kind: square, side: 2}]\ncast: e4m3fn\nbetas: [0.5, 0.5]\n"


def after(drawing: type[Spec], *sets: str, base: str = BASE) -> dict[str, Any]:
    return drawing.parse(base, "spec", sets).tree()


CHANGED: dict[str, tuple[str, Any]] = {
    "steps=7": ("steps", 7),
    "offset=-1e-3": ("offset", -1e-3),
    "bright=true": ("bright", True),
    "name=yes": ("name", "yes"),
    "name='7'": ("name", "7"),
    "name=": ("name", "a"),
    "label=null": ("label", None),
    "label=a=b": ("label", "a=b"),
    "betas=[0.1, 0.2]": ("betas", [0.1, 0.2]),
    "betas.1=0.25": ("betas", [0.5, 0.25]),
    "shapes.0.every=5": ("shapes.0", {"kind": "circle", "every": 5, "radius": 1.0}),
    "shapes.1.every=5": ("shapes.1", {"kind": "square", "every": 5, "side": 2.0, "inner": None}),
    "shapes.1.inner=circle": ("shapes.1.inner.kind", "circle"),
    "shapes.1.inner.kind=circle": ("shapes.1.inner.kind", "circle"),
    "shapes.0={kind: square, side: 3}": ("shapes.0.side", 3.0),
    "shapes.2=circle": ("shapes.2.kind", "circle"),
    "shapes=[]": ("shapes", []),
    "cast.rounding=stochastic": ("cast", {"format": "e4m3fn", "rounding": "stochastic"}),
    "cast=none": ("cast", "?"),
    "shape.radius=2": ("shape", {"kind": "circle", "every": 10, "radius": 2.0}),
    "axes.a=[1, 2]": ("axes", {"a": [1, 2]}),
    "size=all": ("size", "all"),
    " steps =7": ("steps", 7),
}
REFUSED = {"name=", "cast=none"}


@pytest.mark.parametrize("assignment", sorted(CHANGED.keys() - REFUSED))
def test_an_assignment_changes_one_value_and_leaves_the_rest(drawing: type[Spec], assignment: str) -> None:
    path, expected = CHANGED[assignment]
    found: Any = after(drawing, assignment)
    first = path.partition(".")[0]
    unchanged = {key: value for key, value in after(drawing).items() if key != first}
    assert unchanged == {key: value for key, value in found.items() if key != first}
    for part in path.split("."):
        found = found[int(part)] if isinstance(found, list) else found[part]
    assert found == expected


def test_an_unwritten_list_starts_from_its_default(drawing: type[Spec]) -> None:
    assert after(drawing, "shapes.0.every=3", base="steps: 1")["shapes"] == [
        {"kind": "circle", "every": 3, "radius": 1.0}
    ]
    assert after(drawing, "betas.0=0.25", base="steps: 1")["betas"] == [0.25, 0.95]


def test_an_empty_document_can_be_filled(drawing: type[Spec]) -> None:
    assert after(drawing, "steps=3", base="")["steps"] == 3
    assert after(drawing, "steps=3", "shape.kind=circle", base="shape:\n")["shape"]["kind"] == "circle"


def test_later_assignments_win(drawing: type[Spec]) -> None:
    assert after(drawing, "steps=3", "steps=4", "shape=circle", "shape.every=2")["steps"] == 4


MESSAGES = {
    "steps=many": "--set steps=many: steps is 'many'; it takes a whole number, 1 or more.",
    "steps=": "--set steps=: steps is empty; it takes a whole number, 1 or more.",
    "name=": "--set name=: name is empty; it takes text.",
    "stepz=5": "--set stepz=5: 'stepz' is not a key of a drawing. Did you mean 'steps'?",
    "shap.every=5": "--set shap.every=5: 'shap' is not a key of a drawing. Did you mean 'shape'?",
    "shapes.0.evry=5": "--set shapes.0.evry=5: 'evry' is not a key of shape circle. Did you mean 'every'?",
    "shapes.0=circl": "--set shapes.0=circl: 'circl' is not a shape. Did you mean 'circle'?",
    "cast.format=e9m9": "--set cast.format=e9m9: e9m9 has 19 bits; AltGrad emulates 2 to 16.",
    "cast=none": "--set cast=none: 'none' is not a format",
    "steps.x=5": "--set steps.x=5: steps is 1: it has no 'x' to set.",
    "name.x=5": "--set name.x=5: name is 'a': it has no 'x' to set.",
    "betas.0.x=5": "--set betas.0.x=5: betas.0 is 0.5: it has no 'x' to set.",
    "shapes.x=5": "--set shapes.x=5: shapes has entries 0 to 1; 2 adds one, 'x' is none of them.",
    "shapes.-1=5": "--set shapes.-1=5: shapes has entries 0 to 1; 2 adds one, '-1' is none of them.",
    "shapes.3=5": "--set shapes.3=5: shapes has entries 0 to 1; 2 adds one, '3' is none of them.",
    "shapes.²=5": "--set shapes.²=5: shapes has entries 0 to 1; 2 adds one, '²' is none of them.",
    "betas=[1": "--set betas=[1: not valid YAML: expected ',' or ']', but got '<stream end>'.",
    "betas=!!int 5": "--set betas=!!int 5: the tag tag:yaml.org,2002:int is not used in specs; remove it.",
    "steps": "--set steps: write --set path=value, as in --set optimizer.lr=1e-3.",
    "=5": "--set =5: write --set path=value, as in --set optimizer.lr=1e-3.",
    "a..b=5": "--set a..b=5: write --set path=value, as in --set optimizer.lr=1e-3.",
    "": "--set: write --set path=value, as in --set optimizer.lr=1e-3.",
    f"steps={'x' * 500}": f"--set steps={'x' * 65}...: steps is 'xxx",
}


@pytest.mark.parametrize("assignment", MESSAGES)
def test_an_assignment_that_makes_no_sense_is_told_as_such(drawing: type[Spec], assignment: str) -> None:
    with pytest.raises(SpecError) as caught:
        after(drawing, assignment)
    assert str(caught.value).startswith(MESSAGES[assignment]) and str(caught.value).isprintable()


def test_what_was_wrong_before_the_assignment_keeps_its_place(drawing: type[Spec]) -> None:
    with pytest.raises(SpecError, match=r"^spec:2:8: count is 1.5; .* \(1 more\)$"):
        drawing.parse("steps: 0\ncount: 1.5", "spec", ["steps=x"])


def test_parts_of_what_was_replaced_have_no_place_any_more(drawing: type[Spec]) -> None:
    with pytest.raises(SpecError, match=r"^--set shape={kind: circle, every: 0}: shape.every is 0"):
        drawing.parse("steps: 1\nshape: {kind: circle, every: 1}", "spec", ["shape={kind: circle, every: 0}"])


@pytest.mark.parametrize(
    "assignment",
    ["name=hf_" + "a1" * 16, "api_key=hunter2", "shape.token=hunter2", "name='" + "0a" * 20 + "'",
     "shape={api_key: hunter2}", "shape={api_key: hunter2", "axes.a=[sk-" + "a1" * 16, "hf_" + "a1" * 16 + "=1"],
)  # fmt: skip
def test_a_secret_is_not_taken_and_not_shown(drawing: type[Spec], assignment: str) -> None:
    with pytest.raises(SpecError, match="looks like a secret") as caught:
        after(drawing, assignment)
    assert not any(secret in str(caught.value) for secret in ("hunter2", "a1a1", "0a0a"))


def test_assignments_stay_in_the_document(drawing: type[Spec]) -> None:
    document = Document.parse(BASE, "spec")
    drawing.check(document, ["shapes.0.every=5"])
    assert document.where(("shapes", 0, "every")) == "--set shapes.0.every=5"
    assert document.where(("shapes", 0, "radius")) == "spec:3:10"


def refused(
    cls: type[Spec], *sets: str, text: str = "steps: 5\noffset: 2\nshape: {kind: square, side: 1}"
) -> list[str]:
    with pytest.raises(SpecError) as caught:
        cls.parse(text, "spec", sets)
    return caught.value.lines


def test_what_several_assignments_get_wrong_is_placed_at_each(drawing: type[Spec]) -> None:
    assert refused(drawing, "steps=x", "share=7", "steps.y=1", "b") == [
        "--set steps.y=1: steps is 'x': it has no 'y' to set. (1 more)",
        "--set b: write --set path=value, as in --set optimizer.lr=1e-3.",
    ]
    assert {line.partition(": ")[0] for line in refused(drawing, "steps=x", "share=7")} == {
        "--set steps=x",
        "--set share=7",
    }


@pytest.mark.parametrize(
    ("sets", "place"),
    [
        (["steps=1"], "--set steps=1"),  # breaks with what the file says of offset
        (["count=1", "offset=9"], "--set offset=9"),
        (["shape.kind=circle"], "--set shape.kind=circle"),  # side is no key of that
    ],
)
def test_what_is_wrong_only_by_an_assignment_is_placed_there(drawing: type[Spec], sets: list[str], place: str) -> None:
    assert refused(drawing, *sets)[0].startswith(place + ": ")


def test_what_the_file_gets_wrong_by_itself_stays_where_it_is(drawing: type[Spec]) -> None:
    assert refused(drawing, "count=1", text="steps: 1\noffset: 2")[0].startswith(
        "spec:2:9: offset 2.0 is beyond 1 steps"
    )


def test_what_shows_later_is_placed_at_the_assignment_it_speaks_of() -> None:
    document = Document.parse("data:\n  source: a.txt\n  size: 3", "spec")
    document.values["data", "source"] = "--set data.source=b.txt"
    assert document.error(("data",), "b.txt is not a file.").where == "--set data.source=b.txt"
    assert document.error(("data",), "size 3 is too small.").where == "spec:2:3"
