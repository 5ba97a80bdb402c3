"""Where two runs part."""

import math
from pathlib import Path

import pytest

from altgrad.store import Run, RunFiles, RunStore
from altgrad.store.compare import MetricDifference, SpecDifference, first_metric_difference, spec_differences


def make(root: Path, name: str, spec: str = "", *rows: dict[str, float]) -> Run:
    run = RunStore(root).run("demo", name).create(spec, {})
    files = RunFiles(run)
    for row in rows:
        files.metrics(int(row["step"]), {key: value for key, value in row.items() if key != "step"})
    files.close()
    return run


def test_specs_differ_in_leaves_named_by_dotted_paths(tmp_path: Path) -> None:
    first = make(tmp_path, "a", "model: {layers: 2, width: 64}\nlr: 1e-3\nmonitors: [range, {kind: stall, every: 5}]\n")
    second = make(tmp_path, "b", "model: {layers: 3, width: 64}\nlr: 0.001\nmonitors: [range]\nnew: null\n")
    assert spec_differences(first, second) == [
        SpecDifference("model.layers", 2, 3),
        SpecDifference("monitors.1.kind", "stall", "absent"),
        SpecDifference("monitors.1.every", 5, "absent"),
        SpecDifference("new", "absent", None),
    ]
    assert spec_differences(first, first) == []


def test_a_damaged_spec_is_a_plain_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"spec.yaml:1"):
        spec_differences(make(tmp_path, "a", "a: ["), make(tmp_path, "b", "a: 1"))


def test_identical_metrics_have_no_difference_whatever_the_clock_says(tmp_path: Path) -> None:
    first = make(tmp_path, "a", "", {"step": 1, "x": math.nan, "time/s": 1.0}, {"step": 1, "y": 2})
    second = make(tmp_path, "b", "", {"step": 1, "x": math.nan, "y": 2, "time/s": 7.0})
    assert first_metric_difference(first, second) is None


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"step": 1, "x": 1.0}, {"step": 2, "x": 2.0, "y": 3.0000000000000004}], (2, "y", 3.0, 3.0000000000000004)),
        ([{"step": 1, "x": 1.0}], (2, "x", 2.0, None)),
        ([], (1, "x", 1.0, None)),
        ([{"step": 1, "x": 1.0}, {"step": 2, "x": 2.0, "y": 3.0}, {"step": 3, "z": 0.5}], (3, "z", None, 0.5)),
        ([{"step": 0, "x": 9.0}, {"step": 1, "x": 1.0}], (0, "x", None, 9.0)),
        ([{"step": 1, "x": 1.0}, {"step": 2, "x": 2.0}], (2, "y", 3.0, None)),
        ([{"step": 1, "x": math.nan}], (1, "x", 1.0, math.nan)),
    ],
)
def test_the_first_difference_is_found(tmp_path: Path, rows: list[dict[str, float]], expected: tuple[object]) -> None:
    first = make(tmp_path, "a", "", {"step": 1, "x": 1.0}, {"step": 2, "x": 2.0, "y": 3.0})
    second = make(tmp_path, "b", "", *rows)
    found = first_metric_difference(first, second)
    assert isinstance(found, MetricDifference)
    assert repr((found.step, found.key, found.first, found.second)) == repr(expected)
    turned = first_metric_difference(second, first)
    assert turned is not None
    assert repr((turned.step, turned.key, turned.second, turned.first)) == repr(expected)
