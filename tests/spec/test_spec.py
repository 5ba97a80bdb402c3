"""A spec read from its own YAML is the same spec, whatever its texts and numbers look like."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from altgrad.document import scalar
from altgrad.formats import CATALOG, Rounding
from altgrad.spec import Document, Spec, SpecError

TRICKY = [
    "", " ", "null", "~", "Null", "none", "true", "False", "yes", "no", "on", "OFF", "y", "1", "-1", "0x1F", "0o7",
    "0777", "1_000", "1e3", "3e-4", "1.5", ".5", ".inf", "-.INF", ".nan", "12:30", "2024-01-01", "2024-02-30", "=",
    "<<", "- a", "a: b", "a #b", "#", "*a", "&a", "!a", "!!int 5", "{a}", "[a]", "a, b", "'", '"', "%", "@", "`", "|",
    ">", "?", "? a", ": ", "---", "...", "--- a", "\t", "\n", "a\nb\n", "\r", "\x00", "\x07", "\x1b[31m", "\x7f",
    "\x85", "\u2028", "\ufeff", "\ufffd", "\U0001f600", "é", "a" * 300, "a b " * 100, "1" * 100 + "e5", "1" * 500,
    "١", " a", "a ", "\\", "C:\\x", "\\u0041", "e4m3fn", "\u202e",
]  # fmt: skip

texts = (
    st.sampled_from(TRICKY) | st.text(st.characters(exclude_categories=["Cs"])) | st.from_regex(r"[-+.0-9exo_:]{1,8}")
)
floats = st.floats(allow_nan=False, allow_infinity=False)
shapes = st.recursive(
    st.builds(lambda r: {"kind": "circle", "radius": r}, st.floats(1e-300, 1e300)) | st.just("circle"),
    lambda inner: st.builds(lambda s, i: {"kind": "square", "side": s, "inner": i}, floats, inner),
    max_leaves=4,
)
drawings = st.fixed_dictionaries(
    {"steps": st.integers(1, 2**63 - 1)},
    optional={
        "name": texts,
        "label": st.none() | texts.filter(bool),
        "offset": floats.map(lambda x: min(x, 1.0)),
        "bright": st.booleans(),
        "betas": st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2),
        "shape": shapes,
        "shapes": st.lists(shapes, max_size=3),
        "cast": st.none() | st.builds(
            lambda f, r: {"format": f, "rounding": r},
            st.sampled_from([entry.name for entry in CATALOG]), st.sampled_from([mode.value for mode in Rounding]),
        ),
        "axes": st.dictionaries(texts.filter(lambda key: key != "<<"), st.lists(st.integers(-9, 9)), max_size=3),
        "size": st.just("all") | st.integers(-9, 9),
    },
)  # fmt: skip


@given(data=drawings)
def test_a_spec_survives_yaml_and_json(drawing: type[Spec], data: dict[str, Any]) -> None:
    spec = drawing.model_validate(data)
    again = drawing.parse(spec.to_yaml())
    from_json = drawing.check(Document.parse(json.dumps(spec.tree()), "spec", as_json=True))
    assert again == spec == from_json
    assert again.fingerprint() == spec.fingerprint() == from_json.fingerprint()
    assert again.to_yaml() == spec.to_yaml()


@pytest.mark.parametrize("text", TRICKY)
def test_a_text_is_written_so_that_every_yaml_reads_it_as_text(drawing: type[Spec], text: str) -> None:
    written = drawing.model_validate({"steps": 1, "name": text}).to_yaml()
    assert drawing.parse(written).tree()["name"] == text
    assert yaml.safe_load(written)["name"] == text, "YAML 1.1 readers too"


@given(one=drawings, two=drawings)
def test_equal_specs_and_only_they_share_a_fingerprint(drawing: type[Spec], one: Any, two: Any) -> None:
    first, second = drawing.model_validate(one), drawing.model_validate(two)
    assert (first == second) == (first.fingerprint() == second.fingerprint())


def test_defaults_shorthands_and_number_spellings_do_not_change_a_fingerprint(drawing: type[Spec]) -> None:
    spellings = (
        "steps: 1",
        "steps: 0x1\nshape: circle\noffset: -0.0",
        "{steps: 1, shapes: [{kind: circle, radius: 1}], share: 5e-1}",
    )
    assert len({drawing.parse(text).fingerprint() for text in spellings}) == 1
    assert drawing.parse("steps: 2").fingerprint() != drawing.parse("steps: 1").fingerprint()


def test_a_member_of_a_family_survives_yaml_by_itself(drawing: type[Spec]) -> None:
    shape = drawing.parse("steps: 1\nshape: {kind: square, side: 2}").shape  # type: ignore[attr-defined]
    assert type(shape).parse(shape.to_yaml()) == shape
    assert type(shape).__mro__[1].parse(shape.to_yaml()) == shape


def test_a_spec_cannot_be_changed(drawing: type[Spec]) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        drawing.parse("steps: 1").steps = 2  # type: ignore[attr-defined]


def test_a_file_is_read_by_its_ending(drawing: type[Spec], tmp_path: Path) -> None:
    for name, text, good in (
        ("a.yaml", "steps: 1", True),
        ("a.json", '{"steps": 1}', True),
        ("b.json", "steps: 1", False),
    ):
        (tmp_path / name).write_text(text)
        if good:
            assert drawing.load(tmp_path / name) == drawing.parse("steps: 1")
        else:
            with pytest.raises(SpecError, match="b.json:1:1: not valid JSON"):
                drawing.load(tmp_path / name)


def test_texts_of_the_list_above_are_tricky() -> None:
    assert sum(not isinstance(scalar(text), str) for text in TRICKY if len(text) < 400) > 15


def test_specs_load_no_torch() -> None:
    code = "import altgrad.spec, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
