"""Disks that are full, closed, gone, or whose clock jumps: one clear line, exit 3, and the checkpoint before loads.

Needs a system on which we may mount (root, or user namespaces); where not, the campaign says so and is left out.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from altgrad.store import Run
from tests.faults.campaign import Figures, spec_text, words_file
from tests.faults.corruption import curve
from tests.faults.processes import start

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("steps=40", "checkpoint_every=1", "evaluate_every=100", "keep=3")


def no_mount() -> str | None:
    """Why nothing can be mounted here, if so."""
    if not sys.platform.startswith("linux"):
        return "mounting needs Linux"
    absent = [name for name in ("mount", "umount", "unshare") if shutil.which(name) is None]
    if absent:
        return f"{absent[0]} is not installed"
    found = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "-o", "size=1m", "none", "/mnt"],
        capture_output=True,
        check=False,
    )
    return None if found.returncode == 0 else "mounting needs root"


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A tmpfs in a folder of its own."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", *options, "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@dataclass(frozen=True)
class Ended:
    """A command that has."""

    returncode: int
    stderr: str


def altgrad(folder: Path, *arguments: str, obeys: bool = False) -> Ended:
    """The program in `folder`, as a process of its own; `obeys`: permission bits hold for it, root or not."""
    process = start(folder, arguments, obeys=obeys)
    code = process.wait()
    return Ended(code, process.errors.read_text())


def train(folder: Path, runs: Path, *more: str) -> Ended:
    """`altgrad train` of the folder's spec into a store."""
    sets = [word for setting in (*SETTINGS, *more) for word in ("--set", setting)]
    return altgrad(folder, "train", "spec.yaml", "--json", "--runs", str(runs), *sets)


def told(found: Ended, code: int = 3) -> str | None:
    """What is wrong with how it ended, if anything is."""
    lines = [line for line in found.stderr.splitlines() if line.strip()]
    if found.returncode != code or len(lines) != 1 or "Traceback" in found.stderr:
        return f"exit {found.returncode}, {len(lines)} lines: {found.stderr[-300:]}"
    return None


def full(seed: int, count: int, folder: Path) -> Figures:
    """A tmpfs of 2 MB that is full after a drawn number of bytes; then it has room again, and the run goes on."""
    figures, draw = Figures(seed), random.Random(seed)
    words_file(folder / "words.txt")
    (folder / "spec.yaml").write_text(spec_text("words.txt"))
    assert train(folder, folder / "whole").returncode == 0
    (whole,) = (folder / "whole" / "faults").iterdir()
    with mounted(folder / "disk", "-o", "size=2m") as disk:
        for number in range(count):
            for path in disk.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            room = draw.randrange(40_000, 700_000)
            (disk / "ballast").write_bytes(bytes(2 * 1024**2 - room - 8192))
            found = train(folder, disk / "runs")
            case = f"{number} with {room} bytes"
            if found.returncode == 0:
                figures.add("completed, there was room")
                continue
            if wrong := told(found):
                figures.fail(wrong, case)
                continue
            (disk / "ballast").unlink()
            again = train(folder, disk / "runs")
            (run,) = (disk / "runs" / "faults").iterdir()
            if again.returncode or curve(Run(run)) != curve(Run(whole)):
                figures.fail(f"not continued: {again.returncode} {again.stderr[-200:]}", case)
            else:
                figures.add("one line, exit 3; continued to the same curve")
    return figures


def closed(seed: int, count: int, folder: Path) -> Figures:
    """A store that may only be read (a read-only mount), and one that belongs to someone else (another user id)."""
    figures = Figures(seed)
    words_file(folder / "words.txt")
    (folder / "spec.yaml").write_text(spec_text("words.txt"))
    with mounted(folder / "disk", "-o", "size=8m") as disk:
        assert train(folder, disk / "runs", "steps=6").returncode == 0
        (run,) = (disk / "runs" / "faults").iterdir()
        before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        judged = {
            "a new run": (told(train(folder, disk / "runs", "steps=7")), "one line, exit 3"),
            "an ended run, trained again": (_fine(train(folder, disk / "runs", "steps=6")), "completed before"),
            "runs list": (_fine(altgrad(folder, "runs", "list", "--runs", str(disk / "runs"))), "read"),
            "runs show": (_fine(altgrad(folder, "runs", "show", run.name, "--runs", str(disk / "runs"))), "read"),
            "evaluate": (
                _fine(altgrad(folder, "evaluate", run.name, "--split", "validation", "--runs", str(disk / "runs"))),
                "read",
            ),
            "report": (
                told(altgrad(folder, "report", "--runs", str(disk / "runs"), "--out", str(disk / "report"))),
                "one line, exit 3",
            ),
            "quantize-model": (
                told(altgrad(folder, "quantize-model", str(run), "--format", "e4m3fn", "--out", str(disk / "out"))),
                "one line, exit 3",
            ),
        }
        for what, (wrong, good) in judged.items():
            figures.fail(wrong, what) if wrong else figures.add(good)
        if before != {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}:
            figures.fail("the store changed", "read-only")
    return figures


def _fine(found: Ended) -> str | None:
    return None if found.returncode == 0 else f"exit {found.returncode}: {found.stderr[-300:]}"


FORBIDDEN = 22
"""Cases of `forbidden`."""


def no_permissions() -> str | None:
    """Why permission bits cannot be made to hold here, if so."""
    return None if sys.platform.startswith("linux") or os.geteuid() else "root is above them"


def forbidden(seed: int, count: int, folder: Path) -> Figures:
    """Permission bits taken from what a command reads or writes: one line that names it, and nothing changed."""
    figures = Figures(seed)
    words_file(folder / "words.txt")
    (folder / "spec.yaml").write_text(spec_text("words.txt"))
    (folder / "sweep.yaml").write_text("base: spec.yaml\nseeds: [1, 2]\n")
    assert train(folder, folder / "runs", "steps=6").returncode == 0
    (run,) = (folder / "runs" / "faults").iterdir()
    newest = max(run.glob("checkpoints/step-*"))
    (folder / "new").mkdir()
    again = ["train", "spec.yaml", "--json", *(word for s in (*SETTINGS, "steps=6") for word in ("--set", s)), "--runs"]
    cast = ["quantize-model", str(run), "--format", "e5m2", "--out", "new/q"]
    cases: list[tuple[Path, int, list[str], int, str]] = [
        (run.parent, 0o555, ["train", "spec.yaml", "--json", "--runs", "runs"], 3, "Permission denied"),
        (folder / "new", 0o555, [*again, "new/runs"], 3, "Permission denied"),
        (folder / "new", 0o000, [*again, "new/runs"], 3, "Permission denied"),
        (folder / "runs", 0o555, ["sweep", "sweep.yaml"], 3, "Permission denied"),
        (folder / "new", 0o555, ["report", "--out", "new/report"], 3, "Permission denied"),
        (folder / "new", 0o555, cast, 3, "Permission denied"),
        (folder / "words.txt", 0o000, [*again, "new/runs"], 2, "words.txt: Permission denied"),
        (folder / "spec.yaml", 0o000, [*again, "new/runs"], 2, "spec.yaml' is not readable"),
        (run, 0o000, ["runs", "list"], 0, "damaged"),
        (run, 0o000, ["runs", "show", run.name], 3, "Permission denied"),
        (run, 0o000, [*again, "runs"], 3, "Permission denied"),
        (run / "meta.json", 0o000, ["runs", "show", run.name], 3, "meta.json: Permission denied"),
        (run / "metrics.jsonl", 0o000, ["runs", "list"], 0, "damaged"),
        (run / "metrics.jsonl", 0o000, ["report", "--out", "report"], 0, "1 with problem"),
        (newest, 0o000, ["evaluate", run.name], 0, "at step 5"),
        *((path, 0o000, ["evaluate", run.name], 0, "at step 5") for path in sorted(newest.iterdir())),
        (run / "checkpoints", 0o000, ["evaluate", run.name], 3, "Permission denied"),
        (run / "checkpoints", 0o000, cast, 3, "Permission"),
    ]  # fmt: skip
    for path, mode, line, code, word in cases[:: FORBIDDEN // count]:  # of a few every so many, none drawn
        case, usual = f"{path.name} {mode:03o}: {' '.join(line)}", path.stat().st_mode
        before = _bytes(folder)
        path.chmod(mode)
        try:
            found = altgrad(folder, *line, obeys=True)
        finally:
            path.chmod(usual)
        said = found.stderr + (folder / ".stdout").read_text()
        if found.returncode != code or word not in said or "Traceback" in said:
            figures.fail(f"exit {found.returncode}, {said[-300:]}", case)
        elif code and before != _bytes(folder):
            figures.fail("files were changed", case)
        else:
            figures.add(
                "reported as damaged, or the checkpoint before is used" if code == 0 else f"one line, exit {code}"
            )
        shutil.rmtree(folder / "report", ignore_errors=True)
    return figures


def _bytes(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.parent != folder}


def vanished(seed: int, count: int, folder: Path) -> Figures:
    """The run's folder is renamed away while it trains: one line, and what was kept continues when it is back."""
    figures = Figures(seed)
    words_file(folder / "words.txt")
    (folder / "spec.yaml").write_text(spec_text("words.txt"))
    assert train(folder, folder / "whole", "steps=60").returncode == 0
    (whole,) = (folder / "whole" / "faults").iterdir()
    sets = [word for setting in (*SETTINGS, "steps=60") for word in ("--set", setting)]
    for number in range(count):
        runs = folder / str(number)
        process = start(folder, ["train", "spec.yaml", "--json", "--runs", str(runs), *sets])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not list(runs.glob("faults/*/checkpoints/step-00000005")):
            time.sleep(0.005)
        (run,) = (runs / "faults").iterdir()
        run.rename(folder / f"away-{number}")
        if wrong := told(Ended(process.wait(), process.errors.read_text())):
            figures.fail(wrong, number)
            continue
        shutil.rmtree(run, ignore_errors=True)
        (folder / f"away-{number}").rename(run)
        again = train(folder, runs, "steps=60")
        if again.returncode or curve(Run(run)) != curve(Run(whole)):
            figures.fail(f"not continued: {again.returncode} {again.stderr[-200:]}", number)
        else:
            figures.add("one line, exit 3; continued to the same curve")
    return figures


JUMPY = """
import sys, time, random
draw = random.Random(int(sys.argv.pop(1)))
real, shift = time.time, [0.0]
def jumpy():
    if draw.random() < 0.3:
        shift[0] = draw.choice([-1e9, -86400.0, -1.0, 0.0, 3600.0, 4e8])
    return real() + shift[0]
time.time = jumpy
import datetime
class Jumpy(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(jumpy(), tz)
import altgrad.store.files as files
files.datetime = Jumpy
from altgrad.cli.main import main
main()
"""


def clock(seed: int, count: int, folder: Path) -> Figures:
    """The wall clock jumps by seconds to decades, both ways, as a run trains: curve, status and listing stand."""
    figures = Figures(seed)
    words_file(folder / "words.txt")
    (folder / "spec.yaml").write_text(spec_text("words.txt"))
    assert train(folder, folder / "whole").returncode == 0
    (whole,) = (folder / "whole" / "faults").iterdir()
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    for number in range(count):
        runs = folder / str(number)
        for line in (["train", "spec.yaml", "--runs", str(runs), *sets], ["runs", "list", "--runs", str(runs)]):
            found = subprocess.run(
                [sys.executable, "-c", JUMPY, str(seed * 1000 + number), *line],
                cwd=folder, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            if found.returncode or "Traceback" in found.stderr:
                figures.fail(f"exit {found.returncode} {found.stderr[-300:]}", f"{number} {line[0]}")
                break
        else:
            (run,) = (runs / "faults").iterdir()
            same = curve(Run(run)) == curve(Run(whole)) and Run(run).status == "completed"
            figures.add("curve identical") if same else figures.fail("another curve or status", number)
    return figures
