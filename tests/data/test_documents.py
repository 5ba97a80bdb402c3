"""Reading files: which text lands in which split, and one clear line for everything wrong with a file."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from altgrad.data import parquet_file
from altgrad.data.documents import SAMPLE, content_hash, locate, read_documents

SAMPLE_FOLDER = locate(SAMPLE).parent


def write_parquet(path: Path, rows: Mapping[str, Sequence[object]]) -> Path:
    parquet.write_table(pa.table({name: pa.array(list(values)) for name, values in rows.items()}), path)
    return path


def write_jsonl(path: Path, rows: Mapping[str, Sequence[object]]) -> Path:
    names = list(rows)
    lines = [json.dumps(dict(zip(names, values, strict=True))) for values in zip(*rows.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


WRITERS = pytest.mark.parametrize(("suffix", "write"), [(".parquet", write_parquet), (".jsonl", write_jsonl)])
Writer = Callable[[Path, Mapping[str, Sequence[object]]], Path]


def test_the_sample_is_the_file_its_notice_describes() -> None:
    notice = (SAMPLE_FOLDER / "NOTICE").read_text()
    assert f"sha256 {content_hash(locate(SAMPLE))}" in notice
    for needed in ("European Union", "2011/833/EU", "CC BY 4.0", "Official Journal", "MIT License", "Changes made"):
        assert needed in notice
    documents = read_documents(locate(SAMPLE), "text")
    assert {split: len(rows) for split, rows in documents.items()} == {"train": 337, "validation": 118, "test": 122}


def test_the_sample_is_read_as_pandas_reads_it() -> None:
    frame = pd.read_parquet(locate(SAMPLE))
    for split, documents in read_documents(locate(SAMPLE), "text").items():
        assert documents == frame.text[frame.split == split].tolist()


def test_no_text_of_the_sample_stands_in_two_splits() -> None:
    documents = read_documents(locate(SAMPLE), "text")
    everything = [text for rows in documents.values() for text in rows]
    assert len(set(everything)) == len(everything) == 577


@WRITERS
def test_the_split_column_decides(tmp_path: Path, suffix: str, write: Writer) -> None:
    path = write(tmp_path / f"a{suffix}", {"body": ["é", "b", "", "d"], "split": ["test", "train", "train", "train"]})
    assert read_documents(path, "body") == {"train": ["b", "d"], "validation": [], "test": ["é"]}


@WRITERS
def test_without_a_split_column_the_hash_decides(tmp_path: Path, suffix: str, write: Writer) -> None:
    texts = [f"document {i}" for i in range(500)]
    found = read_documents(write(tmp_path / f"a{suffix}", {"text": texts}), "text")
    names = ["train"] * 8 + ["validation", "test"]
    for text in texts:
        bucket = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) % 10
        assert text in found[names[bucket]]
    assert sum(map(len, found.values())) == 500
    more = read_documents(write(tmp_path / f"b{suffix}", {"text": ["first", *texts, texts[3]]}), "text")
    assert all(set(found[split]) <= set(more[split]) for split in found)
    assert [text for rows in more.values() for text in rows].count(texts[3]) == 2
    assert sum(texts[3] in rows for rows in more.values()) == 1


@WRITERS
def test_a_list_of_strings_is_one_document_joined_by_newlines(tmp_path: Path, suffix: str, write: Writer) -> None:
    path = write(tmp_path / f"a{suffix}", {"text": [["1.", "", "first"], []], "split": ["train", "train"]})
    assert read_documents(path, "text")["train"] == ["1.\n\nfirst"]


def test_a_text_file_is_cut_at_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "".join(f"line {i} ä\r\n" for i in range(100))
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = read_documents(path, "text")
    assert "".join(rows[0] for rows in found.values()) == text
    assert all(rows[0].endswith("\n") for rows in found.values())
    assert [len(rows[0].splitlines()) for rows in found.values()] == [81, 10, 9]


def test_json_strings_may_hold_any_line_separator_but_the_newline(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\u2028two\x85three", "split": "train"}\n\n')
    assert read_documents(path, "text")["train"] == ["one\u2028two\x85three"]


def test_a_folder_named_like_a_column_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "split=test"
    folder.mkdir()
    path = write_parquet(folder / "a.parquet", {"text": ["a"], "split": ["train"]})
    assert read_documents(path, "text")["train"] == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "missing.txt is not a file"),
        ("a.csv", b"x", "a.csv ends in none of .parquet, .jsonl, .txt"),
        ("empty.parquet", b"", "empty.parquet is empty \\(0 bytes\\)"),
        ("deep.jsonl", b'{"text": "a"}\n' + b"[" * 100_000, "deep.jsonl: row 2: nested deeper than any row of text"),
        ("long.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "long.jsonl: row 1: a number of 5000 digits; at most 400"),
        ("empty.jsonl", b"", "empty.jsonl is empty \\(0 bytes\\)"),
        ("empty.txt", b"", "empty.txt is empty \\(0 bytes\\)"),
        ("a.parquet", b"not parquet at all", "a.parquet cannot be read as parquet"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl: row 2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', "a.jsonl: row 2: no column 'text'; the row has body"),
        ("a.jsonl", b'["a"]\n', "a.jsonl: row 1: no column 'text'; the row has a JSON list"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl: row 1: column 'text' holds 3 \\(int\\); every row needs a string"),
        ("a.jsonl", b'{"text": null}\n', "a.jsonl: row 1: column 'text' holds nothing"),
        ("a.jsonl", b'{"text": "a\\u0000b"}\n', "a.jsonl: row 1: column 'text' holds the character NUL"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "a.jsonl: row 1: column 'text' is not valid Unicode"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "a.jsonl: line 2 is not UTF-8"),
        ("a.jsonl", b'{"text": "a", "split": "dev"}\n', "a.jsonl: row 1: column 'split' holds 'dev'"),
        ("a.jsonl", b'{"text": "a", "split": ""}\n', "a.jsonl: row 1: column 'split' holds ''"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "a", "split": "train"}\n', "row 2: column 'split' must be in every row"),
        ("a.txt", b"ab", "a.txt has too few characters to cut into train, validation, test"),
        ("a.txt", b"a\n\xff\n", "a.txt: line 2 is not UTF-8"),
        ("a.txt", b"a\x00b\n" * 20, "a.txt: row 1: column 'text' holds the character NUL"),
    ],
)
def test_a_bad_file_gives_one_clear_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_documents(locate(str(tmp_path / name)), "text")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"body": ["a"], "id": [1]}, "no column 'text'; the file has body, id"),
        ({"text": [1, 2]}, "row 1: column 'text' holds 1 \\(int\\)"),
        ({"text": ["a", None]}, "row 2: column 'text' holds nothing"),
        ({"text": ["a", "b\0"]}, "row 2: column 'text' holds the character NUL"),
        ({"text": ["a", "b"], "split": ["train", "valid"]}, "row 2: column 'split' holds 'valid'"),
    ],
)
def test_a_bad_parquet_row_is_named(tmp_path: Path, rows: dict[str, list[object]], message: str) -> None:
    with pytest.raises(ValueError, match=f"a.parquet: {message}"):
        read_documents(write_parquet(tmp_path / "a.parquet", rows), "text")


def test_a_parquet_string_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"\xff"], pa.binary())
    texts = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: row 2: column 'text' is not UTF-8"):
        read_documents(tmp_path / "a.parquet", "text")


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_parquet_file_that_unpacks_to_far_more_than_it_is_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dictionary: bool
) -> None:
    monkeypatch.setattr(parquet_file, "LEAST_ROOM", 1 << 20)
    table = pa.table({"text": ["x" * 100_000] * 60, "split": ["train"] * 60})
    parquet.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=dictionary)
    assert (tmp_path / "a.parquet").stat().st_size < 5000
    with pytest.raises(ValueError, match=r"a.parquet: its \d+ bytes unpack to more than 1048576; text does not"):
        read_documents(tmp_path / "a.parquet", "text")
    monkeypatch.setattr(parquet_file, "LEAST_ROOM", 1 << 24)
    assert len(read_documents(tmp_path / "a.parquet", "text")["train"]) == 60
