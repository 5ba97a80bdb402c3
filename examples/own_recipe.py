"""A recipe of your own: one YAML file, used by its path in specs, on the command line and in Python."""

from pathlib import Path

import altgrad

Path("mine.yaml").write_text("""\
title: FP8 with stochastic gradients
source: {authors: me, url: "https://example.org"}
unproved: there is no reference code
parameters: {gradients: e5m2}          # recipe: {name: ./mine.yaml, gradients: e4m3fn} chooses another
precision:
  - {place: body.first(1)}             # the first block is not cast
  - place: body
    weight: {format: e4m3fn, scaling: {kind: block, shape: square, size: 32}}
    input: e4m3fn
    grad_output: {format: $gradients, rounding: stochastic}
""")
Path("words.txt").write_text("the member state shall notify the commission of its measures\n" * 60)

run = altgrad.train(
    {
        "project": "examples",
        "recipe": "./mine.yaml",
        "model": {"kind": "gpt", "layers": 2, "width": 32, "heads": 2, "context": 32},
        "data": {"kind": "text", "source": "words.txt", "batch_size": 2},
        "optimizer": "adamw",
        "steps": 10,
    }
)
print(run.id, run.status, run.metrics["train/loss"].dropna().iloc[-1])
