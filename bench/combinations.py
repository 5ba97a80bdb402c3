"""python -m bench.combinations: docs/COMBINATIONS.md, every format x optimizer x storage x layer combination.

What is combined is read from the matrices as their runs would be, learning rates and seeds aside; why each arm is there
and what is expected of it is written by hand, in the matrix. A test fails where the page says otherwise.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from altgrad.document import Document
from altgrad.matrix import Matrix, MatrixPlace, runs_of
from altgrad.training import RunSpec
from bench.page import refresh

ROOT = Path(__file__).resolve().parents[1]
PAGE, PART = ROOT / "docs" / "COMBINATIONS.md", "combinations"
HEAD = ("arm", "casts: weight / input / grad_output", "storage", "optimizer", "layers", "purpose", "expected")
RATE = "optimizer.lr"
PLAIN = {"kind", "lr", "weight_decay", "groups", "betas", "eps", "track"}


def matrices() -> list[Path]:
    """Every matrix of the folder: the YAML files that have a base."""
    return [path for path in sorted((ROOT / "matrices").glob("*.yaml")) if "base" in Document.load(path).data]


def table() -> str:
    """The part of the page, as Markdown."""
    parts = []
    for path in matrices():
        matrix = Matrix.load(path)
        count = len(matrix.cells()) * sum(len(seeds) for seeds in matrix.seed_sets().values())
        rows = list(dict.fromkeys(_rows(matrix, path.parent)))
        lines = [f"| {' | '.join(row)} |" for row in (HEAD, ("---",) * len(HEAD), *rows)]
        title = (
            f"### `matrices/{path.name}`\n\n{matrix.purpose[:1].upper()}{matrix.purpose[1:]}: {len(rows)} combinations"
        )
        rates = "" if RATE not in matrix.axes else f", {len(matrix.axes[RATE])} learning rates"
        sets = ", ".join(f"{len(seeds)} {name}".strip() for name, seeds in matrix.seed_sets().items())
        parts.append(f"{title}{rates}, {sets} seeds: {count:,} runs.\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _rows(matrix: Matrix, folder: Path) -> Iterator[tuple[str, ...]]:
    arms = matrix.all_arms()
    for place, spec in runs_of(matrix.model_copy(update={"seeds": (0,)}), folder, RunSpec):
        arm, tree = arms[place.arm], spec.tree()
        parts = tree["precision"].get("phases") or [tree["precision"]]
        rules = [rule for part in parts for rule in part["rules"] if _casts(rule) != "- / - / -"]
        stored = [storage for storage in tree["storage"] if storage["kind"] != "master"]
        layers = dict.fromkeys(entry.get("match") or entry["place"] for entry in (*rules, *stored))
        casts = list(dict.fromkeys(map(_casts, rules)))
        yield (
            place.arm,
            "; ".join(casts) or f"none ({spec.compute})",
            "; ".join(dict.fromkeys(f"{storage['kind']} {storage['format']}" for storage in stored)) or "master",
            _optimizer(tree["optimizer"]),
            ", ".join(f"`{match}`" for match in layers) or "none",
            arm.purpose,
            _expected(matrix, place, arm.expect),
        )


def _casts(rule: Mapping[str, Any]) -> str:
    """The three operands' formats, with their scaling where they share one, and slots of their own."""
    operands = [rule[name] for name in ("weight", "input", "grad_output")]
    text = " / ".join("-" if operand is None else operand["format"] for operand in operands)
    scalings = {_scaling(operand["scaling"]) for operand in operands if operand is not None}
    own = [
        f"{product}.{name} {'none' if value is None else value.get('format', value.get('kind'))}"
        for product in ("forward", "grad_input", "grad_weight")
        for name, value in rule[product].items()
        if value != "same"
    ]
    return ", ".join([f"{text} {'+'.join(sorted(scalings))}".strip(), *own])


def _scaling(scaling: Mapping[str, Any]) -> str:
    return "channel" if scaling.get("granularity") == "channel" else str(scaling["kind"])


def _optimizer(tree: Mapping[str, Any]) -> str:
    """Its kind, and what of its settings is not the default."""
    defaults = type(RunSpec.model_fields["optimizer"].annotation.of({"kind": tree["kind"]}))().tree()
    changed = [
        f"{key} {value}" for key, value in tree.items() if key not in (*PLAIN, "states") and value != defaults[key]
    ]
    states = {name: cast["format"] for name, cast in tree.get("states", {}).items()}
    kept = [f"states {'/'.join(dict.fromkeys(states.values()))}"] if states else []
    return " ".join([tree["kind"], *changed, *kept])


def _expected(matrix: Matrix, place: MatrixPlace, expect: str) -> str:
    of_values = [matrix.expect[str(value)] for value in place.axes.values() if str(value) in matrix.expect]
    return "; ".join(filter(None, [expect, *of_values]))


if __name__ == "__main__":
    refresh(PAGE, PART, table())
