"""Atomic replacement, logs of whole lines, and numbers that JSON cannot spell."""

import json
import math
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altgrad.store.files import (
    Appender,
    DamagedError,
    cut_torn,
    json_line,
    read_jsonl,
    read_jsonl_backwards,
    read_nonfinite,
    row_of,
    seal,
    seconds_since,
    spell_nonfinite,
    truncate_jsonl,
    utc_now,
    write_atomic,
)


def lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_bytes(b"".join(map(json_line, rows)))
    return path


def test_time_stamps_are_utc_with_z_and_read_back() -> None:
    assert utc_now().endswith("Z")
    assert len(utc_now()) == len("2026-03-01T12:00:00.000Z")
    assert 0 <= seconds_since(utc_now()) < 60
    assert seconds_since("2999-01-01T00:00:00.000Z") == 0


@given(st.floats())
def test_every_float_survives_a_line_bit_for_bit(value: float) -> None:
    line = json_line({"step": 1, "x": value})
    back = read_nonfinite(json.loads(line, parse_constant=lambda name: pytest.fail(f"not JSON: {name}")))["x"]
    assert repr(back) == repr(float("nan") if math.isnan(value) else value)


def test_non_finite_values_are_encoded_at_any_depth() -> None:
    tree = {"a": [math.inf, {"b": -math.inf}], "c": 1, "d": "text"}
    assert spell_nonfinite(tree) == {"a": ["inf", {"b": "-inf"}], "c": 1, "d": "text"}
    assert read_nonfinite(spell_nonfinite(tree)) == tree


@pytest.mark.parametrize("durable", [True, False])
def test_an_atomic_write_replaces_and_leaves_nothing_aside(tmp_path: Path, durable: bool) -> None:
    for data in (b"one", b"", b"two" * 1000):
        write_atomic(tmp_path / "file", data, durable=durable)
        assert (tmp_path / "file").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_atomic_write_that_fails_leaves_nothing_aside(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path, error in ((tmp_path / "folder", IsADirectoryError), (tmp_path / "gone" / "file", FileNotFoundError)):
        with pytest.raises(error):
            write_atomic(path, b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_torn_last_line_is_cut_at_every_length(tmp_path: Path) -> None:
    path = lines(tmp_path / "log", [{"step": 1, "x": 1.5}, {"step": 2, "x": "é", "y": -0.25}])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        kept = 0 if length < first else 1
        told: list[str] = []
        assert len(list(read_jsonl(path, told.append))) == kept
        assert len(list(read_jsonl_backwards(path))) == kept
        torn = length - (0 if length < first else first)
        assert len(told) == (torn > 0)
        assert cut_torn(path) == torn
        assert path.read_bytes() == whole[: first * kept]


def test_a_last_line_of_garbage_is_torn_even_with_a_newline(tmp_path: Path) -> None:
    path = lines(tmp_path / "log", [{"step": 1}])
    for garbage in (b"\0" * 300_000, b"\0\0\n", b"[1]\n", b"{\r\xff}\n", b"[" * 100_000 + b"\n"):
        path.write_bytes(b'{"step": 1}\n' + garbage)
        assert list(read_jsonl(path)) == list(read_jsonl_backwards(path)) == [{"step": 1}]
        assert cut_torn(path) == len(garbage)
        assert path.read_bytes() == b'{"step": 1}\n'


def test_damage_in_the_middle_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"log:2: not a JSON object"):
        list(read_jsonl(path))
    with pytest.raises(ValueError, match=r"log:2: not a row with a step, but rows up to step 3"):
        truncate_jsonl(path, 3)
    assert truncate_jsonl(path, 1) == 2  # all after step 1 goes anyway
    assert path.read_bytes() == b'{"step": 1}\n'


def test_no_flipped_bit_in_a_row_goes_unseen_and_other_readers_see_no_seal() -> None:
    row = {"step": 10, "train/loss": 2.3125, "x": "é"}
    line = json_line(row)
    assert json.loads(line) == row_of(line) == row
    for bit in range(8 * len(line)):
        damaged = bytearray(line)
        damaged[bit // 8] ^= 1 << bit % 8
        assert all(row_of(part + b"\n") is None for part in bytes(damaged).split(b"\n")), bit
    assert row_of(line.replace(b"2.3125", b"2.3135")) is None, "another number under the old seal"
    assert row_of(line.rstrip() + b"\n") == row, "without blanks nothing is sealed"


@pytest.mark.parametrize("kept", range(4))
def test_a_log_that_is_shorter_than_it_was_is_an_error(tmp_path: Path, kept: int) -> None:
    path = lines(tmp_path / "log", [{"step": step} for step in range(4)])
    whole = path.stat().st_size
    for cut in (0, 1):
        path.write_bytes(path.read_bytes()[: kept * whole // 4 - cut] if kept or not cut else b"")
        for reader in (read_jsonl, read_jsonl_backwards):
            with pytest.raises(DamagedError, match=r"its end is lost"):
                list(reader(path, whole=whole))
    path.unlink()
    with pytest.raises(DamagedError, match=rf"has 0 bytes of the {whole} that were written"):
        list(read_jsonl(path, whole=whole))


def test_a_torn_last_line_is_damage_where_it_was_known_to_be_whole(tmp_path: Path) -> None:
    path = lines(tmp_path / "log", [{"step": 1}, {"step": 2}])
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    assert list(read_jsonl(path)) == list(read_jsonl_backwards(path)) == [{"step": 1}]
    for reader in (read_jsonl, read_jsonl_backwards):
        with pytest.raises(DamagedError, match=r"log:(2| byte)"):
            list(reader(path, whole=whole))


def test_read_backwards_damage_in_the_middle_is_an_error_and_not_an_older_value(tmp_path: Path) -> None:
    path = lines(tmp_path / "log", [{"step": step, "x": step} for step in range(3)])
    path.write_bytes(path.read_bytes().replace(b'"x": 1', b'"x": 7'))
    rows = read_jsonl_backwards(path)
    assert next(rows) == {"step": 2, "x": 2}
    with pytest.raises(DamagedError, match=r"byte \d+: not a JSON object"):
        next(rows)


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert list(read_jsonl(path)) == list(read_jsonl_backwards(path)) == []
    assert cut_torn(path) == truncate_jsonl(path, 5) == 0
    assert not path.exists()


def test_reading_backwards_is_reading_forwards_reversed_whatever_the_line_lengths(tmp_path: Path) -> None:
    generator = random.Random(0)
    for count in (0, 1, 2, 50):
        rows = [{"step": i, "x": "a" * generator.choice([0, 5, 65_530, 70_000, 200_000])} for i in range(count)]
        path = lines(tmp_path / "log", rows)
        assert list(read_jsonl_backwards(path)) == rows[::-1]


@given(st.lists(st.integers(0, 6), max_size=8).map(sorted), st.integers(-1, 7), st.binary(max_size=5))
def test_truncation_keeps_exactly_the_rows_up_to_a_step(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], step: int, torn: bytes
) -> None:
    path = lines(tmp_path_factory.mktemp("log") / "log", [{"step": i, "n": n} for n, i in enumerate(steps)])
    with path.open("ab") as file:
        file.write(torn.replace(b"\n", b""))
    truncate_jsonl(path, step)
    assert list(read_jsonl(path)) == [{"step": i, "n": n} for n, i in enumerate(steps) if i <= step]


def test_an_appender_cuts_what_a_death_left_before_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "x"')
    log = Appender(path)
    assert log.cut == len(b'{"step": 2, "x"')
    log.append({"step": 2})
    log.sync()
    log.close()
    log.close()
    assert path.read_bytes() == b'{"step": 1}\n' + seal(b'{"step": 2}')


def test_a_full_disk_is_an_error_and_leaves_whole_lines(tmp_path: Path, python) -> None:
    script = """
import resource, signal, sys
from pathlib import Path
from altgrad.store.files import Appender
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
log = Appender(Path(sys.argv[1]))
try:
    while True:
        log.append({"step": 1, "x": "a" * 100})
except OSError as error:
    print(error)
"""
    process = python(script, tmp_path / "log")
    said, _ = process.communicate()
    assert process.returncode == 0
    assert "free some space" in said
    data = (tmp_path / "log").read_bytes()
    assert data.endswith(b"\n")
    assert len(list(read_jsonl(tmp_path / "log"))) == data.count(b"\n") == 6


def test_a_reader_beside_the_writer_sees_whole_lines_only(tmp_path: Path, python) -> None:
    script = """
import sys
from pathlib import Path
from altgrad.store.files import Appender
log = Appender(Path(sys.argv[1]))
for step in range(3000):
    log.append({"step": step, "x": "a" * (step * 37 % 9000), "end": step})
"""
    path = tmp_path / "log"
    process = python(script, path)
    seen, rounds = 0, 0
    while process.poll() is None or rounds == 0:
        rows = list(read_jsonl(path))
        assert all(row["end"] == row["step"] == n for n, row in enumerate(rows))
        assert len(rows) >= seen
        seen, rounds = len(rows), rounds + 1
    assert process.returncode == 0
    assert len(list(read_jsonl(path))) == 3000


def test_fifteen_kills_in_the_middle_of_writing_leave_a_whole_file_each_time(tmp_path: Path, python) -> None:
    script = """
import sys
from pathlib import Path
from altgrad.store.files import write_atomic
number = int(sys.argv[2])
while True:
    number += 1
    write_atomic(Path(sys.argv[1]), (str(number) + " ").encode() * 50_000)
    print(number, flush=True)
"""
    generator = random.Random(1)
    path, number = tmp_path / "file", 0
    for _ in range(15):
        process = python(script, path, number)
        said = int(process.stdout.readline())
        time.sleep(generator.uniform(0, 0.03))
        process.kill()
        said = max([said, *map(int, process.stdout.read().split())])
        words = set(path.read_text().split())
        assert len(words) == 1
        assert len(path.read_text().split()) == 50_000
        number = int(words.pop())
        assert number in (said, said + 1)  # what was acknowledged is there; what was not may be
