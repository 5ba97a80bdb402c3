"""Claims about heartbeat files: they say how a worker ended, and a reader measures silence on its own clock."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from altgrad.store.heartbeat import Pulse, beating


class _Exit(Exception):
    exit_code = 75


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0), (SystemExit(4), 4), (SystemExit(None), 0), (SystemExit("words"), 1), (_Exit(), 75),
        (KeyboardInterrupt(), 130), (ValueError("x"), 1),
    ],
)  # fmt: skip
def test_the_exit_code_is_in_the_file_and_the_error_goes_on(
    tmp_path: Path, error: BaseException | None, code: int
) -> None:
    path = tmp_path / "beat.json"
    if error is None:
        with beating(path):
            assert json.loads(path.read_text())["exit"] is None
    else:
        with pytest.raises(type(error)), beating(path):
            raise error
    pulse = Pulse(path)
    pulse.silence()
    assert pulse.exit == code and pulse.beaten


def test_without_a_file_nothing_happens(tmp_path: Path) -> None:
    with beating(None):
        pass
    assert list(tmp_path.iterdir()) == []


def test_silence_is_counted_from_change_to_change_on_the_readers_clock(tmp_path: Path) -> None:
    now = [100.0]
    path = tmp_path / "beat.json"
    pulse = Pulse(path, lambda: now[0])
    now[0] = 130.0
    assert pulse.silence() == 30.0 and not pulse.beaten
    path.write_text('{"stamp": "1970-01-01T00:00:00.000Z", "count": 0, "exit": null}')
    assert pulse.silence() == 0.0 and pulse.beaten and pulse.exit is None
    now[0] = 150.0
    assert pulse.silence() == 20.0
    path.write_text('{"stamp": "2999-01-01T00:00:00.000Z", "count": 1, "exit": null}')
    assert pulse.silence() == 0.0
    path.write_text("{")
    assert pulse.exit is None, "a damaged file says nothing"


def test_a_killed_process_leaves_no_exit_code(tmp_path: Path, python: Callable[..., "subprocess.Popen[str]"]) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom altgrad.store.heartbeat import beating\n"
        "with beating(Path(sys.argv[1]), 0.05):\n    print('in', flush=True)\n    time.sleep(60)"
    )
    path = tmp_path / "beat.json"
    process = python(script, path)
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    pulse = Pulse(path)
    pulse.silence()
    first = path.read_bytes()
    while path.read_bytes() == first:
        time.sleep(0.01)
    process.kill()
    process.wait()
    last = path.read_bytes()
    time.sleep(0.2)
    pulse.silence()
    assert pulse.exit is None and path.read_bytes() == last
