"""Reading rows with labels: what becomes a class, which row is refused, and with which line."""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from altgrad.data import labelled as labelled_module
from altgrad.data.documents import SAMPLE, content_hash, hashed_split, locate
from altgrad.data.hub import Hub
from altgrad.data.labelled import LABELLED_SAMPLE, Labelled, read_labelled

COLUMNS = ("text", "labels")
SPLITS = ["train", "train", "validation", "test"]


def write(path: Path, **columns: list[Any]) -> Path:
    frame = {"text": ["a", "b", "c", "d"], "labels": [["x"], ["y", "x"], [], ["y"]], "split": SPLITS} | columns
    rows = [dict(zip(frame, values, strict=True)) for values in zip(*frame.values(), strict=True)]
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, **options: Any) -> Labelled:
    return read_labelled(str(path), COLUMNS, options.pop("classes", None), skip=options.pop("skip", False))


def test_the_packaged_provisions_are_the_file_their_notice_describes_and_are_read_as_pandas_reads_them() -> None:
    path = locate(SAMPLE, LABELLED_SAMPLE)
    notice = (path.parent / "NOTICE").read_text()
    assert f"{path.name}\nsha256 {content_hash(path)}" in notice and "NOT EuroVoc" in notice
    found = read_labelled(SAMPLE, COLUMNS, None, skip=False)
    frame = pd.read_parquet(path)
    assert len(found.classes) == 25 and sum(map(len, found.texts.values())) == 1933
    assert set(found.classes) == {label for row in frame.labels for label in row}
    for split, texts in found.texts.items():
        some = frame[frame.split == split]
        assert texts == some.text.tolist()
        assert [{found.classes[i] for i in row} for row in found.labels[split]] == [set(row) for row in some.labels]
    articles = {split: set(zip(rows.celex, rows.article, strict=True)) for split, rows in frame.groupby("split")}
    assert not articles["train"] & articles["test"] and not articles["train"] & articles["validation"]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_classes_are_the_training_labels_and_rows_may_have_none(tmp_path: Path, suffix: str) -> None:
    found = read(write(tmp_path / f"a{suffix}"))
    assert found.classes == ("x", "y")
    assert found.labels == {"train": [(0,), (0, 1)], "validation": [()], "test": [(1,)]}
    assert found.texts == {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}
    numbers = read(write(tmp_path / f"b{suffix}", labels=[[10], [9, 10, 9], [], [9]]))
    assert numbers.classes == ("9", "10") and numbers.labels["train"] == [(1,), (0, 1)]


def test_the_spec_may_say_the_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", labels=[[3], [0], [], [2]])
    assert read(path, classes=5).classes == ("0", "1", "2", "3", "4")
    assert read(path, classes=(3, 0, 2)).labels["train"] == [(0,), (1,)]


def test_a_text_of_several_strings_is_one_text_and_missing_splits_come_from_hashes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": [f"row {i}", "end"], "labels": ["x"]}) + "\n" for i in range(60)))
    found = read(path)
    assert all(hashed_split(text) == split for split, texts in found.texts.items() for text in texts)
    assert "row 1\nend" in [text for texts in found.texts.values() for text in texts]


BAD: dict[str, tuple[dict[str, list[Any]], str]] = {
    "unknown label": ({"labels": [["x"], ["y"], ["z"], []]}, "row 3: column 'labels' holds the unknown label 'z'"),
    "empty text": ({"text": ["a", " \n", "c", "d"]}, "row 2: column 'text' holds no text; remove the row"),
    "text is a number": ({"text": ["a", "b", 5, "d"]}, "row 3: column 'text' holds 5 (int); every row needs a string"),
    "no text": ({"text": ["a", None, "c", "d"]}, "row 2: column 'text' holds nothing; every row needs a string"),
    "no labels": ({"labels": [["x"], None, [], []]}, "row 2: column 'labels' holds nothing; every row needs a list"),
    "one label": ({"labels": [["x"], "x", [], []]}, "row 2: column 'labels' holds 'x' (str); every row needs a list"),
    "mixed rows": ({"labels": [["x"], [1], [], []]}, "row 2: column 'labels' holds 1 (int) where earlier labels"),
    "mixed list": ({"labels": [[1, "x"], [], [], []]}, "row 1: column 'labels' holds 'x' (str) where earlier labels"),
    "float": ({"labels": [[1.0], [], [], []]}, "row 1: column 'labels' holds 1.0 (float); labels are text or integers"),
    "bool": ({"labels": [[True], [], [], []]}, "row 1: column 'labels' holds True (bool); labels are text or integers"),
    "split": ({"split": ["train", "dev", "validation", "test"]}, "row 2: column 'split' holds 'dev'; it takes train"),
    "no validation": ({"split": ["train", "train", "train", "test"]}, "has no rows for validation"),
    "nothing": ({"labels": [[], [], [], []]}, "column 'labels' has no label in any training row"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_one_line_with_file_row_and_column(tmp_path: Path, case: str) -> None:
    columns, message = BAD[case]
    path = write(tmp_path / "rows.jsonl", **columns)
    with pytest.raises(ValueError) as caught:
        read(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_rows_that_cannot_be_used_are_left_out_and_counted_where_the_spec_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", labels=[["x"], ["x"], ["z", "x"], ["x"]], text=["a", "b", "c", " "])
    path.write_text(path.read_text() + json.dumps({"text": "v", "labels": ["x"], "split": "validation"}) + "\n")
    found = read(path, skip=True)
    assert found.skipped == {"empty_text": 1, "unknown_label": 1}
    assert found.texts == {"train": ["a", "b"], "validation": ["v"], "test": []}


def test_files_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    empty = tmp_path / "empty.parquet"
    empty.write_bytes(b"")
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(b"PAR1 and then nothing")
    lacking = tmp_path / "lacking.parquet"
    pd.DataFrame({"text": ["a"], "topics": [["x"]]}).to_parquet(lacking)
    for path, message in (
        (empty, "is empty (0 bytes)"), (torn, "cannot be read as parquet"),
        (lacking, "no column 'labels'; the file has text, topics"), (tmp_path / "absent.parquet", "is not a file"),
        (tmp_path / "a.txt", "ends in none of .parquet, .jsonl"),
    ):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            read(path)
        assert message in str(caught.value) and path.name in str(caught.value)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl")
    original = labelled_module.read_rows

    def rewriting(*args: Any) -> Any:
        yield from original(*args)
        write(path, text=["A", "b", "c", "d"])

    monkeypatch.setattr(labelled_module, "read_rows", rewriting)
    with pytest.raises(ValueError, match=r"a\.jsonl changed while it was read"):
        read(path)


def hub_folder(folder: Path, *, named: bool = True) -> Path:
    """As coastalcph/lex_glue: a folder per config, a file per split, a card; ecthr_a's texts are lists of strings."""
    datasets = pytest.importorskip("datasets")
    card = "---\nconfigs:\n"
    for config, number in (("eurlex", 100), ("ecthr_a", 10)):
        card += f"- config_name: {config}\n  data_files:\n"
        label = datasets.ClassLabel(names=[str(7000 + i) for i in range(number)]) if named else datasets.Value("int64")
        text = datasets.Value("string") if config == "eurlex" else datasets.List(datasets.Value("string"))
        features = datasets.Features({"text": text, "labels": datasets.List(label)})
        for split, count in (("train", 6), ("validation", 3), ("test", 2)):
            texts: list[Any] = [f"{split} text {i}" for i in range(count)]
            rows = {
                "text": texts if config == "eurlex" else [[t, "second fact"] for t in texts],
                "labels": [[number - 1, i] if i else [] for i in range(count)],
            }
            (folder / config).mkdir(parents=True, exist_ok=True)
            file = folder / config / f"{split}-00000-of-00001.parquet"
            datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
            card += f"  - split: {split}\n    path: {config}/{split}-*\n"
    (folder / "README.md").write_text(card + "---\n# LexGLUE\n")
    return folder


@pytest.mark.parametrize(("config", "count"), [("eurlex", 100), ("ecthr_a", 10)])
def test_a_folder_laid_out_as_the_hubs_has_the_classes_it_declares(tmp_path: Path, config: str, count: int) -> None:
    folder = hub_folder(tmp_path / "lex_glue")
    for classes in (None, count):
        found = read_labelled(Hub(hub=str(folder), config=config), COLUMNS, classes, skip=False)
        assert found.classes == tuple(str(7000 + i) for i in range(count))
        assert found.labels["train"][:2] == [(), (1, count - 1)] and len(found.texts["train"]) == 6
    assert found.texts["test"][0] == ("test text 0" if config == "eurlex" else "test text 0\nsecond fact")
    with pytest.raises(ValueError, match=rf"declares {count} classes, the spec 5; leave classes out"):
        read_labelled(Hub(hub=str(folder), config=config), COLUMNS, 5, skip=False)


def test_without_declared_names_the_spec_says_how_many_ids_there_are(tmp_path: Path) -> None:
    source = Hub(hub=str(hub_folder(tmp_path / "lex_glue", named=False)), config="eurlex")
    assert len(read_labelled(source, COLUMNS, 100, skip=False).classes) == 100
    with pytest.raises(ValueError, match=r"\(eurlex\), train: row 2: column 'labels' holds the unknown label 99"):
        read_labelled(source, COLUMNS, 99, skip=False)
    with pytest.raises(ValueError, match=r"has no column 'topics'; it has text, labels"):
        read_labelled(source, ("text", "topics"), 100, skip=False)


def test_equal_sizes_and_times_do_not_hide_a_change(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl")
    stat, before = path.stat(), read(path).sha256
    write(path, text=["a", "b", "c", "e"])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size and read(path).sha256 != before
