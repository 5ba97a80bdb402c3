"""What tests of sweeps share: a folder with a small text of its own, a base run of a second, and one warm launcher."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from altgrad.sweeps.launchers.local import Local, LocalSpec
from tests.sweeps.driving import BASE, WORDS


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, with words.txt and base.yaml, in which sweeps are run."""
    draw, words = random.Random(0), WORDS.split()
    text = "\n\n".join(" ".join(draw.choice(words) for _ in range(40)) for _ in range(40))
    (tmp_path / "words.txt").write_text(text)
    (tmp_path / "base.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    return tmp_path


@pytest.fixture(scope="session")
def launcher() -> Iterator[Local]:
    """Two workers at a time on this machine, forked from one process."""
    found = LocalSpec(jobs=2).build()
    yield found
    found.close()
