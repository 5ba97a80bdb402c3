"""Checkpoints: every byte accounted for, the previous one used on any mismatch, no death that loses both."""

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from altgrad.store.checkpoints import MANIFEST, CheckpointError, Checkpoints, mismatch

# Kills itself with SIGKILL just before the n-th thing it does to the file system. Prints each step once it is written.
DYING_WRITER = """
import itertools, os, signal, sys
from pathlib import Path
from altgrad.store.checkpoints import Checkpoints
folder, keep, fatal, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].split(",")
done = itertools.count()
def audit(event, args):
    if event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"} and next(done) == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(audit)
for step in steps:
    content = f"{step} {fatal}".encode()
    files = {name: lambda path: path.write_bytes(content) for name in ("state.json", "model.safetensors")}
    Checkpoints(folder, keep).write(int(step), files)
    os.write(1, f"{step}\\n".encode())
"""


def text(content: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(content)

    return write


def write(snapshots: Checkpoints, *steps: int) -> None:
    for step in steps:
        snapshots.write(step, {"state.json": text(f"{step}"), "model.safetensors": text("\0" * step)})


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_nothing_written_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").newest() is None
    assert Checkpoints(tmp_path / "none").steps() == []


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    snapshots = Checkpoints(tmp_path / "checkpoints")
    write(snapshots, 3, 7)
    newest = snapshots.newest()
    assert newest is not None
    assert (newest.step, newest.path.name, newest.rejected) == (7, "step-00000007", ())
    assert newest.file("state.json").read_text() == "7"
    with pytest.raises(ValueError, match=r"has no file 'optimizer'; it has model.safetensors, state.json"):
        newest.file("optimizer")
    assert sorted(path.name for path in snapshots.folder.iterdir()) == ["step-00000003", "step-00000007"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    snapshots = Checkpoints(tmp_path, keep)
    write(snapshots, 0, 10, 20, 30)
    assert snapshots.steps() == [0, 10, 20, 30][-keep:]


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"keep is 0; at least 1"):
        Checkpoints(tmp_path, 0)


def test_a_step_beyond_ten_digits_keeps_its_order(tmp_path: Path) -> None:
    snapshots = Checkpoints(tmp_path)
    write(snapshots, 5)
    snapshots.write(10**9, {"a": text("a")})
    assert snapshots.steps() == [5, 10**9]


def test_every_single_flipped_bit_is_detected(tmp_path: Path) -> None:
    snapshots = Checkpoints(tmp_path)
    write(snapshots, 8, 9)
    for name in ("state.json", "model.safetensors", MANIFEST):
        path = tmp_path / "step-00000009" / name
        for bit in range(8 * path.stat().st_size):
            flip(path, bit)
            assert mismatch(path.parent, 9) is not None, (name, bit)
            flip(path, bit)
    assert mismatch(tmp_path / "step-00000009", 9) is None


def test_every_truncation_and_extension_is_detected(tmp_path: Path) -> None:
    write(Checkpoints(tmp_path), 9)
    folder = tmp_path / "step-00000009"
    for name in ("state.json", "model.safetensors", MANIFEST):
        whole = (folder / name).read_bytes()
        for length in range(len(whole)):
            (folder / name).write_bytes(whole[:length])
            assert mismatch(folder, 9) is not None, (name, length)
        for added in (b"\0", b"\n", b" ", whole):
            (folder / name).write_bytes(whole + added)
            assert mismatch(folder, 9) is not None, (name, added)
        (folder / name).write_bytes(whole)
    assert mismatch(folder, 9) is None


def damages() -> dict[str, Callable[[Path], object]]:
    return {
        "is missing": lambda folder: (folder / "state.json").unlink(),
        "cannot be read": lambda folder: (folder / MANIFEST).unlink(),
        "other is not in manifest.json": lambda folder: (folder / "other").write_bytes(b""),
        "is not a plain file": lambda folder: (
            (folder / "state.json").rename(folder.parent / ".elsewhere"),
            (folder / "state.json").symlink_to(folder.parent / ".elsewhere"),
        ),
        "bytes instead of": lambda folder: (folder / "model.safetensors").write_bytes(b"ab"),
        "state.json does not match its checksum": lambda folder: (folder / "state.json").write_text("8"),
        "is not JSON": lambda folder: (folder / MANIFEST).write_bytes(b"[" * 100_000),
        "does not match its own checksum": lambda folder: (folder / MANIFEST).write_bytes(b"[]"),
        "is of step 7": lambda folder: (
            shutil.rmtree(folder),
            shutil.copytree(folder.parent / "step-00000007", folder),
        ),
    }


@pytest.mark.parametrize("reason", damages())
def test_on_any_mismatch_the_previous_is_used_and_the_reason_told(tmp_path: Path, reason: str) -> None:
    snapshots = Checkpoints(tmp_path, 3)
    write(snapshots, 7, 9)
    damages()[reason](tmp_path / "step-00000009")
    newest = snapshots.newest()
    assert newest is not None
    assert newest.step == 7
    assert [each.path.name for each in newest.rejected] == ["step-00000009"]
    assert reason in newest.rejected[0].reason


def test_when_none_verifies_it_is_an_error_that_names_each(tmp_path: Path) -> None:
    snapshots = Checkpoints(tmp_path)
    write(snapshots, 7, 9)
    for step in snapshots.steps():
        flip(tmp_path / f"step-{step:08d}" / "state.json", 0)
    with pytest.raises(CheckpointError, match=r"step-00000009: state.json .*; step-00000007: state.json"):
        snapshots.newest()


def test_a_damaged_newest_never_pushes_out_a_valid_one(tmp_path: Path) -> None:
    snapshots = Checkpoints(tmp_path, 1)
    write(snapshots, 10)
    (tmp_path / "step-00000020").mkdir()  # damaged, and of a future that is now lived again
    write(snapshots, 12)
    assert snapshots.steps() == [12]
    assert snapshots.newest() is not None


def test_a_step_can_be_written_again(tmp_path: Path) -> None:
    snapshots = Checkpoints(tmp_path)
    write(snapshots, 5, 6)
    flip(tmp_path / "step-00000006" / "state.json", 3)
    snapshots.write(6, {"state.json": text("again")})
    newest = snapshots.newest()
    assert newest is not None
    assert newest.file("state.json").read_text() == "again"
    assert snapshots.steps() == [5, 6]


def test_an_error_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    snapshots = Checkpoints(tmp_path)
    write(snapshots, 5)

    def broken(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        snapshots.write(6, {"state.json": text("6"), "model.safetensors": broken})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    assert snapshots.newest() is not None


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "nul\0", MANIFEST, "/absolute"])
def test_a_checkpoint_file_cannot_have_a_name_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a checkpoint file"):
        Checkpoints(tmp_path / "here").write(1, {name: text("x")})
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_two_identical_snapshots_are_byte_identical(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(Checkpoints(tmp_path / name), 4)
    manifests = [(tmp_path / name / "step-00000004" / MANIFEST).read_bytes() for name in ("a", "b")]
    assert manifests[0] == manifests[1]
    assert set(json.loads(manifests[0])) == {"step", "files", "sha256"}


@pytest.mark.parametrize(
    ("before", "steps", "keep"),
    [((10, 20), (30,), 2), ((10,), (10,), 1), ((10, 20), (15,), 1), ((10, "died while replacing"), (20,), 1)],
)
def test_a_death_at_any_point_of_writing_loses_nothing(
    tmp_path: Path, python, before: tuple[object, ...], steps: tuple[int, ...], keep: int
) -> None:
    """Killed before its 1st, 2nd, ... action on the file system until it survives: all the crash points there are."""
    deaths = 0
    for fatal in range(200):
        folder = tmp_path / str(fatal)
        write(Checkpoints(folder, 5), *(step for step in before if isinstance(step, int)))
        if "died while replacing" in before:
            (folder / "step-00000010").rename(folder / ".replaced-step-00000010")
        process = python(DYING_WRITER, folder, keep, fatal, ",".join(map(str, steps)))
        acknowledged = process.communicate()[0].split()
        newest = Checkpoints(folder).newest()
        assert newest is not None
        assert newest.rejected == ()
        assert newest.step in (max(step for step in before if isinstance(step, int)), steps[-1])
        if newest.file("state.json").read_text() not in (str(newest.step), f"{newest.step} {fatal}"):
            pytest.fail("the files are not of one writing")
        if acknowledged:
            assert newest.step == steps[-1]
        write(Checkpoints(folder, keep), 40)  # whoever comes next clears up what was left
        assert Checkpoints(folder).steps()[-1] == 40
        assert all(path.name.startswith("step-") for path in folder.iterdir())
        if process.returncode == 0:
            break
        deaths += 1
    assert process.returncode == 0
    assert deaths > 10


def test_fifteen_kills_at_random_moments_lose_no_acknowledged_snapshot(tmp_path: Path, python) -> None:
    script = """
import sys
from pathlib import Path
from altgrad.store.checkpoints import Checkpoints
step = int(sys.argv[2])
while True:
    step += 1
    files = {name: lambda path: path.write_bytes(b"%d " % step * 20_000) for name in ("a", "b", "c")}
    Checkpoints(Path(sys.argv[1])).write(step, files)
    print(step, flush=True)
"""
    generator = random.Random(2)
    step = 0
    for _ in range(15):
        process = python(script, tmp_path, step)
        said = int(process.stdout.readline())
        time.sleep(generator.uniform(0, 0.03))
        process.kill()
        said = max([said, *map(int, process.stdout.read().split())])
        newest = Checkpoints(tmp_path).newest()
        assert newest is not None
        assert newest.rejected == ()
        assert newest.step in (said, said + 1)
        step = newest.step
