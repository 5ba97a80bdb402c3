"""Claims about `altgrad diagnose`: what it says of a run and of a model, its JSON, its page, and its refusals."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner, Result

from altgrad.cli.diagnose import diagnose
from altgrad.diagnosis.examination import Diagnosis
from altgrad.diagnosis.examination import diagnose as examine
from altgrad.display import Line, html_lines
from altgrad.nn import quantize_model
from altgrad.store import Run
from altgrad.store.files import spell_nonfinite
from altgrad.training import RunSpec

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command("diagnose")(diagnose)
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tensors = {f"blocks.{n}.mlp.up.weight": torch.randn(24, 8) for n in range(3)}
    tensors |= {"embed.weight": torch.randn(9, 8), "lm_head.weight": torch.randn(9, 8), "norm.weight": torch.ones(8)}
    save_file(tensors, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def facts(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


@pytest.fixture(scope="module")
def diagnosis(tiny: Run) -> Diagnosis:
    return examine(tiny, formats=["e4m3fn", "e3m4"])


@pytest.fixture
def found(diagnosis: Diagnosis) -> Any:
    return diagnosis.facts


def test_a_run_whose_storage_drops_its_steps_is_told_so_with_a_remedy(found: Any) -> None:
    assert found["status"] == "completed" and found["step"] == 24
    stalled = [each for each in found["symptoms"] if each["name"] == "stalled_storage"]
    assert {each["place"] for each in stalled} == {f"blocks.{n}.mlp.{m}.weight" for n in (0, 1) for m in ("up", "down")}
    assert all("stochastic" in each["remedy"] and each["lasts"] for each in stalled)


def test_a_run_s_advice_covers_what_is_cast_anew_and_is_a_spec(found: Any) -> None:
    # Its weights are stored on a grid already, so no format is advised for them.
    assert {row["operand"] for row in found["advice"]} == {"input", "grad_output"}
    assert not any("head" in row["layer"] for row in found["advice"])
    spec = RunSpec.parse(found["advised_spec"])
    assert spec.name == "tiny-advised" and spec.precision.rules


def test_stored_weights_lie_on_the_grid_and_masters_do_not(found: Any) -> None:
    offsets = {row["name"]: row["mean_offset"] for row in found["weights"]}
    assert offsets["blocks.0.mlp.up.weight"] == 0 and 0.2 < offsets["embed.weight"] < 0.3


def test_without_data_only_weights_are_seen_and_a_checkpoint_is_a_target(invoke: Invoke, tiny: Run) -> None:
    found = facts(invoke(tiny.path / "checkpoints" / "step-00000012", "--no-data", "--formats", "e4m3fn", "--json"))
    assert found["step"] == 12 and found["advice"] == [] and found["weights"]


def test_a_model_s_policy_spares_embeddings_and_head(invoke: Invoke, model: Path, tmp_path: Path) -> None:
    found = facts(invoke(model, "--formats", "e4m3fn,e3m4", "--json", "--policy-out", "p.yaml"))
    assert found["kind"] == "model" and "symptoms" not in found
    assert [row["layer"] for row in found["advice"]] == [f"blocks.{n}.mlp.up" for n in range(3)]
    assert set(found["advice"][0]["formats"]) == {"e4m3fn", "e3m4"}
    assert "blocks.*.mlp.up" in (tmp_path / "p.yaml").read_text()


@pytest.mark.parametrize("width", [60, 80, 160])
def test_no_line_is_wider_than_the_window(diagnosis: Diagnosis, width: int) -> None:
    lines = diagnosis.page(width)
    assert max(line.width for line in lines) <= width
    assert any("Format advice" in line.text for line in lines)


def test_the_html_page_holds_the_same_text_and_no_markup_of_others(invoke: Invoke, tiny: Run, tmp_path: Path) -> None:
    command = (tiny.path, "--no-data", "--formats", "e4m3fn", "--html", "d.html", "--policy-out", "p.yaml")
    assert invoke(*command).exit_code == 0
    assert RunSpec.load(tmp_path / "p.yaml").name == "tiny-advised"
    text = (tmp_path / "d.html").read_text()
    assert "Weights" in text and "default-src &#x27;none&#x27;" in text and "://" not in text
    assert "<table>" in text and "<pre>" in text and text.count("<script>") == 1, "tables, a policy, its copy button"
    assert "<b>" not in html_lines([Line.of(("<b>x</b>", "red"))])


def test_the_heat_map_has_every_layer_and_the_policy_a_button(diagnosis: Diagnosis) -> None:
    text = diagnosis.html()
    heat = text[text.index('id="advice"') : text.index('id="policy"')]
    assert all(row["layer"] in heat for row in diagnosis.advice) and re.search(r'class="n h10">[\d.]+\*?<', heat)
    assert "* the choice. Exact for" in heat and "median over the layers" not in heat, "a row is one layer"
    assert 'button class="copy"' in text and diagnosis.symptoms[0]["title"] in text


def test_every_page_escapes_what_it_is_given(diagnosis: Diagnosis) -> None:
    hostile = "<script>alert(1)</script>"
    facts = copy.deepcopy(diagnosis.facts) | {"name": hostile, "policy": hostile, "monitors": [hostile]}
    facts["symptoms"][0] |= {"title": hostile, "place": hostile, "remedy": hostile}
    facts["advice"][0]["layer"] = facts["weights"][0]["name"] = hostile
    assert hostile not in Diagnosis(facts).html()


def test_the_library_finds_what_the_command_prints(invoke: Invoke, diagnosis: Diagnosis, tiny: Run) -> None:
    printed = facts(invoke(tiny.path, "--formats", "e4m3fn,e3m4", "--json"))
    assert printed == json.loads(json.dumps(spell_nonfinite(diagnosis.facts)))
    assert diagnosis.symptoms == diagnosis.facts["symptoms"] and diagnosis.alarms == diagnosis.facts["alarms"]
    assert diagnosis.advised_spec is not None and diagnosis.policy is not None
    assert diagnosis.advised_spec.precision.rules == diagnosis.policy.rules
    shown = invoke(tiny.path, "--formats", "e4m3fn,e3m4").output
    assert repr(diagnosis).splitlines() == shown.splitlines()
    assert "Format advice" in diagnosis._repr_html_() and "<html" not in diagnosis._repr_html_()


def test_a_model_in_memory_and_its_file_are_one_target(model: Path) -> None:
    module = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"mlp": nn.Module()}) for _ in range(3)])})
    for name, weight in load_file(model).items():
        if name.startswith("blocks."):
            up = nn.Linear(*reversed(weight.shape), bias=False)
            up.weight.data = weight
            module.get_submodule(name.removesuffix(".up.weight")).up = up
    by_file, in_memory = examine(model, formats="e4m3fn,e3m4"), examine(module, formats="e4m3fn,e3m4")
    assert in_memory.advice == by_file.advice and in_memory.facts["weights"] == by_file.facts["weights"]
    assert (in_memory.advised_spec, in_memory.symptoms, in_memory.facts["path"]) == (None, [], None)
    assert in_memory.policy is not None
    quantize_model(module, in_memory.policy)
    assert examine(module, formats="e4m3fn,e3m4").advice == by_file.advice


def test_a_replay_lists_the_variants_and_every_site(invoke: Invoke, tiny: Run) -> None:
    found = facts(invoke(tiny.path, "--replay", "--formats", "e4m3fn,e2m1", "--json"))
    names = ["casts off", "as the run", "rounding: stochastic", "all e4m3fn", "all e2m1"]
    assert [each["name"] for each in found["variants"]] == names and len(found["attribution"]) == 24
    text = invoke(tiny.path, "--replay", "--formats", "e2m1").output
    assert "Error attribution by cast" in text and "all e2m1" in text


def test_a_replay_adds_up_in_other_accumulators(invoke: Invoke, tiny: Run) -> None:
    options = ("--replay", "--formats", "e2m1", "--accumulator", "hopper_fast", "--accumulator", "blackwell_fp4")
    # Sums of 16 terms keep 13 bits, which moves this loss of 5.5 by less than its last place: the gradient tells.
    _, run, hopper, refused, *_ = facts(invoke(tiny.path, *options, "--json"))["variants"]
    assert hopper["name"] == "accumulator: hopper_fast" and hopper["sqnr_db"] != run["sqnr_db"]
    assert abs(hopper["loss"] - run["loss"]) < 1e-3 and abs(hopper["cosine"] - run["cosine"]) < 1e-3
    assert "accumulator: blackwell_fp4 takes e2m1, and forward.input is e4m3fn" in refused["error"]
    told = "accumulators are tried in a replayed step; ask for replay, too."
    assert told in invoke(tiny.path, "--accumulator", "hopper_fast").output
    misspelt = invoke(tiny.path, "--replay", "--accumulator", "hoper").output
    assert "instruction is 'hoper'; it takes one of float32, hopper_fast" in misspelt and misspelt.count("\n") == 1


def test_two_runs_are_told_apart_by_the_cast_that_was_broken(
    invoke: Invoke, tiny: Run, make: Callable[..., Run]
) -> None:
    broken = "precision={rules: [{match: blocks.1.mlp.up, weight: e4m3fn, input: e0m2, grad_output: e5m2}, "
    broken += "{match: 'blocks.*', weight: e4m3fn, input: e4m3fn, grad_output: e5m2}]}"
    suspect = make(tiny.path.parent.parent, broken)
    found = facts(invoke(suspect.path, "--against", tiny.path, "--json"))
    assert found["bisection"]["sites"] == ["blocks.1.mlp.up/input"] and found["bisection"]["of"] == 1
    assert found["departure"]["observed"] == 24
    assert "blocks.1.mlp.up/input" in invoke(suspect.path, "--against", tiny.path).output
    alike = invoke(tiny.path, "--against", tiny.path).output
    assert "no divergence detected (largest gap 0, band " in alike and "nowhere" not in alike


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nothing-here",), "is not a run in runs"),
        (("nothing.safetensors",), "is not there"),
        (("w.safetensors", "--formats", "e4m3"), "e4m3fn"),
        (("w.safetensors", "--formats", ","), "names no format"),
        (("w.safetensors", "--formats", "e10m5"), "casts run in float32"),
        (("w.safetensors", "--replay"), "is not a run"),
        (("w.safetensors", "--against", "x"), "is not a run"),
        (("x", "--replay", "--against", "y"), "one at a time"),
        (("x", "--oracle", "--policy-out", "y"), "goes with the format advice"),
        (("w.safetensors", "--oracle"), "no optimizer or schedule"),
        (("bad.yaml",), "bad.yaml:4:8: steps is 0"),
        (("x", "--replay", "--policy-out", "y"), "goes with the format advice"),
    ],
)
def test_mistakes_are_one_line(invoke: Invoke, model: Path, args: tuple[str, ...], message: str) -> None:
    (model.parent / "bad.yaml").write_text(
        "model: {kind: gpt, layers: 1, width: 8, heads: 1, context: 8}\ndata: text\noptimizer: adamw\nsteps: 0\n"
    )
    result = invoke(*args)
    assert result.exit_code == 2 and message in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_the_oracle_foretells_a_spec_and_a_run_and_names_a_rate(
    invoke: Invoke, make: Callable[..., Run], tmp_path: Path
) -> None:
    tiny = make(tmp_path, "steps=2")
    (tmp_path / "tiny.yaml").write_text((tiny.path / "spec.yaml").read_text())
    found = facts(invoke("tiny.yaml", "--formats", "e4m3fn", "--move-rate", "0.02", "--json"))
    assert found["kind"] == "oracle" and found["target"] == 0.02 and len(found["variants"]) == 6
    assert 0 < found["own"]["overall"] < 1 and found["own"]["smallest_lr"] > 0
    result = invoke(tiny.path, "--oracle", "--calibrate", "--formats", "e4m3fn", "--html", "o.html")
    assert "Stall oracle" in result.output and "smallest lr for 1.00%" in result.output
    assert "manifold_adamw" in (tmp_path / "o.html").read_text()
