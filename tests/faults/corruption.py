"""Bits that flip and ends that are lost, in every file of a run: noticed, or without any consequence.

The oracle is a reader: whatever the store, the report and the loader of tokens say of the undamaged files must be said
again word for word, or the damage must be named. A reader that says something else was silently wrong.
"""

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from altgrad.cli.main import app
from altgrad.data import documents, text
from altgrad.data.tokens import load_tokens
from altgrad.quantize.packed import load_quantized
from altgrad.reports.reading import read
from altgrad.store import CheckpointError, Run, RunStore
from altgrad.store.index import summaries
from altgrad.training import RunSpec, train_run
from tests.faults.campaign import Damage, Figures, damages, spec_text, words_file

CONTINUED_EVERY = 25


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """The token cache of the block."""
    before = os.environ.get("ALTGRAD_CACHE")
    os.environ["ALTGRAD_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["ALTGRAD_CACHE"]
        if before is not None:
            os.environ["ALTGRAD_CACHE"] = before


class Scene:
    """A run of 6 steps stopped after `stop`, with checkpoints at 2 and 4, and what it would have come to."""

    def __init__(self, folder: Path, stop: int) -> None:
        self.folder = folder
        self.spec = RunSpec.parse(spec_text(words_file(folder / "words.txt")))
        self.data: Any = self.spec.data.build(self.spec.seed, self.spec.model.context)
        whole = self.data.evaluation
        self.data.evaluation = lambda split: islice(whole(split), 2)
        self.curve = curve(self.carry_on(self.make("whole")))
        self.run = self.carry_on(self.make("run"), stop)

    def make(self, name: str) -> Run:
        """A run that has not begun."""
        return RunStore(self.folder / name).run("faults", "run").create(self.spec.to_yaml(), {"steps": self.spec.steps})

    def carry_on(self, run: Run, stop: int | None = None) -> Run:
        """Train to the end, or until `stop` steps are done."""
        train_run(self.spec, run, self.data, interrupted=lambda: stop is not None and run.last().get("step", 0) >= stop)
        return run

    def copy(self) -> Run:
        """The stopped run in a folder of its own."""
        shutil.rmtree(self.folder / "copy", ignore_errors=True)
        shutil.copytree(self.run.path, self.folder / "copy" / "faults" / "run")
        return Run(self.folder / "copy" / "faults" / "run")


def curve(run: Run) -> list[str]:
    """Every number but the clock's, to the last bit, row by row."""
    rows = ({key: value for key, value in row.items() if not key.startswith("time/")} for row in run.metrics())
    return [repr(sorted((key, float(value).hex()) for key, value in row.items())) for row in rows if len(row) > 1]


def checkpoints(seed: int, count: int, folder: Path) -> Figures:
    """Five flips to one truncation over every file of the newest checkpoint; every 25th run is really continued."""
    figures, draw, scene = Figures(seed), random.Random(seed), Scene(folder, 5)
    snapshots = scene.run.checkpoints
    newest = snapshots.newest()
    assert newest is not None
    files = sorted(newest.path.iterdir())
    before = min(snapshots.steps())
    for number, damage in enumerate(damages(files, count - count // 6, count // 6, draw)):
        good = damage.do()
        found = snapshots.newest()
        if found is None or found.step != before or found.rejected[0].path != newest.path:
            figures.fail("not noticed", damage)
        elif number % CONTINUED_EVERY:
            figures.add("noticed, the one before is used")
        elif curve(scene.carry_on(scene.copy())) == scene.curve:
            figures.add("noticed and continued, curve identical")
        else:
            figures.fail("continued to another curve", damage)
        damage.path.write_bytes(good)
    return figures


def both_checkpoints(seed: int, count: int, folder: Path) -> Figures:
    """A flip in each of the two checkpoints: there is nothing left to continue from, and that is said."""
    figures, draw, scene = Figures(seed), random.Random(seed), Scene(folder, 5)
    for _ in range(count):
        run = scene.copy()
        for path in sorted(run.checkpoints.folder.iterdir()):
            next(damages(sorted(path.iterdir()), 1, 0, draw)).do()
        try:
            scene.carry_on(run)
        except CheckpointError as error:
            refused(figures, error, run.path)
        else:
            figures.fail("continued from damage", run.path)
    return figures


def told(run: Run) -> str:
    """Everything that readers say of a run."""
    store = RunStore(run.path.parent.parent)
    record = read(run)
    series = {key: [part.tolist() for part in found] for key, found in record.series.items()}
    said = [
        list(run.metrics()), list(run.events()), run.meta(), run.last("validation/loss", "train/loss"),
        RunSpec.parse(run.spec_text()).tree(), [repr(found) for found in summaries(store)],
        series, record.outcome, record.status, record.events, record.spec,
    ]  # fmt: skip
    if record.problems:
        raise ValueError(record.problems[0])
    return repr(said)


def records(seed: int, count: int, folder: Path) -> Figures:
    """Four flips to one truncation over the records and the index of an ended run: what readers say."""
    figures, draw, scene = Figures(seed), random.Random(seed), Scene(folder, 5)
    run = scene.carry_on(scene.run)
    expected = told(run)
    store = run.path.parent.parent
    files = [run.path / name for name in ("metrics.jsonl", "events.jsonl", "meta.json", "spec.yaml")]
    files.append(store / ".index.json")
    # Evenly by file, since metrics are most of the bytes.
    for number in range(count):
        list(summaries(RunStore(store)))  # the index is up to date: it would be believed
        (damage,) = damages([files[number % 5]], number % 25 < 20, number % 25 >= 20, draw)
        good = damage.do()
        judge(figures, damage, run, expected)
        damage.path.write_bytes(good)
    return figures


def refused(figures: Figures, error: Exception, case: object) -> None:
    """It was told; in one line, as it must be."""
    if "\n" in str(error):
        figures.fail("refused in many lines", f"{case} {error}")
    else:
        figures.add("refused in one line")


def judge(figures: Figures, damage: Damage, run: Run, expected: str) -> None:
    """What readers make of it."""
    try:
        found = told(run)
    except ValueError as error:
        refused(figures, error, damage)
        return
    if found == expected:
        figures.add("harmless: read as it was, or made again")
    else:
        figures.fail("SILENTLY WRONG", damage)


def resumed_records(seed: int, count: int, folder: Path) -> Figures:
    """The same in a stopped run that is then continued: the curve is the same to the last bit, or it is refused."""
    figures, draw, scene = Figures(seed), random.Random(seed), Scene(folder, 5)
    names = ("metrics.jsonl", "events.jsonl", "meta.json", "spec.yaml")
    for number in range(count):
        run = scene.copy()
        (damage,) = damages([run.path / names[number % 4]], number % 20 < 16, number % 20 >= 16, draw)
        damage.do()
        try:
            scene.carry_on(run)
            found = curve(run)
        except (ValueError, CheckpointError) as error:
            refused(figures, error, damage)
            continue
        if found == scene.curve:
            figures.add("continued, curve identical")
        else:
            figures.fail("SILENTLY WRONG", damage)
    return figures


def token_caches(seed: int, count: int, folder: Path) -> Figures:
    """Four flips to one truncation over a cached corpus: the tokens are those of the text, built again if need be."""
    figures, draw = Figures(seed), random.Random(seed)
    corpus = documents.FileCorpus(words_file(folder / "words.txt", 400), "text")
    setting = text.TextSpec.model_validate({"kind": "text", "tokenizer": {"bpe": 270}}).tokenizer
    with cache_in(folder / "cache"):
        expected = tokens(corpus, setting)
        (cached,) = [path for path in (folder / "cache" / "tokens").iterdir() if path.is_dir()]
        files = sorted(cached.iterdir())
        for number in range(count):
            (damage,) = damages([files[number % len(files)]], number % 25 < 20, number % 25 >= 20, draw)
            good = damage.do()
            bad = damage.path.read_bytes()
            if tokens(corpus, setting) != expected:
                figures.fail("SILENTLY WRONG", damage)
            elif damage.path.read_bytes() == good:
                figures.add("built again")
            else:
                assert damage.path.read_bytes() == bad
                figures.add("harmless: read as it was")
            damage.path.write_bytes(good)
    return figures


def tokens(corpus: documents.FileCorpus, setting: Any) -> str:
    """All of a corpus's tokens, and what is known of them."""
    found = load_tokens(corpus, setting)
    return repr(
        [{split: ring.tolist() for split, ring in found.rings.items()}, found.token_bytes.tolist(), found.counts]
    )


def quantised_files(seed: int, count: int, folder: Path) -> Figures:
    """Flips and lost ends in what quantize-model wrote, header, codes, scales and uncast tensors alike."""
    figures, draw = Figures(seed), random.Random(seed)
    tensors = {f"blocks.{number}.up.weight": torch.randn(24, 32) for number in range(3)} | {
        "norm.weight": torch.ones(8)
    }
    source, out = folder / "w.safetensors", folder / "out"
    save_file(tensors, source)
    (folder / "policy.yaml").write_text("rules: [{match: blocks.*, weight: {format: e3m4, scaling: mx}}]\n")
    line = ["quantize-model", str(source), "--policy", str(folder / "policy.yaml"), "--out", str(out)]
    found = CliRunner().invoke(app, line)
    assert found.exit_code == 0, found.output
    (file,) = out.iterdir()
    whole = {name: tensor.numpy().tobytes() for name, tensor in load_quantized(file).items()}
    for damage in damages([file], count - count // 6, count // 6, draw):
        good = damage.do()
        try:
            read_ = load_quantized(file)
        except ValueError as error:
            refused(figures, error, file)
        else:
            same = whole == {name: tensor.numpy().tobytes() for name, tensor in read_.items()}
            figures.fail("read, the same" if same else "read as other weights", damage)
        file.write_bytes(good)
    return figures
