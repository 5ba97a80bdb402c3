"""Direct casts: the figures of a plain loop with quantised modules, intervals over documents, and going on."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner

from altgrad.cli.main import app
from altgrad.conversion import direct_cast as room
from altgrad.conversion.arms import arm_named
from altgrad.conversion.direct_cast import direct_cast
from altgrad.conversion.language_model import LanguageModel
from altgrad.conversion.windows import Settings
from altgrad.nn import quantize_model
from altgrad.statistics.intervals import ratio_interval

transformers = pytest.importorskip("transformers")
SETTINGS = Settings("test", 900, 16, 2)


def plain_loop(llama_folder: Path, model: LanguageModel, recipe: str) -> dict[str, float]:
    """The library's model, cast by surgery, over the stream of documents, written down without our windows."""
    uncast = transformers.AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32).eval()
    cast = transformers.AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32).eval()
    quantize_model(cast, recipe)
    texts = model.texts("test", 900)
    ring = [number for ids in model.encode(texts) for number in (0, *ids.tolist())]
    many = [ring[at % len(ring)] for at in range(2 * len(ring))]
    nll = kl = same = 0.0
    for start in range(0, len(ring), 32):
        window = torch.tensor(many[start : start + 33])
        inputs = window[:32].view(2, 16)
        with torch.no_grad():
            p, q = (net(inputs).logits.flatten(0, 1).log_softmax(-1) for net in (uncast, cast))
        for place in range(min(32, len(ring) - start)):
            nll -= float(q[place, window[place + 1]])
            kl += float(functional.kl_div(q[place], p[place], reduction="sum", log_target=True))
            same += float(q[place].argmax() == p[place].argmax())
    size = sum(len(text.encode()) for text in texts)
    return {
        "bits_per_byte": nll / math.log(2) / size, "perplexity": math.exp(nll / len(ring)), "kl": kl / len(ring),
        "top1": same / len(ring),
    }  # fmt: skip


@pytest.mark.parametrize("recipe", ["te_current", "te_mxfp8"])
def test_figures_are_those_of_a_plain_loop_with_quantised_modules(
    llama_folder: Path, model: LanguageModel, recipe: str
) -> None:
    uncast, row = direct_cast(model, [recipe], SETTINGS).rows
    for name, expected in plain_loop(llama_folder, model, recipe).items():
        assert getattr(row, name)[0] == pytest.approx(expected, rel=1e-5), name
    assert uncast.kl == (0, 0, 0) and uncast.top1[0] == 1 and row.kl[0] > 0
    assert row.more_bits[0] == pytest.approx(row.bits_per_byte[0] - uncast.bits_per_byte[0], rel=1e-9)
    assert row.perplexity[1] < row.perplexity[0] < row.perplexity[2]


def test_it_goes_on_where_it_was_stopped_and_a_recipe_more_is_all_that_is_made(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = direct_cast(model, ["bf16", "te_current"], SETTINGS)
    made: list[str] = []
    scored = room._scored

    def counted(net: Any, arm: Any, *given: Any) -> Any:
        made.append(arm.name)
        if len(made) == 5:
            raise KeyboardInterrupt
        return scored(net, arm, *given)

    monkeypatch.setattr(room, "_scored", counted)
    with pytest.raises(KeyboardInterrupt):
        direct_cast(model, ["bf16", "te_current", "mx"], SETTINGS)
    assert set(made) == {"mx"}
    stopped = len(made) - 1
    again = direct_cast(model, ["bf16", "te_current", "mx"], SETTINGS)
    assert again.rows[:3] == whole.rows
    assert len(made) - 5 == -(-whole_tokens(model) // 32) - stopped


def whole_tokens(model: LanguageModel) -> int:
    return sum(len(ids) + 1 for ids in model.encode(model.texts("test", 900)))


def test_of_a_recipe_the_forward_slots_alone_decide() -> None:
    """A transform over tokens, say, then meets no batch of another size."""
    arm = arm_named("te_nvfp4")
    assert arm.policy is not None
    casts = {slot for rule in arm.policy.rules for slot, spec in rule.layer().slots.items() if spec is not None}
    assert casts == {("forward", "input"), ("forward", "weight")}


def test_the_interval_of_a_ratio_covers_it() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        under = generator.uniform(1, 3, 30)
        found = ratio_interval(2 * under + generator.normal(0, 1, 30), under)
        inside += found[1] < 2 < found[2]
    assert 0.92 < inside / 400 < 0.98
    assert ratio_interval(np.array([4.0]), np.array([2.0])) == (2.0, -math.inf, math.inf)


def test_the_command_prints_a_table_and_json(llama_folder: Path, model: LanguageModel, tmp_path: Path) -> None:
    asked = ["evaluate", str(llama_folder), "--data", str(tmp_path / "rows.jsonl"), "--recipe", "bf16,te_current"]
    asked += ["--bytes", "900", "--context", "16", "--batch-size", "2"]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.output
    assert "more than uncast" in shown.stdout and "te_current" in shown.stdout
    told = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    assert [row["recipe"] for row in told["rows"]] == ["uncast", "bf16", "te_current"]
    assert told["documents"] > 5 and told["bytes"] <= 900
    for wrong, says in (
        (["--recipe", "te_currant"], "te_current"),
        (["--recipe", "mx", "--split", "validation"], "has no text for validation"),
        (["--recipe", "mx", "--data", "none.txt"], "none.txt"),
    ):
        refused = CliRunner().invoke(app, [*asked[:4], *asked[6:], *wrong])
        assert refused.exit_code == 2 and says in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
