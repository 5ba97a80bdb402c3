"""A salt draws other random bits, and moves nothing else."""

from typing import Any

import torch

from altgrad.training import RunSpec
from altgrad.training.state import build_model, build_optimizer

RUN: dict[str, Any] = {
    "model": {"kind": "llama", "layers": 1, "width": 32, "heads": 2, "context": 16}, "data": {"kind": "text"},
    "steps": 2, "optimizer": {"kind": "adamw", "lr": 1e-3}, "seed": 3,
    "precision": {"rules": [{"place": "body", "grad_output": {"format": "e2m1", "rounding": "stochastic"}}]},
}  # fmt: skip


def test_a_salt_draws_other_bits_and_moves_nothing_else() -> None:
    plain, salted = RunSpec.made_from(RUN), RunSpec.made_from({**RUN, "salt": 1})
    assert "salt" not in plain.tree() or plain.fingerprint() == RunSpec.made_from({**RUN, "salt": 0}).fingerprint()
    assert plain.bits_seed == 3 != salted.bits_seed and plain.fingerprint() != salted.fingerprint()
    assert salted.bits_seed != RunSpec.made_from({**RUN, "salt": 1, "seed": 4}).bits_seed

    def step(spec: RunSpec) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        torch.manual_seed(spec.seed)
        model = build_model(spec, 64, 64).train()
        build_optimizer(spec, model)
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        model(torch.arange(16)[None]).square().sum().backward()
        return weights, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    (first, own), (second, other), (_, again) = step(plain), step(salted), step(plain)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(own[name], again[name]) for name in own)
    differ = {name for name in own if not torch.equal(own[name], other[name])}
    assert "blocks.0.attention.proj.weight" in differ and "head.weight" not in differ
