"""Claims about starting without torch's compiler: a run that compiles nothing does not wait for it, unless it stores
weights in a format; and once it is loaded torch's optimizers are kept out of graphs as ever.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPEC = """\
model: {kind: gpt, layers: 1, width: 16, heads: 2, context: 16}
data: {kind: text, source: page.txt, batch_size: 2}
precision: {rules: [{match: "blocks.*", weight: {format: e4m3fn, scaling: delayed}, input: e4m3fn, grad_output: e5m2}]}
optimizer: {kind: adamw, lr: 3e-3}
steps: 3
"""
PROGRAM = """
import sys
import altgrad
altgrad.train("tiny.yaml", progress=False)
assert "torch._dynamo" not in sys.modules, "torch's compiler was loaded"
import torch
w = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.SGD([w], lr=0.1)
optimizer.zero_grad()
assert "torch._dynamo" not in sys.modules
import torch._dynamo
optimizer.zero_grad()
kept = torch.optim.Optimizer.zero_grad.__wrapped__.__dynamo_disable
assert kept.__module__.startswith("torch._dynamo"), kept

@torch.compile(backend="eager", fullgraph=True)
def inside(x):
    optimizer.zero_grad()
    return x + 1

try:
    inside(torch.ones(2))
except torch._dynamo.exc.Unsupported:
    print("kept out")
"""


def test_a_run_that_compiles_nothing_does_not_load_the_compiler(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(SPEC)
    (tmp_path / "page.txt").write_text("\n\n".join(f"Article {n} shall apply from its day." for n in range(60)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "kept out"
