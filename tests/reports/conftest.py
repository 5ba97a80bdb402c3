"""Projects in the store's own format: runs whose numbers are made up, folders and files as real runs leave them."""

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from altgrad.store import Run, RunFiles, RunStore, run_id
from tests.reports.chromium import Chromium

LAYERS = ("attention.qkv", "attention.proj", "mlp.up", "mlp.down")
BENEFIT = {"e3m4": 0.03, "e4m3fn": 0.0, "e5m2": 0.002, "e7m0": -0.03}


def spec(
    fmt: str = "e5m2", optimizer: str = "adamw", lr: float = 3e-3, seed: int = 0, **changes: Any
) -> dict[str, Any]:
    """A resolved spec. fmt: stored stochastically; fp32 and bf16 are baselines. changes: of the top level or "
    "optimizer."""
    found: dict[str, Any] = {
        "project": "study", "name": "study", "seed": seed, "model": {"kind": "gpt", "layers": 2, "width": 32},
        "data": {"kind": "text", "source": "eulaw", "batch_size": 8}, "precision": {"rules": []},
        "compute": "bfloat16" if fmt == "bf16" else "float32",
        "optimizer": {"kind": optimizer, "lr": lr, "weight_decay": 0.0, "groups": [], "betas": [0.9, 0.95]},
        "storage": [], "schedule": {"kind": "cosine", "warmup": 10, "floor": 0.1}, "steps": 100, "engine": "eager",
        "compile": False, "threads": 1,
    }  # fmt: skip
    if fmt not in ("fp32", "bf16"):
        found["storage"] = [{"kind": "stochastic", "match": "blocks.*.weight", "format": fmt, "scale": "fixed"}]
    if optimizer == "manifold_adamw":
        found["optimizer"] |= {"precondition": "update", "power": 1.0, "stiffness": "own", "kappa": 2**-6}
    for key, value in changes.items():
        (found if key in found else found["optimizer"])[key] = value
    return found


def final_loss(tree: Mapping[str, Any]) -> float:
    """A made-up truth: a valley in the learning rate, a cost of the format, a benefit of geometry, shared "
    "seed noise."""
    optimizer = tree["optimizer"]
    if optimizer["lr"] == 0:
        return 5.4
    fmt = tree["storage"][0]["format"] if tree["storage"] else "fp32"
    shared = np.random.default_rng(tree["seed"]).normal(0, 0.03)
    own = np.random.default_rng([tree["seed"], *map(ord, fmt + optimizer["kind"])]).normal(0, 0.003)
    benefit = BENEFIT.get(fmt, 0.0) if optimizer["kind"] == "manifold_adamw" else 0.0
    if optimizer.get("stiffness", "own") != "own":
        benefit *= 0.3
    benefit *= optimizer.get("power", 1.0)
    cost = {"fp32": 0.0, "e3m4": 0.02, "e4m3fn": 0.03, "e5m2": 0.08, "e7m0": 0.2}.get(fmt, 0.1)
    return 2.5 + 0.25 * math.log10(optimizer["lr"] / 3e-3) ** 2 + cost + shared + own - benefit


def write_run(
    root: Path, tree: Mapping[str, Any], *, status: str = "completed", points: int = 50, project: str = "study",
    name: str = "study", sited: bool = True, final: float | None = None, **meta: Any,
) -> Run:  # fmt: skip
    """One run in the store under `root`. final: the loss that it comes to; that of `final_loss` if left out."""
    digest = hashlib.sha256(repr(sorted(tree.items(), key=str)).encode()).hexdigest()
    facts = {"status": status, "steps": tree.get("steps"), "altgrad": "0.1.0", "torch": "2.13.0", "python": "3.11.7",
             "device": "cpu", "data": {"vocabulary": 256}, "seed": tree.get("seed")}  # fmt: skip
    path = RunStore(root).run(project, run_id(name, digest, int(tree.get("seed") or 0)))
    run = path.create(yaml.safe_dump(dict(tree), sort_keys=False), facts | meta)
    files = RunFiles(run)
    final = final_loss(tree) if final is None else final
    random = np.random.default_rng([tree["seed"], len(digest)])
    last = points if status == "completed" else points // 2
    for index in range(last + 1):
        step = round(index * tree["steps"] / points)
        loss = final + (5.55 - final) * math.exp(-6 * index / points)
        row = {"train/loss": loss + random.normal(0, 0.05), "train/lr": 1e-3, "time/tokens_per_second": 9000.0 + index}
        if status == "diverged" and index == last:
            row["train/loss"] = math.nan
        if index % 10 == 0:
            row["validation/loss"] = loss
        files.metrics(step, row)
        if sited and index % 5 == 0:
            files.metrics(step, watched(tree, index / points))
    if status == "diverged":
        files.event(step, "alarm", "the loss is nan; it began in blocks.0.mlp.up/grad_output.", monitor="finite")
    files.close()
    return run


def watched(tree: Mapping[str, Any], when: float) -> dict[str, float]:
    """What monitors would log: one site in trouble, ranks that fall, a stiffness field that moves."""
    found: dict[str, float] = {}
    manifold = tree["optimizer"]["kind"] == "manifold_adamw"
    for block in range(tree["model"]["layers"]):
        for number, layer in enumerate(LAYERS):
            name = f"blocks.{block}.{layer}.weight"
            found[f"rank/{name}/stable_rank"] = 12 - 6 * when - (0 if tree["storage"] == [] else when)
            if not tree["storage"]:
                continue
            found[f"stall/{name}/stall_ratio"] = 0.6 + 0.1 * number - 0.2 * manifold + 0.1 * when
            found[f"flips/{name}/flip_rate"] = 0.3 - 0.2 * when
            found[f"flips/{name}/sign_flip_rate"] = (0.005 if manifold else 0.1) * (1 - when / 2)
            found[f"updates/{name}/effective_update_ratio"] = 0.9 - 0.1 * number
            for exponent, share in ((-6, 0.5 - 0.2 * when), (-5, 0.3), (-4, 0.2 + 0.2 * when)):
                found[f"stiffness/{name}/binade_{exponent}_share"] = share
            site = f"blocks.{block}.{layer}/grad_output"
            found[f"range/{site}/underflow_rate"] = 0.8 if (block, number) == (1, 2) and when > 0.5 else 0.01
    return found


def write_study(root: Path, *, seeds: int = 5, formats: tuple[str, ...] = tuple(BENEFIT), sited: bool = True) -> None:
    """Tuning runs at three rates on two seeds, confirmation runs at one, baselines, controls and one divergence."""
    for fmt in (*formats, "fp32", "bf16"):
        for optimizer in ("adamw",) if fmt in ("fp32", "bf16") else ("adamw", "manifold_adamw"):
            for lr in (1e-3, 3e-3, 1e-2):
                for seed in (0, 1):
                    write_run(root, spec(fmt, optimizer, lr, seed), sited=sited)
            for seed in range(100, 100 + seeds):
                write_run(root, spec(fmt, optimizer, 3e-3, seed), sited=sited)
    for seed in range(100, 100 + seeds):
        for stiffness in ("smooth", "shuffled"):
            write_run(root, spec(formats[0], "manifold_adamw", 3e-3, seed, stiffness=stiffness), sited=sited)
        write_run(root, spec(formats[0], "manifold_adamw", 3e-3, seed, power=0.5), sited=sited)
        write_run(root, spec("fp32", "adamw", 0.0, seed), sited=sited)
    write_run(root, spec(formats[-1], "adamw", 3e-2, 0), status="diverged", sited=sited)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the project `study`."""
    root = tmp_path_factory.mktemp("runs")
    write_study(root)
    return root


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Run]:
    """`make_run(root, tree, status=..., ...)`."""
    return write_run


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., dict[str, Any]]:
    """`make_spec(fmt, optimizer, lr, seed, **changes)`."""
    return spec


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory, program: Callable[[str], str]) -> Any:
    """Chromium, for tests that are marked as needing it."""
    found = Chromium(program("chromium"), tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()
