"""Serving against training: figures of float64 by hand, what is kept, and text and policies that will not do."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from altgrad.cli.main import app
from altgrad.conversion import mismatch as room
from altgrad.conversion.language_model import LanguageModel
from altgrad.conversion.mismatch import SHARES, serving_mismatch
from altgrad.conversion.windows import Settings
from altgrad.nn import quantize_model
from altgrad.statistics.intervals import ratio_interval

SETTINGS = Settings("test", 200, 16, 2)


def nets(folder: Path, *policies: Any) -> list[nn.Module]:
    """The library's model under each policy, by surgery."""
    import transformers

    made = []
    for policy in policies:
        net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        made.append(net if policy is None else quantize_model(net, policy))
    return made


def by_hand(folder: Path, model: LanguageModel, train: Any, serve: Any) -> dict[str, Any]:
    """Written down in NumPy's float64, a token at a time, without our windows."""
    texts = model.texts("test", 200)
    ring = [(number, doc) for doc, ids in enumerate(model.encode(texts)) for number in (0, *ids.tolist())]
    many = [ring[at % len(ring)] for at in range(2 * len(ring))]
    columns: dict[str, list[float]] = {name: [] for name in ("doc", "kl", "flip", "moment", "text", "drawn")}
    a, b = nets(folder, train, serve)
    for batch, start in enumerate(range(0, len(ring), 32)):
        window = torch.tensor([number for number, _ in many[start : start + 33]])
        with torch.no_grad():
            logits = [net(window[:32].view(2, 16)).logits.flatten(0, 1).numpy().astype(np.float64) for net in (a, b)]
        chances = torch.rand(32, dtype=torch.float64, generator=torch.Generator().manual_seed(batch)).numpy()
        for place in range(min(32, len(ring) - start)):
            exps = [np.exp(each[place] - each[place].max()) for each in logits]
            p, q = (each / each.sum() for each in exps)
            target, drawn = int(window[place + 1]), int(np.searchsorted(np.cumsum(q), chances[place]))
            row = {
                "doc": many[start + place][1], "kl": sum(float(x) for x in p * np.log(p / q)),
                "flip": float(p.argmax() != q.argmax()), "moment": float((p * p / q).sum()),
                "text": float(q[target] / p[target]), "drawn": float(q[drawn] / p[drawn]),
            }  # fmt: skip
            for name, value in row.items():
                columns[name].append(value)
    found = {name: np.array(values) for name, values in columns.items()}
    docs = found["doc"].astype(int)
    tokens = np.bincount(docs).astype(np.float64)

    def over_documents(values: Any) -> tuple[float, float, float]:
        return ratio_interval(np.bincount(docs, values), tokens)

    made = {"kl": over_documents(found["kl"]), "flips": over_documents(found["flip"])}
    made["effective"] = (1 / over_documents(found["moment"])[0],)
    for name in ("text", "drawn"):
        outside = (found[name] < 0.5) | (found[name] > 2)
        made[name] = np.quantile(found[name], SHARES), over_documents(outside.astype(float))
    return made


@pytest.mark.parametrize(("train", "serve"), [("none", "te_current"), ("te_mxfp8", "e2m1.yaml")])
def test_figures_are_those_of_float64_by_hand(
    llama_folder: Path, model: LanguageModel, train: str, serve: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("e2m1.yaml").write_text("precision: {rules: [{place: body, weight: e2m1, input: e2m1}]}")
    rules = {"rules": [{"place": "body", "weight": "e2m1", "input": "e2m1"}]}
    known = {"none": None, "e2m1.yaml": rules}
    expected = by_hand(llama_folder, model, known.get(train, train), known.get(serve, serve))
    (pair,) = serving_mismatch(model, [train], [serve], SETTINGS).pairs
    for name in ("kl", "flips"):
        assert getattr(pair, name) == pytest.approx(expected[name], rel=1e-5, abs=1e-9), name
    assert pair.effective[0] == pytest.approx(expected["effective"][0], rel=1e-5)
    assert pair.effective[1] <= pair.effective[0] <= pair.effective[2] <= 1
    for name in ("text", "drawn"):
        quantiles, outside = expected[name]
        ratios = getattr(pair, name)
        assert list(ratios.quantiles.values()) == pytest.approx(quantiles.tolist(), rel=1e-4), name
        assert ratios.outside == pytest.approx(outside, abs=1e-9), name


def test_kl_from_the_same_logits_is_float64s() -> None:
    """To the twelfth digit also where the two are a rounding error apart."""
    torch.manual_seed(0)
    p = torch.randn(50, 1000) * 3
    for apart in (1.0, 1e-3, 1e-6):
        q = p + apart * torch.randn(50, 1000)
        sides = room._side(p, True, None), room._side(q, False, torch.rand(50, dtype=torch.float64))
        found, _ = room._figures(sides[0], sides[1], torch.zeros(50, dtype=torch.int64))
        for row in range(5):
            x, y = (each[row].numpy().astype(np.longdouble) for each in (p, q))
            x, y = (each - np.log(np.exp(each - each.max()).sum()) - each.max() for each in (x, y))
            assert float(found[row, 1]) == pytest.approx(float((np.exp(x) * (x - y)).sum()), rel=1e-12, abs=1e-15)


def test_a_matrix_runs_each_policy_once_a_batch_and_goes_on_where_it_was_stopped(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    real = room.answers

    def counted(*given: Any) -> Any:
        ran.append(1)
        if len(ran) == stop:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(room, "answers", counted)
    stop = 8
    policies = ["none", "bf16", "te_current"]
    with pytest.raises(KeyboardInterrupt):
        serving_mismatch(model, policies, policies, SETTINGS)
    stop, before = -1, len(ran) - 1
    whole = serving_mismatch(model, policies, policies, SETTINGS)
    batches = -(-whole.tokens // 32)
    assert len(ran) - 1 - before == 3 * batches - before // 3 * 3
    kl = {(pair.train, pair.serve): pair.kl[0] for pair in whole.pairs}
    assert list(kl) == [(a, b) for a in policies for b in policies]
    assert all((value == 0) == (a == b) for (a, b), value in kl.items())
    assert kl["none", "bf16"] < kl["none", "te_current"]
    ran.clear()
    assert serving_mismatch(model, policies, policies, SETTINGS) == whole and not ran
    same = next(pair for pair in whole.pairs if pair.train == pair.serve == "bf16")
    assert same.flips[0] == 0 and same.effective == (1, 1, 1) and set(same.text.quantiles.values()) == {1.0}


def test_the_command_prints_tables_and_json(
    llama_folder: Path, model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["mismatch", str(llama_folder), "--data", "rows.jsonl", "--bytes", "270", "--context", "16"]
    asked += ["--serve", "te_current"]
    shown = CliRunner().invoke(app, [*asked, "--by", "operand"])
    assert shown.exit_code == 0, shown.output
    for word in ("trained as none", "effective", "te_current: KL", "gained without it", "weight", "rest: KL less"):
        assert word in shown.stdout, word
    facts = json.loads(CliRunner().invoke(app, [*asked, "--by", "operand", "--json"]).stdout)
    (pair,), (causes,) = facts["pairs"], facts["causes"]
    assert pair["train"] == "none" and pair["serve"] == "te_current" and pair["kl"][0] > 0
    assert pair["drawn"]["quantiles"].keys() == set(map(str, SHARES)) and len(pair["effective"]) == 3
    assert {group["group"] for group in causes["groups"]} == {"input", "weight"} and causes["by"] == "operand"
    table = CliRunner().invoke(app, [*asked, "--train", "none,te_current"]).stdout
    assert table.count("train \\ serve") == 3 and "KL (nats)" in table and "flips" in table
    Path("empty.txt").write_text("")
    Path("blank.txt").write_text("\n \n")
    Path("short.txt").write_text("Rome?\nParis?\n")
    for wrong, says in (
        (["--serve", "te_currant"], "te_current"),
        (["--serve", " , "], "--serve names no policy"),
        (["--prompts", "empty.txt"], "--data and --prompts"),
        (["--by", "layer", "--batch-size", "8"], "at least 8 batches"),
        (["--split", "validation"], "has no text for validation"),
    ):
        found = CliRunner().invoke(app, [*asked, *wrong])
        assert found.exit_code == 2 and says in found.stderr and found.stderr.count("\n") == 1, found.stderr
    lost = CliRunner().invoke(app, [*asked, "--device", "tpu"])
    assert lost.exit_code == 3 and "--device tpu is not available" in lost.stderr and lost.stderr.count("\n") == 1
    without = [*asked[:2], *asked[4:]]
    for wrong, says in (
        (["--prompts", "empty.txt"], "is empty"), (["--prompts", "blank.txt"], "no line with text"),
        (["--prompts", "absent.txt"], "absent.txt"),
        (["--prompts", "short.txt", "--by", "layer"], "at least 8 batches"),
    ):  # fmt: skip
        found = CliRunner().invoke(app, [*without, *wrong])
        assert found.exit_code == 2 and says in found.stderr and found.stderr.count("\n") == 1, found.stderr
    assert CliRunner().invoke(app, [*without, "--prompts", "short.txt"]).exit_code == 0
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((llama_folder / "config.json").read_bytes())
    found = CliRunner().invoke(app, ["mismatch", str(bare), "--serve", "mx"])
    assert found.exit_code == 2 and "tokenizer.json" in found.stderr and found.stderr.count("\n") == 1


def test_the_policies_of_the_page_are_policies(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/MISMATCH.md: each of its files is one, casts something, and the one that ought to be finer is."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[2] / "docs" / "MISMATCH.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"```yaml\n# ([a-z0-9]+)\.yaml.*?\n(.*?)```", page, re.S))
    for name, text in files.items():
        assert yaml.safe_load(text)["rules"]
        Path(f"{name}.yaml").write_text(text)
    found = serving_mismatch(model, ["none"], [f"{name}.yaml" for name in files], SETTINGS)
    kl = {pair.serve.removesuffix(".yaml"): pair.kl[0] for pair in found.pairs}
    assert kl.keys() == {"kv8", "kv4", "token", "tensor", "ue8m0", "float"} and len(set(kl.values())) == len(kl)
    assert 5 * kl["kv8"] < kl["kv4"]


def refused(
    model: LanguageModel, train: list[str], serve: list[str], settings: Settings = SETTINGS, **more: Any
) -> str:
    with pytest.raises(ValueError, match=".") as error:
        serving_mismatch(model, train, serve, settings, **more)
    return str(error.value)


def test_policies_and_text_that_will_not_do_are_named(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nothing.yaml").write_text("rules: [{match: no.such.layer, weight: e4m3fn}]")
    Path("backward.yaml").write_text("rules: [{match: '*', grad_output: e5m2}]")
    Path("wrong.yaml").write_text("rules: [{match: '*', weight: e4m3}]")
    assert "te_current" in refused(model, ["none"], ["te_currant"])
    assert "no.such.layer" in refused(model, ["none"], ["nothing.yaml"])
    assert "casts nothing in a forward pass" in refused(model, ["none"], ["backward.yaml"])
    assert "adam_8bit casts nothing" in refused(model, ["adam_8bit"], ["none"])
    assert "wrong.yaml:1" in refused(model, ["none"], ["wrong.yaml"])
    assert "is not a file" in refused(model, ["none"], ["absent.yaml"])
    assert "at least 8 batches" in refused(model, ["none"], ["te_current"], Settings("test", 200, 16, 8), by="cast")
    assert "name one" in refused(model, ["none", "bf16"], ["te_current"], by="cast")
    Path("few.txt").write_text("\n\n  \n")
    with pytest.raises(ValueError, match="no line with text"):
        serving_mismatch(model.with_prompts("few.txt"), ["none"], ["bf16"], Settings("prompts", 400, 16, 2))


def test_every_line_of_a_file_of_prompts_is_a_document(model: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Where is Rome?\r\n\nWho are you?\n")
    (tmp_path / "p.jsonl").write_text('{"text": "Where is Rome?"}\n{"text": "Who are you?"}\n')
    texts = [sorted(model.with_prompts(str(tmp_path / name)).texts("prompts", None)) for name in ("p.txt", "p.jsonl")]
    assert texts == [["Where is Rome?", "Who are you?"]] * 2


def test_logits_that_are_not_finite_are_said_and_not_compared(model: LanguageModel) -> None:
    with torch.no_grad():
        next(model.module.parameters()).fill_(float("nan"))
    assert "none gives logits that are not finite" in refused(model, ["none"], ["bf16"])
