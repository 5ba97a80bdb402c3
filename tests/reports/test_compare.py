"""altgrad.compare: a row an arm, with the interval and verdict that scipy's t would give one pair of arms."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

import altgrad
from altgrad.reports.compare import compare_runs, data_of
from altgrad.store import Run, RunStore
from altgrad.training.phases import Precision
from tests.reports.conftest import BENEFIT, final_loss

Make = Callable[..., Run]
Spec = Callable[..., dict[str, Any]]


@pytest.fixture
def two(tmp_path: Path, make_run: Make, make_spec: Spec) -> dict[str, list[Run]]:
    """Four seeds of an e7m0 arm and of its float32 twin, by the names a user gave."""
    return {
        name: [make_run(tmp_path, make_spec(fmt, seed=s) | {"name": name}, sited=False, points=10) for s in range(4)]
        for name, fmt in (("powers", "e7m0"), ("twin", "fp32"))
    }


def test_two_arms_have_the_paired_interval_of_scipy(two: dict[str, list[Run]], tmp_path: Path, make_spec: Spec) -> None:
    frame = altgrad.compare("study", runs=tmp_path).set_index("arm")
    row, reference = frame.loc["powers"], frame.loc["twin"]
    losses = [[final_loss(make_spec(fmt, seed=s)) for s in range(4)] for fmt in ("e7m0", "fp32")]
    expected = stats.ttest_rel(*losses).confidence_interval(0.95)
    reached = 1 - math.exp(-6)  # the share of its way to the final loss that a made-up curve goes
    assert (row.low, row.high) == pytest.approx((expected.low * reached, expected.high * reached), rel=1e-6)
    assert row.verdict == "worse" and row.n == 4 and reference.verdict == "reference" and frame.attrs["margin"] == 0.01
    assert type(frame).__module__.startswith("pandas")


def test_targets_are_runs_ids_paths_or_a_project_and_the_reference_may_be_named(
    two: dict[str, list[Run]], tmp_path: Path
) -> None:
    trained = [SimpleNamespace(path=run.path, id=run.id) for run in two["powers"]]
    mixed = altgrad.compare(*trained, *(run.id for run in two["twin"][:2]), *(r.path for r in two["twin"][2:]),
                            runs=tmp_path)  # fmt: skip
    whole = altgrad.compare("study", runs=tmp_path)
    assert mixed.sort_values("arm", ignore_index=True).equals(whole.sort_values("arm", ignore_index=True))
    turned = altgrad.compare("study", runs=tmp_path, reference="powers").set_index("arm")
    assert turned.verdict["twin"] == "better" and turned.verdict["powers"] == "reference"
    by_run = altgrad.compare("study", runs=tmp_path, reference=two["powers"][0].id)
    assert by_run.attrs["reference"] == "powers"
    higher = altgrad.compare("study", runs=tmp_path, better="higher").set_index("arm")
    assert higher.verdict["powers"] == "better"


def test_one_seed_is_a_difference_and_never_a_verdict(two: dict[str, list[Run]], tmp_path: Path) -> None:
    frame = altgrad.compare(two["powers"][0], two["twin"][0], runs=tmp_path).set_index("arm")
    row = frame.loc["powers"]
    assert row.verdict == "one seed" and row.n == 1 and row.difference > 0.1
    assert frame.low.isna().all() and frame.high.isna().all()
    short = compare_runs([two["powers"][0], two["twin"][0]], runs=tmp_path)
    assert short.windows == {}  # ten points are worth no band
    apart = altgrad.compare(two["powers"][0], two["twin"][1], runs=tmp_path).set_index("arm")
    assert apart.verdict["powers"] == "no seed in common"


def test_an_undecided_arm_says_how_many_seeds_a_decision_takes(tmp_path: Path, make_run: Make, make_spec: Spec) -> None:
    for optimizer in ("adamw", "manifold_adamw"):
        for seed in range(3):
            make_run(tmp_path, make_spec("e5m2", optimizer, seed=seed), sited=False, points=10)
    frame = altgrad.compare("study", runs=tmp_path, margin=BENEFIT["e5m2"]).set_index("arm")
    row = frame.loc["e5m2 stochastic, manifold_adamw"]
    assert row.verdict == "undecided" and row.pairs_needed > 3


@pytest.mark.parametrize(
    ("targets", "message"),
    [(["nobody"], "'nobody' is not a run"), ([], "0 runs"), (["study"], "2 runs that differ in their seed alone")],
)
def test_what_cannot_be_compared_is_said(
    tmp_path: Path, make_run: Make, make_spec: Spec, targets: list[str], message: str
) -> None:
    for seed in range(2):
        make_run(tmp_path, make_spec(seed=seed), sited=False, points=10)
    with pytest.raises(ValueError, match=message):
        altgrad.compare(*targets, runs=tmp_path)
    make_run(tmp_path, make_spec("e7m0"), sited=False, points=10)
    with pytest.raises(ValueError, match="no arm is named 'x'. There are "):
        altgrad.compare("study", runs=tmp_path, reference="x")
    with pytest.raises(ValueError, match="none of these runs has a result in 'validation/f1'"):
        altgrad.compare("study", runs=tmp_path, metric="validation/f1")
    with pytest.raises(ValueError, match="in 'validation/los'. Did you mean 'validation/loss'"):
        altgrad.compare("study", runs=tmp_path, metric="validation/los")


def made(root: Path, make_run: Make, specs: list[dict[str, Any]], name: str = "") -> None:
    for tree in specs:
        make_run(root, tree | ({"name": name} if name else {}), sited=False, points=10)


def test_runs_that_differ_only_in_interventions_are_two_arms(tmp_path: Path, make_run: Make, make_spec: Spec) -> None:
    made(tmp_path, make_run, [make_spec(seed=s) for s in range(3)])
    made(tmp_path, make_run, [make_spec(seed=s) | {"interventions": [{"kind": "partition_clip"}]} for s in range(3)])
    found = compare_runs(["study"], runs=tmp_path)
    assert found.differences == {"interventions": ["absent", "partition_clip"]} and len(found.arms) == 2


def test_a_twin_and_a_tracker_make_no_arm_and_the_twin_is_the_reference(
    tmp_path: Path, make_run: Make, make_spec: Spec
) -> None:
    twins = [make_run(tmp_path, make_spec("bf16", seed=s), sited=False, points=10) for s in range(2)]
    specs = [make_spec("e7m0", seed=s) | {"twin": f"study/{twins[s].id}", "track": ["wandb"] * s} for s in range(2)]
    made(tmp_path, make_run, [*specs, make_spec("fp32", seed=0), make_spec("fp32", seed=1)])
    found = compare_runs(["study"], runs=tmp_path)
    assert [arm.runs for arm in found.verdict.arms.values()] == [2, 2, 2]
    assert found.reference.first.id == twins[0].id


def test_arms_of_a_project_are_judged_at_their_best_rates_on_seeds_that_did_not_choose_them(
    tmp_path: Path, make_run: Make, make_spec: Spec
) -> None:
    for fmt in ("e7m0", "fp32"):
        made(tmp_path, make_run, [make_spec(fmt, lr=lr, seed=s) for lr in (1e-3, 3e-3, 1e-2) for s in (0, 1)])
        made(tmp_path, make_run, [make_spec(fmt, lr=3e-3, seed=s) for s in (7, 8, 9)])
    found = compare_runs(["study"], runs=tmp_path)
    (arm,) = found.verdict.judged
    assert (arm.verdict, arm.interval.n) == ("worse", 3)
    assert data_of(found)["arms"][0]["seeds"] == [7, 8, 9] and "best learning rate" in found.notes[0]
    one = compare_runs([r.path for r in RunStore(tmp_path).runs("study") if r.id.endswith("-s0")], runs=tmp_path)
    assert len(one.arms) == 6  # named one by one, every rate is an arm


def test_two_projects_of_the_same_specs_are_two_arms(tmp_path: Path, make_run: Make, make_spec: Spec) -> None:
    for project in ("before", "after"):
        for seed in range(2):
            tree = make_spec("fp32", seed=seed) | {"project": project}
            make_run(tmp_path, tree, sited=False, points=10, project=project)
    found = compare_runs(["before", "after"], runs=tmp_path)
    assert list(found.arms) == ["before/study", "after/study"] and found.verdict.judged[0].verdict == "equivalent"


def test_where_rates_are_all_that_differs_they_are_the_arms(tmp_path: Path, make_run: Make, make_spec: Spec) -> None:
    made(tmp_path, make_run, [make_spec("fp32", lr=lr, seed=s) for lr in (1e-3, 3e-3) for s in range(3)])
    found = compare_runs(["study"], runs=tmp_path)
    assert list(found.arms) == ["lr 0.001", "lr 0.003"]
    assert found.differences == {"optimizer.lr": ["0.001", "0.003"]}


def test_one_seed_of_altgrads_runs_has_the_band_of_their_training_losses(
    tmp_path: Path, make_run: Make, make_spec: Spec
) -> None:
    pair = [make_run(tmp_path, make_spec(fmt), sited=False, points=100) for fmt in ("e7m0", "fp32")]
    noise = np.random.default_rng(0).normal(0, 0.02, 500)
    for index, row in enumerate(rows := list(pair[0].metrics())):
        row["train/loss"] += noise[index]
    (pair[0].path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    band = compare_runs(pair, runs=tmp_path).windows["e7m0 stochastic"]
    assert band.metric == "train/loss" and band.differs and 0.15 < band.low < band.high < 0.3


def test_the_first_sentence_answers_what_a_project_asks(
    tmp_path: Path, study: Path, make_run: Make, make_spec: Spec
) -> None:
    def sentence(project: str) -> str:
        return compare_runs([project], runs=tmp_path).sentence

    for name, fmt in (("bf16", "bf16"), ("mxfp8", "e4m3fn"), ("mxfp4", "e7m0")):
        for seed in range(5):
            make_run(tmp_path, make_spec(fmt, seed=seed) | {"name": name}, sited=False, points=10, project="recipes")
    ends = r"\[\+0\.\d{4}, \+0\.\d{4}\]"
    said = rf"Compared with bf16, in nats: mxfp8 is worse, \+0\.03\d+ {ends}; mxfp4 is worse, \+0\.20\d+ {ends}\."
    assert re.fullmatch(said, sentence("recipes"))
    for fmt in ("fp32", "e7m0"):
        make_run(tmp_path, make_spec(fmt), sited=False, points=10, project="pair")
        for seed in range(3):
            make_run(tmp_path, make_spec(fmt, seed=seed), status="diverged", points=10, project="fell")
    assert sentence("pair").startswith("Undecided: one seed an arm cannot decide between e7m0 stochastic and FP32")
    assert sentence("fell") == "Every run diverged, 3 of e7m0 stochastic and 3 of FP32."
    whole = compare_runs(["study"], runs=study)
    assert whole.sentence.startswith("Of 13 arms compared with FP32, adamw, none is better, ")
    assert len(whole.arms) == 14, "frozen weights are no rate of an arm"
    assert whole.verdict.arms["e7m0 stochastic, manifold_adamw"].verdict == "worse"
    make_run(tmp_path, make_spec("e5m2"), sited=False, points=10, project="alone")
    with pytest.raises(ValueError, match="One run cannot be compared; name a run of another arm"):
        sentence("alone")
    make_run(tmp_path, make_spec("fp32"), status="interrupted", sited=False, points=10, project="alone")
    with pytest.raises(ValueError, match=r"a project with two\. Without a result yet: 1 run\."):
        sentence("alone")


def test_what_differs_has_a_row_an_arm_or_a_row_a_setting_where_those_are_more(
    tmp_path: Path, make_run: Make, make_spec: Spec
) -> None:
    changes: dict[str, dict[str, Any]] = {"near": {"lr": 1e-3}, "far": {"lr": 1e-2, "weight_decay": 0.1, "steps": 50}}
    for name, changed in changes.items():
        make_run(tmp_path, make_spec("fp32", **changed) | {"name": name}, name=name, sited=False, points=10)
    header, rows = compare_runs(["study"], runs=tmp_path).settings
    assert header == ["setting", *(["far", "near"] if rows[0][1] == "0.01" else ["near", "far"])] and len(rows) == 3
    make_run(
        tmp_path, make_spec("fp32", lr=3e-3, weight_decay=0.1) | {"name": "mid"}, name="mid", sited=False, points=10
    )
    header, rows = compare_runs(["study"], runs=tmp_path).settings
    assert header[0] == "arm" and {row[0] for row in rows} == {"near", "mid", "far"}


def test_arms_of_recipes_are_named_by_them_and_differ_in_nothing_longer(
    tmp_path: Path, make_run: Make, make_spec: Spec
) -> None:
    phased = {"phases": [{"until": "50%", "recipe": "te_nvfp4"}, {"recipe": "te_nvfp4", "set": {"forward": "none"}}]}
    policies: list[dict[str, Any]] = [{"recipe": "te_nvfp4"}, {"recipe": "torchao_nvfp4"}, phased, {"rules": []}]
    specs = [
        make_spec("fp32", lr=lr) | {"precision": Precision.made_from(policy).tree()}
        for policy, lr in zip(policies, (1e-3, 2e-3, 3e-3, 1e-3), strict=True)
    ]
    made(tmp_path, make_run, specs)
    found = compare_runs(["study"], runs=tmp_path)
    names = {"te_nvfp4", "torchao_nvfp4", "te_nvfp4 until 50%, te_nvfp4 (forward none)", "FP32"}
    assert set(found.arms) == names
    assert set(found.differences["precision"]) == names - {"FP32"} | {"none"}
    assert not any(path.startswith("precision.") for path in found.differences)
