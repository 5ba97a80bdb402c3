"""The second edition's machinery: what is run and in which order, how rows are kept, what tables say of few or many."""

import json
import math
import os
import re
import signal
import time
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from altgrad.formats import FloatFormat
from altgrad.measures import stiffness_exponents, stiffness_histogram
from altgrad.optim.stiffness import spacing_field
from altgrad.optim.stored_scale import own_grid
from altgrad.reports.effects import families
from altgrad.reports.sections.why import smallest_normal_share
from altgrad.statistics import distributions
from altgrad.statistics.intervals import Interval, simultaneous
from altgrad.training.state import build_model
from study import confirmed, confound, initial, parts, rows, run
from study.as_report import project
from study.causes import SENTENCES, judge
from study.cell import cell_of, named, reference, settings
from study.controls import even_pairs
from study.first import HERE
from study.pairs import difference
from study.rates import ROOT
from study.results import FOLDER
from study.row import field_cv
from study.second import confirmed_picture, page
from study.second_tables import Second, place
from study.smoke import SEEDS
from study.verdicts import beyond_direction
from tests.study.made_rows import filled, row_for

SIZES = {
    "screen": 600,
    "masters": 240,
    "twins": 8,
    "sides": 144,
    "none": 30,
    "spread": 27,
    "sgd": 60,
    "llama": 72,
    "cliff": 144,
    "finetune": 42,
}


@pytest.fixture(scope="module")
def empty() -> pd.DataFrame:
    return rows.read(HERE / "nowhere")


@pytest.fixture(scope="module")
def screened(empty: pd.DataFrame) -> pd.DataFrame:
    return filled(empty, ["screen"])


def test_parts_have_the_runs_of_the_plan_and_none_is_named_twice(empty: pd.DataFrame) -> None:
    planned, waits = parts.plan(empty)
    counts = pd.Series([each.part for each in planned]).value_counts().to_dict()
    assert {name: counts[name] for name in SIZES} == SIZES and list(waits) == ["confirm", "confound", "fresh"]
    assert len({each.fingerprint for each in planned}) == len(planned)
    text = (HERE / "PLAN.md").read_text()
    assert all(f"| {name} | {size} |" in text for name, size in SIZES.items())


def test_what_is_in_first_is_balanced(empty: pd.DataFrame) -> None:
    planned, _ = parts.plan(empty, ["screen"])
    assert len({cell_of(each.spec) for each in planned[:40]}) == 40
    assert {(each.spec.seed, each.spec.optimizer.lr) for each in planned[:40]} == {(2000, 6.32e-3)}
    assert {each.spec.seed for each in planned[:200]} == {2000}


def test_all_runs_store_without_clipping_at_one_set_of_rates(empty: pd.DataFrame) -> None:
    for each in parts.plan(empty)[0]:
        for rule in each.spec.tree()["storage"]:
            if rule["kind"] == "stochastic":
                assert rule["scale"] == "tracked" and rule["scaling"]["margin"] == 0
        anchor = 1e-4 if each.part == "finetune" else parts.ANCHOR
        place = 8 * math.log10(each.spec.optimizer.lr / anchor) if each.spec.optimizer.lr else 0.0
        if each.spec.tree()["optimizer"].get("normalise") != "none":
            assert abs(place - round(place)) < 0.02


def test_seeds_are_those_of_no_other_part_and_of_no_study_before(empty: pd.DataFrame) -> None:
    planned = parts.plan(empty)[0]
    assert {each.spec.seed for each in planned} == {*parts.SCREEN, *parts.TUNING}
    assert {each.spec.seed for each in planned if each.part == "finetune"} == set(parts.TUNING)
    assert {each.spec.seed for each in parts.runs_in("pilot")} == set(parts.PILOT)
    assert {each.spec.seed for each in parts.runs_in("gpu")} == set(parts.GPU) and len(parts.runs_in("gpu")) == 12
    sets = [
        set(parts.PILOT),
        set(parts.GPU),
        set(parts.SCREEN),
        set(parts.CONFIRM),
        {*parts.TUNING, *parts.FINETUNE},
        set(SEEDS),
    ]
    for path in sorted(FOLDER.glob("*.parquet")):
        specs = pq.read_table(path, columns=["spec"]).column("spec").to_pylist()
        sets.append({json.loads(spec)["seed"] for spec in specs if spec})
    first = set.union(*sets[6:])
    assert len(first) > 10 and all(not one & first for one in sets[:6])
    assert sum(map(len, sets[:6])) == len(set.union(*sets[:6]))
    assert not set(rows.read()["seed"]) & (set(SEEDS) | set(parts.PILOT))


def test_a_row_that_is_in_is_skipped_and_not_written_twice(tmp_path: Path, empty: pd.DataFrame) -> None:
    first = parts.plan(empty, ["twins"])[0][:2]
    for each in (*first, first[0]):
        rows.append(row_for(each), tmp_path)
    assert list(rows.read(tmp_path)["fingerprint"]) == [each.fingerprint for each in first]
    left, waits, named_in_all = run.missing(["twins"], tmp_path)
    assert len(left) == 6 and named_in_all == 8 and not waits
    assert rows.read(tmp_path)["cell"].tolist() == [cell_of(each.spec) for each in first]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_costs_the_run_under_way_alone(tmp_path: Path, empty: pd.DataFrame) -> None:
    planned = parts.plan(empty, ["screen"])[0]
    written = [row_for(each) for each in planned[:200]]
    child = os.fork()
    if child == 0:
        for row in written:
            rows.append(row, tmp_path)
        os._exit(0)
    while len(rows.read(tmp_path)) < 3:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = rows.read(tmp_path)
    assert list(found["fingerprint"]) == [row["fingerprint"] for row in written[: len(found)]] and len(found) >= 3
    rows.append(written[len(found)], tmp_path)
    assert len(rows.read(tmp_path)) == len(found) + 1


def test_an_arm_that_is_best_at_an_end_goes_on_beyond_it(empty: pd.DataFrame) -> None:
    own = parts.cells_in("none")
    frame = pd.DataFrame([row_for(each) for each in parts.plan(empty, ["none"])[0]])
    frame["loss"] = 1.0 - 0.01 * np.log(frame["rate"])
    cell = next(iter(own))
    assert len(parts.edges(frame, ["none"])) == 6  # both cells, three seeds
    for _ in range(6):
        new = pd.DataFrame([row_for(each) for each in parts.edges(frame, ["none"])])
        new["loss"] = 1.0 - 0.01 * np.log(new["rate"])
        frame = pd.concat([frame, new], ignore_index=True).drop_duplicates("fingerprint")
    rates = parts.rates_run(frame, cell, own[cell])
    assert len(rates) == 5 + parts.FURTHEST and np.allclose(np.diff(np.log10(rates)), 0.125, atol=0.003)
    assert parts.beside(11.2e-3, 1) == 15.0e-3 and parts.beside(2.67e-3, -1) == 2.0e-3


def test_a_fine_tune_is_tuned_by_quarter_decades_and_then_confirmed_at_each_cells_own_rate(empty: pd.DataFrame) -> None:
    frame = filled(empty, ["finetune"])  # rates far below OPTIMUM, so each cell goes on upwards
    assert len(frame) == 42
    while len(more := filled(frame, ["finetune"])) > len(frame) and set(more["seed"]) == set(parts.TUNING):
        frame = more
    rates = sorted(set(frame["rate"]))
    assert np.allclose(np.diff(np.log10(rates)), 0.25, atol=0.003) and len(rates) == 3 + parts.FURTHEST
    assert len(more) == len(frame) + 7 * 8 and set(more["seed"]) - set(frame["seed"]) == set(parts.FINETUNE)
    more["f1"] = 0.5
    table = [line.split("|")[1:-1] for line in Second(more).finetune()[2:]]
    assert len(table) == 7 and all(row[7].strip() == "8" for row in table)
    assert ["[" in row[6] for row in table] == [False] * 4 + [True] * 3
    assert all("missing" in row for row in Second(empty).finetune()[2:])


def test_confirmation_waits_for_the_screen_then_takes_eight_pairs_then_what_their_spread_asks(
    screened: pd.DataFrame,
) -> None:
    with pytest.raises(parts.Waiting, match="1 runs of the screen"):
        parts.confirm(screened.iloc[1:])
    first = parts.confirm(screened)
    assert {each.spec.seed for each in first} == set(parts.CONFIRM[:8])
    cells = {(s["format"], s["optimizer"], s["p"], s["kappa"]) for s in (settings(each.spec) for each in first)}
    for name in parts.STORED:
        own = {cell[1:] for cell in cells if cell[0] == name}
        assert own >= {("adamw", None, None), ("manifold_adamw", 1.0, 2.0**-6), ("manifold_adamw", 1.0, 1.0)}
        assert 4 <= len(own) <= 5 and all(kappa != 1.0 or p == 1.0 for _, p, kappa in own)  # kappa 1 is even here
    tuned = parts.tuned(screened)
    plain = {choice.rate for cell, choice in tuned.items() if named(cell)["optimizer"] == "adamw"}
    assert plain <= {4.74e-3, 3.56e-3, 6.32e-3}
    loud = pd.concat([screened, pd.DataFrame([row_for(each, noise=0.02) for each in first])], ignore_index=True)
    assert {each.spec.seed for each in parts.confirm(loud)} == set(parts.CONFIRM)
    assert len(parts.confound(screened)) == 24 * 12


def test_the_vertex_is_the_parabolas_and_its_contributions_have_its_mean() -> None:
    noise = np.random.default_rng(0).normal(0, 1e-3, (3, 8))
    by_rate = [{s: 1.3 + 0.02 * (x - 0.3) ** 2 + noise[i, s] for s in range(8)} for i, x in enumerate((-1, 0, 1))]
    found = confirmed.vertex(by_rate)
    a, b, c = np.polyfit((-1, 0, 1), [np.mean(list(by.values())) for by in by_rate], 2)
    assert (
        found.inside and found.value == pytest.approx(c - b * b / (4 * a)) and found.at == pytest.approx(-b / (2 * a))
    )
    assert np.mean(list(found.by_seed.values())) == pytest.approx(found.value)
    shifted = confirmed.vertex([{s: v + 0.01 * s for s, v in by.items()} for by in by_rate])
    assert shifted.by_seed[7] - found.by_seed[7] - (shifted.by_seed[0] - found.by_seed[0]) == pytest.approx(0.07)
    assert not confirmed.vertex([{0: 1.0}, {0: 1.1}, {0: 1.3}]).inside


@pytest.mark.parametrize(("name", "kappa", "p"), [("e4m3f", 2.0**-6, 1.0), ("e3m4f", 0.125, 0.5), ("e7m0f", 1.0, 1.0)])
def test_the_fields_variation_follows_from_the_histogram_of_spacings(name: str, kappa: float, p: float) -> None:
    fmt, w = FloatFormat.parse(name), torch.randn(5000, generator=torch.Generator().manual_seed(3)) * 0.02
    grid = own_grid(w, fmt)
    field = spacing_field(w, grid, kappa=kappa).double() ** p
    counts = stiffness_histogram(w, fmt, scale=grid.scale)
    shares = {e: int(n) / len(w) for e, n in zip(stiffness_exponents(fmt), counts, strict=True) if n}
    assert grid.scale is not None and fmt.min_normal is not None
    beta = float(fmt.min_normal * grid.scale / w.double().square().mean().sqrt())
    assert field_cv(shares, name, beta, kappa, p) == pytest.approx(float(field.std(correction=0) / field.mean()))


def test_spread_weights_are_the_same_function() -> None:
    spec = parts.runs_in("spread")[0].spec
    torch.manual_seed(spec.seed)
    model = build_model(spec, 256, 256)
    tokens = torch.arange(32)[None]
    before = model(tokens)
    model.load_state_dict(initial.spread(spec))
    assert torch.equal(model(tokens), before)
    qkv, up = (model.get_parameter(f"blocks.0.{name}.weight").detach() for name in ("attention.qkv", "mlp.up"))
    assert float(qkv.std() / up.std()) == pytest.approx(16, rel=0.03)


def test_tables_say_what_is_missing_and_judge_when_nothing_is(
    monkeypatch: pytest.MonkeyPatch, empty: pd.DataFrame, screened: pd.DataFrame
) -> None:
    monkeypatch.setattr(distributions, "DRAWS", distributions.DRAWS // 20)
    monkeypatch.setattr(distributions, "_simulated", cache(distributions._simulated.__wrapped__))
    nothing = page(Second(empty))
    assert "15 runs missing" in nothing and "No verdict yet" in nothing and "0 of 600" in nothing
    partial = page(Second(screened.iloc[:200]))
    assert "10 runs missing" in partial and "No verdict yet" in partial
    frame = filled(screened, ["confirm"])
    whole = Second(frame.iloc[:-30])
    assert "pairs missing" in "".join(whole.verdicts())
    assert confirmed_picture(whole) is None and "figures/confirmed.svg" not in page(whole)
    told = "".join(Second(filled(frame, ["confirm"])).verdicts())
    assert "figures/confirmed.svg" in page(Second(filled(frame, ["confirm"])))
    assert "harm" in told and "missing" not in told and ", even" in told
    assert abs(Second(screened).dial("e4m3f")[2, 2] + 0.05) < 0.02


def test_what_the_readme_says_of_the_study_is_what_the_findings_say() -> None:
    _, _, told = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The study")
    findings = (HERE / "FINDINGS.md").read_text(encoding="utf-8")
    (answer,) = re.findall(r"## The answer\n(.*?)\n## ", findings, re.S)
    numbers = re.findall(r"[+−]0\.\d{4}", told.partition("## Documentation")[0])
    assert len(numbers) == 4 and [number for number in numbers if f" {number} [" not in answer] == []
    assert "none of the confirmed cells is shown to" in answer and "none of twelve confirmed cells is shown to" in told
    assert answer.count("n = ") >= 12


def test_at_fixed_rates_the_first_stage_chooses_and_the_seeds_after_it_tell(screened: pd.DataFrame) -> None:
    with pytest.raises(parts.Waiting, match="first stage"):
        parts.fresh(screened)
    frame = filled(screened, ["confirm"])
    assert {one.word for one in Second(frame).at_fixed_rates} == {"missing"}
    first = frame["seed"].isin(parts.CONFIRM[: confirmed.FIRST_STAGE])
    base = first & (frame["part"] == "confirm") & (frame["optimizer"] == "adamw") & (frame["format"] == "e4m3f")
    low = min(frame["rate"][base])
    frame.loc[base & (frame["rate"] == low), "loss"] = 1.0  # seen where rates are chosen
    whole = filled(frame, ["fresh"])
    added = whole[len(frame) :]
    assert set(added["seed"]) == set(parts.CONFIRM[confirmed.FIRST_STAGE :]) and set(added["part"]) == {"fresh"}
    chosen = (added["format"] == "e4m3f") & (added["optimizer"] == "adamw")
    assert set(added["rate"][chosen]) == {low}
    whole["loss"] += 0.3 * whole.index.isin(added.index[chosen])  # and told where they are not
    study = Second(whole)
    found = [one for one in study.at_fixed_rates if one.format == "e4m3f"]
    assert {one.base_rate for one in found} == {low} and {one.interval.n for one in found} == {16}
    assert all(one.interval.mean > 0.2 and one.word in ("benefit", "none") for one in found)
    few = Second(whole[whole["seed"] != parts.CONFIRM[-1]])
    assert {one.word for one in few.at_fixed_rates} == {"missing"}


def test_the_pairs_beyond_a_direction_would_move_the_interval_off_the_margins_end() -> None:
    one = Interval(-0.0156, 0.00987, 12, -0.0258, -0.0054)
    assert beyond_direction(one) == 40 and -0.0156 + 0.0102 * math.sqrt(12 / 40) == pytest.approx(-0.01, abs=1e-4)


def test_the_report_has_the_losses_of_the_rows_and_the_findings_benefit_at_fixed_rates() -> None:
    frame = rows.read()
    found = project(frame)
    by_id = {str(row["id"]): row for _, row in frame.iterrows()}
    assert {record.arm.label for record in found.records} == {
        f"{name} stochastic, {kind}" for name in parts.STORED for kind in ("adamw", "manifold_adamw")
    }
    for record in found.records[::20]:
        row = by_id[record.id]
        assert (record.outcome, record.seed, record.rate) == (row["loss"], row["seed"], row["rate"])
        steps, losses = record.series["train/loss"]
        assert list(losses) == list(row["train_series"]) and (steps[0], steps[1], steps[-1]) == (1, 25, 800)
        assert smallest_normal_share(record) == pytest.approx(row["beta_over_rms"], rel=0.5)
    fixed = {one.format: one for one in Second(frame).at_fixed_rates if place(one.cell) == "p = 1, kappa = 2^-6"}
    (family,) = families(found)
    for effect in family.effects:
        one = fixed[effect.format]
        assert (effect.first.choice.rate, effect.second.choice.rate) == (one.base_rate, one.rate)
        assert math.fsum(effect.pairs.values()) / len(effect.pairs) == pytest.approx(one.interval.mean)


def test_a_manifold_cell_is_compared_with_adamw_of_the_same_part() -> None:
    for name in ("sides", "llama", "spread", "masters", "screen"):
        cells = set(parts.cells_in(name)) | set(parts.cells_in("screen"))
        for cell in parts.cells_in(name):
            if named(cell)["optimizer"] == "manifold_adamw":
                assert reference(cell) in cells


def test_what_the_findings_say_of_causes_is_what_the_rows_say() -> None:
    """The paragraph *Why* is written by hand around its numbers."""
    study = Second(rows.read())
    words = {sentence.words: judge(sentence, study) for sentence in SENTENCES}
    told = {words_: judged.word for words_, judged in words.items()}
    assert told["it is growth with magnitude that harms, not inequality"] == "holds"
    assert told["it is not this model's alone"] == "holds"
    assert told["the harm of the field is Adam's, whose directions are all of one size"] == "refuted"
    field = words["the harm of p = 1, kappa = 2^-6 is in the field, not in storage"].checks
    assert field["e4m3f: harm on masters"].low > 0
    assert field["e7m0: half of the stored B less B on masters"].high < 0
    sides = {row[0].strip(): row[6] for row in (line.split("|")[1:] for line in study.swept("sides", reference)[2:])
             if row[1].strip() == "e4m3f"}  # fmt: skip
    for arm in ("decay", "beta", "warmup", "smooth"):
        assert sides[arm].count("−") == 2, arm  # both ends below 0
    none = next(line.split("|") for line in study.swept("none", reference)[2:] if "e4m3f" in line)
    assert none[7].count("−") == 2
    beside = confound.at_fixed_rates(study)
    clipped = simultaneous({name: difference(*b) for name, b in beside.items()})
    assert (
        clipped["e4m3f"].low > 0.05 and clipped["e7m0"].low > 0.05 and clipped["e3m4f"].low < 0 < clipped["e3m4f"].high
    )
    assert "6 of 6 pairs of runs, manifold and AdamW on both in 6 of 6." in even_pairs(study)
    stored = study.frame[(study.frame["scale"] == "tracked") & (study.frame["storage"] == "stochastic")]
    assert len(stored) > 2000 and float(stored["saturated"].max()) == 0


def test_nine_eighths_around_every_rate_are_run(screened: pd.DataFrame) -> None:
    found = parts.cliff(screened)
    rates: dict[str, set[float]] = {}
    for each in found:
        rates.setdefault(cell_of(each.spec), set()).add(each.spec.optimizer.lr)
    for cell, choice in parts.tuned(screened).items():
        if cell in rates:
            assert {parts.beside(choice.rate, step) for step in range(-4, 5)} <= rates[cell]
    assert len(rates) == 12 and len({each.fingerprint for each in found}) == len(found)
