"""Claims about alarms: data that print as a sentence, with the phase that the list of symptoms gives."""

import json
import math
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import pytest

from altgrad.metric_keys import split_key
from altgrad.monitors import Alarm, MonitorSpec
from altgrad.store.files import read_nonfinite, spell_nonfinite
from altgrad.symptoms import PHASES, SYMPTOMS, is_stalled, phase_of_site

KINDS = MonitorSpec.kinds()


@pytest.mark.parametrize(
    ("site", "phase"),
    [
        ("blocks.0.mlp.up/input", "forward"), ("blocks.0.mlp.up/weight", "forward"), ("0/grad_output", "backward"),
        ("blocks.0.mlp.up.weight/requested", "optimizer"), ("a.weight/stored", "optimizer"), ("a.weight", None),
        ("input", None),
    ],
)  # fmt: skip
def test_the_phase_of_a_cast_is_that_of_its_operand(site: str, phase: str | None) -> None:
    assert phase_of_site(site) == phase
    assert KINDS["range"]().build().phase_of(site) == (phase or "forward")


@pytest.mark.parametrize("kind", KINDS)
def test_monitors_and_symptoms_agree_on_phases(kind: str) -> None:
    """But for clipping in storage: one symptom of weights, wherever it happens."""
    monitor = KINDS[kind]().build()
    assert monitor.phase in PHASES
    for symptom in SYMPTOMS:
        for pattern in symptom.keys:
            group, site, quantity = split_key(pattern.replace("*", "a.b", 1).replace("*", ""))
            if group == kind and not site.endswith("/stored") and phase_of_site(site) is None and kind != "range":
                assert fnmatchcase(f"{group}/{site}/{quantity}", pattern)
                assert monitor.phase_of(site, quantity) == symptom.where, symptom.name


def test_every_alarm_is_an_event_of_plain_data_and_one_line_of_english(trial: Callable[..., Any]) -> None:
    """A layer norm in 8 bits under nearest rounding: alarms of `updates` and `codes` at least."""
    norm = {"match": "blocks.0.norm1.weight", "kind": "nearest", "format": "e4m3fn"}
    stored = {"match": "blocks.*.weight", "kind": "stochastic", "format": "e4m3fn"}
    others = {"match": "blocks.*.norm*.weight", "kind": "master"}
    reports = trial("gpt", storage=[norm, others, stored]).run([*KINDS.keys() - {"gsnr"}], 4, every=1)
    alarms = [
        (step, kind, alarm) for step, each in enumerate(reports, 1) for kind, r in each.items() for alarm in r.alarms
    ]
    assert {kind for _, kind, _ in alarms} >= {"updates", "codes"}
    for step, kind, alarm in alarms:
        assert alarm.step == step and alarm.phase in PHASES and alarm.site == "blocks.0.norm1.weight"
        assert any(fnmatchcase(alarm.quantity, metric.quantity) for metric in KINDS[kind].metrics)
        assert str(alarm).startswith("blocks.0.norm1.weight: ") and "\n" not in str(alarm) and "{" not in str(alarm)
        assert read_nonfinite(json.loads(json.dumps(spell_nonfinite(alarm.fields())))) == alarm.fields()
    (stalled,) = [alarm for _, _, alarm in alarms if alarm.quantity == "effective_update_ratio"]
    assert "of updates are rounded away; " in str(stalled) and "of the requested change is applied." in str(stalled)
    assert is_stalled(stalled.details["lost"], stalled.value) and stalled.value < stalled.limit


def test_stalled_takes_both_a_high_stall_ratio_and_a_request_that_is_not_applied() -> None:
    assert is_stalled(0.95, 0.05)
    assert not any(is_stalled(*pair) for pair in ((0.95, 1.0), (0.5, 0.05), (0.9, 0.05), (0.95, 0.1), (math.nan, 0.0)))


def test_an_alarm_prints_as_its_sentence() -> None:
    alarm = Alarm(
        "a/input",
        "underflow_rate",
        0.876,
        0.75,
        "forward",
        3,
        "{site}: {words} {value:.0%} of {limit:.0%}{x}",
        {"x": "!"},
    )
    assert str(alarm) == f"{alarm}" == "a/input: underflow rate 88% of 75%!"
    assert alarm.fields() == {
        "site": "a/input", "quantity": "underflow_rate", "value": 0.876, "limit": 0.75, "phase": "forward"
    }  # fmt: skip
