"""Labelled texts as batches: pure functions of seed and index, whole epochs, whole evaluation, and their cache."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from altgrad.data import encoding
from altgrad.data.dataset import IGNORED, PADDING, DatasetSpec
from altgrad.data.labels import POOL, Labels, LabelsSpec


def rows(folder: Path, count: int = 50, split: str = "train", start: int = 0) -> str:
    """A file whose row i has a text of 1 + i % 23 letters and the labels of i's binary digits."""
    lines = [
        {
            "text": "abcdefghijklmnopqrstuvwxyz"[: 1 + i % 23],
            "labels": [b for b in range(3) if i >> b & 1],
            "split": part,
        }
        for part, number in ((split, count), ("validation", 7), ("test", 5))
        for i in range(start, start + number)
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def build(path: str, seed: int = 0, context: int = 32, **fields: Any) -> Labels:
    return LabelsSpec(source=path, **({"batch_size": 4} | fields)).build(seed, context)


def test_the_sample_is_a_data_set_of_its_family_with_twenty_five_labels() -> None:
    spec = DatasetSpec.of("labels")
    data = spec.build(seed=0, context=128)
    assert data.outputs == 25 and data.vocabulary == 256 and spec.answers == "text"
    told = data.describe()
    assert (told["train_rows"], told["validation_rows"], told["test_rows"]) == (1361, 278, 294)
    assert told["train_labels_per_row"] == 2.8714


@pytest.mark.parametrize("lengths", ["similar", "mixed"])
def test_batches_are_the_same_whoever_asks_and_in_whatever_order(tmp_path: Path, lengths: str) -> None:
    path = rows(tmp_path)
    first, second = build(path, lengths=lengths), build(path, lengths=lengths)
    forwards = [first.batch(i) for i in range(60)]
    for index in reversed(range(60)):
        again = second.batch(index)
        assert torch.equal(again.inputs, forwards[index].inputs) and torch.equal(again.targets, forwards[index].targets)
    other = build(path, seed=1, lengths=lengths)
    assert any(not np.array_equal(other.rows_of(i), first.rows_of(i)) for i in range(5))


@pytest.mark.parametrize("lengths", ["similar", "mixed"])
def test_every_row_is_seen_once_in_an_epoch(tmp_path: Path, lengths: str) -> None:
    data = build(rows(tmp_path, count=64), lengths=lengths)
    seen = [int(row) for index in range(2 * 64 // 4) for row in data.rows_of(index)]
    assert sorted(seen) == sorted([*range(64)] * 2) and seen[:64] != sorted(seen[:64])
    odd = build(rows(tmp_path, count=50), lengths=lengths)
    assert {int(row) for index in range(odd.epoch_batches) for row in odd.rows_of(index)} == set(range(50))


def test_similar_lengths_waste_less_than_mixed_ones_and_mixed_ones_have_one_shape(tmp_path: Path) -> None:
    path = rows(tmp_path, count=4 * POOL)
    similar, mixed = build(path, lengths="similar"), build(path, lengths="mixed")
    assert {tuple(mixed.batch(i).inputs.shape) for i in range(30)} == {(4, 32)}
    shapes = [tuple(similar.batch(i).inputs.shape) for i in range(30)]
    assert set(shapes) == {(4, 16), (4, 32)} and shapes != sorted(shapes)


def test_a_row_is_its_separator_its_bytes_and_padding(tmp_path: Path) -> None:
    data = build(rows(tmp_path), context=8)
    batch = data.batch(3)
    for place, row in enumerate(data.rows_of(3)):
        text = [0, *b"abcdefghijklmnopqrstuvwxyz"[: 1 + row % 23]][:8]
        assert batch.inputs[place].tolist() == text + [PADDING] * (8 - len(text))
        assert batch.targets[place].tolist() == [float(row >> b & 1) for b in range(3)]
    assert batch.tokens == int((batch.inputs != PADDING).sum())


def test_evaluation_counts_every_row_once_and_fills_the_last_batch_with_rows_that_do_not_count(tmp_path: Path) -> None:
    data = build(rows(tmp_path))
    batches = list(data.evaluation("validation"))
    assert [len(batch.inputs) for batch in batches] == [4, 4]
    targets = torch.cat([batch.targets for batch in batches])
    assert (targets[:7] >= 0).all() and (targets[7:] == IGNORED).all()
    assert sorted(map(tuple, targets[:7].tolist())) == sorted(
        tuple(float(i >> b & 1) for b in range(3)) for i in range(7)
    )
    lengths = [int((row >= 0).sum()) for batch in batches for row in batch.inputs][:7]
    assert lengths == sorted(lengths)
    with pytest.raises(ValueError, match=r"has no rows for dev; it has train, validation, test"):
        data.evaluation("dev")


def test_the_loss_is_binary_cross_entropy_with_the_weights_the_spec_names(tmp_path: Path) -> None:
    path = rows(tmp_path)
    positives = torch.tensor([sum(i >> b & 1 for i in range(50)) for b in range(3)])
    ratio = (50 - positives) / positives
    for named, expected in ((None, None), ("balanced", ratio), ("root", ratio.sqrt()), (3.0, torch.full((3,), 3.0))):
        data = build(path, pos_weight=named)
        batch, output = data.batch(0), torch.linspace(-2, 2, 12).view(4, 3)
        loss = functional.binary_cross_entropy_with_logits(output, batch.targets, pos_weight=expected)
        assert math.isclose(data.loss(output.bfloat16(), batch), data.loss(output, batch), abs_tol=0.02)
        assert torch.equal(data.loss(output, batch), loss)


@pytest.mark.parametrize("setting", ["bytes", {"bpe": 280}])
def test_tokens_of_a_text_do_not_depend_on_where_it_is_cut(setting: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        {"text": " ".join(f"word{i * j % 37} of law" for j in range(20)), "labels": ["x"], "split": split}
        for split in ("train", "validation", "test")
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    short, long = (LabelsSpec(source=str(path), tokenizer=setting).build(0, context) for context in (16, 48))
    assert all(batch.inputs.shape[1] <= 16 for batch in short.evaluation("test"))
    ids = {length: encoding.encode_texts(data._labelled, data.spec.tokenizer, length)[0] for length, data in
           ((16, short), (48, long))}  # fmt: skip
    assert all(np.array_equal(a, b[:16]) for a, b in zip(ids[16]["test"], ids[48]["test"], strict=True))


class TestCache:
    """Arrays of large corpora are kept under what decides them."""

    @pytest.fixture(autouse=True)
    def large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(encoding, "_DIRECT_BYTES", 0)
        monkeypatch.setenv("ALTGRAD_CACHE", str(tmp_path / "cache"))
        return tmp_path / "cache" / "labelled"

    def test_a_second_run_takes_the_arrays_and_sees_the_same_batches(
        self, tmp_path: Path, large: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = rows(tmp_path)
        first = build(path)
        monkeypatch.setattr(encoding, "_encoded", lambda *_: pytest.fail("tokenised twice"))
        second = build(path)
        assert all(torch.equal(first.batch(i).inputs, second.batch(i).inputs) for i in range(20))
        assert len(list(large.iterdir())) == 1

    def test_a_file_that_changed_has_arrays_of_its_own(self, tmp_path: Path, large: Path) -> None:
        before = build(rows(tmp_path)).batch(0)
        after = build(rows(tmp_path, start=3)).batch(0)
        assert len(list(large.iterdir())) == 2 and not torch.equal(before.inputs, after.inputs)

    @pytest.mark.parametrize("damage", ["bit", "torn", "empty"])
    def test_arrays_that_changed_are_made_again(self, tmp_path: Path, large: Path, damage: str) -> None:
        path = rows(tmp_path)
        expected = build(path).batch(0)
        (file,) = large.iterdir()
        data = bytearray(file.read_bytes())
        if damage == "bit":
            with np.load(file) as kept:
                arrays = dict(kept)
            arrays["train/ids"][0] ^= 1
            np.savez(file, **arrays)
        else:
            file.write_bytes(data[: len(data) // 2] if damage == "torn" else b"")
        assert torch.equal(build(path).batch(0).inputs, expected.inputs)

    def test_a_cache_that_cannot_be_written_says_where(self, tmp_path: Path, large: Path) -> None:
        (tmp_path / "cache").write_text("a file, not a folder")
        with pytest.raises(ValueError, match="set ALTGRAD_CACHE to a folder with space"):
            build(rows(tmp_path))


def test_a_tokenizer_folder_is_used_as_it_is_special_tokens_and_all(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, **{letter: 4 + i for i, letter in enumerate("abcdef")}}
    model = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = [("[CLS]", 2), ("[SEP]", 3)]
    model.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    (tmp_path / "words").mkdir()
    model.save(str(tmp_path / "words" / "tokenizer.json"))
    path = tmp_path / "rows.jsonl"
    lines = [{"text": text, "labels": ["x"], "split": split} for text, split in (("AbC", "train"), ("z", "validation"))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = build(str(path), tokenizer=str(tmp_path / "words"), batch_size=1, context=4)
    assert data.vocabulary == 10 and data.batch(0).inputs.tolist() == [[2, 4, 5, 3]]
    assert next(data.evaluation("validation")).inputs[0, :3].tolist() == [2, 1, 3]
    with pytest.raises(ValueError, match="length of 2 leaves no room for the 2 special tokens"):
        build(str(path), tokenizer=str(tmp_path / "words"), context=2)


def test_a_spec_that_cannot_be_is_refused() -> None:
    for fields, message in (
        ("classes: 0", "names no classes"), ("classes: [a, a]", "names no classes"), ("classes: [a, 1]", "no classes"),
        ("pos_weight: some", "is not a pos_weight"), ("pos_weight: -1", "is not a pos_weight"),
        ("column: labels", "column and label_column are both 'labels'"), ("lengths: odd", "lengths"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            LabelsSpec.parse(fields)
    spec = LabelsSpec.parse("{classes: [b, a], pos_weight: 2, bad_rows: skip}")
    assert LabelsSpec.parse(spec.to_yaml().replace("kind: labels\n", "")) == spec
