"""The second task as runs: labelled text under every format and optimizer, stopped and resumed, judged and exported."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from altgrad.conversion.saving import export
from altgrad.data.labels import LabelsSpec
from altgrad.spec import SpecError
from altgrad.store import Run, RunStore, run_id
from altgrad.training import RunSpec, train
from altgrad.training.held_out import judge, restored, same_data
from altgrad.training.lineage import earlier_sources, leak_warning
from tests.training.running import after, lines

SPEC = """
project: tests
model: {kind: encoder, layers: 1, width: 16, heads: 2, context: 32}
data: {kind: labels, source: FILE, batch_size: 4, pos_weight: root}
optimizer: {kind: adamw, lr: 3e-3}
steps: 8
threads: 1
engine: eager
evaluate_every: 1000
checkpoint_every: 4
monitors: [finite]
"""
FP8 = "precision.rules=[{weight: e4m3fn, input: {format: e4m3fn, rounding: stochastic}, grad_output: e5m2}]"
ARMS = {
    "float32": (), "fp8": (FP8,), "e3m4": ("precision.rules=[{weight: e3m4, grad_output: e5m2}]",),
    "manifold": ("optimizer.kind=manifold_adamw", "storage=[{match: blocks.*.weight, kind: stochastic, format: e3m4}]"),
    "sgd": ("optimizer={kind: sgd, lr: 0.1}", FP8), "dropout": ("model.dropout=0.2",), "twice": ("accumulate=2",),
}  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty provisions whose label shows in their words."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [
        {
            "text": f"the fine is {i}" if i % 2 else f"scope {i}" + " and so on" * (i % 3),
            "labels": ["penalty"] if i % 2 else ["scope", "any"],
            "split": "train" if i < 28 else "validation" if i < 34 else "test",
        }
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def make(folder: Path, file: Path, *sets: str, text: str = SPEC) -> tuple[RunSpec, Run, Any]:
    spec = RunSpec.parse(text.replace("FILE", str(file)), "spec.yaml", sets)
    dataset = spec.data.build(spec.seed, spec.model.context)
    run = RunStore(folder).run(spec.project, run_id(spec.name, spec.fingerprint(), spec.seed))
    if not run.exists:
        run.create(spec.to_yaml(), {"steps": spec.steps, "data": dataset.describe()})
    return spec, run, dataset


def watched(dataset: Any) -> list[str]:
    """Fills with a digest of every training batch that is asked for, in order."""
    seen: list[str] = []
    original = dataset.batch

    def batch(index: int) -> Any:
        found = original(index)
        seen.append(hashlib.sha256(found.inputs.numpy().tobytes() + found.targets.numpy().tobytes()).hexdigest())
        return found

    dataset.batch = batch
    return seen


def test_every_format_optimizer_and_resume_point_sees_the_same_batches_in_the_same_order(
    tmp_path: Path, file: Path
) -> None:
    orders = {}
    for arm, sets in ARMS.items():
        spec, run, dataset = make(tmp_path / arm, file, *sets)
        orders[arm] = watched(dataset)
        assert train(spec, run, dataset).status == "completed"
    assert len(orders["float32"]) == 8 and len(set(orders["float32"])) > 4
    assert orders["twice"][:8] == orders["float32"] and len(orders.pop("twice")) == 16
    assert all(order == orders["float32"] for order in orders.values())
    for stop in range(1, 8):
        spec, run, dataset = make(tmp_path / f"stopped-{stop}", file, FP8)
        seen = watched(dataset)
        # Two batches of evaluation, then one question before each step.
        assert train(spec, run, dataset, interrupted=after(2 + stop)).step == stop - 1
        assert train(spec, run, dataset).status == "completed"
        assert seen == orders["fp8"]


@pytest.mark.parametrize("arm", ["fp8", "manifold", "dropout", "twice"])
def test_stopped_and_resumed_is_the_same_run(tmp_path: Path, file: Path, arm: str) -> None:
    spec, whole, dataset = make(tmp_path / "whole", file, *ARMS[arm])
    train(spec, whole, dataset)
    spec, run, dataset = make(tmp_path / "stopped", file, *ARMS[arm])
    assert train(spec, run, dataset, interrupted=after(6)).status == "interrupted"
    assert train(spec, run, dataset).status == "completed"
    assert lines(run) == lines(whole)


def test_an_outcome_has_the_scores_of_the_task_and_tokens_without_padding(tmp_path: Path, file: Path) -> None:
    spec, run, dataset = make(tmp_path, file)
    outcome = train(spec, run, dataset)
    names = {"loss", "f1_micro", "f1_macro", "tuned_f1_micro", "tuned_f1_macro"}
    assert set(outcome.validation) == {f"validation/{name}" for name in names}
    assert run.last("train/tokens")["train/tokens"] == sum(dataset.batch(i).tokens for i in range(8))
    assert not any(key.endswith(("perplexity", "bits_per_byte")) for row in run.metrics() for key in row)


def test_a_small_encoder_in_fp8_learns_what_there_is_to_learn(tmp_path: Path, file: Path) -> None:
    """In each of eight seeds F1 is 1, with a loss of 0.17, sd 0.06; at twice the rate it is 0.05 to 0.51."""
    spec, run, dataset = make(tmp_path, file, FP8, "steps=60", "optimizer.lr=5e-3", "monitors=[finite, rank]")
    train(spec, run, dataset)
    judged = judge(run)
    assert judged.found["loss"] < 0.17 + 3 * 0.06
    assert judged.found["f1_micro"] == judged.found["f1_macro"] == 1 and judged.step == 60
    assert {row["label"]: row["f1"] for row in judged.table} == {"any": 1, "penalty": 1, "scope": 1}
    assert any(key.startswith("rank/classifier.weight/") for row in run.metrics() for key in row)


def test_a_held_out_split_is_judged_with_validations_threshold(tmp_path: Path, file: Path) -> None:
    spec, run, dataset = make(tmp_path, file)
    train(spec, run, dataset)
    judged = judge(run)
    assert judged.found["threshold"] == judged.validation["threshold"]
    assert judged.validation["f1_micro"] == run.last("validation/f1_micro")["validation/f1_micro"]
    assert judge(run, "validation").found == judged.validation
    with pytest.raises(ValueError, match="device nowhere is not here"):
        judge(run, device="nowhere")


def test_data_that_changed_under_a_run_is_noticed(tmp_path: Path, file: Path) -> None:
    copy = tmp_path / "rows.jsonl"
    copy.write_text(file.read_text())
    spec, run, dataset = make(tmp_path / "runs", copy)
    train(spec, run, dataset)
    same_data(run, dataset)
    copy.write_text(file.read_text().replace("fine", "FINE"))
    with pytest.raises(ValueError, match=r"rows\.jsonl is not what run .* was made with .*put the file back"):
        restored(run)


def test_a_model_of_one_task_does_not_take_the_data_of_the_other() -> None:
    for model, data in (("gpt", "labels"), ("encoder", "text"), ("{kind: hf, folder: x, head: causal}", "labels")):
        with pytest.raises(SpecError, match=r"answers for every (token|text), data \w+ asks for every (text|token)"):
            RunSpec.parse(f"model: {model}\ndata: {data}\noptimizer: adamw\nsteps: 1")
    with pytest.raises(SpecError, match=r"compile: model is for batches of one shape; set data\.lengths: mixed"):
        RunSpec.parse("{model: encoder, data: labels, optimizer: adamw, steps: 1, compile: model}")
    assert LabelsSpec(lengths="mixed").one_shape


HF = """
project: tests
name: hf
model: {kind: hf, folder: FOLDER, context: 24, HEAD}
data: {kind: labels, source: FILE, batch_size: 4}
precision: {rules: [{match: "*layer*", weight: e4m3fn, input: e4m3fn, grad_output: e5m2}]}
optimizer: {kind: adamw, lr: 1e-3, groups: [{match: "*classifier*", lr: 1e-2}]}
steps: 6
threads: 1
engine: eager
evaluate_every: 1000
checkpoint_every: 3
monitors: [range, finite, {kind: rank, every: 3}, {kind: shadow, every: 3}, {kind: dead, every: 3}, stall]
"""


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    folder = tmp_path_factory.mktemp("bert")
    transformers.BertModel(
        transformers.BertConfig(vocab_size=256, max_position_embeddings=24, **sizes)
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("head", ["head: pooled", "head: classification", 'frozen: ["*embeddings*", "*layer.0*"]'])
def test_a_model_of_transformers_is_a_run_like_any_other(tmp_path: Path, file: Path, bert: Path, head: str) -> None:
    transformers = pytest.importorskip("transformers")
    text = HF.replace("FOLDER", str(bert)).replace("HEAD", head)
    spec, whole, dataset = make(tmp_path / "whole", file, text=text)
    assert train(spec, whole, dataset).status == "completed"
    spec, run, dataset = make(tmp_path / "stopped", file, text=text)
    train(spec, run, dataset, interrupted=after(6))
    assert train(spec, run, dataset).status == "completed"
    assert lines(run) == lines(whole)
    assert export(run, tmp_path / "out") == 6
    auto = transformers.AutoModelForSequenceClassification if "classification" in head else transformers.AutoModel
    loaded = auto.from_pretrained(tmp_path / "out")
    assert loaded.config.id2label == {0: "any", 1: "penalty", 2: "scope"}
    trained = dict(restored(run)[2].named_parameters())
    for name, p in loaded.named_parameters():
        assert "pooler" in name or torch.equal(p, trained[f"model.{name}"]), name
    if "frozen" in head:
        before = transformers.AutoModel.from_pretrained(bert).state_dict()
        assert torch.equal(before["embeddings.word_embeddings.weight"], loaded.embeddings.word_embeddings.weight)


def test_only_runs_of_kind_hf_are_exported(tmp_path: Path, file: Path) -> None:
    spec, run, dataset = make(tmp_path, file)
    with pytest.raises(ValueError, match="is a run without a checkpoint"):
        export(run, tmp_path / "out")
    train(spec, run, dataset)
    with pytest.raises(ValueError, match="model encoder is AltGrad's own and has no Hugging Face form"):
        export(run, tmp_path / "out")


LM = """
project: tests
model: {kind: gpt, layers: 1, width: 16, heads: 2, context: 8}
data: {kind: text, source: SOURCE, batch_size: 2}
optimizer: {kind: adamw, lr: 1e-3}
steps: 1
threads: 1
"""


def test_the_packaged_sample_is_not_judged_unwarned_after_other_acts_were_read(tmp_path: Path) -> None:
    acts = tmp_path / "eu_acts.jsonl"
    acts.write_text("".join(json.dumps({"text": f"Article {i} " * 9}) + "\n" for i in range(60)))
    first, run = RunSpec.parse(LM.replace("SOURCE", str(acts))), Run(tmp_path / "runs" / "p" / "acts")
    run.create(first.to_yaml(), {})
    sample = LM.replace("SOURCE", "eulaw")
    second = RunSpec.parse(sample + f"init_from: {run.path}\n")
    warning = leak_warning(second)
    assert warning is not None and str(acts) in warning and "numbers on it mean nothing" in warning
    later = Run(tmp_path / "runs" / "p" / "second")
    later.create(second.to_yaml(), {})
    third = RunSpec.parse(sample + f"init_from: {later.path}\n")
    assert earlier_sources(third.init_from) == ["eulaw", str(acts)] and leak_warning(third) is not None
    labels = "model: encoder\ndata: labels\noptimizer: adamw\nsteps: 1\n"
    assert leak_warning(RunSpec.parse(labels + f"init_from: {run.path}\n")) is not None
    assert leak_warning(RunSpec.parse(sample)) is None
    assert leak_warning(RunSpec.parse(sample + f"init_from: {tmp_path}\n")) is None
    assert leak_warning(RunSpec.parse(LM.replace("SOURCE", str(acts)) + f"init_from: {run.path}\n")) is None


def test_a_diverged_classifier_is_a_result(tmp_path: Path, file: Path) -> None:
    spec, run, dataset = make(tmp_path, file, "optimizer={kind: sgd, lr: 1e30}", "clip_norm=null", "schedule=constant")
    outcome = train(spec, run, dataset)
    assert outcome.status == "diverged" and math.isfinite(outcome.validation["validation/f1_micro"])
