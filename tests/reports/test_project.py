"""Projects in any state are read: what is broken is listed, what is sound is used."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from altgrad.document import Document, SpecError
from altgrad.monitors import MonitorSpec
from altgrad.reports.arms import arm_of, condition_of
from altgrad.reports.content import Table
from altgrad.reports.curves import by_bucket
from altgrad.reports.effects import families
from altgrad.reports.project import Project, final, layer_type
from altgrad.reports.reading import SITED_POINTS, read, recorded_spec, thin
from altgrad.reports.report import chapters
from altgrad.reports.sections.failures import Failures, troubles
from altgrad.reports.sections.stability import short
from altgrad.reports.sections.why import smallest_normal_share
from altgrad.reports.sources import load_project
from altgrad.store import Run, RunStore
from altgrad.store.files import spell_nonfinite
from altgrad.symptoms import findings

Make = Callable[..., Run]
Spec = Callable[..., dict[str, Any]]


def told(project: Project) -> str:
    """Everything that every section says, as one text."""
    return "\n".join(str(block) for chapter in chapters(project) for block in chapter.blocks)


def test_the_verdict_of_a_study_finds_the_planted_benefit_and_harm(study: Path) -> None:
    (family,) = families(load_project(RunStore(study), "study"))
    assert list(family.intervals) == ["e3m4", "e4m3fn", "e5m2", "e7m0"]
    assert family.verdicts["e3m4"] == "benefit" and family.verdicts["e7m0"] == "harm"
    assert family.best == ["e3m4"] and family.is_primary and not family.reused
    assert all(e.first.choice.rate == 3e-3 and e.second.choice.edge == "" for e in family.effects)
    assert all(found.n == 5 for found in family.intervals.values())


def test_said_tuning_seeds_are_used(study: Path) -> None:
    (family,) = families(load_project(RunStore(study), "study", tuning=[100]))
    assert family.tuning == {100}
    assert family.intervals["e3m4"].n == 6 and family.effects[0].first.choice.edge == "only"


def test_one_run_is_reported_and_nothing_is_concluded(tmp_path: Path, make_run: Make, make_spec: Spec) -> None:
    make_run(tmp_path, make_spec("e5m2"))
    text = told(load_project(RunStore(tmp_path), "study"))
    assert "Arms compared" not in text and "Losses" in text and "Manifold" not in text


def test_only_diverged_runs_enter_as_the_loss_of_knowing_nothing(
    tmp_path: Path, make_run: Make, make_spec: Spec
) -> None:
    for optimizer in ("adamw", "manifold_adamw"):
        for seed in range(3):
            make_run(tmp_path, make_spec("e5m2", optimizer, 1.0, seed), status="diverged")
    project = load_project(RunStore(tmp_path), "study")
    (family,) = families(project)
    assert set(family.effects[0].first.by_seed.values()) == {math.log(256)}
    assert family.effects[0].first.diverged == 3 and family.intervals["e5m2"].mean == 0
    assert "may be one and the same" in told(project)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", 1.7e308, 5e-324, 10**400])
def test_a_run_whose_every_number_is_an_end_can_be_told(
    tmp_path: Path, make_run: Make, make_spec: Spec, value: object
) -> None:
    run = make_run(tmp_path, make_spec("e5m2", "manifold_adamw"))
    rows = [{key: row[key] if key == "step" else value for key in row} for row in run.metrics()]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "1 run: 1 " in told(load_project(RunStore(tmp_path), "study"))


def test_a_completed_run_with_damaged_metrics_is_judged_by_nobody(
    tmp_path: Path, make_run: Make, make_spec: Spec
) -> None:
    run = make_run(tmp_path, make_spec("e5m2"))
    assert math.isfinite(read(run).outcome)
    lines = (run.path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[40] = lines[40].replace(b"0", b"1", 1)
    (run.path / "metrics.jsonl").write_bytes(b"".join(lines))
    record = read(run)
    assert math.isnan(record.outcome) and record.loss is not None and "metrics.jsonl:41" in record.problems[0]


@pytest.mark.parametrize("where", ["middle", "end"])
def test_a_damaged_metrics_file_is_read_up_to_the_damage(
    tmp_path: Path, make_run: Make, make_spec: Spec, where: str
) -> None:
    run = make_run(tmp_path, make_spec("e5m2"))
    path = run.path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:30]) + b'{"step": 31, "tr' + (b"\n" + lines[31] if where == "middle" else b""))
    record = read(run)
    assert len(record.problems) == 1 and "metrics.jsonl:31" in record.problems[0]
    assert len(record.series["train/loss"][0]) > 10
    assert "Runs with problems" in told(load_project(RunStore(tmp_path), "study"))


def test_missing_and_damaged_files_are_problems_and_no_errors(tmp_path: Path, make_run: Make, make_spec: Spec) -> None:
    runs = [make_run(tmp_path, make_spec("e5m2", seed=seed)) for seed in range(4)]
    (runs[0].path / "spec.yaml").write_text("{[")
    (runs[1].path / "meta.json").write_text("[]")
    (runs[2].path / "metrics.jsonl").unlink()
    (runs[3].path / "events.jsonl").write_text("\x00\x00\nnot json\n{}\n")
    project = load_project(RunStore(tmp_path), "study")
    assert [bool(record.problems) for record in project.records].count(True) == 4
    assert "no validation loss" in told(project) or "without any validation loss" in told(project)


@pytest.mark.parametrize(
    "text",
    [
        "seed: 3\nname: x\nmodel: {kind: gpt}\n", "name: x\nmodel: {kind: gpt}\nseed: 12\n", "name: x\n", "seed: 007\n",
        "name: |\n  seed: 3\nseed: 12\n", 'name: "a\nseed: 3\n"\n', "seed: 3\nseed: 4\n", "seed: []\n", "[]\n",
    ],
)  # fmt: skip
def test_a_spec_is_read_as_it_stands_though_what_seeds_share_is_parsed_once(text: str) -> None:
    try:
        expected = Document.parse(text, "spec.yaml").data
    except SpecError as error:
        with pytest.raises(SpecError, match=re.escape(str(error))):
            recorded_spec(text)
        return
    spec, facts = recorded_spec(text)
    assert spec == (expected or {}) and list(spec) == list(expected)
    other, same = recorded_spec(text.replace("seed: 3", "seed: 4"))
    assert (
        other == (Document.parse(text.replace("seed: 3", "seed: 4"), "x").data or {})
        and same.settings == facts.settings
    )
    assert spec.get("model") is other.get("model")


def test_a_comparison_reads_of_a_run_what_a_report_reads_but_for_what_happened(
    tmp_path: Path, make_run: Make, make_spec: Spec
) -> None:
    run = make_run(tmp_path, make_spec("e5m2"), status="diverged")
    whole, bare = read(run), read(run, events=False)
    assert whole.events and not bare.events
    assert (bare.arm, bare.settings, bare.outcome, bare.problems) == (
        whole.arm, whole.settings, whole.outcome, whole.problems
    )  # fmt: skip
    assert bare.series.keys() == whole.series.keys()


def test_nan_metrics_count_as_divergence_and_are_told(tmp_path: Path, make_run: Make, make_spec: Spec) -> None:
    run = make_run(tmp_path, make_spec("e5m2"))
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 100, "validation/loss": "nan", "train/loss": "-inf"}\n')
    record = read(run)
    assert record.diverged and record.outcome == math.log(256)
    assert any("validation/loss is not finite" in problem for problem in record.problems)
    assert "diverged" in told(load_project(RunStore(tmp_path), "study"))


def test_runs_of_other_versions_are_read_and_their_versions_told(
    tmp_path: Path, make_run: Make, make_spec: Spec
) -> None:
    tree = make_spec("e5m2")
    make_run(tmp_path, tree)
    make_run(tmp_path, {**make_spec("e5m2", seed=1), "novelty": {"level": 3}}, altgrad="9.9.0")
    bare = {"seed": 2, "steps": 100, "model": {"layers": 1}, "optimizer": {"kind": "adamw", "lr": 1e-3}, "storage": []}
    make_run(tmp_path, bare, altgrad="0.0.1")
    project = load_project(RunStore(tmp_path), "study")
    assert len(project.conditions) == 3
    assert "novelty.level 3" in project.conditions.values()
    text = told(project)
    assert "9.9.0" in text and "more than one version" in text


def test_a_repeated_run_is_counted_once_and_the_newest_counts(tmp_path: Path, make_run: Make, make_spec: Spec) -> None:
    make_run(tmp_path, make_spec("e5m2"), created="2026-01-01T00:00:00.000Z")
    newer = make_run(tmp_path, make_spec("e5m2"), name="again", created="2026-02-01T00:00:00.000Z")
    project = load_project(RunStore(tmp_path), "study")
    assert [record.id for record in project.results()] == [newer.id] and len(project.replaced) == 1


def test_an_unknown_project_names_those_there_are(study: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="project 'no' has no runs in .*; there are study"):
        load_project(RunStore(study), "no")
    with pytest.raises(ValueError, match="`altgrad train` makes some"):
        load_project(RunStore(tmp_path), "no")


def test_arms_are_told_apart_by_what_is_compared_and_by_nothing_else(make_spec: Spec) -> None:
    plain = make_spec("e5m2")
    assert arm_of(plain) == arm_of({**plain, "seed": 9, "name": "x", "threads": 8})
    assert condition_of(plain) == condition_of({**plain, "seed": 9, "engine": "compiled"})
    assert condition_of(plain) != condition_of({**plain, "steps": 200})
    assert condition_of(plain) != condition_of(make_spec("e5m2", weight_decay=0.1))
    smooth = arm_of(make_spec("e5m2", "manifold_adamw", stiffness="smooth", power=0.5))
    assert smooth.variant == "S smooth, p 0.5" and not smooth.is_off
    assert arm_of(make_spec("e5m2", "manifold_adamw", power=0.0)).is_off
    assert arm_of(make_spec("bf16")).is_baseline and arm_of(make_spec("fp32", lr=0)).frozen
    rules = [
        {"match": "blocks.*", "weight": {"format": "e4m3fn"}, "input": {"format": "e4m3fn"}, "grad_output": "e5m2"}
    ]
    cast = arm_of({**make_spec("fp32"), "precision": {"rules": rules}})
    assert (cast.format, cast.storage, cast.casts) == ("e4m3fn", "master", "input e4m3fn, grad e5m2")
    assert arm_of({}).format == "FP32" and arm_of({"storage": "?", "optimizer": 3}).optimizer == "?"


def test_thinning_keeps_spikes_ends_and_the_first_gap() -> None:
    steps = np.arange(10_000.0)
    values = np.sin(steps / 500)
    values[[1234, 7777]] = 99.0, -99.0
    values[5000:5003] = math.nan
    kept, thinned = thin(steps, values, 200)
    assert len(kept) <= 200 and {0.0, 9999.0, 1234.0, 7777.0, 5000.0} <= set(kept)
    assert np.nanmax(thinned) == 99 and np.nanmin(thinned) == -99 and (np.diff(kept) > 0).all()
    assert thin(steps[:5], values[:5], 200)[0] is not steps and len(thin(steps[:5], values[:5], 200)[0]) == 5
    assert by_bucket(steps, values, np.array([0.0, 5000, 9999])).tolist()[0] == 99


def test_beta_over_rms_is_within_15_percent_on_gaussian_weights(study: Path) -> None:
    record = next(r for r in load_project(RunStore(study), "study").results() if r.arm.format == "e5m2")
    weights = np.random.default_rng(0).normal(0, 3.0, 200_000)
    exponents = np.clip(np.floor(np.log2(np.abs(weights))), -14, 15) - 2
    record.series = {
        f"stiffness/a.weight/binade_{int(e)}_share": (np.array([1.0]), np.array([(exponents == e).mean()]))
        for e in np.unique(exponents)
    }
    assert smallest_normal_share(record) == pytest.approx(2.0**-14 / 3.0, rel=0.15)


def test_alarms_name_their_phase_and_those_of_the_first_edition_have_their_monitor_s() -> None:
    old = {"event": "alarm", "step": 20, "message": "blocks.1.mlp.up/grad_output: underflow_rate is 0.9."}
    newer = ("accumulation", "outliers", "products")
    kinds = {name: kind for name, kind in MonitorSpec.kinds().items() if name not in newer}
    events = [{"event": "notice", "step": 1, "message": "x"}, *({**old, "monitor": kind} for kind in kinds)]
    assert [phase for phase, _, _ in troubles(events)] == [kind().build().phase for kind in kinds.values()]
    ((phase, step, _),) = troubles([{**old, "monitor": "range", "site": "a/grad_output", "phase": "backward"}])
    assert (phase, step) == ("backward", 20)


def test_failures_are_alarms_and_the_symptoms_that_diagnose_finds(study: Path) -> None:
    project = load_project(RunStore(study), "study")
    record = next(r for r in project.records if r.arm.storage)
    wanted = findings(RunStore(study).run("study", record.id).metrics())
    assert wanted and [e for e in record.events if e["event"] == "symptom"] == [
        spell_nonfinite(each.event()) for each in wanted
    ]
    _, table = Failures().blocks(project)
    assert isinstance(table, Table) and all(row[5] for row in table.rows)
    assert any("gradients underflow to zero" in row[6] for row in table.rows)


def test_layer_types() -> None:
    assert layer_type("blocks.3.mlp.up.weight") == "mlp.up"


def test_final_is_the_mean_over_the_last_quarter(study: Path) -> None:
    record = next(r for r in load_project(RunStore(study), "study").results() if r.arm.storage)
    assert 0.5 < final(record, "stall", "stall_ratio") < 1
    assert math.isnan(final(record, "stall", "unheard_of"))


@pytest.mark.parametrize("n", [51, 101, 500, 10_007])
def test_thinning_by_site_leaves_no_column_of_a_heat_map_empty(n: int) -> None:
    steps = np.arange(float(n))
    for values in (np.zeros(n), np.sin(steps)):
        kept, thinned = thin(steps, values, SITED_POINTS)
        assert np.isfinite(by_bucket(kept, thinned, np.linspace(0, n - 1, 30 + 1))).all()


def test_long_sites_keep_the_block_and_the_slot() -> None:
    assert short("blocks.0.attention.qkv.weight/requested") == "0.attention.qkv.weight/requested"
    assert short("blocks.11.attention.projection.weight/requested") == "11.attenti…tion.weight/requested"
    assert len(short("a" * 200)) == 32
