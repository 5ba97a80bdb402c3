"""A language model of transformers, small enough for every day, with text for it."""

import json
from pathlib import Path

import pytest
import torch

from altgrad.conversion.language_model import LanguageModel


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two blocks with a byte-level tokenizer."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    place = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.LlamaConfig(vocab_size=257, num_hidden_layers=2, max_position_embeddings=64, **sizes)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5)
    model.save_pretrained(place)
    ids = {
        letter: number for number, letter in enumerate(["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(place / "tokenizer.json"))
    return place


@pytest.fixture
def model(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    monkeypatch.setenv("ALTGRAD_CACHE", str(tmp_path / "cache"))
    rows = [{"text": f"Article {n}: it applies {'always ' * (n % 5)}from day {n}.", "split": "test"} for n in range(40)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return LanguageModel.of_folder(str(llama_folder), str(data), 16)
