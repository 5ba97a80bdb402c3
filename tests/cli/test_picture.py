"""The picture of a run as a person sees it, drawn from recorded numbers at many sizes."""

import io
import math
import re

import pytest
from rich.console import Console

from altgrad.cli.console import styled
from altgrad.cli.layout import Want, share
from altgrad.cli.picture import run_picture
from altgrad.cli.run_view import Watched
from altgrad.display import Line, shorten
from altgrad.symptoms import findings

SIZES = [(80, 23), (80, 39), (200, 49)]


def text(lines: list[Line]) -> str:
    return "\n".join(line.text for line in lines)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_frame_fills_the_width_and_never_the_last_row(watched: Watched, width: int, height: int) -> None:
    console = Console(record=True, width=width, height=height + 1, file=io.StringIO())
    lines = run_picture(watched, width, height)
    console.print(styled(lines))
    printed = console.export_text().splitlines()
    assert len(lines) <= height
    assert len(printed) == len(lines)
    assert {line.width for line in lines} == {width}
    assert max(map(len, printed)) <= width


@pytest.mark.parametrize("width", [1, 2, 5, 19, 40, 79, 80, 120, 149, 150, 151, 200, 400])
@pytest.mark.parametrize("height", [1, 2, 3, 7, 12, 23, 31, 32, 60])
def test_any_size_can_be_drawn(watched: Watched, width: int, height: int) -> None:
    lines = run_picture(watched, width, height)
    assert len(lines) <= height
    assert {line.width for line in lines} == {width}


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_numbers_a_person_looks_for_are_there(watched: Watched, width: int, height: int) -> None:
    shown = text(run_picture(watched, width, height))
    for wanted in (
        "quickstart-1f3a-s0",
        "75.0%",
        "300/400",
        "2m 30s",  # elapsed: 300 steps of half a second
        "50s",  # ETA
        "checkpoint 100",
        "1.800",  # validation loss
        "2.345",
        "5.432",
        "3.00e-4",
        "1.25",
        "63.0k",
        "unigram 4.47 ✓",
        "order-6 n-gram 1.17",
        "1 alarm",
    ):
        assert wanted in shown, wanted
    assert "n-gram 1.17 ✓" not in shown


def test_parts_stack_at_80_columns_and_stand_side_by_side_at_200(watched: Watched) -> None:
    narrow, wide = (text(run_picture(watched, width, 49)).splitlines() for width in (80, 200))
    assert not any("train loss" in line and "validation loss" in line and "─" in line for line in narrow)
    assert any("train loss, nats ─" in line and "validation loss" in line and "now" in line for line in wide)
    assert any("casts" in line and "events" in line for line in wide)


def test_a_small_window_keeps_progress_and_numbers(watched: Watched) -> None:
    shown = text(run_picture(watched, 80, 6))
    assert "300/400" in shown
    assert "train loss" in shown


def test_the_worst_site_of_each_slot_is_named_with_its_rate(watched: Watched) -> None:
    underflow, saturation = watched.worst("underflow_rate"), watched.worst("saturation_rate")
    assert [(worst.site, worst.rate) for worst in underflow["input"]] == [("blocks.3.mlp.up", 0.25)]
    assert underflow["weight"][0].site == "blocks.5.mlp.up"
    assert [(worst.site, worst.rate) for worst in saturation["grad_output"]] == [("blocks.2.mlp.up", 0.5)]
    assert saturation["input"] == []
    rows = text(run_picture(watched, 80, 23)).splitlines()
    assert any(re.search(r"forward +input +25\.0% +blocks\.3\.mlp\.up +0", row) for row in rows)
    assert any(re.search(r"backward +grad_output .*50\.0% +blocks\.2\.mlp\.up", row) for row in rows)
    assert any(re.search(r"optimizer +requested +75\.0% +blocks\.0\.mlp\.up", row) for row in rows)
    assert any(re.search(r"stored +– +–", row) for row in rows)


def test_worst_sites_of_equal_rate_come_in_a_fixed_order() -> None:
    watched = Watched("r", 1)
    watched.metrics(1, {f"range/{name}/input/underflow_rate": 0.5 for name in "cab"})
    assert [worst.site for worst in watched.worst("underflow_rate", 2)["input"]] == ["a", "b"]


def test_an_alarm_keeps_the_step_it_first_fired_at_and_counts_the_rest(watched: Watched) -> None:
    alarm = watched.happenings()[0]
    assert (alarm.first, alarm.times, alarm.last) == (120, 2, 130)
    shown = text(run_picture(watched, 80, 23))
    assert re.search(r"120 alarm +\(×2, last at 130\) underflow_rate is 0.12", shown)


def test_alarms_that_differ_in_numbers_alone_are_one_but_names_keep_theirs() -> None:
    watched = Watched("r", 10)
    for step, site, rate, monitor in ((3, 1, "7.5%", "range"), (5, 1, "12%", "range"), (6, 2, "12%", "range"),
                                      (7, 2, "12%", "other")):  # fmt: skip
        fields = {"monitor": monitor, "site": f"blocks.{site}.up", "quantity": "underflow_rate"}
        watched.event(step, "alarm", f"blocks.{site}.up: underflow rate {rate}", **fields)
    assert [(alarm.first, alarm.times) for alarm in watched.happenings()] == [(7, 1), (6, 1), (3, 2)]


def test_alarms_that_do_not_say_their_site_are_one_where_they_say_the_same() -> None:
    watched = Watched("r", 10)
    for step, message in ((1, "a: 7%"), (2, "a: 7%"), (3, "a: 8%")):
        watched.event(step, "alarm", message, monitor="range")
    assert [(alarm.first, alarm.times) for alarm in watched.happenings()] == [(3, 1), (1, 2)]


def test_symptoms_are_those_of_diagnose_and_follow_the_alarms() -> None:
    watched = Watched("r", 100)
    rows = [
        {"step": step, **{f"range/{name}/input/saturation_rate": 0.1 for name in "ab"[: 1 + step // 4]}}
        for step in range(1, 8)
    ]
    for row in rows:
        watched.metrics(row["step"], {key: value for key, value in row.items() if key != "step"})
    watched.event(9, "notice", "something")
    watched.event(9, "alarm", "an alarm", monitor="range", site="c/input")
    (finding, other) = findings(rows)
    assert (finding.place, other.place) == ("a/input", "b/input")
    shown = [(each.event, each.first, each.message) for each in watched.happenings()]
    message = "activations are clipped at the largest value: a/input and 1 more"
    assert shown == [("alarm", 9, "an alarm"), ("symptom", 3, message), ("notice", 9, "something")]
    assert "1 alarm, 1 symptom, latest first" in text(run_picture(watched, 80, 40))


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, 1e300, 5e-324])
def test_nothing_that_a_run_can_say_stops_the_drawing(keys: list[str], value: float, width: int, height: int) -> None:
    keys = [
        *keys,
        "validation/loss",
        "validation/f1",
        "range/a/input/underflow_rate",
        "range/",
        "range/a/b",
    ]
    watched = Watched("r", 3, {"chance": value})
    for step in (1, 2, 2, 1, 9):
        watched.metrics(step, dict.fromkeys([*keys, "range/a/input/nonfinite_count"], value))
        watched.event(step, "alarm", "")
    assert {line.width for line in run_picture(watched, width, height)} == {width}


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("steps", [0, -1, 5])
def test_a_run_that_has_not_said_anything_is_drawn(steps: int, width: int, height: int) -> None:
    shown = run_picture(Watched("", steps), width, height)
    assert {line.width for line in shown} == {width}


def test_names_and_messages_cannot_disturb_the_terminal() -> None:
    watched = Watched("a\x1b[31mb\nc\td", 3)
    watched.event(1, "notice", "x\x1b]0;title\x07\r\ny 模型")
    for line in run_picture(watched, 80, 23):
        assert line.text.isprintable()
        assert line.width == 80


def test_sites_with_values_that_are_not_finite_are_named() -> None:
    watched = Watched("r", 3)
    watched.metrics(1, {"range/blocks.1.mlp.up/grad_output/nonfinite_count": 12.0})
    assert "NaN or Inf at blocks.1.mlp.up/grad_output (12)" in text(run_picture(watched, 80, 23))


def test_a_silent_run_is_said_to_be_silent() -> None:
    now = 0.0
    watched = Watched("r", 10, clock=lambda: now)
    watched.metrics(1, {"time/wall_seconds": 5.0})
    now = 65.0
    shown = text(run_picture(watched, 80, 23))
    assert "silent for 1m 05s" in shown
    assert "elapsed 1m 10s" in shown


def test_rows_are_shared_by_importance_first_and_then_by_weight() -> None:
    wants = [Want(3, 3), Want(2, 10, 3), Want(4, 6)]
    assert share(2, wants) == [0, 2, 0]
    assert share(5, wants) == [3, 2, 0]
    assert share(9, wants) == [3, 2, 4]
    assert share(13, wants) == [3, 5, 5]
    assert share(1000, wants) == [3, 10, 6]
    assert share(0, wants) == [0, 0, 0]


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (40, "model.layers.11.self_attn.q_proj"),
        (31, "m.layers.11.self_attn.q_proj"),
        (23, "m.l.11.self_attn.q_proj"),
        (15, "m.l.11.s.q_proj"),
        (9, "m.l.…proj"),
        (1, "…"),
        (0, ""),
    ],
)
def test_a_long_name_keeps_the_number_of_its_layer_as_long_as_it_can(width: int, shown: str) -> None:
    assert shorten("model.layers.11.self_attn.q_proj", width) == shown


WORSE = {"stall/stall_ratio": "higher", "shadow/cosine": "lower", "dead/dead_share": "higher"}


def compared() -> Watched:
    watched = Watched("r", 100, {}, WORSE)
    for block in range(4):
        values = {"stall_ratio": 0.9 + block / 100, "predicted_stall_ratio": 1.0}
        watched.metrics(10, {f"stall/blocks.{block}.mlp.up.weight/{name}": value for name, value in values.items()})
        watched.metrics(10, {f"shadow/blocks.{block}.mlp.up.weight/cosine": math.nan if block == 2 else block / 4})
    return watched


def test_the_worst_layers_of_each_group_are_ranked_in_the_direction_that_is_worse() -> None:
    found = compared().worst_layers(2)
    assert list(found) == ["stall/stall_ratio", "shadow/cosine"]
    assert [(worst.site, worst.rate) for worst in found["stall/stall_ratio"]] == [
        ("blocks.3.mlp.up.weight", 0.93), ("blocks.2.mlp.up.weight", 0.92)
    ]  # fmt: skip
    assert [(worst.site, worst.rate) for worst in found["shadow/cosine"]] == [
        ("blocks.0.mlp.up.weight", 0.0), ("blocks.1.mlp.up.weight", 0.25)
    ]  # fmt: skip


@pytest.mark.parametrize(("width", "height"), [(80, 49), (200, 49)])
def test_worst_layers_are_shown_with_their_values(width: int, height: int) -> None:
    shown = text(run_picture(compared(), width, height))
    assert re.search(r"stall highest stall ratio +0\.930 blocks\.3\.mlp\.up", shown)
    assert re.search(
        r"shadow lowest cosine +0\.00 blocks\.0\.mlp\.up|shadow lowest cosine +0 blocks\.0\.mlp\.up", shown
    )
    assert ("blocks.2.mlp.up" in shown) == (width == 200)
    assert "worst layers" not in text(run_picture(Watched("r", 100, {}, WORSE), width, height))


@pytest.mark.parametrize("width", [1, 5, 40, 80, 150, 200])
@pytest.mark.parametrize("height", [1, 7, 12, 23, 32, 60])
def test_any_size_can_be_drawn_with_worst_layers(width: int, height: int) -> None:
    assert {line.width for line in run_picture(compared(), width, height)} <= {width}


def test_interventions_are_prominent_and_count_as_one_where_they_repeat() -> None:
    watched = Watched("r", 100)
    watched.event(5, "notice", "something")
    for step, rate in ((20, "12%"), (30, "15%")):
        message = f"blocks.0.mlp.up/grad_weight: {rate} of it saturates e5m2; clipped at 0.02."
        watched.event(step, "intervention", message, intervention="partition_clip", site="blocks.0.mlp.up/grad_weight")
    watched.event(40, "alarm", "another thing", monitor="range")
    assert [(each.event, each.first, each.times) for each in watched.happenings()] == [
        ("alarm", 40, 1), ("intervention", 20, 2), ("notice", 5, 1)
    ]  # fmt: skip
    shown = text(run_picture(watched, 80, 40))
    assert "1 alarm, 1 intervention, latest first" in shown
    assert re.search(r"20 intervention +\(×2, last at 30\) blocks\.0\.mlp\.up", shown)


def test_the_distance_from_a_twin_is_among_the_numbers() -> None:
    watched = Watched("r", 100)
    watched.metrics(10, {"train/loss": 2.0, "twin/train_loss_difference": -0.0123})
    assert re.search(r"above twin +-0\.0123", text(run_picture(watched, 200, 40)))


KEYS = (("q", "detach"), ("s", "stop"), ("?", "help"))


@pytest.mark.parametrize(("width", "height"), [(60, 15), (80, 23), (120, 39), (200, 49)])
def test_keys_are_named_and_explained_on_request(watched: Watched, width: int, height: int) -> None:
    shown = text(run_picture(watched, width, height, KEYS))
    assert "q detach" in shown and "s stop" in shown and "? help" in shown
    assert "q detach" not in text(run_picture(watched, width, height))
    explained = run_picture(watched, width, height, KEYS, helping=True)
    assert "save a checkpoint and stop" in text(explained)
    assert {line.width for line in explained} == {width} and len(explained) <= height


def test_what_the_run_does_beside_training_is_its_status() -> None:
    watched = Watched("r", 100)
    watched.event(0, "started", "started")
    watched.progress("validating", 12, 40)
    assert "● validating 12/40" in text(run_picture(watched, 80, 23))
    watched.progress("training", 7, 100)
    shown = text(run_picture(watched, 80, 23))
    assert "● running" in shown and "7/100" in shown
    watched.event(7, "stopped", "stopped", status="completed")
    watched.progress("saving a checkpoint", 7, 100)
    assert "● completed" in text(run_picture(watched, 80, 23))


def test_an_onlooker_sees_from_the_steps_that_a_run_validates() -> None:
    now = 0.0
    watched = Watched("r", 100, clock=lambda: now)
    watched.evaluate_every = 50
    watched.metrics(50, {"train/loss": 2.0})
    assert "● running" in text(run_picture(watched, 80, 23))
    now = 5.0
    assert "● validating" in text(run_picture(watched, 80, 23))
    watched.metrics(50, {"validation/loss": 2.0})
    now = 9.0
    assert "● running" in text(run_picture(watched, 80, 23))


def test_a_run_that_was_asked_to_stop_says_so() -> None:
    watched = Watched("r", 100)
    watched.stopping = True
    assert "stopping  ● running" in text(run_picture(watched, 80, 23))


def styles_of(lines: list[Line], part: str) -> set[str]:
    return {style for line in lines for piece, style in line.spans if part in piece}


def test_colours_follow_the_list_of_symptoms(watched: Watched) -> None:
    lines = run_picture(watched, 80, 39)
    assert styles_of(lines, "25.0%") == {"bold yellow"}  # inputs that underflow in a fifth of their values
    assert styles_of(lines, "50.0%") == {"bold yellow"}
    assert styles_of(lines, "0.500%") == {"bold"}
    assert styles_of(lines, "alarm ") == {"bold red"} and styles_of(lines, "symptom ") == {"yellow"}


def test_the_twin_of_a_run_is_known_from_the_differences_alone() -> None:
    watched = Watched("r", 100)
    for step in range(1, 51):
        watched.metrics(step, {"train/loss": 2.0, "twin/train_loss_difference": 0.25})
    assert watched.twin["train"].last == 1.75 and not watched.twin["validation"].points
    assert "2.000  twin 1.750" in text(run_picture(watched, 80, 23))
