"""Claims about the run over all float32 patterns: it is right, it can fail, it goes on, the page says what it found."""

import ast
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from altgrad.formats import CATALOG, FloatFormat, round_value
from altgrad.quantize import round_to
from bench import exhaustive
from bench.exhaustive import SOURCES, Progress, State, fingerprint, formats, run
from bench.oracle import INFINITY, SIGN, Mismatch, Table, bits_of, value
from bench.page import refresh
from bench.patterns import CHUNK, ORACLES, casts, check_patterns, tables
from bench.peer_conformance import critical_patterns

ROOT = Path(__file__).resolve().parents[2]
DAILY = ("e4m3fn", "e5m2", "e0m7", "e7m0", "e2m1")
SMALL = [entry.name for entry in CATALOG if FloatFormat.parse(entry.name).bits <= 8]


def as_bits(x: Tensor) -> np.ndarray:
    return x.numpy().view(np.uint32)


def chunks(fmt: FloatFormat) -> list[int]:
    """Starts of the chunks, of both signs: at zero, a tie above 1, the ends of the format, and where NaNs begin."""
    tie = bits_of(1 + 2.0 ** -(fmt.mantissa_bits + 1))
    marks = (0, 1 << 23, tie, bits_of(float(fmt.min_subnormal)), bits_of(float(fmt.max)), INFINITY, SIGN - 1)
    return [sign | (mark // CHUNK * CHUNK) for mark in marks for sign in (0, SIGN)]


@pytest.mark.parametrize("name", [*DAILY, *(pytest.param(n, marks=pytest.mark.long) for n in SMALL if n not in DAILY)])
def test_the_table_is_what_exact_fractions_say(name: str) -> None:
    fmt = FloatFormat.parse(name)
    patterns = critical_patterns(fmt)
    patterns = np.concatenate(
        [patterns[:: len(patterns) // 1500], patterns[:200], np.uint32([INFINITY, SIGN | INFINITY])]
    )
    patterns = np.concatenate([patterns, patterns[-3:-2] + np.uint32(1)])
    expected = [float(round_value(fmt, float(value(int(bits))))) for bits in patterns]
    assert Table(fmt).expected(patterns).tolist() == [bits_of(x) for x in expected]
    assert Table(fmt).expected(np.uint32([INFINITY + 1, SIGN | 0x7FFFFFFF])).tolist() == [bits_of(math.nan)] * 2


@pytest.mark.parametrize("name", formats())
def test_casts_and_oracles_agree_with_the_table_on_the_chunks_that_matter(name: str) -> None:
    fmt = FloatFormat.parse(name)
    judges, found = tables(fmt), casts(fmt)
    found.pop("compiled", None)  # minutes of compiling; tests/quantize/test_engine.py holds it to the eager bits
    for kind, cast in found.items():
        table = judges[kind]
        for start in chunks(fmt):
            compared, wrong, first = check_patterns(
                cast, table, start, start + CHUNK, table.in_range if kind in ORACLES else SIGN
            )
            assert (wrong, first) == (0, None), f"{kind}: {first}"
            assert compared == CHUNK or kind in ORACLES


def test_together_the_chunks_are_all_patterns_once() -> None:
    seen = np.zeros(1 << 14, dtype=int)

    def note(x: Tensor) -> np.ndarray:
        bits = as_bits(x)
        assert bits[0] % CHUNK == 0 and (np.diff(bits) == 1).all()
        seen[int(bits[0]) // CHUNK] += 1
        return bits

    table = Table(FloatFormat.parse("e4m3fn"))
    for start in (0, SIGN - 4 * CHUNK, (1 << 32) - 4 * CHUNK):
        assert check_patterns(note, table, start, start + 4 * CHUNK)[0] == 4 * CHUNK
    assert seen.sum() == 12 and seen.max() == 1 and seen[[0, 3, 8188, 8191, 16380, 16383]].all()


WRONG: dict[str, Callable[[Tensor, FloatFormat], Tensor]] = {
    "ties away": lambda x, fmt: round_to(x, fmt, "nearest_away"),
    "truncation": lambda x, fmt: round_to(x, fmt, "toward_zero"),
    "no -0": lambda x, fmt: round_to(x, fmt) + 0.0,
    "no NaN": lambda x, fmt: round_to(x, fmt).nan_to_num(),
    "infinity": lambda x, fmt: torch.where(x.isinf(), x, round_to(x, fmt)),
    "one pattern": lambda x, fmt: torch.where(x == 1.0625, 1.125, round_to(x, fmt)),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_planted_fault_is_counted_and_its_first_pattern_named(fault: str) -> None:
    fmt = FloatFormat.parse("e4m3fn")
    table, planted = Table(fmt), WRONG[fault]
    found = [
        check_patterns(lambda x: as_bits(planted(x, fmt)), table, start, start + CHUNK) for start in set(chunks(fmt))
    ]
    assert sum(wrong for _, wrong, _ in found) > 0
    first = next(first for _, _, first in sorted(found, key=lambda each: each[2] or (1 << 32,)) if first)
    assert first.expected == int(table.expected(np.uint32([first.pattern]))[0])
    assert first.found == int(as_bits(planted(torch.tensor([value(first.pattern)]), fmt))[0]) != first.expected
    if fault == "one pattern":
        assert sum(wrong for _, wrong, _ in found) == 1
        assert str(first) == "1.0625 (0x3f880000) gives 1.125, not 1.0"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> State:
    """A state in which e4m3fn lacks the last two of its many segments of one chunk, which are NaNs."""
    monkeypatch.setattr(exhaustive, "SEGMENT", CHUNK)
    monkeypatch.setattr(exhaustive, "casts", lambda fmt: {"round_to": lambda x: as_bits(round_to(x, fmt))})
    state = State(tmp_path / "progress.json")
    state.of("e4m3fn", "round_to").segments = (1 << 32) // CHUNK - 2
    return state


def test_an_interrupted_run_goes_on_and_changed_sources_start_anew(
    short: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def stops(x: Tensor) -> np.ndarray:
        calls.append(int(as_bits(x)[0]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return as_bits(x)

    with monkeypatch.context() as patch:
        patch.setattr(exhaustive, "casts", lambda fmt: {"round_to": stops})
        with pytest.raises(KeyboardInterrupt):
            run(["e4m3fn"], short)
    again = State(short.path)
    assert again.of("e4m3fn", "round_to").segments == (1 << 32) // CHUNK - 1
    said: list[str] = []
    assert run(["e4m3fn"], again, said.append) == 0
    assert again.of("e4m3fn", "round_to").done and again.of("e4m3fn", "round_to").patterns == 2 * CHUNK
    assert len(said) == 1 and said[0].startswith("e4m3fn")
    monkeypatch.setitem(SOURCES, "round_to", ("bench/page.py",))
    assert State(short.path).of("e4m3fn", "round_to") == Progress()


@pytest.mark.parametrize("damage", ["", "{", '{"e4m3fn round_to": '])
def test_a_damaged_progress_file_is_begun_anew(tmp_path: Path, damage: str) -> None:
    (tmp_path / "progress.json").write_text(damage)
    assert State(tmp_path / "progress.json").found == {}


@pytest.mark.parametrize("wrong", [False, True])
def test_the_exit_code_and_the_page_say_whether_anything_is_wrong(
    short: State, wrong: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short.save()
    page = tmp_path / "page.md"
    if wrong:
        monkeypatch.setattr(exhaustive, "casts", lambda fmt: {"round_to": lambda x: np.zeros(len(x), np.uint32)})
    monkeypatch.setattr(sys, "argv", ["exhaustive", "e4m3fn", "--state", str(short.path), "--page", str(page)])
    with pytest.raises(SystemExit) as ended:
        exhaustive.main()
    assert ended.value.code == int(wrong)
    assert f"| e4m3fn | {2 * CHUNK if wrong else 0} of {2 * CHUNK:,} |" in page.read_text()
    assert "| e7m0 | not finished |" in page.read_text()
    assert ("first: nan" in capsys.readouterr().out) == wrong


def test_an_unknown_format_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["exhaustive", "e5m10"])
    with pytest.raises(SystemExit) as ended:
        exhaustive.main()
    assert ended.value.code == 2
    assert "e5m10 is no 8-bit format of the catalog; choose from e4m3fn, " in capsys.readouterr().err


def test_a_part_of_a_page_is_replaced_and_the_prose_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- b: begin -->\nold \\1\n<!-- b: end -->\nend\n")
    refresh(page, "b", "new \\1")
    refresh(page, "a", "first")
    refresh(page, "a", "second\n")
    assert page.read_text() == (
        "# Title\n\n<!-- b: begin -->\nnew \\1\n<!-- b: end -->\nend\n\n<!-- a: begin -->\nsecond\n<!-- a: end -->\n"
    )


def test_the_sources_a_check_names_import_nothing_of_ours_beyond_themselves() -> None:
    """Else a change could go unnoticed. What a check shares with the page (bench.exhaustive) decides no result."""
    for check, sources in SOURCES.items():
        named = [ROOT / source for source in sources]
        files = [file for path in named for file in ([path] if path.suffix else path.rglob("*.py"))]
        modules = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files}
        modules |= {"altgrad.quantize", "altgrad.quantize.engine"}  # bench.patterns takes every check's cast from there
        for file in files:
            for node in ast.walk(ast.parse(file.read_text())):
                origin = node.module if isinstance(node, ast.ImportFrom) else None
                outside = origin and re.match(r"(altgrad|bench)\b", origin) and origin not in modules
                assert not outside or check in {"eager", "compiled"}, f"{check}: {file.name} imports {origin}"


def test_fingerprints_change_with_code_and_not_with_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exhaustive, "ROOT", tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.py").write_text("x = 1")
    before = fingerprint(["a"])
    assert fingerprint(["a"]) == before
    (tmp_path / "a" / "b.py").write_text('"""Words."""\nx = 1  # one\n"""What x is."""\n')
    assert fingerprint(["a"]) == before
    marks = {before}
    for source in ("x = 2", "x = '1'", "x = 1\nx", "def f():\n    'f'\n    return 1", "def f():\n    return 'f'"):
        (tmp_path / "a" / "b.py").write_text(source)
        marks.add(fingerprint(["a"]))
    assert len(marks) == 6


def test_the_page_has_every_8_bit_format_without_a_mismatch() -> None:
    rows = re.findall(
        r"^\| (\w+) \| (\d+ of [\d,]+ .*)\|$",
        (ROOT / "docs" / "CONFORMANCE.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert [name for name, _ in rows] == formats()
    for _, cells in rows:
        assert cells.startswith("0 of 4,294,967,296 |")
        assert set(re.findall(r"(\d+) of", cells)) == {"0"}


def test_a_mismatch_reads_as_a_sentence() -> None:
    assert str(Mismatch(bits_of(-0.0), 0, SIGN)) == "-0.0 (0x80000000) gives 0.0, not -0.0"
