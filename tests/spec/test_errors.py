"""What is wrong with a spec is said in one line: place, value, what is taken, what was probably meant."""

import re
from typing import Any

import pytest

from altgrad.spec import Spec, SpecError


def complaint(cls: type[Spec], text: str) -> str:
    with pytest.raises(SpecError) as caught:
        cls.parse(text, "spec")
    line = str(caught.value)
    assert line.isprintable() and "nput should" not in line and "validation error" not in line
    return line.removeprefix("spec:")


WRONG = {
    "count: many": "1:8: count is 'many'; it takes a whole number, 0 or more and below 2147483648.",
    "count: 1.0": "1:8: count is 1.0; it takes a whole number, 0 or more and below 2147483648.",
    "count: -1": "1:8: count is -1; it takes a whole number, 0 or more and below 2147483648.",
    "count: true": "1:8: count is true; it takes a whole number, 0 or more and below 2147483648.",
    "count:": "1:7: count is empty; it takes a whole number, 0 or more and below 2147483648.",
    "count: 2147483648": "1:8: count is 2147483648; it takes a whole number, 0 or more and below 2147483648.",
    "count: .nan": "1:8: count is .nan; it takes a whole number, 0 or more and below 2147483648.",
    "share: 2": "1:8: share is 2; it takes a number from 0 to 1.",
    "share: high": "1:8: share is 'high'; it takes a number from 0 to 1.",
    "offset: .inf": "1:9: offset is .inf; it takes a number.",
    "offset: -.inf": "1:9: offset is -.inf; it takes a number.",
    "offset: .nan": "1:9: offset is .nan; it takes a number.",
    "offset: 1e999": "1:9: offset is .inf; it takes a number.",
    "offset: true": "1:9: offset is true; it takes a number.",
    "margin: 17": "1:9: margin is 17; it takes a whole number from -16 to 16.",
    "bright: yes": "1:9: bright is 'yes'; it takes true or false.",
    "bright: 1": "1:9: bright is 1; it takes true or false.",
    "name: 5": "1:7: name is 5; it takes text.",
    "name: [a]": "1:7: name is [\"a\"]; it takes text.",
    "label: ''": "1:8: label is ''; it takes text that is not empty, or null.",
    "mode: fats": "1:7: mode is 'fats'; it takes one of fast, slow. Did you mean 'fast'?",
    "mode: 1": "1:7: mode is 1; it takes one of fast, slow.",
    "betas: 5": "1:8: betas is 5; it takes a list of 2, each a number, 0 or more and below 1.",
    "betas: [0.1]": "1:8: betas is [0.1]; it takes a list of 2, each a number, 0 or more and below 1.",
    "betas: [.1, .2, .3]": "1:8: betas is [0.1, 0.2, 0.3]; it takes a list of 2, each a number, 0 or more and below 1.",
    "betas: [0.1, 2]": "1:14: betas.1 is 2; it takes a number, 0 or more and below 1.",
    "size: few": "1:7: size is 'few'; it takes a whole number, or all.",
    "size: al": "1:7: size is 'al'; it takes a whole number, or all. Did you mean 'all'?",
    "shape: 5": "1:8: shape is 5; it takes a kind of shape: circle or square.",
    "shape:": "1:7: shape is empty; it takes a kind of shape: circle or square.",
    "shape: circl": "1:8: 'circl' is not a shape. Did you mean 'circle'?",
    "shape: {kind: circl}": "1:15: 'circl' is not a shape. Did you mean 'circle'?",
    "shape: hexagon": "1:8: 'hexagon' is not a shape. There are circle, square.",
    "shape: {every: 1}": "1:8: shape needs a kind, one of circle, square.",
    "shape: {kind: 5}": "1:15: shape needs a kind, one of circle, square.",
    "shape: square": "1:8: shape.side is missing; it takes a number.",
    "shape: {kind: square, sied: 1}": "1:23: 'sied' is not a key of shape square. Did you mean 'side'?",
    "shape: {kind: circle, side: 1}": "1:23: 'side' is not a key of shape circle. It takes every, radius.",
    "shape: {kind: circle, radius: 0}": "1:31: shape.radius is 0; it takes a number above 0.",
    "shape: {kind: square, side: 1, inner: {kind: circle, every: no}}":
        "1:61: shape.inner.every is 'no'; it takes a whole number, 1 or more.",
    "shapes: circle": "1:9: shapes is 'circle'; it takes a list, each entry a kind of shape: circle or square.",
    "shapes: [circle, {kind: circle, every: 0}]": "1:40: shapes.1.every is 0; it takes a whole number, 1 or more.",
    "cast: 5": "1:7: cast is 5; it takes a format such as e4m3fn, or a mapping of format, rounding, or null.",
    "cast: e9m9": "1:7: e9m9 has 19 bits; AltGrad emulates 2 to 16.",
    "cast: e4m3fnu": "1:7: 'e4m3fnu' is not a format: write e<E>m<M>[b<bias>][ieee|fn|fnuz|p3109|f]. "
        "Did you mean 'e4m3fnuz'?",
    "cast: {format: e4m3}": "1:16: e4m3 means different formats to different people; "
        "say e4m3fn (max 448: OCP, H100, TE, torch) or e4m3ieee (max 240).",
    "cast: {format: [1]}": "1:16: cast.format is [1]; it takes a format such as e4m3fn.",
    "cast: {format: e5m2, rounding: stochastik}": "1:32: 'stochastik' is not a rounding. Did you mean 'stochastic'?",
    "cast: {format: e5m2, rounding: 5}": "1:32: cast.rounding is 5; it takes one of nearest_even, nearest_away, "
        "nearest_ties_to_zero, nearest_ties_up, toward_zero, toward_positive, toward_negative, stochastic, "
        "toward_average.",
    "cast: {format: e5m2, roundng: 5}": "1:22: 'roundng' is not a key of a cast. Did you mean 'rounding'?",
    "axes: {a: [1, b]}": "1:15: axes.a.1 is 'b'; it takes a whole number.",
    "axes: [1]": "1:7: axes is [1]; it takes a mapping, each value a list, each entry a whole number.",
    "offset: 5": "1:9: offset 5.0 is beyond 1 steps; shorten it.",
    "stepz: 5": "1:1: 'stepz' is not a key of a drawing. Did you mean 'steps'?",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_value_is_told_with_its_place_limits_and_remedy(drawing: type[Spec], text: str) -> None:
    assert complaint(drawing, f"{text}\nsteps: 1\n") == WRONG[text]


def test_a_missing_key_is_told_with_what_it_takes(drawing: type[Spec]) -> None:
    assert complaint(drawing, "\nname: a") == "2:1: steps is missing; it takes a whole number, 1 or more."


def test_what_is_no_mapping_is_told(drawing: type[Spec]) -> None:
    for text, shown in (("", "empty"), ("[1]", "[1]"), ("text", "'text'"), ("5", "5")):
        assert complaint(drawing, text).startswith(f"1:1: the spec is {shown}; it takes a mapping of name, label, ")


def test_the_first_complaint_in_the_document_is_shown_and_the_others_counted(drawing: type[Spec]) -> None:
    text = "share: 7\nsteps: 0\nshape: {kind: circle, foo: 1}\nfoo: 1\ncount: 1.5\n"
    assert complaint(drawing, text) == "1:8: share is 7; it takes a number from 0 to 1. (4 more)"
    lines = text.splitlines()
    assert complaint(drawing, "\n".join(reversed(lines))).startswith("1:8: count is 1.5")
    assert complaint(drawing, "\n".join(lines[2:])).endswith("It takes every, radius. (3 more)"), (
        "a missing key is last"
    )


def test_a_misspelt_key_is_not_also_a_missing_one(drawing: type[Spec]) -> None:
    assert complaint(drawing, "stepz: 5") == "1:1: 'stepz' is not a key of a drawing. Did you mean 'steps'?"


def test_whatever_the_value_the_line_stays_short_and_printable(drawing: type[Spec]) -> None:
    for value in ("x" * 100_000, "\x1b[31m\u202e\n\u2028", "[" * 20 + "1" * 300 + "]" * 20, "a, b" * 1000):
        quoted = '"' + value.encode("unicode_escape").decode() + '"'
        for key in ("count", "mode", "betas", "shape", "cast", "cast.format"):
            text = f"cast: {{format: {quoted}}}" if "." in key else f"{key}: {quoted}"
            assert len(complaint(drawing, f"{text}\nsteps: 1")) < 500
        assert len(complaint(drawing, f"? {quoted}\n: 1\nsteps: 1")) < 500


WRONG_FOR_ALL: tuple[Any, ...] = (
    "",
    "~",
    "many",
    "true",
    "5",
    "-1",
    "1.5",
    ".inf",
    ".nan",
    "[]",
    "[[1]]",
    "{}",
    "{a: 1}",
)


def wrong_lines(cls: type[Spec], text: str) -> set[str]:
    """The complaint for each value that a field (written as the `@` of text) does not take."""
    found = set()
    for value in WRONG_FOR_ALL:
        try:
            cls.parse(text.replace("@", value), "spec")
        except SpecError as error:
            found.add(str(error))
    for line in found:
        assert re.fullmatch(r"spec:\d+:\d+: .*[;.:,] .*[.?)]", line), line
        assert line.isprintable() and "nput should" not in line and len(line) < 500
    return found


def test_every_field_of_every_registered_kind_refuses_wrong_types_in_our_words() -> None:
    from altgrad.data.dataset import DatasetSpec
    from altgrad.models.model import ModelSpec
    from altgrad.monitors import MonitorSpec
    from altgrad.nn.policy import PrecisionPolicy
    from altgrad.nn.rule import Rule
    from altgrad.optim import OptimizerSpec, Schedule
    from altgrad.quantize import QuantizerSpec
    from altgrad.quantize.scaling import ScalingSpec
    from altgrad.training.run import RunSpec

    whole = "model: gpt\ndata: text\noptimizer: adamw\nsteps: 5\n"
    for name in RunSpec.model_fields:
        rest = "".join(line + "\n" for line in whole.splitlines() if not line.startswith(f"{name}:"))
        assert wrong_lines(RunSpec, f"{rest}{name}: @"), name
    for root in (DatasetSpec, ModelSpec, MonitorSpec, OptimizerSpec, ScalingSpec):
        for kind, member in root.kinds().items():
            for name in member.model_fields:
                assert wrong_lines(member, f"{name}: @"), (kind, name)
    for cls in (Rule, PrecisionPolicy, Schedule, QuantizerSpec):
        for name in cls.model_fields:
            assert wrong_lines(cls, f"{name}: @"), (cls, name)


def test_every_mistake_is_named_in_a_line_of_its_own(drawing: type[Spec]) -> None:
    with pytest.raises(SpecError) as caught:
        drawing.parse("steps: 0\nshare: 7\nshpae: circle\nshapes: [circl, {kind: square}]\n", "spec")
    lines = caught.value.lines
    assert lines[0] == str(caught.value) == "spec:1:8: steps is 0; it takes a whole number, 1 or more. (4 more)"
    assert lines[1:] == [
        "spec:2:8: share is 7; it takes a number from 0 to 1.",
        "spec:3:1: 'shpae' is not a key of a drawing. Did you mean 'shape'?",
        "spec:4:10: 'circl' is not a shape. Did you mean 'circle'?",
        "spec:4:17: shapes.1.side is missing; it takes a number.",
    ]


def test_at_most_ten_lines_are_printed_and_the_first_counts_all(drawing: type[Spec]) -> None:
    with pytest.raises(SpecError, match=r"\(29 more\)$") as caught:
        drawing.parse("steps: 0\n" + "\n".join(f"key{n}: 1" for n in range(29)), "spec")
    assert len(caught.value.lines) == 10 and len(caught.value.others) == 29


def test_a_plain_value_keeps_all_its_mistakes_under_its_name(drawing: type[Spec]) -> None:
    with pytest.raises(SpecError) as caught:
        drawing.made_from({"steps": 0, "share": 7}, "--drawing")
    assert [line.partition(":")[0] for line in caught.value.lines] == ["--drawing", "--drawing"]
