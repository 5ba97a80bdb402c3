"""Thousands of damaged run specs: each is read, or told in one clean line; nothing else ever comes out."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from altgrad.document import Document
from altgrad.spec import SpecError
from altgrad.training.run import RunSpec

QUICKSTART = (Path(__file__).resolve().parents[2] / "matrices" / "quickstart.yaml").read_text(encoding="utf-8")
LINE = re.compile(r"(spec:[1-9]\d*:[1-9]\d*|--set[^\n]*): [^\n]+")
PIECES = [
    *"[]{}:,-&*!|>'\"%@`#?~\\\n\t\0\x1b\ufeff\u2028\ud800é", "  ", "- ", ": ", "*a", "&a ", "!!int ", "<<: ", "null",
    "true", "-1", "0", "1e999", ".inf", ".nan", "9" * 50, "9" * 5000, "0b_", "0x" + "f" * 40, "2024-13-45", "[" * 40,
    "{a: " * 40, "\n---\n", "none", "same", "e9m9", "e4m3", "kind", "delayed", "stochastic", "rules", '"\\ud800"',
    '"\\UFFFFFFFF"', "x" * 5000, "password: x", "hf_" + "a1" * 16, "steps: 1\n", "\n  ",
]  # fmt: skip
VALUES = [
    None, True, -1, 0, 1, 2**63, 1.5, -0.0, float("inf"), float("nan"), "", "x", "none", "e4m3fn", "delayed", "\0",
    [], {}, [[]], {"a": 1}, {"kind": "gpt"}, "x" * 9000,
]  # fmt: skip
SETS = [
    "steps=x", "monitors.0.every=5", "monitors.0.x.y=5", "precision.rules.0.weight.rounding=stochastic", "a.b=1",
    "model=5", "precision.rules.9.weight=1", "schedule.warmup=1e3", "=", "name=\0", "optimizer.betas.1=1",
    "data.source=[", ".",
]  # fmt: skip


def outcome(text: str, sets: list[str]) -> str:
    """The complaint, or an empty string."""
    try:
        spec = RunSpec.check(Document.parse(text, "spec"), sets)
    except SpecError as error:
        return str(error)
    assert RunSpec.parse(spec.to_yaml()) == spec
    return ""


def check(seed: int) -> None:
    """One mutant: characters of the text, parts of the tree, or both."""
    draw = random.Random(seed)
    text = QUICKSTART
    if draw.random() < 0.5:
        text = yaml.safe_dump(mutated(yaml.safe_load(text), draw), allow_unicode=draw.random() < 0.5, sort_keys=False)
    for _ in range(draw.choice([0, 1, 1, 2, 5])):
        start = draw.randrange(len(text) + 1)
        end = min(len(text), start + draw.choice([0, 0, 1, 3, 20]))
        copied = draw.randrange(len(text) + 1)
        piece = draw.choice([draw.choice(PIECES), "", text[copied : copied + draw.choice([1, 10, 60])]])
        text = text[:start] + piece + text[end:]
    line = outcome(text, draw.sample(SETS, draw.choice([0, 0, 1, 2])))
    assert not line or (LINE.fullmatch(line) and line.isprintable() and len(line) < 600), line
    assert "nput should" not in line


def mutated(tree: Any, draw: random.Random) -> Any:
    """The tree with a few parts replaced, removed, renamed, repeated or moved."""
    for _ in range(draw.choice([1, 1, 2, 4])):
        node: Any = tree
        while isinstance(node, dict | list) and node:
            key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
            child = node[key]
            if not isinstance(child, dict | list) or not child or draw.random() < 0.4:
                change(node, key, draw, tree)
                break
            node = child
    return tree


def change(node: Any, key: Any, draw: random.Random, tree: Any) -> None:
    match draw.randrange(5):
        case 0 | 1:
            node[key] = draw.choice(VALUES)
        case 2:
            del node[key]
        case 3 if isinstance(node, dict):
            cut = draw.randrange(len(key) + 1)
            names = [f"{key[:cut]}x{key[cut:]}", key[:cut] + key[cut + 1 :], draw.choice(list(tree) or ["a"])]
            node[draw.choice(names)] = node.pop(key)
        case _:
            node[key] = [node[key]] if draw.random() < 0.5 else {"kind": node[key]}


@given(st.integers(0, 2**32))
@settings(max_examples=300)
def test_a_damaged_run_spec_is_told_in_one_clean_line(seed: int) -> None:
    check(seed)


@pytest.mark.long
@given(st.integers(0, 2**32))
@settings(max_examples=2000)
def test_two_thousand_damaged_run_specs_are_told_in_one_clean_line(seed: int) -> None:
    check(seed)


def test_the_mutants_are_not_all_alike() -> None:
    lines = []
    for seed in range(150):
        draw = random.Random(seed)
        text = yaml.safe_dump(mutated(yaml.safe_load(QUICKSTART), draw), sort_keys=False)
        lines.append(outcome(text, []))
    assert "" in lines and len(set(lines)) > 60
