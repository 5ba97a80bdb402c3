"""Claims about the command line: whatever is typed wrong, at any parameter of any command, is one line of ours."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from altgrad.cli.main import app

WRONG = {
    "number": ["x", "", "1e", "0x", "9" * 5000, "nan", "-1", "inf", "½"],
    "text": ["", "\udcff", "x\0y", "[", "{kind: 3}", "x" * 5000, "-"],
}
FOREIGN = re.compile(r"pydantic|nput should|Value error|validation error|Traceback|Usage:|unable to parse|<class", re.I)


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of the program, with the words that lead to it."""
    command = typer.main.get_command(app) if command is None else command
    children = getattr(command, "commands", {})
    if not children:
        yield path, command
    for name, child in children.items():
        yield from commands(child, (*path, name))


def cases() -> Iterator[tuple[str, list[str]]]:
    """A wrong value at each parameter; others that are needed are there and name nothing."""
    for path, command in commands():
        needed = {p.name: f"no-{p.name}" for p in command.params if p.param_type_name == "argument" and p.required}
        for p in command.params:
            if getattr(p, "is_flag", False):
                continue
            typed = type(p.default) in (int, float) or p.name in ("jobs", "margin", "move_rate")
            for value in WRONG["number" if typed else "text"]:
                given = {**needed, **({p.name: value} if p.param_type_name == "argument" else {})}
                option = [] if p.param_type_name == "argument" else [max(p.opts, key=len), value]
                more = {"export": ("out", "o"), "policy": ("to", "te")}.get(path[0], ("", ""))
                also = [f"--{more[0]}", more[1]] if more[0] not in ("", p.name) else []
                yield f"{' '.join(path)} {p.name} {value[:9]!a}", [*path, *option, *also, "--", *given.values()]


CASES = dict(cases())


def test_every_command_and_typed_option_is_among_the_cases() -> None:
    assert {path for path, _ in commands()} >= {("train",), ("sweep",), ("runs", "rm"), ("formats", "compare")}
    assert len(CASES) > 300 and sum(name.startswith(("sweep jobs", "sweep margin")) for name in CASES) == 18


def test_usage_is_written_as_man_pages_have_it() -> None:
    usage = {}
    for path, _ in commands():
        page = CliRunner().invoke(app, [*path, "--help"], prog_name="altgrad").stdout
        usage[" ".join(path)] = page.splitlines()[0].partition(" [OPTIONS]")[2].strip()
        assert not re.search(r"[{}<]", page.partition("Options:")[0].partition("Arguments:")[2] + usage[" ".join(path)])
    assert usage["train"] == "[SPEC]" and usage["init"] == "[PATH]" and usage["kinds"] == "[FAMILY]"
    assert usage["runs rm"] == "RUN..." and usage["runs export"] == "[RUN]..." and usage["compare"] == "TARGET..."
    assert usage["runs diff"] == "A B" and usage["report"] == ""


def said(args: list[str]) -> tuple[int, str]:
    found = CliRunner().invoke(app, args)
    assert found.exception is None or isinstance(found.exception, SystemExit), (args, found.exc_info)
    return found.exit_code, found.stderr


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.long)])
def test_whatever_is_typed_wrong_is_one_line_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """Daily every third case: two or three values of each parameter, of some the one and of some the other."""
    wrong = []
    for number, (name, args) in enumerate(list(CASES.items())[::every]):
        (tmp_path / str(number)).mkdir()  # some values name a file that is then written
        monkeypatch.chdir(tmp_path / str(number))
        found = CliRunner().invoke(app, args)
        line, leaves = found.stderr, found.exception is None or isinstance(found.exception, SystemExit)
        told = found.exit_code == 0 or (line.count("\n") == 1 and line.strip().isprintable())
        if not leaves or found.exit_code not in (0, 1, 2, 3) or not told or FOREIGN.search(line):
            wrong.append((name, found.exit_code, line[:300], found.exception))
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["sweep", "m.yaml", "--jobs", "x"], "--jobs is 'x'; it takes a whole number, 1 or more."),
        (["sweep", "m.yaml", "--retries", "-1"], "--retries is '-1'; it takes a whole number, 0 or more."),
        (["sweep", "m.yaml", "--margin", "big"], "--margin is 'big'; it takes a number."),
        (["sweep", "m.yaml", "--rerun", "all"], "--rerun is 'all'; it takes failed."),
        (["train", "r.yaml", "--resume", "x"], "--resume is 'x'; it takes one of auto, never."),
        (["evaluate", "r", "--split", "y"], "--split is 'y'; it takes one of train, validation, test."),
        (["runs", "list", "--nope"], r"No such option: --nope; see altgrad runs list -h."),
        (["train"], "Missing argument 'SPEC'; see altgrad train -h."),
        (["foo"], "No such command 'foo'; see altgrad -h."),
    ],
)
def test_the_line_names_the_parameter_the_value_and_what_it_takes(args: list[str], line: str) -> None:
    code, told = said(args)
    assert code == 2 and re.sub(r"see \S+ ", "see altgrad ", told) == line + "\n"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("WORLD_SIZE", "two"), ("WORLD_SIZE", "0"), ("RANK", "x"), ("LOCAL_RANK", "x")],
)
def test_an_environment_that_makes_no_sense_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    (tmp_path / "r.yaml").write_text(
        "{model: {kind: gpt, layers: 1, width: 8, heads: 1, context: 8}, data: text, optimizer: adamw, steps: 1}"
    )
    monkeypatch.chdir(tmp_path)
    for name, given in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, given)
    monkeypatch.setenv(variable, value)
    code, line = said(["train", "r.yaml", "--dry-run"])
    assert code == 3 and line.count("\n") == 1 and line.startswith(f"{variable} is '{value}'"), line
