"""Claims about altgrad.watch_trainer: a Trainer trains as it does unwatched, and its log has the numbers."""

import logging
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import altgrad
from altgrad.document import SpecError
from altgrad.monitors import MonitorSpec
from altgrad.optim import ManifoldAdamW

for needed in ("transformers", "accelerate"):
    pytest.importorskip(needed, reason=f"{needed} is an optional extra; `pip install 'altgrad[hf]'` brings it")
pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and accelerate themselves

ALL = [{"kind": kind, "every": 2} for kind in MonitorSpec.kinds()]
DELAYED = {"format": "e4m3fn", "scaling": "delayed"}
APART = {"kind": "elements", "quantile": 0.9}
POLICY = {
    "match": "*.h.*",
    "weight": DELAYED,
    "input": {**DELAYED, "rounding": "stochastic"},
    "grad_output": {"format": "e5m2", "outliers": APART},
    "forward": {"accumulator": "hopper_promote_128"},
}


class Tokens(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Random tokens, the same every time."""

    def __init__(self) -> None:
        self.rows = torch.randint(64, (64, 16), generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def trainer(out: Path, *, policy: Any = POLICY, quantise: bool = True, kind: Any = None, **settings: Any) -> Any:
    """A Trainer of a GPT-2 of one block, with dropout, that accumulates four micro-batches."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

    set_seed(0)
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 64, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    if quantise:
        altgrad.quantize_model(model, {"rules": [policy]})
    arguments = {
        "use_cpu": True, "max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4,
        "logging_steps": 2, "save_steps": 2, "learning_rate": 1e-2, "max_grad_norm": 0.1, "report_to": "none",
        "disable_tqdm": True,
    } | settings  # fmt: skip
    made = TrainingArguments(str(out), **arguments)
    return (kind or Trainer)(model=model, args=made, train_dataset=Tokens(), eval_dataset=Tokens())


def weights(one: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in one.model.state_dict().items()}


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def watched(one: Any) -> list[dict[str, float]]:
    """The log's rows of monitors, without NaN (which equals nothing)."""
    rows = [row for row in one.state.log_history if any(key.partition("/")[0] in MonitorSpec.kinds() for key in row)]
    return [{key: value for key, value in row.items() if value == value} for row in rows]


def own(one: Any) -> list[dict[str, Any]]:
    """Trainer's own rows of the log, without times."""
    rows = [row for row in one.state.log_history if "loss" in row]
    return [{key: row[key] for key in ("step", "loss", "grad_norm", "learning_rate")} for row in rows]


@pytest.mark.parametrize("quantise", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_watched_trainer_trains_to_the_same_bits_and_logs_the_same_and_more(tmp_path: Path, quantise: bool) -> None:
    alone = trainer(tmp_path / "alone", quantise=quantise)
    alone.add_callback(committing(alone))
    alone.train()
    one = trainer(tmp_path / "watched", quantise=quantise)
    callback = altgrad.watch_trainer(one, ALL)
    one.train()
    assert same(weights(one), weights(alone)) and own(one) == own(alone) and len(own(one)) == 2
    rows = watched(one)
    assert [row["step"] for row in rows] == [1, 2, 4]
    gridded = {"alignment", "amax", "codes", "correlation", "flips", "optimizer_state", "range", "stall"}
    gridded |= {"accumulation", "outliers", "products", "stiffness", "ulp"}
    kinds = {key.partition("/")[0] for key in rows[0]} - {"step", "epoch"}
    # gsnr needs six micro-batches, and says NaN of these.
    assert kinds == set(MonitorSpec.kinds()) - {"finite", "gsnr"} - (set() if quantise else gridded)
    assert callback.watch is not None and callback.watch.closed and callback.watch.step == 4
    assert "compute_loss" not in vars(one) and "clip_grad_norm_" not in vars(one.accelerator)
    assert not any(p._backward_hooks for p in one.model.parameters())


def committing(one: Any) -> Any:
    """What a user without watch_trainer would write."""
    from transformers import TrainerCallback

    class Committing(TrainerCallback):
        def on_step_end(self, *given: Any, **named: Any) -> None:
            altgrad.commit(one.model)

    return Committing()


def test_a_resumed_trainer_ends_with_the_same_weights_and_the_same_log(tmp_path: Path) -> None:
    whole = trainer(tmp_path)
    altgrad.watch_trainer(whole, ALL)
    whole.train()
    again = trainer(tmp_path)
    altgrad.watch_trainer(again, ALL)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(weights(again), weights(whole))
    assert watched(again) == watched(whole) and own(again) == own(whole)


def test_without_the_monitors_files_a_resumed_watch_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = trainer(tmp_path, max_steps=2)
    first.add_callback(committing(first))
    first.train()
    again = trainer(tmp_path)
    callback = altgrad.watch_trainer(again, ["flips"])
    with caplog.at_level(logging.WARNING, "altgrad"):
        again.train(resume_from_checkpoint=True)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "altgrad"]
    assert line == f"{tmp_path / 'checkpoint-2'} has no altgrad_watch.json; the monitors start over."
    assert callback.watch is not None and callback.watch.step == 4


@pytest.mark.parametrize("scaled", [pytest.param(False, marks=pytest.mark.long), True])
def test_the_shadow_of_a_trainer_without_casts_is_its_gradient_before_clipping(tmp_path: Path, scaled: bool) -> None:
    """Micro-batches, dropout, clipping and a loss of the user's own included, what is run again is the step."""
    from transformers import Trainer

    class Odd(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
            labels = inputs.pop("labels")
            return model(**inputs).logits.flatten(0, 1)[range(32), labels.flatten()].square().mean()

    one = trainer(tmp_path, quantise=False, kind=Odd if scaled else None, max_steps=2, save_strategy="no")
    altgrad.watch_trainer(one, [{"kind": "shadow", "every": 1}, {"kind": "gradient", "every": 1}])
    one.train()
    for row in watched(one):
        assert all(value == math.inf for key, value in row.items() if key.endswith("sqnr_db"))
    norms = [row["grad_norm"] for row in own(one)]
    l2 = [math.hypot(*(v for key, v in row.items() if key.endswith("/l2"))) for row in watched(one)]
    assert l2[-1] == pytest.approx(norms[-1], rel=1e-5) and l2[-1] > 0.1


def test_gsnr_sees_every_micro_batch_of_the_step(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    seen: list[dict[str, torch.Tensor]] = []

    class Sums(TrainerCallback):
        def on_substep_end(self, *given: Any, **named: Any) -> None:
            self.keep()

        def on_pre_optimizer_step(self, *given: Any, **named: Any) -> None:
            self.keep()

        def keep(self) -> None:
            seen.append({name: p.grad.double().clone() for name, p in one.model.named_parameters()})

    one = trainer(tmp_path, max_steps=1, max_grad_norm=0.0, save_strategy="no", gradient_accumulation_steps=6)
    one.add_callback(Sums())
    altgrad.watch_trainer(one, [{"kind": "gsnr", "every": 1}])
    one.train()
    name = "transformer.h.0.mlp.c_fc.weight"
    sums = torch.stack([torch.zeros_like(seen[0][name]), *(gradients[name] for gradients in seen)])
    own = sums.diff(dim=0)
    mean, variance = own.mean(0), own.var(0)
    freedom = 5 * mean.numel()
    pooled = (freedom - 2) / freedom * mean.square().sum() / variance.sum() - 1 / 6
    (row,) = watched(one)
    assert len(own) == 6 and row[f"gsnr/{name}/pooled"] == pytest.approx(float(pooled), rel=1e-4)


def test_an_optimizer_of_ours_shows_its_requests(tmp_path: Path) -> None:
    one = trainer(tmp_path, max_steps=2, save_strategy="no", max_grad_norm=1.0)
    storage = {"kind": "stochastic", "format": "e4m3fn"}
    optimizer = ManifoldAdamW(one.model.transformer.h.named_parameters(), lr=1e-3, storage=storage)
    one.optimizer = optimizer
    altgrad.watch_trainer(one, [{"kind": "updates", "every": 1}])
    one.train()
    ratios = [v for key, v in watched(one)[-1].items() if key.endswith("c_fc.weight/stall_ratio")]
    assert len(ratios) == 1 and 0 < ratios[0] < 1


def test_alarms_are_warnings_stand_in_the_history_and_stop_a_diverged_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = trainer(tmp_path, max_grad_norm=0.0, learning_rate=1e-3)
    altgrad.watch_trainer(one)
    with torch.no_grad():
        one.model.transformer.h[0].mlp.c_fc.bias[3] = math.nan
    with caplog.at_level(logging.WARNING, "altgrad"):
        one.train()
    lines = [record.getMessage() for record in caplog.records if record.name == "altgrad"]
    alarms = [row["alarm"] for row in one.state.log_history if "alarm" in row]
    assert one.state.global_step == 1 and lines == [f"step 1: {alarm}" for alarm in alarms]
    assert "not finite" in alarms[0] and alarms[-1].startswith("training stops: ")


CHECKPOINTED = {"gradient_checkpointing": True}
FORMS = {
    "none": {},
    "non-reentrant": {**CHECKPOINTED, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "reentrant": {**CHECKPOINTED, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
}


@pytest.mark.parametrize("form", ["non-reentrant", pytest.param("reentrant", marks=pytest.mark.long)])
def test_checkpointed_activations_change_neither_weights_nor_numbers(form: str, tmp_path: Path) -> None:
    """Accumulation, dropout, delayed scales and stochastic casts included; every monitor watches every step."""
    found = []
    for name in ("none", form):
        one = trainer(tmp_path / name, max_steps=2, save_strategy="no", **FORMS[name])
        altgrad.watch_trainer(one, [{**monitor, "every": 1} for monitor in ALL])
        one.train()
        found.append((weights(one), watched(one), own(one)))
    assert same(found[0][0], found[1][0]) and found[0][2] == found[1][2]
    for plain, other in zip(found[0][1], found[1][1], strict=True):
        assert plain.keys() == other.keys()
        assert [key for key in plain if plain[key] != pytest.approx(other[key], rel=1e-6)] == []


def test_bfloat16_checkpoints_and_the_best_model_go_through_a_watched_trainer(tmp_path: Path) -> None:
    """And a run that was resumed from its first checkpoint ends as the whole one did, on the best model of both."""
    settings = {
        "bf16": True, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True,
        "save_strategy": "steps", "metric_for_best_model": "eval_loss", **FORMS["reentrant"],
    }  # fmt: skip
    ends = []
    for resume in (None, str(tmp_path / "checkpoint-2")):
        one = trainer(tmp_path, **settings)
        altgrad.watch_trainer(one, ALL)
        one.train(resume_from_checkpoint=resume)
        ends.append((weights(one), own(one)[-1], watched(one)[-1], one.state.best_global_step))
    assert same(ends[0][0], ends[1][0]) and ends[0][1:] == ends[1][1:]


def test_a_trainer_whose_casts_nobody_commits_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "altgrad"):
        trainer(tmp_path, save_strategy="no").train()
    (line,) = [record.getMessage() for record in caplog.records if record.name == "altgrad"]
    assert line.startswith("altgrad.commit(model) was never called")


def test_only_keys_that_are_asked_for_are_logged_also_beside_evaluation(tmp_path: Path) -> None:
    one = trainer(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, save_strategy="no")
    callback = altgrad.watch_trainer(
        one, [{"kind": "range", "every": 1}], log=["*/c_fc/input/underflow_rate", "*/amax"]
    )
    one.train()
    rows = watched(one)
    kept = {key.rpartition("/")[2] for row in rows for key in row} - {"step", "epoch"}
    assert kept <= {"underflow_rate", "amax"} and "amax" in kept and len(rows) == 2
    assert callback.watch is not None and len(callback.watch.metrics) > 5 * len(rows[0])


def test_what_broke_off_leaves_nothing_behind_once_closed(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Breaking(TrainerCallback):
        def on_substep_end(self, *given: Any, **named: Any) -> None:
            raise KeyboardInterrupt

    one = trainer(tmp_path, save_strategy="no", max_steps=1)
    callback = altgrad.watch_trainer(one, ALL)
    one.add_callback(Breaking())
    with pytest.raises(KeyboardInterrupt):
        one.train()
    callback.close()
    assert "compute_loss" not in vars(one) and "clip_grad_norm_" not in vars(one.accelerator)
    assert not any(p._backward_hooks for p in one.model.parameters())
    assert not any(q.observers or q.watching for q in altgrad.nn.quantizers(one.model))
    one.remove_callback(Breaking)
    one.train()
    assert callback.watch is not None and callback.watch.step == 1


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer(tmp_path)
    with pytest.raises(SpecError, match="'stal' is not a monitor. Did you mean 'stall'?"):
        altgrad.watch_trainer(one, ["stal"])
    with pytest.raises(ValueError, match="names stall twice"):
        altgrad.watch_trainer(one, ["stall", "stall"])
    one.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="one GPU a process"):
        altgrad.watch_trainer(one)
    monkeypatch.setitem(sys.modules, "transformers", None)
    one.is_fsdp_enabled = False
    with pytest.raises(ModuleNotFoundError, match="not installed; run pip install 'altgrad.hf.'"):
        altgrad.watch_trainer(one)
