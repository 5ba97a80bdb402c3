"""On a machine nobody prepared, which may lack git, Slurm, a compiler or a browser, tests skip and say why."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
HERE = Path(__file__).name
STARTERS = {"run", "Popen", "check_call", "check_output", "call"}
ASKED = {"conftest.py", "disk.py"}
"""Files that may look for a program themselves: the marker's own, and campaigns, which also run without pytest."""


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(TESTS.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def first_word(node: ast.expr, tree: ast.Module) -> str | None:
    """The program of a command, None for the interpreter; of a name, that of every list it is ever given."""
    if isinstance(node, ast.List) and node.elts:
        head = node.elts[0]
        if isinstance(head, ast.Constant):
            return str(head.value)
        if isinstance(head, ast.Starred):
            return first_word(head.value, tree)
        return None if ast.unparse(head) == "sys.executable" else ast.unparse(head)
    if isinstance(node, ast.Name):
        given = [
            each.value
            for each in ast.walk(tree)
            if isinstance(each, ast.Assign) and any(isinstance(t, ast.Name) and t.id == node.id for t in each.targets)
        ]
        words = {first_word(value, tree) for value in given}
        return next(iter(words - {None}), None) if words else ast.unparse(node)
    return ast.unparse(node)


def test_every_test_that_starts_a_program_is_marked_as_needing_it() -> None:
    unmarked = []
    for path, tree in trees():
        if "subprocess" not in path.read_text(encoding="utf-8"):
            continue
        marked = {
            argument.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.needs"
            for argument in node.args
            if isinstance(argument, ast.Constant)
        }
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            if ast.unparse(node.func.value) == "subprocess" and node.func.attr in STARTERS:
                program = first_word(node.args[0], tree)
                unmarked += [(path.name, node.lineno, program)] if program and program not in marked else []
    helpers = {"disk.py": {"mount", "umount", "unshare"}, "chromium.py": {"bash"}}
    slurm = {"test_cluster.py": {"NODE", "sinfo", "squeue", "scancel", "scontrol"}}  # all of what `sbatch` comes with
    installed = {  # of altgrad itself, which the test installs first
        "test_newcomer.py": {"shlex.split(command)"},
        "test_packaging.py": {"program", "f'{sys.executable} -m altgrad.cli.main {option}; exit $?'"},
    }
    known = helpers | slurm | installed
    assert [each for each in unmarked if each[2] not in known.get(each[0], set())] == []


def test_nothing_but_the_marker_asks_the_path() -> None:
    asked = {path.name for path in TESTS.rglob("*.py") if "shutil.which" in path.read_text(encoding="utf-8")}
    assert asked - {HERE} <= ASKED


@pytest.mark.parametrize("file", ["store/test_checkout.py", "sweeps/test_launchers.py"])
def test_where_there_is_no_program_at_all_nothing_fails(file: str, tmp_path: Path) -> None:
    """A PATH with a shell's own tools alone, no home and no name."""
    for tool in ("sh", "cat", "cp", "true"):
        (tmp_path / tool).symlink_to(next(p for p in (Path("/bin") / tool, Path("/usr/bin") / tool) if p.exists()))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", str(TESTS / file)]
    command += ["-k", "not warned and not local_worker", f"--basetemp={tmp_path / 'base'}"]
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path / "none"), **kept}
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert ("git is not installed (Debian, Ubuntu: apt install git)" in done.stdout) == (file.startswith("store"))


def test_what_earlier_sessions_kept_is_not_seen() -> None:
    """An evaluation that one session finished would be read, not run, by the next."""
    cache = Path(os.environ["ALTGRAD_CACHE"])
    assert cache.is_dir() and cache.resolve() != Path("~/.cache/altgrad").expanduser().resolve()
