"""runs.parquet: a report can be made again from it, to the last byte of its numbers."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from altgrad.cli.main import app
from altgrad.reports.archive import load_archives, write_archive, write_data
from altgrad.reports.project import Project
from altgrad.reports.reading import RunRecord
from altgrad.reports.report import ProjectReport
from altgrad.reports.sources import load_project
from altgrad.store import RunStore


@pytest.fixture(scope="module")
def project(study: Path) -> Project:
    return load_project(RunStore(study), "study")


def same(a: RunRecord, b: RunRecord) -> bool:
    """Every field but where it was read from, to the bits of every series."""
    for field in (each for each in dataclasses.fields(RunRecord) if each.compare):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if field.name == "series":
            if list(one) != list(other):
                return False
            for key in one:
                for x, y in zip(one[key], other[key], strict=True):
                    if np.asarray(x, np.float64).tobytes() != np.asarray(y, np.float64).tobytes():
                        return False
        elif field.name == "rate" and one != one:
            if other == other:
                return False
        elif one != other:
            return False
    return True


def test_every_record_comes_back_as_it_was_and_the_verdict_is_the_same(project: Project, tmp_path: Path) -> None:
    odd = RunRecord("zz-odd", "?", whole=False, problems=["spec.yaml: it is gone"])
    odd.series = {"train/loss": (np.array([1.0, 2.0]), np.array([np.nan, np.inf]))}
    odd.events = [{"event": "alarm", "value": float("inf")}]
    whole = Project("study", "here", [*project.records, odd])
    write_archive(whole, tmp_path / "runs.parquet")
    back = load_archives([tmp_path / "runs.parquet"])
    assert back.name == "study" and len(back.records) == len(whole.records) > 10
    for before, after in zip(sorted(whole.records, key=lambda r: r.id), back.records, strict=True):
        assert same(before, after), before.id
    assert ProjectReport(back, tmp_path).data() == ProjectReport(whole, tmp_path).data()
    for name, made in (("a", whole), ("b", back)):
        (tmp_path / name).mkdir()
        made.records.sort(key=lambda r: r.id)
        write_data(made, tmp_path / name)
    for file in ("data.csv", "data.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_sittings_are_read_together_and_a_run_in_two_counts_once_from_the_later(
    project: Project, tmp_path: Path
) -> None:
    first, later = tmp_path / "1.parquet", tmp_path / "2.parquet"
    write_archive(Project("study", "", project.records[:7]), first)
    changed = dataclasses.replace(project.records[6], status="failed")
    write_archive(Project("study", "", [changed, *project.records[7:]]), later)
    back = load_archives([first, later])
    assert [r.id for r in back.records] == [r.id for r in project.records] and back.records[6].status == "failed"
    write_archive(Project("other", "", []), later)
    with pytest.raises(ValueError, match="archives of other and study"):
        load_archives([first, later])


def test_what_is_no_archive_is_refused_in_one_line(project: Project, tmp_path: Path) -> None:
    write_archive(project, tmp_path / "whole.parquet")
    cut = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "tidy").mkdir()
    write_data(Project("study", "", project.records[:1]), tmp_path / "tidy")
    for name in ("gone.parquet", "cut.parquet", "tidy/data.parquet"):
        done = CliRunner().invoke(app, ["report", "--from", str(tmp_path / name), "--out", str(tmp_path / "out")])
        assert done.exit_code == 2 and "not a runs.parquet of a report" in done.output, done.output
        assert not (tmp_path / "out").exists() and "Traceback" not in done.output
