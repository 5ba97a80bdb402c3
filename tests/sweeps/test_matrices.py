"""Claims about the matrices in matrices/: their smoke variants can be started, and they compare like with like."""

from pathlib import Path

import pytest

from altgrad.matrix import Matrix, runs_of
from altgrad.sweeps import make_plan
from altgrad.training import RunSpec
from bench.combinations import matrices

FOLDER = Path(__file__).resolve().parents[2] / "matrices"
EIGHT = {"e0m7f", "e1m6f", "e2m5f", "e3m4f", "e4m3f", "e5m2f", "e6m1f", "e7m0f"}


@pytest.mark.parametrize("path", matrices(), ids=lambda path: path.stem)
def test_every_smoke_variant_can_be_started(path: Path) -> None:
    plan = make_plan(path, smoke=True)
    assert 0 < len(plan.runs) < 30 and all(run.spec.steps <= 20 for run in plan.runs)
    assert {run.place.arm for run in plan.runs} == set(Matrix.load(path).all_arms()), "no arm is left out"


def test_the_format_ablation_varies_the_format_alone_over_the_same_seeds_and_data() -> None:
    found = runs_of(Matrix.load(FOLDER / "format_ablation.yaml"), FOLDER, RunSpec)
    arms = {place.arm for place, _ in found}
    assert arms == EIGHT | {"e4m3fn", "e5m2", "bf16"}
    points: dict[str, set[tuple[str, int, float]]] = {}
    alike = set()
    for place, spec in found:
        points.setdefault(place.arm, set()).add((place.seeds, spec.seed, spec.optimizer.lr))
        varied = ("name", "seed", "precision", "compute", "optimizer")
        alike.add(str({key: value for key, value in spec.tree().items() if key not in varied}))
    assert len({frozenset(own) for own in points.values()}) == 1
    assert len(alike) == 1, "data, model, schedule and steps are the same in all arms"
    seeds = Matrix.load(FOLDER / "format_ablation.yaml").seed_sets()
    assert set(seeds) == {"tuning", "confirmation"} and not set(seeds["tuning"]) & set(seeds["confirmation"])


def test_the_grid_of_geometry_is_orthogonal() -> None:
    formats = Matrix.load(FOLDER / "geometry_grid.yaml").axes["storage.0.format"]
    assert set(formats) == {f"e{e}m{m}f" for e in range(1, 6) for m in range(1, 5)}
