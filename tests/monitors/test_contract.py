"""Claims about every discovered monitor: it watches without touching, says what it measures, and survives a restart."""

import math
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch

from altgrad.monitors import MonitorSpec, Watch, describing

KINDS = list(MonitorSpec.kinds())
MODELS = ("gpt", "mlp", "plain")


def everything(trial: Any) -> dict[str, torch.Tensor]:
    """Weights, buffers and optimizer state."""
    found = {name: tensor.clone() for name, tensor in trial.net.state_dict().items()}
    for number, state in enumerate(trial.optimizer.state_dict()["state"].values()):
        found |= {f"{number}/{key}": torch.as_tensor(value).clone() for key, value in state.items()}
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_watching_changes_no_bit(kind: str, name: str, trial: Callable[..., Any]) -> None:
    watched, alone = trial(name), trial(name)
    watched.run([kind])
    alone.run([])
    a, b = everything(watched), everything(alone)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_watching_with_all_of_them_changes_no_bit(trial: Callable[..., Any]) -> None:
    for name in MODELS:
        watched, alone = trial(name), trial(name)
        watched.run(KINDS, every=1)
        alone.run([])
        a, b = everything(watched), everything(alone)
        assert all(torch.equal(a[key], b[key]) for key in b), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_monitor_is_due_first_and_at_its_cadence(kind: str, trial: Callable[..., Any]) -> None:
    steps = [step for step, reports in enumerate(trial("mlp").run([kind]), 1) if kind in reports]
    assert steps == [1, 3, 6, 9, 12, 15, 18]


@pytest.mark.parametrize("kind", KINDS)
def test_a_monitor_survives_yaml_and_is_documented(kind: str) -> None:
    spec = MonitorSpec.of(kind)
    assert MonitorSpec.of(spec.tree()) == spec
    built = spec.build()
    documented = (type(spec), type(built), type(built).report, type(built).state, type(built).restore)
    assert all(thing.__doc__ for thing in documented)
    assert spec.metrics or kind == "finite"
    for metric in spec.metrics:
        assert metric.unit and metric.meaning and metric.formula and metric.worse in ("higher", "lower", "neither")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_reports_are_numbers_or_nan_and_every_key_is_described(kind: str, name: str, trial: Callable[..., Any]) -> None:
    spec = MonitorSpec.of(kind)
    for reports in trial(name).run([kind]):
        for report in reports.values():
            for key, value in report.metrics.items():
                assert describing(spec.metrics, key.rpartition("/")[2]), key
                assert math.isfinite(value) or math.isnan(value) or key.endswith("sqnr_db"), key


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_says_how_each_of_its_results_is_reduced(
    kind: str, trial: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = type(MonitorSpec.of(kind).build())
    seen: set[str] = set()
    report = monitor.report

    def listening(self: Any, site: str, values: dict[str, float]) -> Any:
        seen.update(values)
        return report(self, site, values)

    monkeypatch.setattr(monitor, "report", listening)
    trial("gpt").run([kind], 1)
    groups = (monitor.sums, monitor.maxima, monitor.alike)
    for name in seen:
        assert sum(any(fnmatchcase(name, pattern) for pattern in group) for group in groups) == 1, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_state_resumes_exactly(kind: str, name: str, trial: Callable[..., Any]) -> None:
    options = {"full_every": 5} if kind == "rank" else {"window": 3} if kind == "dead" else {}
    found = []
    for restart in (None, 11):
        reports = trial(name).run([{"kind": kind, **options}], restart=restart)
        found.append([
            (kind, key, float(value).hex()) for step in reports for kind, r in step.items() for key, value in r.metrics.items()
        ] + [alarm for step in reports for r in step.values() for alarm in (*r.alarms, *r.notices)])  # fmt: skip
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_gradients_or_grids_leaves_nothing_to_report(kind: str) -> None:
    """n = 0: the monitors meet a parameter that nothing happens to."""
    net = torch.nn.Linear(3, 2, bias=False)
    watch = Watch([MonitorSpec.of(kind)], net, torch.optim.SGD(net.parameters()))
    watch.begin(1)
    _, _, reports = watch.gradients(torch.zeros(()), torch.zeros(()), {})
    reports |= watch.finish()
    assert all(math.isfinite(value) or math.isnan(value) for r in reports.values() for value in r.metrics.values())
    assert not any(report.alarms for report in reports.values())
