"""Claims about alarms: each planted fault raises the monitor meant to see it, at its own site and nowhere else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from altgrad.monitors import MonitorSpec
from altgrad.nn import quantizers
from altgrad.optim import storage
from altgrad.optim.storage import on_grid

KINDS = [kind for kind in MonitorSpec.kinds() if kind != "gsnr"]
STORED = {"match": "blocks.*.weight", "kind": "stochastic", "format": "e4m3fn"}
LAYER = "blocks.0.mlp.up"
ON_GRID = {
    f"blocks.0.{name}.weight"
    for name in ("norm1", "norm2", "attention.qkv", "attention.proj", "mlp.up", "mlp.down")
}  # fmt: skip


def alarms(trial: Any, **options: Any) -> set[tuple[str, str]]:
    """Kind and site of every alarm in some steps with every monitor at each of them."""
    reports = trial.run(KINDS, options.pop("steps", 8), every=1, **options)
    return {(kind, alarm.site) for step in reports for kind, r in step.items() for alarm in r.alarms}


def matrices(*rules: dict[str, Any]) -> list[dict[str, Any]]:
    """Stochastic storage for the matrices of the blocks, masters for their norms; `rules` first."""
    return [*rules, {"match": "blocks.*.norm*.weight", "kind": "master"}, STORED]


@pytest.mark.parametrize("steps", [8, pytest.param(20, marks=pytest.mark.long)])
def test_a_healthy_run_raises_nothing(trial: Callable[..., Any], steps: int) -> None:
    assert alarms(trial("gpt", storage=matrices()), steps=steps) == set()
    assert alarms(trial("mlp"), steps=steps) == set()
    assert alarms(trial("plain"), steps=steps) == set()


@pytest.mark.parametrize(("factor", "kind"), [(2.0**-5, "range"), (2.0**8, "amax")])
def test_a_wrong_scale_in_one_layer(
    factor: float, kind: str, trial: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trial("gpt", storage=matrices())
    (cast,) = [q for q in quantizers(made.net) if q.site == f"{LAYER}/input"]
    right = cast.find_scale

    def wrong(*given: Any, **options: Any) -> Any:
        found = right(*given, **options)
        return type(found)(found.entries * factor, found.block, found.clamped)

    monkeypatch.setattr(cast, "find_scale", wrong)
    found = alarms(made)
    assert (kind, f"{LAYER}/input") in found
    assert {site for kind, site in found if kind in ("range", "amax")} == {f"{LAYER}/input"}


def test_a_layer_norm_kept_in_8_bits(trial: Callable[..., Any]) -> None:
    norm = "blocks.0.norm1.weight"
    found = alarms(trial("gpt", storage=matrices({"match": norm, "kind": "nearest", "format": "e4m3fn"})), steps=4)
    assert {("updates", norm), ("codes", norm)} <= found and {site for _, site in found} == {norm}
    stochastic = {**STORED, "match": norm}
    assert alarms(trial("gpt", storage=matrices(stochastic)), steps=4) == {("codes", norm)}


def test_nearest_storage_where_updates_are_smaller_than_half_a_gap(trial: Callable[..., Any]) -> None:
    coarse = {"match": f"{LAYER}.weight", "kind": "nearest", "format": "e0m3"}
    found = alarms(trial("gpt", storage=matrices(coarse)))
    assert ("updates", f"{LAYER}.weight") in found and {site for _, site in found} == {f"{LAYER}.weight"}


def test_storage_that_says_stochastic_and_rounds_to_nearest(
    trial: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def land(self: Any, wanted: torch.Tensor, state: Any, key: Any, request: Any, engine: Any) -> torch.Tensor:
        return on_grid(wanted, self.grid(wanted, state))

    monkeypatch.setattr(storage.Stochastic, "land", land)
    found = alarms(trial("gpt", storage=[STORED]))
    assert {site for kind, site in found if kind == "stall"} >= {f"{LAYER}.weight", "blocks.0.attention.qkv.weight"}
    assert {site for kind, site in found if kind == "stall"} <= ON_GRID


@pytest.mark.parametrize("how", ["requires_grad", "lr", "detached"])
def test_one_frozen_layer(how: str, trial: Callable[..., Any]) -> None:
    made = trial("gpt", storage=matrices())
    weight = dict(made.net.named_parameters())[f"{LAYER}.weight"]
    if how == "requires_grad":
        weight.requires_grad_(False)
    elif how == "detached":
        weight.register_hook(torch.zeros_like)
        for group in made.optimizer.param_groups:
            group["weight_decay"] = 0.0
    else:
        (group,) = [g for g in made.optimizer.param_groups if any(p is weight for p in g["params"])]
        group["lr"] = 0.0
    found = alarms(made)
    frozen = {site for kind, site in found if kind == "updates"}
    assert f"{LAYER}.weight" in frozen
    if how != "lr":  # the other matrices share the group
        assert frozen == {f"{LAYER}.weight"}
    assert (("gradient", f"{LAYER}.weight") in found) == (how == "detached")


def test_a_stale_amax(trial: Callable[..., Any]) -> None:
    """A history that is no longer committed, while the inputs grow by half a step."""
    made = trial("mlp")
    quantised = [q for q in quantizers(made.net) if q.site == "0/weight"]
    (cast,) = quantised
    cast.scaling.commit = lambda: None  # nothing that it notes becomes history
    cast.scaling.ready.fill_(True)
    cast.scaling.committed.fill_(float(made.net[0].weight.detach().abs().max()) / 448)

    def grow(step: int, made: Any) -> None:
        with torch.no_grad():
            made.net[0].weight.mul_(1.5)

    found = alarms(made, between=grow)
    assert ("amax", "0/weight") in found
    assert {site for kind, site in found if kind == "amax"} <= {"0/weight", "0.weight/stored"}
