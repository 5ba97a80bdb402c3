"""Text as blocks of tokens: pure batches, whole epochs, exact evaluation, and the numbers the sample is known for."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from altgrad.data.dataset import IGNORED, Batch, DatasetSpec
from altgrad.data.documents import SAMPLE, locate
from altgrad.data.text import Text, TextSpec


@pytest.fixture(scope="module")
def sample() -> Text:
    return TextSpec(batch_size=8).build(seed=0, context=64)


def small(tmp_path: Path, length: int = 1000, *, seed: int = 0, context: int = 7, batch_size: int = 4) -> Text:
    rows = pd.DataFrame({"text": ["x" * (length - 1), "yz"], "split": ["train", "validation"]})
    rows.to_parquet(tmp_path / "small.parquet")
    return TextSpec(source=str(tmp_path / "small.parquet"), batch_size=batch_size).build(seed, context)


def ring(split: str) -> np.ndarray:
    frame = pd.read_parquet(locate(SAMPLE))
    return np.frombuffer(b"".join(b"\0" + text.encode() for text in frame.text[frame.split == split]), np.uint8)


def test_the_family_finds_it_by_name() -> None:
    assert DatasetSpec.of("text") == TextSpec()
    assert DatasetSpec.of({"kind": "text", "batch_size": 8}) == TextSpec(batch_size=8)


def test_batch_is_a_pure_function_of_seed_and_index(sample: Text) -> None:
    fresh = TextSpec(batch_size=8).build(seed=0, context=64)
    last = 3 * fresh.epoch_batches
    expected = {index: fresh.batch(index) for index in (0, 1, 17, fresh.epoch_batches, last)}
    for index in (last, 17, 0, fresh.epoch_batches, 1, 17):
        again = sample.batch(index)
        assert torch.equal(again.inputs, expected[index].inputs)
        assert torch.equal(again.targets, expected[index].targets)
    other = TextSpec(batch_size=8).build(seed=1, context=64)
    assert not torch.equal(other.batch(0).inputs, expected[0].inputs)


def test_targets_are_the_inputs_one_token_later(sample: Text) -> None:
    batch = sample.batch(5)
    assert batch.inputs.shape == batch.targets.shape == (8, 64)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])


def test_a_batch_holds_the_blocks_that_block_start_names(sample: Text) -> None:
    train = ring("train")
    for index in (0, 3, sample.epoch_batches):
        for row, inputs in enumerate(sample.batch(index).inputs.numpy()):
            places = (sample.block_start(index * 8 + row) + np.arange(64)) % len(train)
            assert np.array_equal(inputs, train[places])


@pytest.mark.parametrize("length", [7, 13, 100, 1000, 1001])
def test_every_block_is_visited_once_per_epoch(tmp_path: Path, length: int) -> None:
    data = small(tmp_path, length)
    assert data.blocks == length // 7
    phases = []
    for epoch in range(5):
        starts = [data.block_start(epoch * data.blocks + place) for place in range(data.blocks)]
        covered = np.concatenate([(start + np.arange(7)) % length for start in starts])
        assert len(np.unique(covered)) == len(covered) == data.blocks * 7
        phases.append({start % 7 for start in starts})
    assert length < 20 or len({tuple(sorted(phase)) for phase in phases}) > 1


def test_epochs_visit_in_different_orders(tmp_path: Path) -> None:
    data = small(tmp_path)
    first, second = ([data.block_start(e * data.blocks + i) for i in range(data.blocks)] for e in (0, 1))
    assert first != sorted(first)
    assert np.argsort(first).tolist() != np.argsort(second).tolist()


def test_epoch_batches_show_every_block(tmp_path: Path) -> None:
    data = small(tmp_path)
    assert (data.epoch_batches - 1) * 4 < data.blocks <= data.epoch_batches * 4


def test_a_batch_larger_than_an_epoch_spans_several(tmp_path: Path) -> None:
    data = small(tmp_path, 15, batch_size=16)
    assert (data.blocks, data.epoch_batches) == (2, 1)
    assert data.batch(3).inputs.shape == (16, 7)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(("context", "batch_size"), [(64, 8), (101, 16), (1000, 1)])
def test_evaluation_covers_every_target_exactly_once(split: str, context: int, batch_size: int) -> None:
    data = TextSpec(batch_size=batch_size).build(seed=3, context=context)
    batches = list(data.evaluation(split))
    assert {batch.inputs.shape for batch in batches} == {(batch_size, context)}
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    counted = targets[targets != IGNORED]
    stream = ring(split)
    assert np.array_equal(counted.numpy(), np.roll(stream, -1))
    assert (targets[len(stream) :] == IGNORED).all()
    inputs = torch.cat([batch.inputs.flatten() for batch in batches]).numpy()
    assert np.array_equal(inputs, stream[np.arange(len(inputs)) % len(stream)])
    assert counted.eq(0).sum() == data.describe()[f"{split}_documents"]


def test_evaluation_does_not_depend_on_the_seed() -> None:
    one, other = (next(TextSpec().build(seed, 32).evaluation("validation")) for seed in (0, 1))
    assert torch.equal(one.inputs, other.inputs)


def test_a_split_shorter_than_a_block_is_evaluated_whole(tmp_path: Path) -> None:
    (batch,) = small(tmp_path).evaluation("validation")
    assert batch.inputs[0].tolist() == [0, 121, 122, 0, 121, 122, 0]
    assert batch.targets[0].tolist() == [121, 122, 0] + [IGNORED] * 4
    assert (batch.targets[1:] == IGNORED).all()


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_bits_per_byte_of_a_uniform_model_is_eight_times_tokens_per_byte(sample: Text, split: str) -> None:
    evaluator = sample.evaluator()
    for batch in sample.evaluation(split):
        evaluator.add(torch.zeros(*batch.inputs.shape, 256), batch)
    frame = pd.read_parquet(locate(SAMPLE))
    texts = frame.text[frame.split == split]
    size = texts.str.encode("utf-8").str.len().sum()
    result = evaluator.result()
    assert result["bits_per_byte"] == pytest.approx(8 * (size + len(texts)) / size, rel=1e-6)
    assert result["loss"] == pytest.approx(math.log(256), rel=1e-6)
    assert result["perplexity"] == pytest.approx(256, rel=1e-5)


def test_a_uniform_model_that_is_certain_of_separators_has_exactly_eight_bits_per_byte(sample: Text) -> None:
    evaluator = sample.evaluator()
    for batch in sample.evaluation("validation"):
        logits = torch.zeros(*batch.inputs.shape, 256)
        logits[batch.targets == 0] = functional.one_hot(torch.tensor(0), 256) * 1000.0
        evaluator.add(logits, batch)
    assert evaluator.result()["bits_per_byte"] == pytest.approx(8, rel=1e-6)


def test_a_unigram_model_reaches_the_known_bits_per_byte(sample: Text) -> None:
    counts = torch.zeros(256)
    for batch in sample.evaluation("train"):
        counts += torch.bincount(batch.targets[batch.targets >= 0], minlength=256)
    logits = ((counts + 0.5) / (counts + 0.5).sum()).log()
    evaluator = sample.evaluator()
    for batch in sample.evaluation("validation"):
        evaluator.add(logits.expand(*batch.inputs.shape, 256), batch)
    assert evaluator.result()["bits_per_byte"] == pytest.approx(4.47, abs=0.02)


def test_loss_is_cross_entropy_in_float32(sample: Text) -> None:
    batch = sample.batch(0)
    logits = torch.randn(8, 64, 256, generator=torch.Generator().manual_seed(0))
    expected = functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    torch.testing.assert_close(sample.loss(logits, batch), expected)
    low = sample.loss(logits.bfloat16(), batch)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, sample.loss(logits.bfloat16().float(), batch))


def test_evaluator_reports_an_overflowing_perplexity_as_infinite_and_keeps_nan(sample: Text) -> None:
    batch = sample.batch(0)
    for value, expected in ((1e6, math.inf), (math.nan, math.nan)):
        logits = torch.zeros(8, 64, 256)
        logits[..., 1] = value
        evaluator = sample.evaluator()
        evaluator.add(logits, batch)
        assert evaluator.result()["perplexity"] == pytest.approx(expected, nan_ok=True)


def test_an_evaluator_without_batches_is_an_error(sample: Text) -> None:
    with pytest.raises(ValueError, match="no batch was evaluated"):
        sample.evaluator().result()


def test_description_counts_the_sample(sample: Text) -> None:
    described = sample.describe()
    assert (described["train_documents"], described["train_bytes"], described["train_tokens"]) == (337, 801402, 801739)
    assert described["vocabulary"] == sample.vocabulary == sample.outputs == 256
    assert len(str(described["sha256"])) == 64


def test_too_little_text_for_one_block_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 6 training tokens, one block needs 7; shorten the model's context"):
        small(tmp_path, 6)


def test_an_absent_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no text for test; it has train, validation"):
        small(tmp_path).evaluation("test")
    pd.DataFrame({"text": ["a"], "split": ["train"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet has no text for validation"):
        TextSpec(source=str(tmp_path / "a.parquet")).build(0, 1)


def test_a_batch_moves_whole() -> None:
    moved = Batch(torch.zeros(1), torch.zeros(1)).to("meta")
    assert moved.inputs.is_meta
    assert moved.targets.is_meta


@pytest.fixture(scope="module")
def subwords(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Text]:
    pytest.importorskip("tokenizers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALTGRAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield TextSpec.model_validate({"tokenizer": {"bpe": 512}, "batch_size": 8}).build(seed=0, context=64)


def test_subwords_cover_every_byte_of_a_split_once(subwords: Text, sample: Text) -> None:
    assert subwords.vocabulary == subwords.outputs == 512
    told, bytewise = subwords.describe(), sample.describe()
    for split in ("train", "validation", "test"):
        evaluator = subwords.evaluator()
        for batch in subwords.evaluation(split):
            evaluator.add(torch.zeros(*batch.inputs.shape, 512), batch)
        assert told[f"{split}_bytes"] == bytewise[f"{split}_bytes"]
        expected = 9 * int(told[f"{split}_tokens"]) / int(told[f"{split}_bytes"])
        assert evaluator.result()["bits_per_byte"] == pytest.approx(expected, rel=1e-6)
        assert int(told[f"{split}_tokens"]) < 0.6 * int(bytewise[f"{split}_tokens"])


def test_batches_of_subwords_are_cut_from_the_map_as_those_of_bytes_are(subwords: Text) -> None:
    batch = subwords.batch(2 * subwords.epoch_batches)
    assert batch.inputs.dtype == torch.int64
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    assert batch.inputs.max() < 512
    batch.inputs.zero_()
    assert subwords.batch(2 * subwords.epoch_batches).inputs.any()


def test_the_tokenizer_stands_in_yaml_as_it_was_written() -> None:
    for text in ("tokenizer: bytes", "tokenizer:\n  bpe: 4096", "tokenizer: some/folder"):
        assert TextSpec.parse(TextSpec.parse(f"{text}").to_yaml().replace("kind: text\n", "")) == TextSpec.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokenizer: {bpe: 10}", "bpe is 10; it takes a whole number from 258"),
        ("tokenizer: {bp: 4096}", "'bp' is not a key of tokenizer"),
        ("tokenizer: 4096", "4096 is not a tokenizer; write bytes"),
    ],
)
def test_a_wrong_tokenizer_says_what_is_right(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextSpec.parse(text)


def test_the_samples_references_come_with_the_sample_whatever_its_tokenizer(
    sample: Text, subwords: Text, tmp_path: Path
) -> None:
    assert sample.references == subwords.references == {"unigram": 4.47, "order-6 n-gram": 1.17}
    assert not small(tmp_path).references
