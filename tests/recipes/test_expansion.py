"""Claims about recipes in a spec: they become what they say, that alone decides, and every part has its place."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from altgrad.document import Document, SpecError
from altgrad.matrix import Matrix, runs_of
from altgrad.nn import PrecisionPolicy
from altgrad.recipes.book import find, recipe
from altgrad.recipes.catalogue import names
from altgrad.training import RunSpec

SPEC = """model: {kind: gpt, layers: 2, width: 32, heads: 2, context: 16}
data: text
optimizer: adamw
steps: 3
"""
MINE = """title: mine
source: {authors: me}
parameters: {element: e4m3fn}
precision:
  - {place: body.last(1)}
  - {place: body, weight: $element, input: {format: $element, scaling: mx}, grad_weight: {input: none}}
compute: bfloat16
storage: [{kind: stochastic, format: bf16, scaling: unscaled}]
unproved: a test's own
"""
BY_HAND = """compute: bfloat16
storage: [{kind: stochastic, format: bf16, scaling: unscaled}]
precision:
  rules:
  - {place: body.last(1)}
  - {place: body, weight: e4m3fn, input: {format: e4m3fn, scaling: mx}, grad_weight: {input: none}}
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    return str(path)


def spec(lines: str, *sets: str) -> RunSpec:
    return RunSpec.parse(SPEC + lines, "spec.yaml", sets)


def refused(lines: str, *sets: str) -> str:
    with pytest.raises(SpecError) as caught:
        spec(lines, *sets)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_recipe_is_the_run_that_one_would_write_by_hand(mine: str) -> None:
    """The same fingerprint, which neither the name nor how it was said enters."""
    by_hand = spec(BY_HAND)
    ways = [spec(f"recipe: {mine}"), spec("", f"recipe={mine}"), spec(f"recipe: {{name: {mine}, element: e4m3fn}}")]
    alone = "".join(BY_HAND.splitlines(keepends=True)[:2])
    ways += [spec(alone + f"precision: {mine}"), spec(alone + f"precision: {{recipe: {mine}}}")]
    for way in ways:
        assert way.fingerprint() == by_hand.fingerprint() and way.precision.rules == by_hand.precision.rules
        assert "recipe" not in json.dumps(way.deciding())
    assert spec(f"recipe: {{name: {mine}, element: e5m2}}").fingerprint() != by_hand.fingerprint()
    assert RunSpec.made_from({**Document.parse(SPEC, "").data, "recipe": mine}) == ways[0]


def test_a_stored_spec_reads_back_whatever_became_of_the_recipe(mine: str) -> None:
    asked = [
        spec(f"recipe: {{name: {mine}, element: e5m2}}\ncompute: float32"),
        spec(f"precision: {{recipe: {mine}, set: {{weight.rounding: stochastic}}, rules: [{{match: head}}]}}"),
    ]
    texts = [each.to_yaml() for each in asked]
    Path(mine).write_text(MINE.replace("body.last(1)", "body.last(2)"))
    assert [RunSpec.parse(text) for text in texts] == asked
    Path(mine).unlink()
    assert [RunSpec.parse(text) for text in texts] == asked
    note = Document.parse(texts[0], "").data["recipe"]
    assert note == {"expanded": mine, "without": ["compute"], "element": "e5m2"}
    note = Document.parse(texts[1], "").data["precision"]["recipe"]
    changed = {"weight.rounding": "stochastic"}
    assert note == {"expanded": mine, "without": ["compute", "storage"], "changed": changed, "own_rules": 1}


def test_what_the_spec_says_wins_and_is_listed(mine: str) -> None:
    found = spec(f"recipe: {mine}\ncompute: float32\nprecision: none")
    assert (found.compute, found.precision.rules, len(found.storage)) == ("float32", (), 1)
    assert found.recipe_notices == [f"recipe {mine}: precision and compute as the spec says, not as the recipe does"]
    alone = spec(f"precision: {mine}\ncompute: float32")
    assert (alone.compute, alone.storage, len(alone.precision.rules)) == ("float32", (), 2)
    assert alone.recipe_notices == [f"precision: the casts of {mine} alone; recipe: {mine} would also set storage"]
    assert spec(f"recipe: {mine}").recipe_notices == spec("").recipe_notices == []
    assert spec(f"recipe: {mine}\ncompute: bfloat16").recipe_notices == []


WRITTEN: dict[str, Any] = {
    "precision": {"rules": [{"match": "*", "weight": "e3m4"}]}, "compute": "float32",
    "loss_scale": {"factor": 1024, "force": True},
    "storage": [{"kind": "stochastic", "format": "bf16", "scaling": "unscaled", "match": "head*"}],
    "gradients": {"micro_batch": {"format": "bf16", "scaling": "unscaled"}},
    "interventions": [{"kind": "oscillation_reset", "not_before": 2}],
    "optimizer": {"kind": "adamw", "states": {"exp_avg_sq": "e5m2"}},
}  # fmt: skip
TOLD = {"optimizer": "optimizer.states"}
"""What notes call a key of which a recipe says a part."""


@cache
def written(optimizer: str) -> RunSpec:
    return RunSpec.made_from({**Document.parse(SPEC, "").data, **by(optimizer)})


def by(optimizer: str) -> dict[str, Any]:
    """What is written, for this optimizer."""
    return {**WRITTEN, "optimizer": {**WRITTEN["optimizer"], "kind": optimizer}}


@pytest.mark.parametrize("name", names())
def test_whatever_of_a_run_is_not_the_recipes_is_told(name: str) -> None:
    """Of each key that a recipe may say: the file's wins over `recipe:` in the file and gives way to `--recipe`; what
    the recipe says nothing of stays; nothing of that is silent. A recipe without casts says that there are none."""
    expansion = find(name).expansion()
    optimizer = expansion.optimizer or "adamw"
    base = {**Document.parse(SPEC, "").data, "optimizer": optimizer}
    said = [*expansion.run, *(["optimizer"] if expansion.states else [])]
    alone = RunSpec.made_from({**base, "recipe": name})
    assert "precision" in said and set(said) <= set(WRITTEN)
    inside, outside = [
        RunSpec.check(Document.parse(json.dumps({**base, **more, **by(optimizer)}), "spec.yaml", as_json=True), sets)
        for more, sets in (({"recipe": name}, []), ({}, [f"recipe={name}"]))
    ]
    assert inside.recipe is not None and outside.recipe is not None
    assert inside.fingerprint() == written(optimizer).fingerprint() and RunSpec.parse(outside.to_yaml()) == outside
    kept = {key: getattr(outside, key) == getattr(written(optimizer), key) for key in WRITTEN}
    assert all(getattr(outside, key) == getattr(alone, key) if key in said else kept[key] for key in WRITTEN)
    others = [TOLD.get(key, key) for key in WRITTEN if key not in said]
    differing = [TOLD.get(key, key) for key in said if getattr(alone, key) != getattr(written(optimizer), key)]
    assert sorted(inside.recipe.without) == sorted(outside.recipe.replaced) == sorted(differing)
    assert sorted(inside.recipe.besides) == sorted(outside.recipe.besides) == sorted(set(others) - {"compute"})
    for run, told in ((inside, inside.recipe.without), (outside, outside.recipe.replaced)):
        assert all(sum(key in line for line in run.recipe_notices) == 1 for key in (*told, *run.recipe.besides))  # type: ignore[union-attr]


def test_an_optimizer_of_the_recipe_is_taken_where_the_spec_says_no_other() -> None:
    """Without one it is the recipe's; the file's wins over the file's recipe, and keeps its rate under `--recipe`."""
    bare = SPEC.replace("optimizer: adamw\n", "")
    assert RunSpec.parse(bare + "recipe: lns_madam").optimizer == RunSpec.parse(bare + "optimizer: madam").optimizer
    own = bare + "optimizer: {kind: adamw, lr: 2e-3, weight_decay: 0.1, betas: [0.9, 0.99]}\n"
    wins, gives_way = RunSpec.parse(own + "recipe: lns_madam"), RunSpec.parse(own, "", ["recipe=lns_madam"])
    assert wins.optimizer == RunSpec.parse(own).optimizer and wins.recipe is not None and gives_way.recipe is not None
    assert wins.recipe.without == gives_way.recipe.replaced == ("optimizer.kind",)
    assert gives_way.optimizer.tree() | {"kind": "", "lr": 2e-3, "weight_decay": 0.1} == {
        **RunSpec.parse(bare + "optimizer: madam").optimizer.tree(), "kind": "", "lr": 2e-3, "weight_decay": 0.1
    }  # fmt: skip
    assert (gives_way.optimizer.kind, gives_way.optimizer.lr) == ("madam", 2e-3)
    muon = RunSpec.parse(own, "", ["recipe=muon_8bit", "optimizer.momentum=0.9"]).optimizer
    assert (muon.kind, list(muon.states)) == ("muon", ["momentum_buffer"])


ENDING = """phases:
  - {until: $until}
  - {set: {forward: none}, storage: []}
parameters: {element: e4m3fn, until: 50%}
unproved:"""


def test_phases_of_a_recipe_are_those_that_one_would_write_by_hand(mine: str) -> None:
    """Of a run by it; where `precision` names it, it is its rules. What is wrong is placed in its file."""
    Path(mine).write_text(MINE.replace("parameters: {element: e4m3fn}\n", "").replace("unproved:", ENDING))
    phases = f"[{{until: 50%, recipe: {mine}}}, {{recipe: {mine}, set: {{forward: none}}, storage: []}}]"
    by_hand = BY_HAND.partition("precision")[0] + f"precision: {{phases: {phases}}}"
    found = spec(f"recipe: {mine}")
    assert found.fingerprint() == spec(by_hand).fingerprint() and found.recipe_notices == []
    assert RunSpec.parse(found.to_yaml()) == found and found.phase_of(2) == 1
    assert spec(f"recipe: {{name: {mine}, until: 70%}}").phase_of(2) == 0
    alone = spec(f"precision: {mine}")
    assert alone.precision.rules == found.precision.phases[0].rules and "precision.phases" in alone.recipe_notices[0]
    assert spec(f"recipe: {mine}\nprecision: none").recipe_notices[0].startswith(f"recipe {mine}: precision as")
    said = refused(f"recipe: {{name: {mine}, until: 100%}}")
    assert said.startswith(f"{mine}:9:13: 100% is not a part of a run")
    Path(mine).write_text(Path(mine).read_text().replace("set: {forward", "set: {forwerd"))
    assert "phase 1 of" in refused(f"recipe: {mine}") and "set names 'forwerd'" in refused(f"recipe: {mine}")
    Path(mine).write_text(Path(mine).read_text().replace("precision:", "loss_scale: 1\nprecisio:"))
    assert "precisio" in refused(f"recipe: {mine}")


def test_what_is_said_on_the_command_line_replaces_the_files(mine: str) -> None:
    """So `--recipe` and an axis of a matrix serve a spec that has casts; a part set there changes the recipe."""
    file = "precision: {rules: [{weight: e3m4}]}\ncompute: float32\n"
    found = spec(file, f"recipe={mine}")
    assert found.fingerprint() == spec(BY_HAND).fingerprint() and found.recipe_notices == [
        f"recipe {mine}: precision and compute as the recipe says; what the spec's file says of that is not used"
    ]
    assert spec(file + "recipe: mx\n", f"recipe={mine}").tree() == found.tree()
    stored = spec("recipe: mx").to_yaml()
    assert RunSpec.parse(stored, "", [f"recipe={mine}"]).fingerprint() == found.fingerprint()
    changed = spec(file, f"recipe={mine}", "precision.rules.1.weight.format=e5m2", "compute=float32")
    assert str(changed.precision.rules[1].weight.format) == "e5m2" and changed.compute == "float32"  # type: ignore[union-attr]
    assert changed.recipe is not None
    assert changed.recipe.tree() == {
        "expanded": mine, "without": ["compute"], "replaced": ["precision"],
        "changed": {"precision.rules.1.weight.format": "e5m2"},
    }  # fmt: skip
    assert changed.recipe_notices[-1] == f"recipe {mine}: changed by the spec: precision.rules.1.weight.format e5m2"
    assert spec(file, "precision.rules.0.weight.format=e5m2", "precision=none").precision.rules == ()
    matrix = Matrix.made_from({
        "base": {**Document.parse(SPEC + file, "").data, "recipe": "mx"}, "axes": {"recipe": ["te_current", mine]},
        "twin": "bf16",
    })  # fmt: skip
    runs = [run for _, run in runs_of(matrix, Path(), RunSpec)]
    found_names = [None if run.recipe is None else run.recipe.expanded for run in runs]
    assert found_names == ["te_current", mine, None] and [run.compute for run in runs] == ["bfloat16"] * 3


@pytest.mark.parametrize(
    ("change", "slots"),
    [
        ("weight.rounding: stochastic", ["forward.weight", "grad_input.weight"]),
        ("grad_input.weight.rounding: stochastic", ["grad_input.weight"]),
        ("weight: {format: e5m2, rounding: stochastic}", ["forward.weight", "grad_input.weight"]),
        ("weight: {rounding: stochastic}", ["forward.weight", "grad_input.weight"]),
        ("forward.input: {format: e5m2, rounding: stochastic}", ["forward.input"]),
    ],
)
def test_a_recipes_casts_are_changed_by_slot(mine: str, change: str, slots: list[str]) -> None:
    """Whatever else the slot says stays, and so do rules without casts."""
    policy = spec(f"precision: {{recipe: {mine}, set: {{{change}}}}}").precision
    casts = policy.rules[1].layer().slots
    assert [".".join(slot) for slot, cast in casts.items() if cast is not None and cast.draws] == slots
    assert not policy.rules[0].layer().casts()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("recipe: nvfp4", "spec.yaml:5:9: 'nvfp4' may be te_nvfp4 or torchao_nvfp4; name one of them."),
        ("precision: nvfp4", "spec.yaml:5:12: 'nvfp4' may be te_nvfp4 or torchao_nvfp4; name one of them."),
        ("precision: te_curent", "spec.yaml:5:12: 'te_curent' is not a recipe. Did you mean 'te_current'?"),
        ("recipe: {name: mx, elemnt: e3m2}", "'elemnt' is not a parameter of the recipe mx. Did you mean 'element'?"),
        ("recipe: {name: te_mxfp8, element: e3m2}", "'element' is not a parameter of the recipe te_mxfp8."),
        ("recipe: ./gone.yaml", "spec.yaml:5:9: gone.yaml: cannot be read: No such file or directory."),
        ("recipe: {element: e3m2}", "recipe takes a name, such as recipe: mx or {name: mx, element: e3m2}."),
        ("precision: {set: {weight: e4m3fn}}", "set changes the casts of a recipe; name one"),
        ("precision: {recipe: switchback, set: {grad_weight.input.format: e5m2}}",
         "set names grad_weight.input, which switchback does not cast; it casts forward.input, forward.weight,"),
        ("precision: {recipe: mx, set: {wieght: e4m3fn}}", "set names 'wieght', which no rule has; it takes weight,"),
        ("precision: {recipe: mx, set: {weight.rounding: up}}", "spec.yaml:5:30: 'up' is not a rounding"),
        ("precision: bf16_sr", "bf16_sr casts nothing: it says"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line_with_its_place(lines: str, message: str) -> None:
    assert message in refused(lines)


def test_a_parameter_set_in_a_note_is_refused(mine: str) -> None:
    """The recipe was expanded when the spec was stored, so nothing would follow from it."""
    for lines, path in ((f"recipe: {mine}", "recipe"), (f"precision: {mine}", "precision.recipe")):
        stored = spec(lines).to_yaml()
        with pytest.raises(SpecError, match="so that element would change nothing; name the recipe again: {name: "):
            RunSpec.parse(stored, "spec.yaml", [f"{path}.element=e5m2"])
        assert spec(lines, f"{path}.element=e5m2").fingerprint() != spec(lines).fingerprint()


def test_runs_of_one_arm_have_one_note(mine: str) -> None:
    """Though a later seed's spec is made from the same document."""
    matrix = Matrix.made_from({
        "base": {**Document.parse(SPEC, "").data, "precision": {"rules": [{"weight": "e3m4"}]}}, "seeds": [0, 1],
        "arms": {"mine": {"set": {"recipe": mine, "compute": "float32"}}},
    })  # fmt: skip
    for sets in ([], [f"recipe={mine}"], ["recipe=eco"]):
        one, two = (run for _, run in runs_of(matrix, Path(), RunSpec, sets))
        assert one.recipe is not None and one.recipe.tree() == two.recipe.tree()  # type: ignore[union-attr]
        assert one.recipe.replaced == ("precision",) and one.recipe.without == ("compute",)


def test_an_error_inside_of_a_recipe_is_placed_in_its_file(mine: str) -> None:
    Path(mine).write_text(MINE.replace("element: e4m3fn", "element: e9m9"))
    assert refused(f"recipe: {mine}").startswith(f"{mine}:6:27: e9m9 has 19 bits")
    Path(mine).write_text(MINE.replace("source: {authors: me}\n", ""))
    assert f"{mine}:1:1: source is missing" in refused(f"recipe: {mine}")
    Path(mine).write_text(MINE.replace("$element,", "$elemnt,"))
    assert f"{mine}:6:27: $elemnt is not among the recipe's parameters" in refused(f"recipe: {mine}")
    Path(mine).write_text(MINE + "proof: [a test]\n")
    assert "a recipe has either a proof or a reason why it is unproved" in refused(f"recipe: {mine}")


def test_a_policy_comes_by_name_or_from_a_recipe(mine: str) -> None:
    by_name = PrecisionPolicy.made_from(mine)
    assert by_name.recipe is not None and by_name.recipe.tree() == {"expanded": mine}
    chosen: Any = recipe(mine, element="e5m2")
    assert str(PrecisionPolicy.made_from(chosen).rules[1].weight.format) == "e5m2"  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="'elemnt' is not a parameter of the recipe"):
        recipe(mine, elemnt="e5m2")
