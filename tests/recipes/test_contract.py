"""One contract for every recipe of the book: it says what a run can be, each rule decides something, and it trains."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from altgrad.nn import commit, quantizers
from altgrad.nn.places import RulePlace
from altgrad.recipes.book import find
from altgrad.recipes.card import card, differences
from altgrad.recipes.catalogue import names
from altgrad.recipes.note import RecipeNote
from altgrad.store import Run, RunStore
from altgrad.training import RunSpec, train_run
from altgrad.training.state import TrainState, build_model, build_optimizer
from tests.training.running import after, lines

QUICKSTART = Path(__file__).resolve().parents[2] / "matrices" / "quickstart.yaml"
SMALL = ["model.layers=2", "model.width=64", "model.heads=2", "model.context=64", "threads=1", "engine=eager"]


@cache
def quickstart(name: str, *sets: str) -> RunSpec:
    """By the recipe, whatever the file casts."""
    return RunSpec.load(QUICKSTART, [f"recipe={name}", *sets])


@cache
def quickstarts_model() -> nn.Module:
    return RunSpec.load(QUICKSTART).model.build(64, 64)


@pytest.mark.parametrize("name", names())
def test_it_is_a_run_whose_every_rule_decides_something(name: str) -> None:
    """On the quickstart's model; by places, so that it fits others; stored, it is read back as it was."""
    recipe, spec = find(name), quickstart(name)
    replaced = ["precision", *["optimizer.kind"] * bool(recipe.optimizer)]
    assert spec.recipe == RecipeNote(expanded=name, replaced=tuple(replaced))
    assert RunSpec.parse(spec.to_yaml()) == spec
    assert set(recipe.parameters).isdisjoint(RecipeNote.model_fields)
    model = quickstarts_model()
    for policy in spec.precision.policies:
        assert all(rule.place is not None and RulePlace.parse(rule.place) for rule in policy.rules)
        decisions = [*policy.decide(model), *policy.targets(model)]
        casting = {number for number, rule in enumerate(policy.rules) if not rule.casts_nothing}
        assert casting <= {decision.rule for decision in decisions}
        assert bool(casting) == ("precision" in recipe.run_keys)
    assert recipe.title and recipe.stays_high and recipe.source.authors
    assert card(recipe)["rules"] == card(recipe.with_parameters())["rules"] and not differences(
        card(recipe), card(recipe)
    )


@pytest.mark.parametrize("name", names())
def test_three_steps_train_a_small_model(name: str) -> None:
    """One block, but where the recipe leaves the last one as it is."""
    leaves_one = any(str(rule.get("place")).startswith("body.last") for rule in find(name).precision)
    spec = quickstart(name, *SMALL, *([] if leaves_one else ["model.layers=1"])).at(1)
    torch.manual_seed(0)
    model = build_model(spec, 32, 32)
    optimizer = build_optimizer(spec, model)
    before = {key: p.detach().clone() for key, p in model.named_parameters() if p.ndim == 2}
    ids, losses = torch.randint(32, (1, 64)), []
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=spec.compute == "bfloat16"):
            logits = model(ids)
        loss = functional.cross_entropy(logits.float().flatten(0, 1), ids.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        commit(model)
        losses.append(loss.item())
    assert losses[0] < 5 and losses[2] < losses[0]
    assert all(not torch.equal(p, before[key]) for key, p in model.named_parameters() if key in before)
    assert bool(list(quantizers(model))) == bool(spec.precision.rules)


@pytest.mark.long
@pytest.mark.parametrize("name", names())
def test_the_quickstart_trains_and_resumes_bit_exactly(name: str, tmp_path: Path) -> None:
    sets = ["steps=20", "schedule.warmup=2", "data.batch_size=2", "checkpoint_every=10", "evaluate_every=20",
            "evaluate_limit=1", "log_every=1", "threads=1", "engine=eager"]  # fmt: skip
    spec = quickstart(name, *sets)
    data = spec.data.build(spec.seed, spec.model.context)
    from_start, stopped = (ready(tmp_path / way, spec) for way in ("whole", "stopped"))
    assert train_run(spec, from_start, data).status == "completed"
    assert train_run(spec, stopped, data, interrupted=after(13)).status == "interrupted"
    assert train_run(spec, stopped, data).status == "completed"
    assert lines(stopped) == lines(from_start)
    losses = [row["train/loss"] for row in from_start.metrics() if "train/loss" in row]
    assert losses[-1] < losses[0]


def ready(folder: Path, spec: RunSpec) -> Run:
    run = RunStore(folder).run("p", "r")
    run.create(spec.to_yaml(), {})
    return run


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
@pytest.mark.parametrize("name", names())
def test_compiled_it_casts_and_counts_as_eager_does(name: str, short_data: Callable[..., Any]) -> None:
    spec = quickstart(name, *SMALL, "monitors=[{kind: range, every: 1}]", "data.batch_size=2").at(1)
    data = short_data(spec)
    torch._dynamo.reset()
    found = []
    for compiled in (False, True):
        state = TrainState.build(spec, data, torch.device("cpu"))
        model = torch.compile(state.model, backend="aot_eager", fullgraph=True) if compiled else state.model
        for step in (1, 2):
            state.watch.begin(step)
            batch = data.batch(step)
            with torch.autocast("cpu", torch.bfloat16, enabled=spec.compute == "bfloat16"):
                outputs = model(batch.inputs)
            loss = data.loss(outputs, batch)
            loss.backward()
            state.optimizer.step()
            state.optimizer.zero_grad()
            commit(state.model)
            found.append((loss.item(), {kind: watched.metrics for kind, watched in state.watch.finish().items()}))
    assert found[0][1] == found[2][1]
    assert found[0][0] == pytest.approx(found[2][0], rel=1e-5)
