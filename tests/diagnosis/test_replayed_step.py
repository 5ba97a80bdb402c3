"""Claims about what diagnosis looks at: the step the run took, in its own compute and loss scale, on its own data."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from altgrad.cli.main import app
from altgrad.diagnosis.attribution import attribution
from altgrad.diagnosis.samples import trained_samples
from altgrad.diagnosis.variants import take_step, variants
from altgrad.formats import FloatFormat
from altgrad.store import Run
from altgrad.training.restore import restore
from altgrad.training.run import LossScale

RULES = '[{match: "blocks.*", weight: e4m3fn, input: e4m3fn, grad_output: {format: e5m2, scaling: unscaled}}]'


@pytest.mark.parametrize(
    "sets", [(), ("compute=bfloat16", "model.dropout=0.2"), (f"precision.rules={RULES}", "loss_scale=4096")]
)
def test_the_step_taken_again_is_the_step_that_was_trained(
    make: Callable[..., Run], tmp_path: Path, sets: tuple[str, ...]
) -> None:
    run = make(tmp_path, *sets, "steps=14", "accumulate=2")
    trained = next(row for row in run.metrics(["train/*"]) if row["step"] == 13)
    taken = take_step(restore(run, 12))
    norm = sum(float(gradient.double().square().sum()) for gradient in taken.gradients.values()) ** 0.5
    assert taken.loss == pytest.approx(trained["train/loss"], rel=1e-6)
    assert norm == pytest.approx(trained["train/gradient_norm"], rel=1e-6)


def test_a_run_in_bfloat16_is_attributed_and_varied_like_any_other(make: Callable[..., Run], tmp_path: Path) -> None:
    restored = restore(make(tmp_path, "compute=bfloat16", "steps=2"))
    assert sum(site.share for site in attribution(restored)) == pytest.approx(1, abs=0.5)
    assert all(not row.error for row in variants(restored, [FloatFormat.parse("e4m3fn")]))


def test_a_loss_scale_that_every_cast_makes_up_for_changes_no_attribution(tiny: Run) -> None:
    restored = restore(tiny)
    scaled = replace(
        restored, spec=restored.spec.model_copy(update={"loss_scale": LossScale(factor=1024.0, force=True)})
    )
    for one, two in zip(attribution(restored), attribution(scaled), strict=True):
        assert (two.site, two.loss, two.share) == (one.site, pytest.approx(one.loss), pytest.approx(one.share))
    plain, large = (
        next(sample.operands["grad_output"] for sample in trained_samples(each)) for each in (restored, scaled)
    )
    assert large.amax == 1024 * plain.amax  # advice on gradients is advice on what the casts are given


def test_a_run_whose_data_changed_is_refused(make: Callable[..., Run], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Article {number} applies from the day of its publication." for number in range(90)))
    run = make(tmp_path / "runs", f"data.source={text}", "steps=2")
    run.update_meta(data=restore(run).dataset.describe())
    text.write_text(text.read_text().replace("Article 7 ", "Article 8 "))
    done = CliRunner().invoke(app, ["diagnose", str(run.path), "--runs", str(tmp_path / "runs")])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert "text.txt is not what run" in done.stderr and "put the file back" in done.stderr
