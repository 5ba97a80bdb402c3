"""A table of values in a spec: read, written back, named in errors, part of what decides a run."""

from pathlib import Path

import pytest
import yaml

from altgrad.formats import TableFormat, parse_format
from altgrad.quantize import QuantizerSpec
from altgrad.spec import SpecError
from altgrad.symptoms.cures import cures_of
from altgrad.training import RunSpec

NAMED = {"weight": "nf4", "input": {"format": "int8", "rounding": "stochastic"}}


def test_values_are_read_and_written_back() -> None:
    spec = QuantizerSpec.parse("format: {values: [-1, -0.1, 0, 0.1, 1]}")
    assert isinstance(spec.format, TableFormat) and len(spec.format.values) == 5
    assert yaml.safe_load(spec.to_yaml())["format"] == {"values": [-1, -0.1, 0, 0.1, 1]}
    assert QuantizerSpec.parse(spec.to_yaml()) == spec
    again = QuantizerSpec.parse("format: '[-1, -0.1, 0, 0.1, 1]'")
    assert again == spec and again.fingerprint() == spec.fingerprint()
    signed = QuantizerSpec.parse("format: {values: [0, -0.0, 1, -1]}")
    assert signed.format.has_negative_zero and QuantizerSpec.parse(signed.to_yaml()) == signed


def test_a_name_stays_a_name() -> None:
    spec = QuantizerSpec.made_from("posit8_es2")
    assert spec.tree()["format"] == "posit8" and spec == QuantizerSpec.made_from("posit8")
    assert QuantizerSpec.made_from("nf4").fingerprint() != QuantizerSpec.made_from("bnb_fp4").fingerprint()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format: {values: [1]}", "a table has 2 to 65536 values, not 1."),
        ("format: {value: [1, 2]}", "'value' is not one of them."),
        ("format: [1, 2]", "format is [1, 2]; it takes a format such as e4m3fn."),
        ("format: nf4x", "Did you mean 'nf4'?"),
        ("{format: int8, overflow: inf}", "int8 has neither inf nor NaN for an overflow to become"),
    ],
)
def test_what_is_no_table_is_told_in_a_line(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        QuantizerSpec.parse(text, "cast.yaml")
    assert message in str(caught.value) and "cast.yaml:1" in str(caught.value)


def test_a_run_takes_tables_everywhere_that_formats_go() -> None:
    spec = RunSpec.load(Path(__file__).parents[2] / "matrices" / "quickstart.yaml").tree() | {
        "precision": {"rules": [{"match": "blocks.*", **NAMED, "grad_output": {"format": {"values": [-1, 0, 1]}}}]},
        "storage": [{"kind": "stochastic", "format": "int8"}],
        "optimizer": {"kind": "manifold_adamw", "lr": 1e-3, "stiffness": "posit8"},
    }
    run = RunSpec.made_from(spec)
    assert RunSpec.parse(run.to_yaml()) == run
    assert run.fingerprint() == RunSpec.parse(run.to_yaml()).fingerprint()


def test_no_cure_turns_the_bits_of_a_table() -> None:
    from altgrad.symptoms import cures

    place, spec = "blocks.0.fc/weight", {"precision": {"rules": [{"match": "blocks.*", "weight": {"format": "nf4"}}]}}
    for text in ("more exponent bits", "fewer exponent bits"):
        has, _ = cures._KNOWN[text]
        assert has(spec, place)
    assert cures_of is cures.cures_of and parse_format("nf4").name == "nf4"
