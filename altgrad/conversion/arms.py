"""Arms: one set of weights under some policies, each with modules of its own over the very parameters of the model.

    none        no casts, in float32                   bf16      no casts, in bfloat16
    te_nvfp4    a recipe by name, or a file of one     p.yaml    rules, or whatever has some under `precision`

Of a policy the forward slots alone count. Products run in float32, so that a figure is about the casts. Delayed scales
have no history and take the amax of what they cast.
"""

import copy
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from altgrad.conversion.source import policy_in_file
from altgrad.document import Document
from altgrad.nn import PrecisionPolicy, quantize_model
from altgrad.nn.rule import GradInputSlots, GradWeightSlots
from altgrad.progress import progress
from altgrad.training.micro_batches import autocast

__all__ = ["BF16", "UNCAST", "PolicyArm", "answers", "arm_named", "net_of"]

UNCAST, BF16 = "uncast", "bf16"


class PolicyArm(NamedTuple):
    """A policy by its name, what tells it from others, the type that it computes in, and its forward casts."""

    name: str
    key: str
    compute: str
    policy: PrecisionPolicy | None


def arm_named(name: str) -> PolicyArm:
    """The arm that is meant. ValueError for what is no recipe and no file of rules."""
    if name == BF16:
        return PolicyArm(name, name, "bfloat16", None)
    rules = tuple(
        rule.model_copy(
            update={
                "grad_output": None,
                "grad_input": GradInputSlots(grad_output=None, weight=None),
                "grad_weight": GradWeightSlots(grad_output=None, input=None),
            }
        )
        for rule in _policy(name).rules
    )
    forward = PrecisionPolicy(rules=rules)
    return PolicyArm(name, json.dumps(forward.tree(), sort_keys=True, default=str), "float32", forward)


def _policy(name: str) -> PrecisionPolicy:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"{name} is not a file; name a recipe, or a file of rules.")
        data = Document.load(path).data
        if not (isinstance(data, dict) and "title" in data):  # which a recipe has, and no file of rules
            return policy_in_file(path)[0]
    return PrecisionPolicy.made_from(name)


def net_of(module: nn.Module, arm: PolicyArm) -> nn.Module:
    """The arm's modules over the very parameters of the model. ValueError for a policy that does not fit it."""
    if arm.policy is None:
        return module
    progress(f"casting the model by {arm.name}")
    made = copy.deepcopy(module, {id(p): p for p in module.parameters()})
    try:
        return quantize_model(made, arm.policy).eval()
    except ValueError as error:
        raise ValueError(f"recipe {arm.name}: {error}") from None


@torch.no_grad()
def answers(net: nn.Module, inputs: Tensor, compute: str) -> Tensor:
    """Logits, `[tokens, vocabulary]`."""
    with autocast(compute, inputs.device):
        logits: Tensor = net(inputs)
    return logits.flatten(0, 1)
