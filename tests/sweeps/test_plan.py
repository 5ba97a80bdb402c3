"""Claims about plans: what `altgrad train` refuses, the plan of a sweep refuses, and nothing else."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from altgrad.cli.main import app
from altgrad.spec import SpecError
from altgrad.sweeps import make_plan

MUTATIONS = {
    # what the spec alone decides
    "steps": "0", "optimizer": "adam", "optimizer.lr": "fast", "schedule.warmup": "-1", "model.layers": "0",
    "precision.rules.0.weight.format": "e4m3", "track": "[wand]", "name": "a/b", "monitors": "[range, range]",
    "loss_scale": "3", "compile": "yes", "data.batch_size": "0", "project": "''",
    # what takes the data or the model
    "data.source": "nowhere.txt", "data.tokenizer": "nowhere", "model.heads": "3",
    "model": "{kind: hf, folder: nowhere, head: causal}",
    "precision.rules.0.match": "nothing.*",
    "precision.rules": "[{match: '*', weight: e4m3fn}, {match: '*', input: e5m2}]",
    "model.context": "100000", "data": "labels",
    # what takes the optimizer
    "storage": "[{match: nothing, kind: nearest, format: e4m3fn}]", "optimizer.groups": "[{match: nothing, lr: 2}]",
    "optimizer.kind": "grid_optim", "optimizer.betas": "[1, 2]", "storage.0": "{kind: index, format: e4m3fn}",
    "storage.1": "{kind: nearest, format: e4m3fn}", "storage.2": "3",
    # what steps in, watches, or is begun from
    "interventions": "[partition_clip]", "interventions.0": "{kind: mantissa_shift, bad_steps: 0}",
    "monitors.0": "{kind: rank, every: 0}", "twin": "nowhere", "init_from": "nowhere.safetensors", "init_from.x": "1",
    # nothing wrong
    "optimizer.weight_decay": "0.1", "clip_norm": "null", "evaluate_every": "3", "monitors.1": "stall",
}  # fmt: skip


def refusals(bench: Path, path: str, value: str) -> tuple[str, str]:
    """What `train --dry-run` and a plan of the same spec say; empty where they take it."""
    (bench / "m.yaml").write_text("base: base.yaml\n")
    trained = CliRunner().invoke(app, ["train", "base.yaml", "--dry-run", "--json", "--set", f"{path}={value}"])
    assert trained.exit_code in (0, 2), trained.stderr
    try:
        make_plan(Path("m.yaml"), sets=[f"{path}={value}"])
    except SpecError as error:
        return trained.stderr, str(error)
    return trained.stderr, ""


@pytest.mark.parametrize("path", MUTATIONS)
def test_a_sweep_refuses_what_train_refuses(bench: Path, path: str) -> None:
    trained, planned = refusals(bench, path, MUTATIONS[path])
    assert bool(trained) == bool(planned), (trained, planned)
    if trained:
        assert planned.endswith(trained.splitlines()[0][-60:])  # and for the same reason


def test_a_cell_that_does_not_fit_is_named_with_all_that_is_wrong(bench: Path) -> None:
    (bench / "m.yaml").write_text(
        "base: base.yaml\narms: {twice: {set: {monitors: [range, range]}}, wrong: {set: {steps: 0, seed: x}}}\n"
    )
    with pytest.raises(SpecError, match=r"^base.yaml:1:1 with arm=twice, seed=0: monitors names range twice"):
        make_plan(Path("m.yaml"))
    (bench / "m.yaml").write_text("base: base.yaml\narms: {wrong: {set: {steps: 0, accumulate: x}}}\n")
    with pytest.raises(SpecError, match=r"^base.yaml with arm=wrong, seed=0: steps is 0; .* \(1 more\)$") as error:
        make_plan(Path("m.yaml"))
    assert "accumulate is 'x'" in error.value.lines[1]


def test_a_number_is_picked_however_it_is_written(bench: Path) -> None:
    (bench / "m.yaml").write_text(
        "base: base.yaml\naxes: {optimizer.lr: [0.00356, 1e-3]}\n"
        "arms: {free: {}, held: {set: {optimizer.lr: 3.56e-3}}, spelt: {set: {optimizer.weight_decay: 0.5}}}\n"
    )
    plan = make_plan(Path("m.yaml"))
    for lr in ("3.56e-3", "0.00356", "3.56E-03", "35.6e-4"):
        assert [run.place.arm for run in plan.only([f"lr={lr}"]).runs] == ["free", "held", "spelt"]
    assert [run.place.arm for run in plan.only(["weight_decay=5e-1"]).runs] == ["spelt"] * 2
    for wrong in ("lrr=1", "seeed=1"):
        with pytest.raises(ValueError, match=r"no run of m has '\w+'\. Did you mean '(lr|seed)'\?"):
            plan.only([wrong])
