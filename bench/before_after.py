"""Does a change of the code change a run? Twelve small specs in two trees, compared bit for bit.

    python -m bench.before_after BEFORE_TREE AFTER_TREE [--out FILE]

A refactor is to move no bit: what a user trained before it must come out the same after it, and what was interrupted
before it must go on after it. Tests in one tree cannot see that, since they move with the code; so this runs both
trees' commands in processes of their own, one thread each, in folders that look alike, and compares what they leave:
spec.yaml, metrics.jsonl without time/*, events.jsonl, meta.json, each file of every checkpoint, and the --json of ten
commands. The specs cover every task, storage, optimizer and intervention, most scalings, every monitor, one's own
micro-batches, a twin, autocast and the compiled engine. Three are then interrupted in BEFORE, resumed in AFTER and held
to the run that was never interrupted.

A difference is `changed`, `missing` (a file or key that AFTER lacks), `added`, or `words`: a text with a space in it,
which people read. The exit status is 1 if anything is changed or missing. Five minutes on one core.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

Difference = tuple[str, str]
"""Its sort (changed, missing, added, words) and a line that says where and what."""

SPECS: dict[str, dict[str, Any]] = yaml.safe_load("""
master: {precision: &current {scaling: current}, monitors: [range, finite, gradient, rank]}
baseline: {monitors: [range, finite, gradient, rank]}
twin: {precision: *current, twin: baseline, monitors: [rank]}
nearest: {precision: {scaling: mse}, optimizer: {kind: sgd, lr: 0.1}, storage: nearest, monitors: [stall, updates]}
stochastic:
  precision: {scaling: {kind: delayed, history: 3}}
  optimizer: {kind: manifold_adamw, lr: 0.01, track: true}
  storage: {kind: stochastic, format: e4m3fn, scale: tracked}
  schedule: {kind: wsd, warmup: 2}
  monitors: [flips, stall]
kahan:
  precision: {scaling: mx, operands: per_product}
  optimizer: {kind: madam}
  storage: kahan
  monitors: [ulp, correlation]
index:
  precision: {scaling: nvfp4, format: e2m1}
  optimizer: {kind: grid_optim, lr: 0.01, landing: index}
  storage: {kind: index, format: e4m3fn, match: "*"}
  monitors: [flips, codes]
eco:
  compute: bfloat16
  precision: {scaling: {kind: block, size: 8}}
  storage: eco
  loss_scale: {factor: 1024, force: true}
  clip_norm: null
  monitors: [updates, range]
monitors:
  precision: {scaling: delayed}
  storage: nearest
  accumulate: 2
  monitors: [alignment, amax, codes, correlation, dead, finite, flips, gradient, gsnr, optimizer_state, range, rank,
    shadow, stall, stiffness, ulp, updates]
labels:
  model: {kind: encoder, layers: 1, width: 16, heads: 2, context: 32, dropout: 0.1}
  data: {kind: labels, source: labels.jsonl, batch_size: 4, pos_weight: root}
  precision: {scaling: delayed}
  monitors: [range, finite, dead]
interventions:
  steps: 12
  precision: {scaling: unscaled, format: e5m2}
  optimizer: {kind: adamw, lr: 0.00001}
  storage: nearest
  interventions:
  - {kind: partition_clip, every: 1, margin: 4}
  - {kind: mantissa_shift, every: 1, window: 2, patience: 1, cooldown: 2, good_every: 2}
  monitors: [range, stall]
compiled: {engine: compiled, precision: {scaling: delayed}, monitors: [range]}
""")
"""What each says beside `spec_of`'s own: precision is one cast, for every operand; storage, that of the blocks."""
SHOWN = 40
"""Differences of one comparison that are written out."""
RESUMED = ("stochastic", "labels", "interventions")
COMMANDS: dict[str, list[str]] = {
    "evaluate text": ["evaluate", "stochastic"], "evaluate labels": ["evaluate", "labels"],
    "runs show": ["runs", "show", "monitors"], "runs list": ["runs", "list"],
    "runs diff": ["runs", "diff", "master", "eco"], "diagnose": ["diagnose", "interventions"],
    "diagnose --replay": ["diagnose", "nearest", "--replay"],
    "diagnose --oracle": ["diagnose", "stochastic", "--oracle"],
    "diagnose --against": ["diagnose", "master", "--against", "baseline"],
    "quantize-model": ["quantize-model", "runs/g/{master}", "--format", "e4m3fn", "--out", "quantised"],
    "formats show": ["formats", "show", "e4m3fn"], "kinds": ["kinds"],
}  # fmt: skip

MACHINE_OR_TIME = {"created", "commit", "logged", "seconds", "age", "time", "holder", "altgrad", "python"}
"""Keys whose values are of the moment, of the commit, or sizes of logs that hold times."""


def spec_of(name: str) -> dict[str, Any]:
    """The whole spec: one block, eight steps."""
    own = dict(SPECS[name])
    if cast := own.pop("precision", None):
        cast = dict(cast)
        operands = cast.pop("operands", "shared")
        three = {name: {"format": "e4m3fn", **cast} for name in ("weight", "input", "grad_output")}
        own["precision"] = {"rules": [{"match": "blocks.*", "operands": operands, **three}]}
    if kept := own.pop("storage", None):
        kept = kept if isinstance(kept, dict) else {"kind": kept, "format": "e4m3fn"}
        own["storage"] = [{"match": "blocks.*.weight", **kept}]
    own["monitors"] = [kind if kind == "finite" else {"kind": kind, "every": 2} for kind in own["monitors"]]
    return {
        "project": "g", "name": name,
        "model": {"kind": "gpt", "layers": 1, "width": 16, "heads": 2, "context": 16},
        "data": {"kind": "text", "source": "text.txt", "batch_size": 2},
        "optimizer": {"kind": "adamw", "lr": 1e-3},
        "steps": 8, "log_every": 1, "evaluate_every": 4, "checkpoint_every": 4, "threads": 1, "engine": "eager", **own,
    }  # fmt: skip


def prepare(folder: Path) -> None:
    """The specs, a text and labelled texts: small, so that a whole validation takes no time."""
    folder.mkdir()
    for name in SPECS:
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(spec_of(name)))
    draw = random.Random(0)
    words = ["the", "member", "state", "shall", "article", "regulation", "of", "and", "data", "law"]
    lines = [" ".join(draw.choice(words) for _ in range(9)) for _ in range(120)]
    (folder / "text.txt").write_text("\n".join(lines))
    rows = [{"text": line, "labels": sorted({word for word in words[3:6] if word in line})} for line in lines]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row["labels"]))


@dataclass(frozen=True)
class Tree:
    """One state of the code, and the folder its commands run in."""

    source: Path
    folder: Path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The command as a process of this tree."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE", "NO_COLOR"), "1")
        return subprocess.Popen(
            [sys.executable, "-m", "altgrad.cli.main", *arguments], cwd=self.folder, text=True,
            env=os.environ | threads | {"PYTHONPATH": str(self.source)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def answer(self, *arguments: str) -> dict[str, Any]:
        """What the command says with --json, and its exit status; the end of stderr where that is not 0."""
        process = self.start(*arguments, "--json")
        out, err = process.communicate()
        try:
            said = json.loads(out)
        except ValueError:
            said = out
        return {"status": process.returncode, "said": said} | ({"error": err[-800:]} if process.returncode else {})

    def run(self, name: str, runs: str = "runs") -> Path:
        """The one folder of that run."""
        return next((self.folder / runs / "g").glob(f"{name}-*"))

    def interrupt(self, name: str) -> bool:
        """Train in `cut/` until there is a checkpoint, then ask it to stop; whether it stopped before the end."""
        process = self.start("train", f"{name}.yaml", "--runs", "cut")
        while process.poll() is None and not [*(self.folder / "cut").glob(f"g/{name}-*/checkpoints/step-*")]:
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        return process.returncode == 75


def contents(path: Path) -> Any:
    """A file as what is compared: data where it holds times, else its bytes."""
    if path.name == "manifest.json":  # sums over files that are compared themselves, some of which hold times
        return sorted(json.loads(path.read_text())["files"])
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [row for row in rows if any(key != "step" and not key.startswith("time/") for key in row)]
    return json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()


def files(run: Path, *, resumed: bool = False) -> dict[str, Path]:
    """The files of a run by relative name. resumed: those alone that an interruption leaves as they would have been."""
    found = {str(path.relative_to(run)): path for path in sorted(run.rglob("*")) if path.is_file()}
    last = max(name for name in found if name.startswith("checkpoints/")).rpartition("/")[0]
    kept = ("spec.yaml", "metrics.jsonl", last) if resumed else ("spec", "metr", "events", "meta", "checkpoints")
    return {name: path for name, path in found.items() if name.startswith(kept)}


def by_name(value: Any) -> Any:
    """A list of things with names, as a mapping: one more is then one added, not all of them moved."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for key in ("kind", "name", "path", "id"):
            names = [str(item.get(key)) for item in value]
            if len(set(names)) == len(value):
                return dict(zip(names, value, strict=True))
    return value


def differences(a: Any, b: Any, place: str) -> Iterator[Difference]:
    """Where b is not a, leaf by leaf. Floats are compared by their bits, as JSON's shortest digits are."""
    a, b = by_name(a), by_name(b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(key for key in b if key not in a)]:
            if key in MACHINE_OR_TIME or key.startswith("time/"):
                continue
            if key not in b or key not in a:
                yield "missing" if key in a else "added", f"{place}.{key}"
            else:
                yield from differences(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for number, pair in enumerate(zip(a, b, strict=True)):
            yield from differences(*pair, f"{place}[{number}]")
    elif json.dumps(a, default=repr) != json.dumps(b, default=repr):
        prose = isinstance(a, str) and isinstance(b, str) and (" " in a or " " in b)
        yield "words" if prose else "changed", f"{place}: {str(a)[:90]!r} -> {str(b)[:90]!r}"


def runs_differ(a: Path, b: Path, *, resumed: bool = False) -> list[Difference]:
    """All differences of two runs' folders."""
    both = [{name: contents(file) for name, file in files(run, resumed=resumed).items()} for run in (a, b)]
    renamed = [("changed", f"run id: {a.name} -> {b.name}")] if a.name != b.name else []
    return renamed + list(differences(*both, "run"))


def answers_differ(answers: list[dict[str, Any]]) -> list[Difference]:
    """All differences of two answers; one that failed is none to compare."""
    failed = [("changed", f"failed: {answer}") for answer in answers if answer["status"]]
    return failed or list(differences(*answers, "--json"))


def resumed(before: Tree, after: Tree, name: str) -> list[Difference]:
    """A run interrupted in one tree and resumed in the other, against the one that was never interrupted."""
    for _ in range(3):  # one that was through before it heard the signal is none to resume
        if before.interrupt(name):
            answer = replace(before, source=after.source).answer("train", f"{name}.yaml", "--runs", "cut")
            failed = [("changed", f"failed: {answer}")] if answer["status"] else []
            return failed or runs_differ(before.run(name), before.run(name, "cut"), resumed=True)
        shutil.rmtree(before.folder / "cut")
    return [("changed", "could not be interrupted in time")]


def compared(before: Tree, after: Tree) -> Iterator[tuple[str, list[Difference]]]:
    """Each comparison's name and what differs."""
    for name in SPECS:
        found = answers_differ([tree.answer("train", f"{name}.yaml") for tree in (before, after)])
        failed = any(place.startswith("failed") for _, place in found)
        yield f"train {name}", found if failed else found + runs_differ(before.run(name), after.run(name))
    for name, command in COMMANDS.items():
        arguments = [part.format(master=before.run("master").name) for part in command]
        yield name, answers_differ([tree.answer(*arguments) for tree in (before, after)])
    for name in RESUMED:
        yield f"resume {name}", resumed(before, after, name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--out", type=Path, help="write the report there, too")
    chosen = parser.parse_args()
    lines, totals, begun = [], Counter[str](), time.monotonic()

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/inductor"
        trees = Tree(chosen.before.resolve(), Path(folder, "b")), Tree(chosen.after.resolve(), Path(folder, "a"))
        for tree in trees:
            prepare(tree.folder)
        for name, found in compared(*trees):
            sorts = Counter(sort for sort, _ in found)
            totals.update(sorts, comparisons=1, equal=not found)
            say(f"{name}: {', '.join(f'{n} {sort}' for sort, n in sorts.items()) or 'equal'}")
            for sort, line in found[:SHOWN]:
                say(f"    {sort} {line}")
    say(f"{dict(totals)} in {time.monotonic() - begun:.0f} s")
    if chosen.out:
        chosen.out.write_text("\n".join(lines) + "\n")
    return int(bool(totals["changed"] or totals["missing"]))


if __name__ == "__main__":
    sys.exit(main())
