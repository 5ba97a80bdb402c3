"""The JSON Schema takes what the program takes, and refuses in the editor what the program would refuse later."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altgrad.formats import CATALOG, parse_format
from altgrad.formats.catalog import ALIASES, TABLE_NAMES
from altgrad.spec import Document, Spec, SpecError, json_schema
from altgrad.training.run import RunSpec

jsonschema = pytest.importorskip("jsonschema")
MATRICES = Path(__file__).resolve().parents[2] / "matrices"
QUICKSTART = (MATRICES / "quickstart.yaml").read_text(encoding="utf-8")
RUN = json_schema(RunSpec, "AltGrad run spec")
validator = jsonschema.Draft7Validator(RUN)


def valid(text: str) -> bool:
    return bool(validator.is_valid(Document.parse(text, "spec").data))


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(RUN)
    references = [text.split('"')[1] for text in json.dumps(RUN).split('"$ref": ')[1:]]
    assert references and all(ref.removeprefix("#/definitions/") in RUN["definitions"] for ref in references)


def test_the_stored_schema_is_the_generated_one() -> None:
    path = MATRICES / "run.schema.json"
    assert json.loads(path.read_text(encoding="utf-8")) == RUN, "altgrad schema run > matrices/run.schema.json"


def test_every_run_spec_in_matrices_is_valid_and_names_its_schema() -> None:
    specs = [path for path in MATRICES.rglob("*.yaml") if "run.schema.json" in path.read_text(encoding="utf-8")]
    assert len(specs) == 7 and MATRICES / "quickstart.yaml" in specs
    for path in specs:
        text = path.read_text(encoding="utf-8")
        place = "run.schema.json" if path.parent == MATRICES else "../run.schema.json"
        assert text.startswith(f"# yaml-language-server: $schema={place}\n")
        assert valid(text), list(validator.iter_errors(Document.parse(text, path.name).data))


def test_what_the_program_writes_is_valid() -> None:
    validator.validate(RunSpec.parse(QUICKSTART).tree())


GOOD = [
    "precision: none", "precision: {rules: []}", "precision:", "schedule: wsd", "monitors: []", "loss_scale: 1024",
    "monitors: [finite]", "clip_norm: null", "clip_norm: 3", "precision: {rules: [{weight: e4m3fn}]}",
    "precision: {rules: [{weight: none, input: null}]}", "precision: {rules: [{forward: {weight: same, input: none}}]}",
    "precision: {rules: [{weight: {format: e3m4, scaling: {kind: delayed, history: 3}}}]}",
    "precision: {rules: [{weight: {format: E5M2B7FNUZ, rounding: stochastic, random_bits: 3, scaling: unscaled}}]}",
    "optimizer: {kind: adamw, betas: [0, 0.5], groups: [{match: x, lr: 1}]}", "model: gpt", "data: text",
]  # fmt: skip
BAD = [
    "steps: many", "steps: 0", "steps: 1.5", "steps:", "stepz: 5", "seed: -1", "name: 5", "clip_norm: 0",
    "model: gtp", "model: {layers: 4}", "model: {kind: gpt, layer: 4}", "model: {kind: gpt, layers: 0}", "model: 5",
    "optimizer: {kind: adam}", "optimizer: {kind: adamw, betas: [0.9]}", "optimizer: {kind: adamw, betas: [0.9, 1]}",
    "optimizer: {kind: adamw, lr: fast}", "schedule: cosin", "schedule: {kind: cosin}", "schedule: {floor: 2}",
    "monitors: [rnage]", "monitors: range", "monitors: [{kind: range, every: 0}]", "compute: float23", "precision: 5",
    "precision: {rules: [{weight: e9m9}]}", "precision: {rules: [{weight: e4m3}]}", "precision: {rules: [{match: ''}]}",
    "precision: {rules: [{weight: {format: e4m3fn, roundng: stochastic}}]}", "precision: {rules: [{weight: 5}]}",
    "precision: {rules: [{weight: {format: e4m3fn, rounding: stochastik}}]}", "threads: 0", "engine: jit",
    "precision: {rules: [{weight: {format: e4m3fn, scaling: {kind: delayed, margin: 99}}}]}", "data: {kind: txt}",
]  # fmt: skip


def with_line(line: str) -> str:
    key = line.partition(":")[0]
    base = {"model": "gpt", "data": "text", "optimizer": "adamw", "steps": "5"}
    return "".join(f"{name}: {value}\n" for name, value in base.items() if name != key) + line


@pytest.mark.parametrize("line", GOOD)
def test_short_and_long_forms_are_valid(line: str) -> None:
    RunSpec.parse(with_line(line))
    assert valid(with_line(line))


@pytest.mark.parametrize("line", BAD)
def test_broken_specs_are_refused_by_the_schema_too(line: str) -> None:
    with pytest.raises(SpecError):
        RunSpec.parse(with_line(line))
    assert not valid(with_line(line))


def test_every_format_of_2_to_16_bits_is_valid_and_no_other() -> None:
    schema = jsonschema.Draft7Validator(RUN["definitions"]["format"])
    names = [f"e{e}m{m}{suffix}" for e in range(19) for m in range(19) for suffix in ("", "f", "fnuz", "b3", "x")]
    names += [*ALIASES, *(entry.name for entry in CATALOG), "e4m3", "fp8", "mxint8", "float32", "", "e4m3b-3fn"]
    names += [*TABLE_NAMES, "NF4", "[-1, 0, 1]"]
    for name in names:
        try:
            parse_format(name)
        except ValueError:
            # What a name's facts forbid (no finite value left, a bias without exponent) is left to the program.
            assert not schema.is_valid(name) or name.startswith(("e0m", "e1m", "e2m")), name
        else:
            assert schema.is_valid(name), name


def test_kinds_are_told_apart_by_kind_and_fields_carry_what_an_editor_shows() -> None:
    kinds = RUN["definitions"]["monitor"]["anyOf"]
    assert {"$ref": "#/definitions/monitor.range"} in kinds and "range" in kinds[0]["enum"]
    member = RUN["definitions"]["monitor.range"]
    assert member["properties"]["kind"] == {"const": "range"} and member["required"] == ["kind"]
    every = member["properties"]["every"]
    assert every.pop("description") and every == {"type": "integer", "minimum": 1, "default": 10}
    assert "autocast" in RUN["properties"]["compute"]["description"]
    assert set(RUN["required"]) == {name for name, info in RunSpec.model_fields.items() if info.is_required()}


words = st.sampled_from(["circle", "square", "e4m3fn", "x"])
keys = st.sampled_from(["kind", "side", "every", "format", "a"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 20) | st.floats(-2, 2) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner),
    max_leaves=5,
)


@given(data=st.data())
def test_whatever_the_program_takes_the_schema_takes(drawing: type[Spec], data: st.DataObject) -> None:
    schema = jsonschema.Draft7Validator(json_schema(drawing, "a drawing"))
    tree: dict[str, Any] = {"steps": 1, data.draw(st.sampled_from(list(drawing.model_fields))): data.draw(values)}
    try:
        written = drawing.check(Document(tree, "spec")).tree()
    except SpecError:
        return
    assert schema.is_valid(tree) and schema.is_valid(written)
