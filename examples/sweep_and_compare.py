"""A sweep in Python: two ways of casting and float32, two seeds each, and the comparison that it ends in."""

import json
from pathlib import Path

import altgrad

Path("words.txt").write_text("the member state shall notify the commission of its measures\n" * 60)
rule = {"match": "blocks.*", "weight": "e4m3fn", "input": "e4m3fn"}
matrix = {
    "base": {
        "project": "example",
        "model": {"kind": "gpt", "layers": 1, "width": 16, "heads": 2, "context": 16},
        "data": {"kind": "text", "source": "words.txt", "batch_size": 2},
        "optimizer": {"kind": "adamw", "lr": 1e-2},
        "steps": 10,
        "threads": 1,
    },
    "purpose": "what 4 bits cost here",
    "twin": "fp32",
    "arms": {
        "fp8": {"set": {"precision": {"rules": [rule]}}, "purpose": "8 bits"},
        "fp4": {"set": {"precision": {"rules": [rule | {"weight": "e2m1"}]}}, "purpose": "4 bits"},
    },
    "seeds": [0, 1],
}
Path("matrix.json").write_text(json.dumps(matrix))
altgrad.sweep("matrix.json", jobs=1)
table = altgrad.compare("example")
print(table.attrs["sentence"])
print(table)
