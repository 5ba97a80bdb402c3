"""`altgrad compare` on anybody's runs: files of any training loop, TensorBoard folders, and what is said of them."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

import altgrad
from altgrad.cli.main import app
from altgrad.reports.compare import compare_runs, data_of
from altgrad.reports.compared_runs import name_and_seed
from altgrad.reports.loss_files import read_loss_file

STEPS = np.arange(0, 400, 2)
SHIFTS = {"bf16": 0.0, "fp8": 0.05}


def curve(seed: int, shift: float, noise: float = 0.004) -> np.ndarray:
    """A loss that falls to about 2 + shift, with a noise of its own between seeds and within the curve."""
    random = np.random.default_rng([seed, round(1e4 * shift)])
    within = 0.02 * random.standard_normal(len(STEPS))
    return 2 + shift + 3 * np.exp(-STEPS / 40) + random.normal(0, noise) + within


def curves(seeds: int = 5, shifts: Mapping[str, float] = SHIFTS) -> dict[tuple[str, int], np.ndarray]:
    return {(arm, seed): curve(seed, shift) for arm, shift in shifts.items() for seed in range(seeds)}


def csvs(folder: Path, found: Mapping[tuple[str, int], np.ndarray]) -> list[str]:
    paths = [folder / f"{arm}-s{seed}.csv" for arm, seed in found]
    for path, values in zip(paths, found.values(), strict=True):
        rows = [f"{s},{v!r}" for s, v in zip(STEPS, values.tolist(), strict=True)]
        path.write_text("\n".join(["Step,val_loss", *rows]) + "\n")
    return list(map(str, paths))


def test_files_named_by_arm_and_seed_have_the_paired_interval_of_scipy(tmp_path: Path) -> None:
    found = curves()
    frame = altgrad.compare(*csvs(tmp_path, found)).set_index("arm")
    late = {key: values[-10:].mean() for key, values in found.items()}
    sides = [[late[arm, seed] for seed in range(5)] for arm in ("fp8", "bf16")]
    expected = stats.ttest_rel(*sides).confidence_interval(0.95)
    assert (frame.low["fp8"], frame.high["fp8"]) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert frame.verdict.to_dict() == {"bf16": "reference", "fp8": "worse"} and frame.n["fp8"] == 5
    assert frame.attrs["sentence"].startswith("fp8 is worse than bf16: +0.0")
    assert frame.attrs["notes"] == ["10 sources: 10 runs, 'val_loss' by 'Step'."]


def one_table(folder: Path, found: Mapping[tuple[str, int], np.ndarray]) -> Path:
    path = folder / "all.jsonl"
    rows = [{"iteration": int(s), "arm": arm, "seed": seed, "eval": {"loss": float(v)}}
            for (arm, seed), values in found.items() for s, v in zip(STEPS, values, strict=True)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chart_of_wandb(folder: Path, found: Mapping[tuple[str, int], np.ndarray]) -> Path:
    path = folder / "chart.csv"
    names = [f"{arm}-s{seed} - val/loss" for arm, seed in found]
    head = ['"Step"', *(f'"{name}{end}"' for name in names for end in ("", "__MIN", "__MAX"))]
    rows = [[str(s), *(f"{v!r}" for values in found.values() for v in [float(values[i])] * 3)]
            for i, s in enumerate(STEPS)]  # fmt: skip
    path.write_text("\n".join(map(",".join, [head, *rows])))
    return path


def trainer_states(folder: Path, found: Mapping[tuple[str, int], np.ndarray]) -> list[Path]:
    paths = []
    for (arm, seed), values in found.items():
        history = [{"step": int(s), "eval_loss": float(v)} for s, v in zip(STEPS, values, strict=True)]
        paths.append(folder / f"{arm}_seed{seed}" / "trainer_state.json")
        paths[-1].parent.mkdir()
        paths[-1].write_text(json.dumps({"log_history": [{"step": 1, "loss": 4.0}, *history]}))
    return paths


@pytest.mark.parametrize("form", [one_table, chart_of_wandb, trainer_states])
def test_every_form_of_file_comes_to_the_same(tmp_path: Path, form: Callable[..., Any]) -> None:
    found = curves(3)
    expected = altgrad.compare(*csvs(tmp_path, found))
    made = form(tmp_path, found)
    same = altgrad.compare(*(made if isinstance(made, list) else [made]))
    assert same.drop(columns="arm").equals(expected.drop(columns="arm")) and list(same.arm) == ["bf16", "fp8"]


def test_one_seed_an_arm_has_a_band_and_no_verdict(tmp_path: Path) -> None:
    found = compare_runs(csvs(tmp_path, curves(1, {"fp8": 0.3, "base": 0.0})))
    (arm,) = found.verdict.judged
    assert (found.verdict.reference, arm.verdict, arm.more_seeds, found.exit_code) == ("base", "one seed", 7, 7)
    assert found.sentence.startswith("Undecided: one seed an arm cannot decide between fp8 and base (+0.")
    band = found.windows["fp8"]
    assert (
        0.29 < band.low < band.high < 0.33
        and band.differs
        and band.first == 200
        and "window" in data_of(found)["arms"][1]
    )


def test_a_run_that_ends_in_nan_enters_as_its_loss_before_training(tmp_path: Path) -> None:
    made = curves(4)
    made["fp8", 2][-3:] = math.nan
    paths = csvs(tmp_path, made)
    arm = compare_runs(paths).verdict.arms["fp8"]
    assert (arm.diverged, arm.runs, arm.unnumbered) == (1, 4, 0) and arm.mean > 2.5
    rows = Path(paths[-2]).read_text().splitlines()
    Path(paths[-2]).write_text("\n".join([rows[0], *rows[20:]]))  # its beginning is not known
    found = compare_runs(paths)
    assert found.verdict.arms["fp8"].verdict == "undecided" and "what that costs is not known" in found.sentence
    assert found.exit_code == 7


def test_runs_are_compared_at_the_last_step_that_all_have_reached(tmp_path: Path) -> None:
    made = curves(3)
    paths = csvs(tmp_path, made)
    rows = Path(paths[0]).read_text().splitlines()
    Path(paths[0]).write_text("\n".join(rows[:101]))
    found = compare_runs(paths)
    assert "Compared at step 198, where bf16-s0 ends; others go further." in found.notes
    assert found.verdict.arms["bf16"].mean > compare_runs(csvs(tmp_path, made)).verdict.arms["bf16"].mean


def test_runs_without_a_seed_are_paired_in_order_and_it_is_said(tmp_path: Path) -> None:
    made = csvs(tmp_path, curves(2))
    rows = ["arm,run,step,loss"]
    for path in made:
        arm, seed = name_and_seed(Path(path).stem)
        names = {"run": f"{'ab'[seed or 0]} job"}
        rows += [f"{arm},{names['run']},{line}" for line in Path(path).read_text().splitlines()[1:]]
    (tmp_path / "jobs.csv").write_text("\n".join(rows))
    found = compare_runs([tmp_path / "jobs.csv"])
    assert found.verdict.arms["fp8"].interval.n == 2 and "2 runs of fp8 have no seed: numbered as read." in found.notes


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fp8-s3", ("fp8", 3)), ("fp8_seed_12", ("fp8", 12)), ("a/b/seed=4", ("a/b", 4)), ("gpt2", ("gpt2", None)),
     ("layers12", ("layers12", None)), ("s3", ("s3", None)), ("run.rng7", ("run", 7)), ("lr-1e-3", ("lr-1e-3", None))],
)  # fmt: skip
def test_a_name_says_its_seed(name: str, expected: tuple[str, int | None]) -> None:
    assert name_and_seed(name) == expected


@pytest.mark.parametrize(
    ("name", "text", "key", "message"),
    [
        ("a.csv", "x,loss\n1,2\n", None, "a.csv has no column of steps, as 'step' or 'iteration'; it has x, loss."),
        ("a.csv", "step,x\n1,2\n", None, "no column of losses that is known by its name; name one with --key: step, x"),
        ("a.csv", "step,val_loss\n1,2\n", "vall_oss", "has no 'vall_oss'. Did you mean 'val_loss'?"),
        ("a.csv", "step,loss\n1,x\n", None, "has no numbers in 'loss'"),
        ("a.jsonl", '{"step": 1}\n{', None, "a.jsonl:2: "),
        ("a.csv", "", None, "has no rows."),
        ("a.csv", "step,val_loss\n", None, "has no rows."),
        ("a.csv", f"step,loss\n1,{'9' * 200_000}\n", None, "a.csv:2: field larger than field limit"),
        ("a.jsonl", "\n", None, "has no rows."),
        ("a.json", "[]", None, "has no rows."),
        ("a.json", "{", None, "a.json:1: "),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(
    tmp_path: Path, name: str, text: str, key: str | None, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as caught:
        read_loss_file(tmp_path / name, key)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_seeds_that_only_one_arm_has_and_a_torn_last_row_change_nothing(tmp_path: Path) -> None:
    found = curves(5)
    paths = csvs(tmp_path, {key: found[key] for key in found if key not in {("fp8", 0), ("bf16", 4)}})
    arm = compare_runs(paths).verdict.arms["fp8"]
    assert (arm.runs, arm.interval.n, arm.verdict) == (4, 3, "worse")
    table = tmp_path / "live.csv"
    rows = [
        f"{s},{float(v)!r},{arm},{seed}"
        for (arm, seed), values in found.items()
        for s, v in zip(STEPS, values, strict=True)
    ]
    table.write_text("\n".join(["step,loss,arm,seed", *rows, "400,2.1"]))
    assert list(compare_runs([table]).arms) == ["bf16", "fp8"]


def test_a_validation_loss_is_not_compared_with_a_training_loss(tmp_path: Path) -> None:
    for name, column in (("a", "val_loss"), ("b", "train_loss")):
        (tmp_path / f"{name}.csv").write_text(f"step,{column}\n1,2\n2,1\n")
    with pytest.raises(ValueError, match="has 'val_loss' and .*b.csv 'train_loss'; name one with --key."):
        compare_runs([tmp_path / "a.csv", tmp_path / "b.csv"])


def test_a_file_that_is_no_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="a.csv is not text; a comparison reads .csv"):
        read_loss_file(tmp_path / "a.csv")


def test_folders_of_tensorboard_are_runs(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    found = curves(3)
    for (arm, seed), values in found.items():
        writer = EventFileWriter(str(tmp_path / "logs" / arm / f"seed{seed}"))
        for step, value in zip(STEPS, values, strict=True):
            made = summary_pb2.Summary.Value(tag="eval/loss", simple_value=value)
            other = summary_pb2.Summary.Value(tag="lr", simple_value=1e-3)
            writer.add_event(event_pb2.Event(step=int(step), summary=summary_pb2.Summary(value=[made, other])))
        writer.close()
    read = compare_runs([tmp_path / "logs"])
    expected = compare_runs(csvs(tmp_path, found)).verdict.arms["fp8"]
    arm = read.verdict.arms["fp8"]
    assert (arm.interval.low, arm.interval.high) == pytest.approx(
        (expected.interval.low, expected.interval.high), rel=1e-4
    )
    assert arm.verdict == "worse"
    assert "logs: 6 runs, 'eval/loss'." in read.notes[0]
    with pytest.raises(ValueError, match="has no 'acc'"):
        compare_runs([tmp_path / "logs"], metric="acc")


def test_the_command_says_the_verdict_first_and_exits_as_it_was_asked(tmp_path: Path) -> None:
    made = curves()
    made["fp8", 1][-1] = math.nan
    paths = csvs(tmp_path, made)
    call = CliRunner().invoke
    plain = call(app, ["compare", *paths, "--runs", str(tmp_path)])
    assert plain.exit_code == 0, plain.output
    lines = plain.stdout.splitlines()
    assert lines[0].startswith("Undecided between fp8 and bf16: +") and lines[0].endswith("would decide.")
    assert lines[2].split() == ["arm", "mean", "difference", "95", "%", "interval", "n", "diverged", "curve", "verdict"]
    assert "1 of 5" in lines[4] and lines[4].rstrip().endswith("more seeds")
    assert call(app, ["compare", *paths, "--exit-code"]).exit_code == 7
    sound = csvs(tmp_path, curves())
    assert call(app, ["compare", *sound, "--exit-code"]).exit_code == 6
    assert call(app, ["compare", *sound, "--exit-code", "--margin", "9"]).exit_code == 0
    page = tmp_path / "page.html"
    facts = json.loads(call(app, ["compare", *sound, "--json", "--html", str(page)]).stdout)
    assert facts["arms"][1]["verdict"] == "worse" and facts["exit_code"] == 6 and facts["reference"] == "bf16"
    text = page.read_text()
    assert facts["sentence"] in text and text.count("<svg") == 4 and "<script" not in text and len(text) < 100_000


def test_in_a_narrow_terminal_the_curve_gives_way_and_no_line_is_broken_within_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = csvs(tmp_path, curves(1, {"fp8": 0.0, "bf16": 0.0}))
    monkeypatch.setattr("altgrad.cli.console.interactive", lambda: True)
    for columns in (72, 80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = CliRunner().invoke(app, ["compare", *paths]).stdout.splitlines()
        assert max(map(len, lines)) <= columns
        assert "undecided, one" in " ".join(lines[4:]) and any(line.rstrip().endswith(" reference") for line in lines)
        assert any("█" in line for line in lines) == (columns > 72)


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    (path,) = csvs(tmp_path, curves(1, {"fp8": 0.0}))
    alone = CliRunner().invoke(app, ["compare", path])
    assert (
        alone.exit_code == 2
        and alone.stderr == "One run cannot be compared; name a run of another arm, or a project with two.\n"
    )
    absent = CliRunner().invoke(app, ["compare", path, "gone.csv"])
    assert absent.exit_code == 2 and absent.stderr == "there is no file gone.csv.\n"
    (tmp_path / "logs").mkdir()
    (tmp_path / "run.log").write_text("loss 3")
    for target, said in (
        ("logs", "logs is not a run, and holds no event files"),
        ("run.log", "run.log cannot be read; a"),
    ):
        refused = CliRunner().invoke(app, ["compare", path, str(tmp_path / target), "--runs", str(tmp_path)])
        assert refused.exit_code == 2 and said in refused.stderr and refused.stderr.count("\n") == 1
    nothing = CliRunner().invoke(app, ["compare", "nobody", "--runs", str(tmp_path)])
    assert nothing.exit_code == 2 and nothing.stderr.count("\n") == 1
