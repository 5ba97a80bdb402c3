"""Fine-tuning in FP8 beside BF16 and beside TF-IDF with logistic regression, on the packaged EU provisions.

    python -m bench.classification [--seeds N] [--runs DIR] [--only ARM]... [--page]

Arms are runs of matrices/runs/eulaw_finetune.yaml (a pretrained MiniLM encoder) with its six blocks in e4m3fn/e5m2 and
in BF16, and of matrices/runs/eulaw_classifier.yaml (a small encoder from scratch). BF16 is every operand of the blocks'
products rounded to bfloat16 with float32 sums, as tensor cores do; `compute: bfloat16`, which a GPU would take, is 25
times slower than float32 on a CPU without bfloat16 instructions. The reference is fitted here by scikit-learn on the
same rows: TF-IDF of words and pairs, logistic regression with C = 10 for each label.

All are judged on the test split twice: at 0.5, and with the one threshold that is best on validation. A run that is in
DIR already is not trained again, so the bench can be stopped and goes on where it was. --page writes the tables to
docs/TASKS.md.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from altgrad.data.dataset import SPLITS
from altgrad.data.documents import SAMPLE
from altgrad.data.label_scores import best_threshold, decision_scores
from altgrad.data.labelled import Labelled, read_labelled
from altgrad.store import Run, RunStore, run_id
from altgrad.training import RunSpec, train_run
from altgrad.training.evaluate import evaluate_run
from altgrad.training.fitting import resolve
from bench.page import refresh

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("f1_micro", "f1_macro", "tuned_f1_micro", "tuned_f1_macro")
_BF16 = "{format: bf16, scaling: unscaled}"
BF16 = f"precision.rules=[{{match: '*encoder.layer*', weight: {_BF16}, input: {_BF16}, grad_output: {_BF16}}}]"
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "MiniLM, e4m3fn/e5m2": ("runs/eulaw_finetune.yaml", ()),
    "MiniLM, BF16": ("runs/eulaw_finetune.yaml", (BF16, "name=minilm-bf16")),
    "encoder from scratch, e4m3fn/e5m2": ("runs/eulaw_classifier.yaml", ()),
}
JUDGED = "judged.json"


def reference(data: Labelled) -> dict[str, float]:
    """TF-IDF with logistic regression, fitted and judged on the same rows as the runs."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    features = vectorizer.fit_transform(data.texts["train"])
    truth = {split: torch.zeros(len(data.labels[split]), len(data.classes), dtype=torch.int32) for split in SPLITS}
    for split in SPLITS:
        for row, labels in enumerate(data.labels[split]):
            truth[split][row, list(labels)] = 1
    model = OneVsRestClassifier(LogisticRegression(C=10, max_iter=1000)).fit(features, truth["train"].numpy())
    found = {
        split: torch.from_numpy(model.predict_proba(vectorizer.transform(data.texts[split]))) for split in SPLITS[1:]
    }
    threshold = best_threshold(found["validation"], truth["validation"])
    fixed = decision_scores((found["test"] > 0.5).int(), truth["test"])
    tuned = decision_scores((found["test"] > threshold).int(), truth["test"])
    return fixed | {"tuned_f1_micro": tuned["f1_micro"], "tuned_f1_macro": tuned["f1_macro"], "threshold": threshold}


def open_run(arm: str, seed: int, runs: Path, sets: tuple[str, ...]) -> tuple[RunSpec, Run, Any]:
    """The run of an arm and a seed, made if it is new, with its resolved spec and its data."""
    file, own = ARMS[arm]
    asked = RunSpec.load(ROOT / "matrices" / file, (*own, f"seed={seed}", "threads=1", "monitors=[finite]", *sets))
    dataset = asked.data.build(asked.seed, asked.model.context)
    with torch.device("meta"):
        model = asked.model.build(dataset.vocabulary, dataset.outputs)
    spec, _ = resolve(asked, [model], dataset.batch(0).inputs.numel(), torch.device("cpu"))
    run = RunStore(runs).run(spec.project, run_id(spec.name, spec.fingerprint(), spec.seed))
    if not run.exists:
        run.create(spec.to_yaml(), {"steps": spec.steps, "scores": list(dataset.scores), "data": dataset.describe()})
    return spec, run, dataset


def result(arm: str, seed: int, runs: Path, sets: tuple[str, ...], say: Callable[[str], None]) -> dict[str, Any]:
    """Test numbers of a finished run and its table of labels; trains and judges what is not there yet."""
    spec, run, dataset = open_run(arm, seed, runs, sets)
    if not (run.path / JUDGED).is_file():
        outcome = train_run(spec, run, dataset)
        found = evaluate_run(run)
        facts = {"status": outcome.status, "test": found.found, "validation": found.validation, "table": found.table}
        facts["wall_seconds"] = run.last("time/wall_seconds").get("time/wall_seconds", 0.0)
        (run.path / JUDGED).write_text(json.dumps(facts))
    facts = json.loads((run.path / JUDGED).read_text())
    told = ", ".join(f"{name} {100 * facts['test'][name]:.1f}" for name in SHOWN)
    say(f"{arm}, seed {seed}: {told} ({facts['wall_seconds']:.0f} s)")
    return dict(facts)


def tables(known: dict[str, float], found: dict[str, list[dict[str, Any]]], data: Labelled) -> str:
    """Two tables in Markdown: all arms, and the labels of the first one beside how often they occur."""
    lines = [
        "| | seeds | micro F1 at 0.5 | macro F1 at 0.5 | micro F1, tuned | macro F1, tuned |",
        "|---|---|---|---|---|---|",
    ]
    cells = " | ".join(f"{100 * known[name]:.1f}" for name in SHOWN)
    lines.append(f"| TF-IDF + logistic regression | - | {cells} |")
    for arm, results in found.items():
        columns = [[100 * each["test"][name] for each in results] for name in SHOWN]
        lines.append(f"| {arm} | {len(results)} | {' | '.join(map(_mean, columns))} |")
    arm, results = next(iter(found.items()))
    lines += [
        "",
        f"Labels, {arm}, mean over seeds:",
        "",
        "| label | training rows | test rows | F1 at 0.5 | F1, tuned | PR-AUC |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for number, label in enumerate(data.classes):
        rows = [each["table"][number] for each in results]
        trained = sum(number in labels for labels in data.labels["train"])
        means = (statistics.mean(100 * row[name] for row in rows) for name in ("f1", "tuned_f1", "pr_auc"))
        lines.append(
            f"| {label} | {trained} | {rows[0]['rows']} | " + " | ".join(f"{mean:.1f}" for mean in means) + " |"
        )
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    """`63.0 (62.1 to 64.2)`."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description="Fine-tuning in FP8 beside BF16 and TF-IDF with logistic regression.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--only", action="append", choices=list(ARMS), help="an arm; repeatable; all if left out")
    parser.add_argument(
        "--set", action="append", default=[], dest="sets", metavar="PATH=VALUE", help="as altgrad train"
    )
    parser.add_argument("--page", action="store_true", help="write the tables to docs/TASKS.md")
    chosen = parser.parse_args()
    data = read_labelled(SAMPLE, ("text", "labels"), None, skip=False)
    known = reference(data)
    print("TF-IDF + logistic regression: " + ", ".join(f"{name} {100 * known[name]:.1f}" for name in SHOWN), flush=True)
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in chosen.only or ARMS}
    for seed in range(chosen.seeds):
        for arm, results in found.items():
            results.append(result(arm, seed, chosen.runs, tuple(chosen.sets), lambda line: print(line, flush=True)))
    text = tables(known, found, data)
    print(text)
    if chosen.page:
        refresh(ROOT / "docs" / "TASKS.md", "classification", text)


if __name__ == "__main__":
    main()
