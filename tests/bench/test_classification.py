"""The bench of classifiers: arms that differ in their casts alone, and tables of what was found; docs/TASKS.md."""

import re
from pathlib import Path

from altgrad.data.labelled import Labelled
from altgrad.document import Document
from altgrad.training import RunSpec
from altgrad.training.run import DatasetSpec, ModelSpec
from bench.classification import ARMS, ROOT, SHOWN, tables

PAGE = (ROOT / "docs" / "TASKS.md").read_text(encoding="utf-8")


def spec(arm: str) -> RunSpec:
    file, sets = ARMS[arm]
    return RunSpec.load(ROOT / "matrices" / file, sets)


def test_the_fine_tuned_arms_differ_in_their_casts_and_names_alone() -> None:
    fp8, bf16 = (spec(arm).tree() for arm in ("MiniLM, e4m3fn/e5m2", "MiniLM, BF16"))
    assert {key for key in fp8 if fp8[key] != bf16[key]} == {"precision", "name"}
    (rule,) = spec("MiniLM, BF16").precision.rules
    assert {str(cast.format) for cast in (rule.weight, rule.input, rule.grad_output) if cast is not None} == {"e8m7"}


def test_the_full_size_matrix_is_lexglues_with_a_pinned_commit() -> None:
    full = RunSpec.load(ROOT / "matrices" / "runs" / "lexglue_eurlex.yaml").data.tree()
    assert full["source"]["hub"] == "coastalcph/lex_glue" and re.fullmatch(r"[0-9a-f]{40}", full["source"]["revision"])
    assert full["classes"] == 100


def test_tables_have_means_with_their_span_over_seeds_in_percent() -> None:
    data = Labelled({}, {"train": [(0,), (0, 1)]}, ("act/A", "topic/b"), "", {})
    rows = [{"label": name, "rows": 3, "f1": 0.5, "tuned_f1": 0.6, "pr_auc": 0.7} for name in data.classes]
    known = dict.fromkeys(SHOWN, 0.5)
    results = [{"test": dict.fromkeys(SHOWN, value), "table": rows} for value in (0.6, 0.7)]
    text = tables(known, {"arm": results}, data)
    assert "| arm | 2 | 65.0 (60.0 to 70.0) |" in text and "| TF-IDF + logistic regression | - | 50.0 |" in text
    assert "| act/A | 2 | 3 | 50.0 | 60.0 | 70.0 |" in text and "| topic/b | 1 | 3 |" in text


def test_the_page_has_the_table_and_its_specs_are_valid(tmp_path: Path) -> None:
    assert PAGE.count("<!-- classification: begin -->") == 1
    rows = re.findall(r"^\| (?:MiniLM, \w+(?:/e5m2)?|TF-IDF \+ logistic regression) \|.*$", PAGE, re.M)
    assert len(rows) == 3
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.S):
        fields = Document.parse(block, "TASKS.md").data
        family = DatasetSpec if "data" in fields else ModelSpec
        assert family.of(fields["data" if "data" in fields else "model"])
