"""The token cache: built once, whole or not at all, and never stale."""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from altgrad.data import tokens as module
from altgrad.data.documents import SAMPLE, FileCorpus, locate
from altgrad.data.tokenizer import BPE
from altgrad.data.tokens import Tokens, cache_folder, load_tokens, on_progress

pytest.importorskip("tokenizers")

ROOT = Path(__file__).resolve().parents[2]
SMALL = BPE(bpe=300)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALTGRAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    written: list[Path] = []
    write = module._write

    def counted(aside: Path, *rest: object) -> None:
        written.append(aside)
        write(aside, *rest)

    monkeypatch.setattr(module, "_write", counted)
    return written


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Part of the sample: 30 documents per split."""
    path = tmp_path / "part.parquet"
    pd.read_parquet(locate(SAMPLE)).groupby("split").head(30).to_parquet(path)
    return path


def load(source: Path, setting: str | BPE = SMALL, column: str = "text") -> Tokens:
    return load_tokens(FileCorpus(source, column), setting)


def folders(cache: Path) -> list[Path]:
    return [entry for entry in cache.iterdir() if entry.is_dir()]


def same(one: Tokens, other: Tokens) -> bool:
    rings = all(np.array_equal(one.rings[split], other.rings[split]) for split in ("train", "validation", "test"))
    return rings and one.counts == other.counts and np.array_equal(one.token_bytes, other.token_bytes)


def test_the_second_load_builds_nothing_and_maps_the_same_tokens(source: Path, builds: list[Path], cache: Path) -> None:
    assert same(load(source), load(source))
    assert len(builds) == 1
    assert isinstance(load(source).rings["train"].base, np.memmap)
    assert (folders(cache)[0] / "tokenizer.json").is_file()


def test_a_ring_is_the_documents_with_a_separator_before_each(source: Path) -> None:
    found = load(source)
    assert found.counts["train_documents"] == (found.rings["train"] == 299).sum() == 30
    size = sum(len(text.encode()) for text in pd.read_parquet(source).query("split == 'train'").text)
    assert found.token_bytes[found.rings["train"]].sum() == found.counts["train_bytes"] == size
    assert found.rings["train"][0] == 299


def test_small_files_of_bytes_stay_out_of_the_cache_and_large_ones_agree_with_them(
    source: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    direct = load(source, "bytes")
    assert not cache.exists()
    monkeypatch.setattr(module, "_DIRECT_BYTES", 0)
    mapped = load(source, "bytes")
    assert same(direct, mapped)
    assert mapped.rings["train"].dtype == np.uint8
    assert len(folders(cache)) == 1


def test_every_input_that_decides_the_tokens_decides_the_folder(
    source: Path, builds: list[Path], tmp_path: Path
) -> None:
    frame = pd.read_parquet(source)
    frame["other"] = frame.text
    path = tmp_path / "a.parquet"
    frame.to_parquet(path)
    load(path)
    load(path, SMALL, "other")
    load(path, BPE(bpe=301))
    assert len(set(builds)) == 3
    shutil.copy(path, tmp_path / "b.parquet")
    load(tmp_path / "b.parquet")
    assert len(builds) == 3
    frame.iloc[1:].to_parquet(path)
    load(path)
    assert len(set(builds)) == 4


def test_a_changed_tokenizer_folder_is_read_anew(source: Path, builds: list[Path], cache: Path, tmp_path: Path) -> None:
    load(source)
    vocabulary = (folders(cache)[0] / "tokenizer.json").read_text()
    added = '"added_tokens": [{"id": 299, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, '
    (tmp_path / "tokenizer.json").write_text(
        vocabulary.replace('"added_tokens": []', added + '"normalized": false, "special": true}]')
    )
    assert same(load(source, str(tmp_path)), load(source))
    assert len(builds) == 2
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    load(source, str(tmp_path))
    assert len(builds) == 3


def test_builders_at_the_same_time_build_once(source: Path, builds: list[Path]) -> None:
    with ThreadPoolExecutor(4) as pool:
        first, *rest = pool.map(lambda _: load(source), range(4))
    assert all(same(first, other) for other in rest)
    assert len(builds) == 1


def test_what_stops_a_builder_also_clears_up_after_it(
    source: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    def stopped(aside: Path, *rest: object) -> None:
        (aside / "train.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", stopped)
        with pytest.raises(KeyboardInterrupt):
            load(source)
    assert folders(cache) == []
    assert load(source).counts["train_documents"] == 30


FILES = ["train.bin", "validation.bin", "test.bin", "tokens.json", "token_bytes.npy", "tokenizer.json"]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """One bit of one token, or of one number of the manifest."""
    place = len(content) - 60
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("damage", FILES)
@pytest.mark.parametrize("harm", [cut, flipped, None])
def test_a_folder_that_is_not_as_it_was_written_is_built_again(
    source: Path, builds: list[Path], cache: Path, damage: str, harm: Callable[[bytes], bytes] | None
) -> None:
    whole = load(source)
    expected = {split: ring.copy() for split, ring in whole.rings.items()}
    file = folders(cache)[0] / damage
    content = file.read_bytes()
    # A new file, as a copy that stopped leaves it: cutting the mapped one short would take pages from `whole`.
    file.unlink()
    if harm is not None:
        file.write_bytes(harm(content))
    again = load(source)
    assert len(builds) == 2
    assert all(np.array_equal(again.rings[split], expected[split]) for split in expected)
    assert file.read_bytes() == content
    load(source)
    assert len(builds) == 2


def test_a_manifest_that_agrees_with_itself_alone_is_not_believed(
    source: Path, builds: list[Path], cache: Path
) -> None:
    load(source)
    manifest = folders(cache)[0] / "tokens.json"
    about = json.loads(manifest.read_text())["about"]
    for wrong in ({**about, "counts": {**about["counts"], "train_bytes": 1}}, {}):
        manifest.write_text(json.dumps({"about": wrong, "sha256": "0" * 64}))
        assert load(source).counts == about["counts"]
    assert len(builds) == 3


def test_a_file_changed_in_place_is_noticed_though_size_and_time_are_the_same(
    source: Path, builds: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    rows = pd.read_parquet(source)
    rows.to_json(path, orient="records", lines=True)
    before, stat = load(path), path.stat()
    path.write_bytes(path.read_bytes().replace(b"Union", b"union"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size and path.stat().st_mtime_ns == stat.st_mtime_ns
    assert not same(load(path), before)
    assert len(builds) == 2


def test_the_same_bytes_under_another_suffix_are_other_documents(source: Path, tmp_path: Path) -> None:
    pd.read_parquet(source).to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "a.txt")
    assert load(tmp_path / "a.jsonl").counts["train_documents"] == 30
    assert load(tmp_path / "a.txt").counts["train_documents"] == 1


def test_a_file_that_changes_while_it_is_read_leaves_nothing_in_the_cache(source: Path, cache: Path) -> None:
    corpus = FileCorpus(source, "text")
    assert len(corpus.sha256) == 64
    pd.read_parquet(source).iloc[1:].to_parquet(source)
    for setting in (SMALL, "bytes"):
        with pytest.raises(ValueError, match="changed while it was read; start again"):
            load_tokens(corpus, setting)
    assert folders(cache) == []


def test_progress_is_told_to_whoever_asks(source: Path) -> None:
    heard: list[tuple[int, int]] = []
    token = on_progress.set(lambda done, total: heard.append((done, total)))
    try:
        load(source)
        load(source)
    finally:
        on_progress.reset(token)
    frame = pd.read_parquet(source)
    size = frame.text.str.encode("utf-8").str.len()
    total = size.sum() + size[frame.split == "train"].sum()
    assert len(heard) == 30 + 90
    assert heard[-1] == (total, total)
    assert heard == sorted(heard)


def test_a_cache_that_cannot_be_written_says_where_to_put_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALTGRAD_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="set ALTGRAD_CACHE"):
        load(source)


def test_the_cache_is_in_the_home_folder_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALTGRAD_CACHE", "")
    assert cache_folder() == Path.home() / ".cache" / "altgrad"
