"""Claims about models of transformers: under one rule for everything, every cast of every layer sees a pass."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from altgrad.nn import QuantizedLayer, casts_off, dequantize_model, observed, quantize_model, quantizers

transformers = pytest.importorskip("transformers", reason="transformers is an optional extra; its models are run")

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers itself

LIKE_LLAMA = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
LIKE_BERT = {name: value for name, value in LIKE_LLAMA.items() if name != "num_key_value_heads"}

ARCHITECTURES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "Llama": ("ForCausalLM", LIKE_LLAMA),
    "Mistral": ("ForCausalLM", LIKE_LLAMA),
    "Qwen2": ("ForCausalLM", LIKE_LLAMA | {"tie_word_embeddings": True}),
    "GPT2": ("LMHeadModel", {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}),
    "GPTNeoX": ("ForCausalLM", LIKE_BERT),
    "OPT": ("ForCausalLM", {
        "vocab_size": 64, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 32, "word_embed_proj_dim": 16,
    }),
    "Bert": ("ForMaskedLM", LIKE_BERT),
    "Roberta": ("ForSequenceClassification", LIKE_BERT),
    "DistilBert": ("ForMaskedLM", {"vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}),
    "T5": ("ForConditionalGeneration", {
        "vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
    }),
    "ViT": ("ForImageClassification", {
        name: value for name, value in LIKE_BERT.items() if "token" not in name and name != "vocab_size"
    } | {"image_size": 8, "patch_size": 4}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def build(name: str) -> Any:
    torch.manual_seed(0)
    suffix, sizes = ARCHITECTURES[name]
    config = getattr(transformers, f"{name}Config")(**sizes)
    for dropout in ("attn_pdrop", "embd_pdrop", "resid_pdrop", "dropout", "attention_dropout", "dropout_rate",
                    "hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_dropout"):  # fmt: skip
        if hasattr(config, dropout):
            setattr(config, dropout, 0.0)
    return getattr(transformers, name + suffix)(config)


def outputs(name: str, model: Any) -> Tensor:
    tokens = torch.randint(1, 64, (2, 8), generator=torch.Generator().manual_seed(1))
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    given = {"pixel_values": pixels} if name == "ViT" else {"input_ids": tokens}
    given |= {"decoder_input_ids": tokens} if name == "T5" else {}
    found = model(**given).logits
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_cast_of_an_architecture_sees_a_pass_and_it_can_be_taken_back(name: str) -> None:
    model = build(name).train()
    plain = functools.partial(outputs, name, model)
    reference = plain().detach()
    quantize_model(model, {"rules": [{"match": "*", "weight": "e4m3fn", "input": "e4m3fn", "grad_output": "e5m2"}]})
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    assert len(layers) >= 9
    seen: set[str] = set()
    with observed(model, lambda cast: seen.add(cast.site)):
        outputs(name, model).square().mean().backward()
    first = {q.site for layer in layers for q in layer.slot_casts.values() if not layer.weight.requires_grad}
    assert {quantizer.site for quantizer in quantizers(model)} - seen - first == set()
    cast = outputs(name, model.eval()).detach()
    with torch.no_grad():
        torch.testing.assert_close(outputs(name, model), cast)
    assert not torch.allclose(cast, reference, atol=1e-6)
    with casts_off(model):
        assert torch.equal(plain(), reference)
    dequantize_model(model)
    assert torch.equal(plain(), reference)


@pytest.mark.parametrize(("name", "suffix", "sizes", "layer"), [
    ("MobileBert", "ForMaskedLM", LIKE_BERT | {
        "embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16, "intermediate_size": 32,
    }, "cls.predictions.decoder"),
    ("Mamba", "ForCausalLM", {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 4,
    }, "backbone.layers.0.mixer.dt_proj"),
])  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
def test_two_that_multiply_by_a_layers_weight_themselves_are_refused(
    name: str, suffix: str, sizes: dict[str, Any], layer: str, training: bool
) -> None:
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, name + suffix)(config).train(training)
    quantize_model(model, {"rules": [{"match": "*", "weight": "e4m3fn"}]})
    with torch.set_grad_enabled(training), pytest.raises(ValueError, match=f"^{layer} is quantised, but its forward"):
        outputs(name, model)
