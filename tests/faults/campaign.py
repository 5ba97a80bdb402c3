"""What a campaign of faults is: so many cases drawn from a seed, each with an outcome, and the cases that must not be.

A campaign is a function of a seed, a count and an empty folder, and gives Figures. `make test` runs each with a small
count, `make faults` with the whole one, and nothing else differs between the two. A failure names its case, so that the
same seed repeats it.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

SPEC = """\
project: faults
name: {name}
model: {{kind: gpt, layers: 1, width: 16, heads: 2, context: 16}}
data: {{kind: text, source: {source}, tokenizer: {tokenizer}, batch_size: 2}}
precision:
  rules:
  - match: blocks.*
    weight: {{format: e4m3fn, scaling: {{kind: delayed, history: 4}}, rounding: stochastic}}
    input: {{format: e4m3fn, scaling: delayed}}
    grad_output: {{format: e5m2, scaling: current, rounding: stochastic}}
storage: [{{match: "blocks.*.weight", kind: {storage}, format: e5m2}}]
optimizer: {{kind: {optimizer}, lr: {lr}}}
steps: {steps}
threads: 1
engine: eager
evaluate_every: 4
checkpoint_every: 2
monitors: [range, finite, stall, flips]
"""
"""A run of a second: stochastic casts, delayed scales, stored codes and monitors that remember, so that much can go
wrong."""
WORDS = "the law of a union shall not be member state article data right person"


def spec_text(source: Path | str, **changes: object) -> str:
    """SPEC with these values in it."""
    values: dict[str, object] = {
        "name": "run", "source": source, "tokenizer": "bytes", "storage": "kahan", "optimizer": "adamw", "lr": 3e-3,
        "steps": 6,
    }  # fmt: skip
    return SPEC.format(**values | changes)


def words_file(path: Path, documents: int = 60) -> Path:
    """A text of its own for the runs of a campaign."""
    draw, words = random.Random(0), WORDS.split()
    path.write_text("\n\n".join(" ".join(draw.choice(words) for _ in range(30)) for _ in range(documents)))
    return path


@dataclass
class Figures:
    """What came of a campaign: how often each outcome, what must not be, and what was measured beside."""

    seed: int
    count: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)

    def add(self, outcome: str) -> None:
        """One case came out as it may."""
        self.count += 1
        self.outcomes[outcome] += 1

    def fail(self, what: str, case: object) -> None:
        """One case came out as it must not; `case` is what repeats it."""
        self.count += 1
        self.outcomes[what] += 1
        self.failures.append(f"{what}: {case}"[:400])


class Function(Protocol):
    """See the head of this file. The folder is empty and the campaign's own."""

    def __call__(self, seed: int, count: int, folder: Path) -> Figures: ...


@dataclass(frozen=True)
class Campaign:
    """A function with what the issue asks of it: so many cases, of which so few are enough for every day."""

    name: str
    claim: str
    asked: int
    few: int
    run: Function
    long: bool = False
    """Whether even a few cases take longer than a test of every day may: `make test-long` has them."""
    skip: Callable[[], str | None] = lambda: None
    """Why this machine cannot run it, if it cannot."""


@dataclass(frozen=True)
class Damage:
    """One flipped bit, or everything from a byte on gone; `place` in bits or bytes."""

    path: Path
    kind: str
    place: int

    def do(self) -> bytes:
        """Damage the file; its bytes before."""
        good = self.path.read_bytes()
        if self.kind == "flip":
            bad = bytearray(good)
            bad[self.place // 8] ^= 1 << self.place % 8
            self.path.write_bytes(bad)
        else:
            self.path.write_bytes(good[: self.place])
        return good


def damages(files: list[Path], flips: int, truncations: int, draw: random.Random) -> Iterator[Damage]:
    """Bits drawn evenly over all files together (a large file is hit more often), then ends cut off, evenly by file."""
    sizes = [path.stat().st_size for path in files]
    for number in range(flips + truncations):
        if number < flips:
            (path,) = draw.choices(files, sizes)
            yield Damage(path, "flip", draw.randrange(8 * path.stat().st_size))
        else:
            path = draw.choice([path for path, size in zip(files, sizes, strict=True) if size])
            yield Damage(path, "truncation", draw.randrange(path.stat().st_size))
