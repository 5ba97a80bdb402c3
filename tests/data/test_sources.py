"""What a source may be on disk, for every kind of data set: spelling, compression, folders, bad rows, one long line."""

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from altgrad.data import source_file
from altgrad.data.dataset import SPLITS, Dataset, DatasetSpec
from altgrad.data.documents import FileCorpus, locate, read_documents
from altgrad.data.text import TextSpec

KINDS = sorted(DatasetSpec.kinds())
ROWS = [
    {"text": f"document number {i} of casts and grids", "labels": [f"l{i % 3}"], "split": SPLITS[min(i % 5, 3) % 3]}
    for i in range(60)
]


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd,
}  # fmt: skip


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def build(kind: str, source: Path, **fields: Any) -> Dataset:
    spec = DatasetSpec.of({"kind": kind, "source": str(source), "batch_size": 2} | fields)
    return spec.build(0, 16)


def shape(dataset: Dataset) -> dict[str, Any]:
    """What was read, without where from."""
    return {key: value for key, value in dataset.describe().items() if key not in ("source", "sha256")}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_reads_what_is_the_same_file_in_other_wrapping(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    expected = shape(build(kind, tmp_path / "a.jsonl"))
    (tmp_path / "B.JSONL").write_bytes(lines(ROWS))
    pd.DataFrame(ROWS).to_parquet(tmp_path / "C.Parquet")
    (tmp_path / "parts").mkdir()
    for number in range(3):
        rows = lines(ROWS[20 * number : 20 * number + 20])
        (tmp_path / "parts" / f"part-{number}.jsonl.gz").write_bytes(gzip.compress(rows))
    (tmp_path / "parts" / "README.md").write_text("what this is")
    (tmp_path / "parts" / "_SUCCESS").write_text("")
    names = ["B.JSONL", "C.Parquet", "parts"]
    for suffix, pack in PACK.items():
        (tmp_path / f"d.jsonl{suffix}").write_bytes(pack(lines(ROWS)))
        names.append(f"d.jsonl{suffix}")
    for name in names:
        assert shape(build(kind, tmp_path / name)) == expected, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("bad", "reason", "message"),
    [
        ({"text": None}, "no_text", "column 'text' holds nothing"),
        ({"text": 3}, "not_text", r"column 'text' holds 3 \(int\)"),
        ({"text": float("nan")}, "not_text", r"column 'text' holds nan \(float\)"),
        ({"text": "a\0b"}, "not_text", "holds the character NUL"),
        ({"split": None}, "no_split", "column 'split' holds null where other rows name theirs"),
        ({"labels": None}, "no_labels", "column 'labels' holds nothing; every row needs a list of labels"),
    ],
)
def test_every_kind_refuses_a_bad_row_or_leaves_it_out_and_counts_it(
    tmp_path: Path, kind: str, bad: dict[str, Any], reason: str, message: str
) -> None:
    if "labels" in bad and kind == "text":
        pytest.skip("text has no labels")
    rows = [*ROWS[:7], ROWS[7] | bad, *ROWS[8:]]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    (tmp_path / "whole.jsonl").write_bytes(lines([*ROWS[:7], *ROWS[8:]]))
    with pytest.raises(ValueError, match=f"row 8: .*{message}") as caught:
        build(kind, tmp_path / "a.jsonl")
    assert "\n" not in str(caught.value)
    found = shape(build(kind, tmp_path / "a.jsonl", bad_rows="skip"))
    assert found.pop(f"skipped_{reason}") == 1
    assert found == shape(build(kind, tmp_path / "whole.jsonl"))


@pytest.mark.parametrize("kind", KINDS)
def test_where_every_row_is_bad_the_first_is_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    with pytest.raises(ValueError, match=r"all 60 rows were left out, the first because: .*row 1: column 'body'"):
        build(kind, tmp_path / "a.jsonl", bad_rows="skip", column="body")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_split_that_is_null_in_every_row_is_no_split(tmp_path: Path, kind: str, suffix: str) -> None:
    for name, change in (("null", {"split": None}), ("absent", {})):
        rows = [{key: value for key, value in (row | change).items() if key != "split" or change} for row in ROWS]
        if suffix == ".jsonl":
            (tmp_path / f"{name}.jsonl").write_bytes(lines(rows))
        else:
            pd.DataFrame(rows).to_parquet(tmp_path / f"{name}.parquet")
    assert shape(build(kind, tmp_path / f"null{suffix}")) == shape(build(kind, tmp_path / f"absent{suffix}"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_names_what_a_folder_holds_instead(tmp_path: Path, kind: str) -> None:
    cases = {
        "none": (["image.png"], r"folder without a .parquet or .jsonl.* it holds image.png"),
        "empty": ([], "it holds nothing"),
        "two": (["a.jsonl", "b.parquet"], r"a folder of \.jsonl and \.parquet files"),
        "other": (["a.jsonl", "b.csv"], "also holds b.csv"),
        "nested": (["a.jsonl", "more/b.jsonl"], "also holds more"),
        "splits": (["train.jsonl", "validation.jsonl"], r"named after splits \(train.jsonl, .*source: \{hub: "),
    }
    for folder, (names, message) in cases.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).parent.mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(lines(ROWS))
        with pytest.raises(ValueError, match=message) as caught:
            build(kind, tmp_path / folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", b"\x1f\x8b", r"a\.jsonl\.gz cannot be decompressed as \.gz"),
        ("a.jsonl.gz", gzip.compress(lines(ROWS), mtime=0)[:-20], "cannot be decompressed as .gz"),
        ("a.jsonl.bz2", b"BZh9", "cannot be decompressed as .bz2"),
        ("a.jsonl.xz", b"no", "cannot be decompressed as .xz"),
        ("a.jsonl.zst", zstd(lines(ROWS))[:-9], "cannot be decompressed as .zst"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "is empty once decompressed"),
        ("a.parquet.gz", b"x", "a compressed parquet file.* decompress it"),
        ("a.jsonl.zip", b"x", r"decompress it first \(unzip\)"),
        ("a.csv.gz", b"x", "ends in none of .parquet, .jsonl, .txt before its compression"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b\xff"}\n', r"line 2 is not UTF-8 \(byte 0xff at offset 25"),
        ("a.txt", b"\xef\xbb\xbfab\n\xfe\n", r"line 2 is not UTF-8 \(byte 0xfe at offset 6"),
        ("a.txt", "two lines\n".encode("utf-16"), r"byte 0xff at offset 0: .*it looks like UTF-16"),
        ("a.txt", b"\xef\xbb\xbf", "too few characters to cut"),
        ("a.jsonl", b"\n\n", "has no text for train"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        TextSpec(source=str(tmp_path / name)).build(0, 4)
    assert "\n" not in str(caught.value)


def test_a_compressed_file_is_unpacked_no_further_than_text_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_file, "LEAST_ROOM", 1 << 16)
    monkeypatch.setattr(source_file, "_BLOCK", 1 << 14)
    for suffix, pack in PACK.items():
        (tmp_path / f"a.txt{suffix}").write_bytes(pack(b"x" * (1 << 20)))
        with pytest.raises(ValueError, match="unpack to more than"):
            read_documents(locate(str(tmp_path / f"a.txt{suffix}")), "text")


def test_a_byte_order_mark_and_other_line_ends_change_no_row(tmp_path: Path) -> None:
    plain, marked = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    plain.write_bytes(lines(ROWS))
    marked.write_bytes(b"\xef\xbb\xbf" + lines(ROWS).replace(b"\n", b"\r\n"))
    assert read_documents(plain, "text") == read_documents(marked, "text")


@pytest.mark.parametrize("seed", range(40))
def test_the_splits_of_a_text_are_the_text_whatever_its_lines(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    pieces = [
        ["a", "b ", "ä", "漢", "😀", "\r"],
        ["word ", "other\t"],
        ["no spaces at all".replace(" ", "")],
        ["l\n", "\r\n"],
    ]
    alphabet = [piece for kind in chance.sample(pieces, chance.randint(1, 4)) for piece in kind]
    text = "".join(chance.choices(alphabet, k=chance.randint(10, 3000))) + chance.choice(["", "\n"])
    parts = tmp_path / "parts"
    parts.mkdir()
    (tmp_path / "a.txt").write_bytes(text.encode())
    cut = len(text) // 3
    for name, part in (("1.txt", text[:cut]), ("2.TXT", text[cut:])):
        (parts / name).write_bytes(part.encode())
    for source in (tmp_path / "a.txt", parts):
        found = read_documents(locate(str(source)), "text")
        assert "".join(document for split in SPLITS for document in found[split]) == text
        sizes = [sum(len(document.encode()) for document in found[split]) for split in SPLITS]
        assert all(sizes)
        if len(text) > 1000 and source.is_file():
            assert abs(sizes[0] / sum(sizes) - 0.8) < 0.02 and abs(sizes[1] / sum(sizes) - 0.1) < 0.02


def test_a_long_line_is_cut_at_spaces(tmp_path: Path) -> None:
    (tmp_path / "text8.txt").write_text("anarchism " * 1000)
    found = read_documents(tmp_path / "text8.txt", "text")
    assert all(set(found[split][0].split()) == {"anarchism"} for split in SPLITS)


def test_a_spec_at_its_default_is_written_as_before_there_was_the_field() -> None:
    assert "bad_rows" not in TextSpec().tree() and TextSpec(bad_rows="skip").tree()["bad_rows"] == "skip"
    assert TextSpec().fingerprint() != TextSpec(bad_rows="skip").fingerprint()


def test_counts_survive_the_cache_of_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALTGRAD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.jsonl").write_bytes(lines([*ROWS, {"text": None, "split": "train"}]))
    for _ in range(2):
        found = (
            TextSpec(source=str(tmp_path / "a.jsonl"), tokenizer={"bpe": 270}, bad_rows="skip").build(0, 4).describe()
        )
        assert found["skipped_no_text"] == 1
    assert FileCorpus(tmp_path / "a.jsonl", "text").decides != FileCorpus(tmp_path / "a.jsonl", "text", "skip").decides
