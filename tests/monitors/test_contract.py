"""Claims about every discovered monitor: it watches without touching, says what it measures, and survives a restart."""

import inspect
import math
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch

from altgrad.monitors import MonitorSpec, UpdateMonitor, describing
from altgrad.watching import MonitorSet

KINDS = list(MonitorSpec.kinds())
MODELS = ("gpt", "mlp", "plain")
ALONE = [pytest.param([kind], id=kind, marks=pytest.mark.long) for kind in KINDS]
TOGETHER = [*ALONE, pytest.param(KINDS, id="all")]
"""All of them at once; each by itself among the long tests."""
OPTIONS = {"rank": {"full_every": 5}, "dead": {"window": 3}}


def everything(trial: Any) -> dict[str, torch.Tensor]:
    """Weights, buffers and optimizer state."""
    found = {name: tensor.clone() for name, tensor in trial.net.state_dict().items()}
    for number, state in enumerate(trial.optimizer.state_dict()["state"].values()):
        found |= {f"{number}/{key}": torch.as_tensor(value).clone() for key, value in state.items()}
    return found


UNWATCHED: dict[str, dict[str, torch.Tensor]] = {}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kinds", TOGETHER)
def test_watching_changes_no_bit(kinds: list[str], name: str, trial: Callable[..., Any]) -> None:
    """20 steps with and without: weights, buffers, counters and optimizer state."""
    if name not in UNWATCHED:
        alone = trial(name)
        alone.run([])
        UNWATCHED[name] = everything(alone)
    watched = trial(name)
    watched.run(kinds, every=3 if len(kinds) == 1 else 1)
    found = everything(watched)
    assert found.keys() == UNWATCHED[name].keys()
    assert all(torch.equal(found[key], UNWATCHED[name][key]) for key in found)


@pytest.mark.long
@pytest.mark.parametrize("name", ["llama", "mixture", "smollm2"])
def test_all_of_it_holds_on_todays_architectures(name: str, trial: Callable[..., Any]) -> None:
    """No bit changes, reports are numbers with a description, and a restart is not seen. Every kind looks on."""
    steps, options = 4, [{"kind": kind, **OPTIONS.get(kind, {})} for kind in KINDS]
    alone = trial(name)
    alone.run([], steps)
    found, watched = [], {}
    for restart in (None, 3):
        watched = trial(name)
        reports = watched.run(options, steps, every=1, restart=restart)
        found.append([(n, kind, key, float(value).hex()) for n, each in enumerate(reports)
                      for kind, report in each.items() for key, value in report.metrics.items()])  # fmt: skip
    bits, expected = everything(watched), everything(alone)
    assert bits.keys() == expected.keys() and all(torch.equal(bits[key], expected[key]) for key in bits)
    assert found[0] == found[1]
    for _, kind, key, value in found[0]:
        assert describing(MonitorSpec.of(kind).metrics, key.rpartition("/")[2]), key
        assert not math.isinf(float.fromhex(value)) or key.endswith("sqnr_db"), key
    # `accumulation` is about products that have an accumulator, `outliers` about casts that carry some apart.
    assert {kind for _, kind, _, _ in found[0]} == set(KINDS) - {"finite", "accumulation", "outliers"}
    keys = {key for _, _, key, _ in found[0]}
    assert any("attention/probabilities" in key or "self_attn/probabilities" in key for key in keys)
    assert name != "mixture" or any("experts.gate.3/weight" in key for key in keys)


@pytest.mark.parametrize("kinds", TOGETHER)
def test_a_monitor_is_due_first_and_at_its_cadence(kinds: list[str], trial: Callable[..., Any]) -> None:
    found = trial("mlp").run(kinds)
    for kind in kinds:
        assert [step for step, reports in enumerate(found, 1) if kind in reports] == [1, 3, 6, 9, 12, 15, 18], kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_monitor_survives_yaml_and_is_documented(kind: str) -> None:
    spec = MonitorSpec.of(kind)
    assert MonitorSpec.of(spec.tree()) == spec
    built = spec.build()
    documented = (type(spec), type(built), type(built).report, type(built).state, type(built).restore)
    assert all(inspect.getdoc(thing) for thing in documented)
    assert spec.metrics or kind == "finite"
    for metric in spec.metrics:
        assert metric.unit and metric.meaning and metric.formula and metric.worse in ("higher", "lower", "neither")


@pytest.mark.parametrize("kinds", TOGETHER)
@pytest.mark.parametrize("name", MODELS)
def test_reports_are_numbers_or_nan_and_every_key_is_described(
    kinds: list[str], name: str, trial: Callable[..., Any]
) -> None:
    for reports in trial(name).run(kinds):
        for kind, report in reports.items():
            for key, value in report.metrics.items():
                assert describing(MonitorSpec.of(kind).metrics, key.rpartition("/")[2]), key
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


@pytest.mark.parametrize("kinds", TOGETHER)
@pytest.mark.parametrize("name", MODELS)
def test_state_resumes_exactly(kinds: list[str], name: str, trial: Callable[..., Any]) -> None:
    found = []
    for restart in (None, 11):
        reports = trial(name).run([{"kind": kind, **OPTIONS.get(kind, {})} for kind in kinds], restart=restart)
        told = [(step, *pair) for step, each in enumerate(reports) for pair in each.items()]
        numbers = [(s, kind, key, float(v).hex()) for s, kind, r in told for key, v in r.metrics.items()]
        found.append((numbers, [(s, *map(str, r.alarms), *r.notices) for s, _, r in told]))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_gradients_or_grids_leaves_nothing_to_report(kind: str) -> None:
    """n = 0: the monitors meet a parameter that nothing happens to."""
    net = torch.nn.Linear(3, 2, bias=False)
    watch = MonitorSet([MonitorSpec.of(kind)], net, torch.optim.SGD(net.parameters()))
    watch.begin(1)
    _, _, reports = watch.gradients(torch.zeros(()), torch.zeros(()), {})
    reports |= watch.finish()
    assert all(math.isfinite(value) or math.isnan(value) for r in reports.values() for value in r.metrics.values())
    assert not any(report.alarms for report in reports.values())


def test_a_monitor_of_updates_that_looks_at_nothing_is_refused() -> None:
    with pytest.raises(TypeError, match="Idle looks at nothing"):
        type("Idle", (UpdateMonitor,), {"mesure": lambda self, update, kept: {}})
