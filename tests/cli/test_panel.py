"""The live panel on a terminal and the same run in a pipe."""

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from altgrad.cli import panel
from altgrad.cli.console import Screen
from altgrad.cli.panel import PlainLines, RunPanel, choose
from altgrad.cli.picture import run_picture
from altgrad.cli.run_view import Watched
from altgrad.display import Line
from altgrad.progress import heard_by, progress

STEPS = 400
REFERENCES = {"unigram": 4.47, "order-6 n-gram": 1.17}
ESCAPE = re.compile(r"\x1b\[([0-9;]*)m")
Tell = Callable[[RunPanel | PlainLines], None]


def live(monkeypatch: pytest.MonkeyPatch, tell: Tell, no_colour: bool) -> str:
    """What a whole run writes to a terminal of 80 x 24."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    console = Console(file=file, width=80, height=24, force_terminal=True, color_system="truecolor", highlight=False)
    shown = RunPanel("quickstart", STEPS, REFERENCES, Screen(console))
    tell(shown)
    shown.close()
    shown.close()
    return file.getvalue()


def colours(written: str) -> set[int]:
    """SGR codes that set a colour: 30 to 38, 40 to 48, 90 to 97, 100 to 107 (39 and 49 take it back)."""
    codes = {int(code or 0) for codes in ESCAPE.findall(written) for code in codes.split(";")}
    return {code for code in codes if code in (*range(30, 39), *range(40, 49), *range(90, 98), *range(100, 108))}


def test_the_live_panel_shows_the_last_number_and_gives_the_cursor_back(
    monkeypatch: pytest.MonkeyPatch, tell: Tell
) -> None:
    written = live(monkeypatch, tell, no_colour=False)
    assert "75.0%  300/400" in ESCAPE.sub("", written)
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1
    assert written.count("\x1b[?2026h") == written.count("\x1b[?2026l") >= 1
    assert colours(written)


def test_no_color_leaves_no_colour_codes(monkeypatch: pytest.MonkeyPatch, tell: Tell) -> None:
    assert colours(live(monkeypatch, tell, no_colour=True)) == set()


def test_a_picture_that_fails_turns_into_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tell: Tell
) -> None:
    def broken(*_: object, **__: object) -> list[Line]:
        raise RuntimeError("no picture today")

    monkeypatch.setattr(panel, "run_picture", broken)
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    shown = RunPanel("quickstart", STEPS, None, Screen(console))
    tell(shown)
    shown.close()
    assert "the panel could not be drawn (no picture today); plain lines go on" in capsys.readouterr().out


@pytest.fixture
def plain(tell: Tell) -> list[str]:
    """What the recorded run prints in a pipe."""
    file = io.StringIO()
    sink = PlainLines("quickstart", STEPS, REFERENCES, file)
    tell(sink)
    sink.close()
    return file.getvalue().splitlines(keepends=True)


def test_plain_lines_are_printable_ascii_and_nothing_else(plain: list[str]) -> None:
    for line in plain:
        assert line.endswith("\n")
        assert line.isascii()
        assert line[:-1].isprintable()


def test_plain_lines_are_one_for_each_logged_step_and_aligned(plain: list[str]) -> None:
    steps = [line for line in plain if " loss " in line]
    assert len(steps) == 300
    assert [int(line.split()[1].split("/")[0]) for line in steps] == list(range(1, 301))
    for column in ("loss", "lr", "tokens/s", "ETA"):
        assert len({line.index(f" {column} ") for line in steps}) == 1
    assert len({line.index("validation") for line in steps if "validation" in line}) == 1


def test_a_plain_line_holds_training_and_validation_of_its_step(plain: list[str]) -> None:
    [line] = [line for line in plain if line.startswith("step 300/400")]
    assert re.fullmatch(
        r"step 300/400  loss 1\.\d{3} +lr 3\.00e-4 +tokens/s 63\.0k  ETA 50s +validation 1\.800 +2\.345 bits/byte\n",
        line,
    )


def test_plain_events_are_lines_of_their_own_after_their_step(plain: list[str]) -> None:
    at = plain.index("step 120/400  alarm: underflow_rate is 0.12\n")
    assert plain[at - 1].startswith("step 120/400  loss ")
    assert "Reference bits per byte: unigram 4.47, order-6 n-gram 1.17\n" in plain


def test_plain_lines_go_on_when_nobody_reads(tell: Tell) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    sink = PlainLines("quickstart", STEPS, None, Gone())
    tell(sink)
    sink.close()
    assert not sink.heard


def test_a_pipe_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    sink = choose("quickstart", STEPS)
    sink.close()
    assert isinstance(sink, PlainLines)
    assert capsys.readouterr().out == "quickstart: 400 steps\n"


def test_a_classifier_shows_its_own_scores_in_the_picture_and_in_lines() -> None:
    values = {"train/loss": 0.3, "validation/loss": 0.4, "validation/f1_micro": 0.625, "validation/f1_macro": 0.5125}
    scores = ("f1_micro", "f1_macro")
    file = io.StringIO()
    lines = PlainLines("classifier", 10, {"TF-IDF": 0.63}, file, scores=scores)
    lines.metrics(10, values)
    lines.close()
    assert "Reference f1 micro: TF-IDF 0.630" in file.getvalue()
    assert "validation 0.4000   0.6250 f1 micro" in file.getvalue()
    watched = Watched("classifier", 10, scores=scores)
    watched.metrics(10, values)
    picture = "\n".join(line.text for line in run_picture(watched, 120, 40))
    assert "f1 micro 0.6250" in picture and "f1 macro 0.5125" in picture and "bits/byte" not in picture


def pressed(tell: Tell, *keys: str) -> tuple[RunPanel, str, list[str]]:
    """A panel with keys on a screen of text, on which these were pressed; what it wrote, and what it was asked."""
    file, asked = io.StringIO(), []
    console = Console(file=file, width=80, height=24, force_terminal=True, highlight=False)
    keyed = panel.KEYS
    shown = RunPanel("quickstart", STEPS, None, Screen(console), keys=keyed, stop=lambda: asked.append("stop"))
    tell(shown)
    for key in keys:
        shown.press(key)
    shown.close()
    return shown, file.getvalue(), asked


def test_s_asks_the_run_to_stop_once_however_often_it_is_pressed(tell: Tell) -> None:
    shown, _, asked = pressed(tell, "s", "x", "s")
    assert asked == ["stop"] and shown.watched.stopping


def test_q_closes_the_panel_and_lines_go_on(tell: Tell, capsys: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, height=24, force_terminal=True, highlight=False)
    shown = RunPanel("quickstart", STEPS, None, Screen(console), keys=panel.KEYS)
    shown.press("q")
    tell(shown)
    shown.close()
    assert file.getvalue().count("\x1b[?25h") == 1
    said = capsys.readouterr().out
    assert "the panel is closed; training goes on" in said and "step 300/400  loss " in said


def test_what_a_run_does_is_told_the_panel_and_once_it_is_closed_whoever_listened_before() -> None:
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    shown: list[RunPanel] = []
    said: list[str] = []
    hear = panel.first_of(shown, lambda phase, done, total: said.append(phase))
    with heard_by(hear):  # the panel is made while the listener that leads to it is in place already, as in `train`
        progress("loading torch")
        shown.append(RunPanel("quickstart", STEPS, None, Screen(console), keys=panel.KEYS))
        progress("validating")
        shown[0].press("q")
        shown[0].close()
        progress("saving a checkpoint")
    assert said == ["loading torch", "saving a checkpoint"] and not shown[0].is_drawn


def test_an_onlooker_who_leaves_is_no_longer_heard(tell: Tell) -> None:
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    shown = RunPanel("quickstart", STEPS, None, Screen(console), keys=panel.WATCHING)
    shown.press("s")
    shown.press("q")
    shown.close()
    assert not shown.heard and not shown.watched.stopping
