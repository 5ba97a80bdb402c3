"""Claims about hand-offs: what `diagnose` writes `quantize-model` and `train` take, for every model."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from altgrad.cli.main import app

SPEC = """\
name: tiny
model: {kind: gpt, layers: 2, width: 16, heads: 2, context: 16}
data: {kind: text, batch_size: 2}
optimizer: adamw
steps: 1
threads: 1
evaluate_limit: 2
monitors: []
"""


def run(*args: object) -> Result:
    found = CliRunner().invoke(app, [str(arg) for arg in args])
    assert found.exit_code == 0, (args, found.output)
    return found


def cast_by_quantize(model: object, policy: Path) -> set[str]:
    """The modules that `quantize-model` casts under a policy."""
    rows = json.loads(run("quantize-model", model, "--policy", policy, "--json").stdout)["results"][0]["tensors"]
    return {row["tensor"].removesuffix(".weight") for row in rows}


def cast_by_train(spec: Path, policy: Path) -> set[str]:
    """The layers that `train` would cast under it."""
    rows = json.loads(run("train", spec, "--dry-run", "--json", "--set", f"precision=@{policy}").stdout)["layers"]
    return {row["layer"] for row in rows if row["slots"]["forward.weight"] != "-"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path


def test_a_run_of_gpt_goes_round(here: Path) -> None:
    run("train", "spec.yaml", "--json")
    (found,) = (here / "runs/default").iterdir()
    run("diagnose", found, "--no-data", "--formats", "e4m3fn,e5m2", "--policy-out", "advised.yaml")
    layers = {
        f"blocks.{n}.{leaf}" for n in (0, 1) for leaf in ("attention.qkv", "attention.proj", "mlp.up", "mlp.down")
    }
    assert cast_by_quantize(found, Path("advised.yaml")) == layers
    assert cast_by_train(Path("spec.yaml"), Path("advised.yaml")) == layers
    run("train", "advised.yaml", "--dry-run")  # it is a whole spec, besides
    (weights,) = found.glob("checkpoints/*/model.safetensors")
    run("diagnose", weights, "--formats", "e4m3fn,e5m2", "--policy-out", "file.yaml")
    assert cast_by_quantize(weights, Path("file.yaml")) == cast_by_train(Path("spec.yaml"), Path("file.yaml")) == layers


def saved(kind: str, folder: Path) -> None:
    """A model of a few thousand weights, as its library writes it."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(**sizes, intermediate_size=32, num_key_value_heads=1)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    elif kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=256, n_layer=2, n_head=2, n_embd=16, n_positions=64)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    else:
        config = transformers.BertConfig(**sizes, intermediate_size=32)
        cls = transformers.BertModel if kind == "bert" else transformers.BertForSequenceClassification
        cls(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "head", "count"),
    [("llama", "causal", 14), ("gpt2", "causal", 8), ("bert", "pooled", 12), ("bert with a head", "pooled", 12),
     ("bert with a head", "classification", 12)],
)  # fmt: skip
def test_a_folder_and_a_run_of_it_go_round(here: Path, kind: str, head: str, count: int) -> None:
    saved(kind, here / "hf")
    data = "{kind: text, batch_size: 2}" if head == "causal" else "{kind: labels, batch_size: 2, tokenizer: bytes}"
    (here / "spec.yaml").write_text(
        f"model: {{kind: hf, folder: hf, head: {head}, context: 16}}\ndata: {data}\n"
        "optimizer: adamw\nsteps: 1\nthreads: 1\nmonitors: []\nevaluate_limit: 2\n"
    )
    run("diagnose", "hf", "--formats", "e4m3fn", "--policy-out", "folder.yaml")
    files = cast_by_quantize("hf", Path("folder.yaml"))
    layers = cast_by_train(Path("spec.yaml"), Path("folder.yaml"))
    assert len(files) == len(layers) == count
    # And back: rules by the names of a run are understood of the folder.
    rules = {"precision": {"rules": [{"match": name, "weight": "e4m3fn"} for name in sorted(layers)]}}
    (here / "run.yaml").write_text(yaml.safe_dump(rules))
    assert cast_by_quantize("hf", Path("run.yaml")) == files
    assert cast_by_train(Path("spec.yaml"), Path("run.yaml")) == layers


def test_what_is_no_policy_and_no_file_is_said_at_the_flag(here: Path) -> None:
    for text, message in (
        ("precision=@nowhere.yaml", "--set precision=@nowhere.yaml: cannot be read: No such file or directory."),
        (
            "precision=@spec.yaml",
            "--set precision=@spec.yaml: 'name' is not a key of precision. It takes rules, recipe, set, phases. (",
        ),
    ):
        found = CliRunner().invoke(app, ["train", "spec.yaml", "--dry-run", "--set", text])
        assert found.exit_code == 2 and found.stderr.startswith(message), found.stderr
