"""Models that answer for every token are causal, proved by asking them; padded vocabularies lose nothing and gain
nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from altgrad.data.dataset import Dataset
from altgrad.data.text import TextSpec
from altgrad.models.causality import sees_ahead
from altgrad.models.huggingface import HF, HFSpec
from altgrad.models.model import ModelSpec
from altgrad.models.weights import is_padding

transformers = pytest.importorskip("transformers")
IDS, ROWS = 256, 272
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
LLAMA = {"num_key_value_heads": 1, "max_position_embeddings": 64} | SMALL


def save(folder: Path, config: Any, auto: Any = transformers.AutoModelForCausalLM) -> Path:
    torch.manual_seed(3)
    auto.from_config(config).save_pretrained(folder)
    return folder


def build(folder: Path, ids: int = IDS, **fields: Any) -> HF:
    return HFSpec(folder=str(folder), head="causal", **({"context": 16} | fields)).build(ids, ids)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("llama"), transformers.LlamaConfig(vocab_size=ROWS, **LLAMA))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_text("the quick brown fox\n" * 60)
    return TextSpec(source=str(file), batch_size=2).build(0, 16)


def test_every_kind_of_our_own_that_answers_for_tokens_is_causal(llama: Path) -> None:
    specs = {
        "gpt": {"layers": 2, "width": 16, "heads": 2},
        "llama": {"layers": 2, "width": 16, "heads": 2},
        "hf": {"folder": str(llama), "head": "causal"},
        "encoder": {},
    }
    assert specs.keys() == ModelSpec.kinds().keys()
    for kind, fields in specs.items():
        spec = ModelSpec.of({"kind": kind, "context": 16} | fields)
        model = spec.build(20, 20) if kind != "hf" else spec.build(IDS, IDS)
        ahead = sees_ahead(model, lambda ids, model=model: [_answer(model, ids)], 20, 8)
        assert ahead == (spec.answers == "text"), kind


def _answer(model: nn.Module, ids: Tensor) -> Tensor:
    found: Tensor = model(ids)
    return found if found.ndim == 3 else found[:, None].expand(-1, ids.shape[1], -1)


@pytest.mark.parametrize("random", [False, True])
def test_a_bidirectional_body_is_refused_for_causal_and_a_decoder_of_its_kind_is_not(
    tmp_path: Path, random: bool
) -> None:
    config = transformers.BertConfig(vocab_size=IDS, max_position_embeddings=24, **SMALL)
    folder = save(tmp_path / "bert", config, transformers.AutoModel)
    weights = "random" if random else "pretrained"
    with pytest.raises(
        ValueError, match="is bert, which is not causal: .* is_decoder: true .* or use head: pooled"
    ) as e:
        build(folder, weights=weights)
    assert "\n" not in str(e.value)
    told = json.loads((folder / "config.json").read_text()) | {"is_decoder": True}
    (folder / "config.json").write_text(json.dumps(told))
    assert build(folder, weights=weights)(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 4, IDS)
    again = save(tmp_path / "again", config, transformers.AutoModel)
    with torch.device("meta"):
        build(again)  # shapes alone prove nothing


def test_the_probe_leaves_no_trace() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.drop = nn.Dropout(0.5).eval()
            self.norm = nn.BatchNorm1d(4)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, ids: Tensor) -> Tensor:
            self.seen += 1
            assert not self.training and not torch.is_grad_enabled()
            return self.norm(self.embed(ids).mT).mT

    model = Model().train()
    model.drop.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert not sees_ahead(model, lambda ids: [model(ids)], 10, 8)
    assert sees_ahead(model, lambda ids: [model(ids).cumsum(1).flip(1)], 10, 8)
    assert torch.equal(state, torch.get_rng_state()) and [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        model.embed.weight[3] = torch.nan
    assert not sees_ahead(model, lambda ids: [model(ids)], 10, 8)


def test_rows_beyond_the_ids_have_no_part_in_loss_evaluation_or_gradient(llama: Path, text: Dataset) -> None:
    model, batch = build(llama).eval(), text.batch(0)
    output = model(batch.inputs)
    wide = model.model(input_ids=batch.inputs).logits
    assert output.shape[-1] == IDS and wide.shape[-1] == ROWS and torch.equal(output, wide[..., :IDS])
    masked = wide.clone()
    masked[..., IDS:] = -torch.inf
    expected = functional.cross_entropy(masked.flatten(0, 1), batch.targets.flatten()).detach()
    for logits in (output, wide):
        torch.testing.assert_close(text.loss(logits, batch), expected)
        evaluator = text.evaluator()
        evaluator.add(logits, batch)
        assert evaluator.result()["loss"] == pytest.approx(float(expected), rel=1e-6)
    text.loss(output, batch).backward()
    head = model.model.get_output_embeddings().weight.grad
    assert head[:IDS].any() and not head[IDS:].any()
    assert not torch.isclose(functional.cross_entropy(wide.flatten(0, 1), batch.targets.flatten()), expected, rtol=1e-4)


def test_ids_must_have_rows_and_be_the_models_own(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=f"the data's tokenizer has {ROWS + 1} ids, the model {ROWS}; set data.tokenizer"
    ):
        build(llama, ROWS + 1)
    folder = save(tmp_path / "m", transformers.LlamaConfig(vocab_size=ROWS, **LLAMA))
    vocabulary = {f"t{i}": i for i in range(259)}
    told = {"model": {"vocab": vocabulary}, "added_tokens": [{"id": 259, "content": "<e>"}]}
    (folder / "tokenizer.json").write_text(json.dumps(told))
    assert build(folder, 260)(torch.zeros(1, 4, dtype=torch.int64)).shape[-1] == 260
    with pytest.raises(ValueError, match="has 256 ids, the model's own 260; set data.tokenizer .* or weights: random"):
        build(folder, 256)
    assert build(folder, 256, weights="random").outputs == 256


def test_what_counts_as_padding_where_no_tokenizer_tells() -> None:
    published = {50304: 50257, 51200: 50295, 152064: 151665, 102400: 100015, 32064: 32011, 50688: 50277}
    assert all(is_padding(rows, ids, None) for rows, ids in published.items())
    assert not is_padding(50257, 50000, None) and not is_padding(1024, 256, None) and not is_padding(50240, 50257, None)
    assert is_padding(320, 300, 300) and not is_padding(320, 300, 310)
