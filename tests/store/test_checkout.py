"""A run says which commit made it."""

import subprocess
from pathlib import Path

import pytest

from altgrad.store.checkout import revision


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", "-C", str(folder), *who, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.needs("git")
def test_the_commit_of_a_checkout_and_whether_it_was_changed(tmp_path: Path) -> None:
    top = tmp_path.resolve() / "clone"
    (top / "altgrad").mkdir(parents=True)
    (top / "altgrad" / "a.py").write_text("")
    git(top, "init", "-q")
    git(top, "add", ".")
    git(top, "commit", "-qm", "first")
    head = git(top, "rev-parse", "HEAD")
    git(top, "tag", "-a", "v9", "-m", "a tag is no commit")
    assert revision.__wrapped__(top) == head
    (top / "b.txt").write_text("not tracked")
    assert revision.__wrapped__(top) == head
    (top / "altgrad" / "a.py").write_text("changed")
    assert revision.__wrapped__(top) == f"{head}-dirty"
    assert revision.__wrapped__(top / "altgrad") is None, "a package inside somebody else's checkout"
    assert revision.__wrapped__(tmp_path) is None


def test_without_git_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert revision.__wrapped__(tmp_path) is None
