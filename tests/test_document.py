"""What may stand in a YAML or JSON file, what each scalar means, and that all else is one clean line."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from altgrad.document import MAX_CHARACTERS, MAX_DEPTH, Document, SpecError, scalar

PLACED = re.compile(r"(?s)spec:[1-9]\d*:[1-9]\d*: [^\n]+\.")


def refusal(text: str, as_json: bool = False) -> str:
    with pytest.raises(SpecError) as caught:
        Document.parse(text, "spec", as_json=as_json)
    message = str(caught.value)
    assert PLACED.fullmatch(message) and message.isprintable() and len(message) < 500, message
    return message


# YAML 1.2.2, section 10.3.2, and what YAML 1.1 (PyYAML's safe_load) reads otherwise.
SCALARS: dict[str, Any] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None, "nULL": "nULL", "none": "none",
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False, "tRUE": "tRUE",
    "yes": "yes", "no": "no", "on": "on", "off": "off", "y": "y", "NO": "NO",
    "0": 0, "-0": 0, "+12": 12, "-19": -19, "0777": 777, "007": 7, "0o7": 7, "0o17": 15, "0x3A": 58, "0xff": 255,
    "0o8": "0o8", "0b1": "0b1", "0b_": "0b_", "0x": "0x", "0x_1": "0x_1", "-0x1": "-0x1", "1_000": "1_000",
    "12:30": "12:30", "190:20:30": "190:20:30", "1,000": "1,000", "+": "+", "-": "-", ".": ".",
    "1.5": 1.5, "0.": 0.0, ".5": 0.5, "-.5": -0.5, "3e-4": 3e-4, "1E5": 1e5, "+12e03": 12000.0, "-2E+05": -2e5,
    "1e3": 1000.0, "685.230_15e+03": "685.230_15e+03", "1e": "1e", "e3": "e3", "1.5.2": "1.5.2", "e4m3": "e4m3",
    ".inf": math.inf, "+.INF": math.inf, "-.Inf": -math.inf, ".iNf": ".iNf", "inf": "inf", "nan": "nan", ".nAn": ".nAn",
    "2024-02-30": "2024-02-30", "2024-01-01": "2024-01-01", "=": "=", "９": "９", "١": "١",
}  # fmt: skip


@pytest.mark.parametrize("text", SCALARS)
def test_plain_scalars_follow_the_core_schema(text: str) -> None:
    found, expected = scalar(text), SCALARS[text]
    assert (found, type(found)) == (expected, type(expected))
    if text != "=" and text not in "+-":
        assert Document.parse(f"a: {text}", "spec").data == {"a": expected}
        assert Document.parse(f'a: "{text}"', "spec").data == {"a": text}


def test_nan_is_read_in_its_three_spellings_only() -> None:
    assert all(math.isnan(scalar(text)) for text in (".nan", ".NaN", ".NAN"))


@given(st.floats(allow_nan=False) | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.none())
def test_what_python_writes_as_json_is_read_back(value: Any) -> None:
    text = json.dumps({"a": value})
    if "Infinity" not in text:
        assert repr(Document.parse(text, "spec", as_json=True).data) == repr({"a": value})


@given(
    st.recursive(
        st.text(max_size=9) | st.integers(-9, 9) | st.none(),
        lambda x: st.lists(x) | st.dictionaries(st.text(max_size=9), x),
        max_leaves=20,
    ),
    st.booleans(),
)
def test_json_means_the_same_as_to_python(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent="\t")
    if '"<<"' not in text:
        assert Document.parse(text, "spec", as_json=True).data == value


# (text, what the line says). Each of these makes PyYAML's safe_load raise something else than a YAML error, hang, or
# read what nobody meant.
REFUSED = {
    "digits": ("a: " + "9" * 5000, "1:4: a number of 5000 characters; at most 400"),
    "float digits": ("a: 0." + "9" * 500, "1:4: a number of 502 characters"),
    "beyond 64 bits": ("a: 9223372036854775808", "1:4: a whole number beyond 64 bits; write"),
    "hexadecimal": ("a: 0x" + "f" * 17, "beyond 64 bits"),
    "int tag": ("a: !!int x", "1:4: the tag tag:yaml.org,2002:int is not used in specs"),
    "bool tag": ("a: !!bool maybe", "the tag tag:yaml.org,2002:bool"),
    "timestamp tag": ("a: !!timestamp x", "the tag tag:yaml.org,2002:timestamp"),
    "python tag": ("a: !!python/object/apply:os.system [ls]", "the tag"),
    "binary tag": ("a: !!binary x", "the tag"),
    "set tag": ("!!set {a}", "1:1: the tag"),
    "own tag": ("a: !x {b: 1}", "the tag !x"),
    "brackets": ("[" * 3000, "1:33: nested more than 32 deep"),
    "closed brackets": ("[" * 3000 + "]" * 3000, "1:33: nested more than 32 deep"),
    "braces": ("{a: " * 3000, "nested more than 32 deep"),
    "dashes": ("- " * 500, "nested more than 32 deep"),
    "recursion": ("&a [*a]", r"1:5: \*a is inside its own anchor"),
    "recursive mapping": ("a: &x {b: *x}", r"\*x is inside its own anchor"),
    "unknown alias": ("a: *b", r"1:4: \*b is inside"),
    "alias as key": ("*a : 1", "is inside its own anchor, or has none"),
    "known alias as key": ("a: &x b\n*x : 1", "2:1: a key must be plain text"),
    "billion laughs": (
        "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(40)),
        "more than 50000 values",
    ),
    "deep by aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(300)),
        "nested more than 32 deep",
    ),
    "tab": ("a:\n\tb: 1", r"2:1: not valid YAML: .*'\\t'"),
    "NUL": ("a: 1\nb: \0", r"2:4: the character U\+0000 is not allowed"),
    "escape character": ("\x1b[31m", r"1:1: the character U\+001B"),
    "surrogate": ("a: \ud800", r"1:4: the character U\+D800"),
    "escaped surrogate": ('a: "\\ud800"', "1:4: half of a surrogate pair"),
    "surrogate in a key": ('"\\udc00": 1', "1:1: half of a surrogate pair"),
    "no character": ('a: "\\U00110000"', "1:7: not valid YAML: an escape that is not a character"),
    "no number": ('a: "\\UFFFFFFFF"', "an escape that is not a character"),
    "merge key": ("a: &a {b: 1}\nc:\n  <<: *a", r"3:3: merge keys \(<<\)"),
    "two documents": ("a: 1\n---\nb: 1", "2:1: a second document"),
    "list as key": ("? [a]\n: b", "1:3: a key must be plain text"),
    "mapping as key": ("{{a: 1}: 2}", "1:2: a key must be plain text"),
    "duplicate": ("a: 1\nb: {c: 1, c: 2}", "2:11: Duplicate key 'c'."),
    "duplicate by escape": ('{"a": 1, "\\x61": 2}', "Duplicate key 'a'."),
    "long duplicate": (f"? {'k' * 9000}\n: 1\n? {'k' * 9000}\n: 2", "Duplicate key"),
    "terminal control": ('"\\e[31m\\u202E": 1\n"\\e[31m\\u202E": 1', r"2:1: Duplicate key '\\x1b\[31m\\u202e'"),
    "version": ("%YAML 9.9\n--- a", "1:1: not valid YAML"),
    "unfinished": ("a: [1, 2", "not valid YAML"),
    "unfinished text": ("a: '", "not valid YAML"),
    "indentation": ("a:\n  b: 1\n c: 2", "not valid YAML"),
    "reserved": ("a: @b", "not valid YAML"),
    "size": ("#" * (MAX_CHARACTERS + 1), f"1:1: {MAX_CHARACTERS + 1} characters"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_no_spec_needs_is_one_line_with_its_place(text: str, message: str) -> None:
    assert re.search(message, refusal(text))


@pytest.mark.parametrize(
    "text", ["a: 2024-13-45", "a: 0b_", "a: 12:99:99", "a: =", "a: 1e999", "a: 0o9", "- ", "", "#"]
)
def test_what_only_safe_load_chokes_on_is_plain_data(text: str) -> None:
    Document.parse(text, "spec")


def test_the_ways_to_crash_safe_load_are_real() -> None:
    """The table above is worth its lines only as long as the library behaves so."""
    odd = 0
    for text in (
        "a: 2024-13-45",
        "a: 0b_",
        "a: " + "9" * 5000,
        "a: !!int x",
        "a: !!bool x",
        "[" * 3000,
        'a: "\\U00110000"',
    ):
        try:
            yaml.safe_load(text)
        except yaml.YAMLError:
            continue
        except Exception:
            odd += 1
    assert odd >= 5


JSON_REFUSED = {
    "NaN": ('{"a":\n NaN}', "2:2: NaN is not JSON"),
    "infinity": ('{"a": "NaN", "b": -Infinity}', "1:19: -Infinity is not JSON"),
    "duplicate": ('{"a": 1,\n "a": 2}', "2:2: Duplicate key 'a'."),
    "deep": ("[" * 100_000, "1:33: nested more than 32 deep|1:100001: not valid JSON"),
    "deep and closed": ("[" * 100_000 + "]" * 100_000, "1:33: nested more than 32 deep"),
    "digits": ('{"a": ' + "9" * 5000 + "}", "1:7: a number of 5000 characters"),
    "surrogate": ('{"a": "\\ud800"}', "1:7: half of a surrogate pair"),
    "empty": ("", "1:1: not valid JSON"),
    "yaml": ("a: 1", "1:1: not valid JSON"),
    "single quotes": ("{'a': 1}", "1:2: not valid JSON"),
    "comma": ("[1,\n]", "not valid JSON"),
    "octal": ('{"a": 01}', "1:8: not valid JSON"),
    "raw newline": ('{"a": "\n"}', "1:8: not valid JSON"),
}


@pytest.mark.parametrize(("text", "message"), JSON_REFUSED.values(), ids=JSON_REFUSED.keys())
def test_what_is_not_json_is_refused_in_a_json_spec(text: str, message: str) -> None:
    assert re.search(message, refusal(text, as_json=True))


FILES: dict[str, tuple[bytes, str]] = {
    "utf-16": ("a: 1".encode("utf-16"), r":1:1: byte 0xff is not UTF-8; save"),
    "utf-16 without mark": ("a: 1".encode("utf-16-le"), r":1:2: the character U\+0000 is not allowed"),
    "latin-1": ("a: 1\nb: café".encode("latin-1"), r":2:7: byte 0xe9 is not UTF-8"),
    "large": (b"#" * 2_000_000, r":1:1: more than 1048576 bytes"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES.keys())
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        Document.load(path)
    assert re.fullmatch(re.escape(str(path)) + message + ".*", str(caught.value))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "cannot be read: Is a directory."),
        (tmp_path / "nowhere.yaml", "cannot be read: No such file or directory."),
        (tmp_path / "a\0b", "cannot be read: embedded null byte."),
    ):
        with pytest.raises(SpecError) as caught:
            Document.load(path)
        assert caught.value.message == message and "\0" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="needs sparse files and /dev/zero")
def test_only_the_start_of_a_huge_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    for huge in (path, Path("/dev/zero")):
        with pytest.raises(SpecError, match="more than 1048576 bytes"):
            Document.load(huge)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    for name, text in (("a.yaml", "a: [1"), ("a.json", '{"a":1]')):
        path = tmp_path / name
        path.write_text("\ufeff" + text, encoding="utf-8")
        with pytest.raises(SpecError, match=rf"{name}:1:[67]: not valid"):
            Document.load(path)
        path.write_text("\ufeff" + '{"a": 1}', encoding="utf-8")
        assert Document.load(path).data == {"a": 1}


@given(
    st.recursive(
        st.text("ab:#-'\"\n\té☃ ~%&*", max_size=9)
        | st.integers(-9, 9)
        | st.none()
        | st.booleans()
        | st.floats(width=32),
        lambda x: st.lists(x) | st.dictionaries(st.text("ab.é", min_size=1, max_size=9), x),
        max_leaves=20,
    )
)
def test_what_a_program_wrote_is_the_same_to_the_quicker_parser(value: Any) -> None:
    text = yaml.safe_dump(value, sort_keys=False)
    quick, usual = Document.recorded(text, "spec"), Document.parse(text, "spec")
    assert (repr(quick.data), quick.values, quick.keys) == (repr(usual.data), usual.values, usual.keys)


@pytest.mark.parametrize("text", ["a: [1", "a: !x 1", "a: 1\na: 2", "\ud800", "[" * 2000])
def test_what_the_quicker_parser_refuses_is_refused_in_the_usual_words(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        Document.recorded(text, "spec")
    assert str(caught.value) == refusal(text)


def test_an_alias_is_a_copy_with_a_place_of_its_own() -> None:
    document = Document.parse("a: &x {b: [1]}\nc: *x\n", "spec")
    document.data["c"]["b"].append(2)
    assert document.data == {"a": {"b": [1]}, "c": {"b": [1, 2]}}
    assert document.where(("c", "b", 0)) == "spec:2:4"


def test_every_part_knows_where_it_was_written() -> None:
    document = Document.parse("a:\n  - b: 1\n    c: {d: 2}\n", "spec")
    assert document.where(("a", 0, "c", "d")) == "spec:3:12"
    assert document.where(("a", 0, "c"), key=True) == "spec:3:5"
    assert document.where(("a", 0, "nowhere", 7)) == "spec:2:5"
    assert Document.parse("", "spec").where(("x",)) == "spec:1:1"


def test_the_depth_that_is_allowed_is_read() -> None:
    assert Document.parse("[" * MAX_DEPTH + "]" * MAX_DEPTH, "spec").data


@given(st.text(max_size=60) | st.text("[]{}:,-&*!|>'\"%@\\ \n\t#?ax1.<~", max_size=40), st.booleans())
def test_any_text_is_data_or_one_clean_line(text: str, as_json: bool) -> None:
    line = "spec:1:1: read."
    try:
        Document.parse(text, "spec", as_json=as_json)
    except SpecError as error:
        line = str(error)
    assert PLACED.fullmatch(line) and line.isprintable()
