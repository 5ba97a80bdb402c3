"""Claims about symptoms: each is found where it is planted, lasting long enough, and a healthy run has none."""

import math
from collections.abc import Iterable, Mapping

import pytest

from altgrad.metric_keys import split_key
from altgrad.symptoms import SYMPTOMS, Symptom, findings, grouped

Row = Mapping[str, float]


def rows(key: str, values: Iterable[float], **others: float) -> list[Row]:
    return [{"step": n, key: value, **others} for n, value in enumerate(values, 1)]


def bad(symptom: Symptom) -> float:
    if symptom.against == "past":
        return 2 * symptom.threshold
    if math.isinf(symptom.threshold):
        return math.nan
    return symptom.threshold * (1.5 if symptom.worse == "above" else 0.5) + (symptom.threshold == 0)


def key_of(symptom: Symptom) -> str:
    return symptom.keys[0].replace("*", "blocks.0.mlp.up", 1).replace("*", "")


def company(symptom: Symptom, holds: bool) -> dict[str, float]:
    """The second key that a symptom asks for."""
    if symptom.beside is None:
        return {}
    quantity, side, threshold = symptom.beside
    kind, place, _ = split_key(key_of(symptom))
    group, slash, last = quantity.partition("/")
    value = threshold + (0.01 if (side == "above") == holds else -0.01)
    return {f"{group}/{place}/{last}" if slash else f"{kind}/{place}/{quantity}": value}


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda symptom: symptom.name)
def test_a_symptom_is_found_once_it_has_lasted_and_not_before(symptom: Symptom) -> None:
    start = [1.0] * 20 if symptom.against == "past" else []
    for number in (symptom.lasting - 1, symptom.lasting, symptom.lasting + 3):
        logged = rows(key_of(symptom), [*start, *[bad(symptom)] * number], **company(symptom, True))
        found = [each for each in findings(logged) if each.symptom is symptom]
        assert len(found) == (number >= symptom.lasting)
        for each in found:
            assert (each.first, each.last) == (len(start) + symptom.lasting, len(start) + number)
            assert each.steps == number and each.lasts and each.evidence


@pytest.mark.parametrize("symptom", [s for s in SYMPTOMS if s.beside], ids=lambda symptom: symptom.name)
def test_what_must_be_there_beside_it_must_be_there(symptom: Symptom) -> None:
    for others in (company(symptom, False), {}):
        logged = rows(key_of(symptom), [bad(symptom)] * 20, **others)
        assert symptom not in [each.symptom for each in findings(logged)]


def test_a_healthy_run_has_no_symptom() -> None:
    logged = [
        {
            "step": n, "train/loss": 5 / n + 1, "train/gradient_norm": 1 + 0.1 * (n % 3),
            "range/a/input/underflow_rate": 0.01, "range/a/grad_output/saturation_rate": 0.0,
            "range/a/weight/nonfinite_count": 0.0, "stall/a.weight/stall_ratio": 0.97,
            "updates/a.weight/effective_update_ratio": 1.0, "updates/a.weight/zero_update_fraction": 0.1,
            "codes/a.weight/utilisation": 0.8, "shadow/a.weight/cosine": math.nan, "dead/a/cast_dead_share": 0.0,
            "flips/a.weight/reversal_average": 0.2, "flips/a.weight/sign_flip_rate": 1e-3,
            "flips/a.weight/flip_rate": 0.1,
        }
        for n in range(1, 60)
    ]  # fmt: skip
    assert findings(logged) == []


def test_a_symptom_that_passes_is_said_to_have_passed() -> None:
    (found,) = findings(rows("range/a/input/saturation_rate", [0.1] * 5 + [0.0] * 9))
    assert (found.first, found.last, found.lasts, found.place) == (3, 5, False, "a/input")
    assert (found.steps, found.observed, found.value) == (5, 14, 0.1)


def test_two_bad_observations_that_are_not_in_a_row_are_none() -> None:
    assert findings(rows("range/a/input/saturation_rate", [0.1, 0.1, 0.0, 0.1, 0.1, math.nan, 0.0])) == []


def test_a_nan_in_the_loss_is_a_divergence_and_elsewhere_no_observation() -> None:
    (found,) = findings(rows("train/loss", [1.0, math.nan]))
    assert found.symptom.name == "divergence" and found.first == 2
    (found,) = findings(rows("range/a/input/saturation_rate", [0.1, math.nan, 0.1, 0.1]))
    assert found.first == 4


def test_findings_come_by_time_and_are_grouped_by_symptom() -> None:
    logged = [
        {"step": n, "range/a/input/saturation_rate": 0.1, "range/b/input/saturation_rate": 0.1 if n > 5 else 0.0,
         "codes/w/utilisation": 0.1 if n > 1 else 0.9}
        for n in range(1, 12)
    ]  # fmt: skip
    found = findings(logged)
    assert [each.place for each in found] == ["a/input", "w", "b/input"]
    assert [(symptom.name, len(group)) for symptom, group in grouped(found)] == [
        ("activation_saturation", 2), ("few_codes", 1)
    ]  # fmt: skip


def test_every_symptom_says_what_to_try_and_has_a_name_of_its_own() -> None:
    assert len({symptom.name for symptom in SYMPTOMS}) == len(SYMPTOMS)
    assert all(symptom.why and symptom.remedy and symptom.title for symptom in SYMPTOMS)
