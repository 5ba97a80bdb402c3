"""Claims about precision in time: a run of several phases is the splice of runs of one each, to the bit."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import altgrad
from altgrad.document import SpecError
from altgrad.formats import parse_format
from altgrad.nn import dequantize_model, quantizers
from altgrad.quantize import round_to
from altgrad.quantize.engine import ready_compiler
from altgrad.reports.arms import rules_said, settings_of
from altgrad.reports.bits import operand_bits, stored_bits
from altgrad.reports.sections.recipes import recipe_of
from altgrad.spec import LocatedError
from altgrad.store import Run, RunStore, run_id
from altgrad.training import RunSpec, train_run
from altgrad.training.carry import carry
from altgrad.training.evaluate import evaluate
from altgrad.training.prepare import prepare
from altgrad.training.restore import restore
from altgrad.training.state import TrainState
from tests.training.running import lines

TINY = """
project: tests
model: {kind: gpt, layers: 2, width: 16, heads: 2, context: 16}
data: {kind: text, batch_size: 2}
optimizer: {kind: adamw, lr: 3e-3, weight_decay: 0.1}
schedule: {kind: wsd, warmup: 2}
steps: 10
threads: 1
engine: eager
evaluate_every: 1000
checkpoint_every: 5
keep: 9
monitors: [{kind: range, every: 3}, finite, {kind: stall, every: 2}]
"""
DELAYED = "weight: {format: e4m3fn, scaling: {kind: delayed, history: 3}}"
DRAWN = "grad_output: {format: e5m2, rounding: stochastic}"
FIRST = f"rules: [{{{DELAYED}, input: e4m3fn, {DRAWN}}}]"
PHASES = {
    "an operand less": (FIRST, f"rules: [{{{DELAYED}, {DRAWN}}}]"),
    "other formats": (FIRST, f"rules: [{{weight: e3m4, input: {{format: e2m1, scaling: nvfp4}}, {DRAWN}}}]"),
    "no casts": (FIRST, "rules: []"),
    "casts at the end": ("rules: []", FIRST),
    "a storage left": (
        f"{FIRST}, storage: [{{match: blocks.*.weight, kind: kahan, format: e3m4}}]",
        "rules: [], storage: []",
    ),
    "a storage entered": (FIRST, f"{FIRST}, storage: [{{match: blocks.*.weight, kind: stochastic, format: e3m4}}]"),
    "one storage for all": (
        f"{FIRST}, storage: [{{match: blocks.*.weight, kind: stochastic, format: e3m4}}]",
        "rules: [], storage: [{match: blocks.*.weight, kind: stochastic, format: e3m4}]",
    ),
    "states entered": (
        FIRST,
        f"{FIRST}, states: {{exp_avg: {{format: e4m3fn, rounding: stochastic, scaling: {{kind: block, size: 16}}}}}}",
    ),
    "states left": (f"{FIRST}, states: {{exp_avg: e4m3fn}}", "rules: [], states: {}"),
    "turned": ("recipe: te_nvfp4", "recipe: te_nvfp4, set: {forward: none}"),
}


@pytest.fixture(scope="module")
def dataset(short_data: Callable[..., Any]) -> Any:
    return short_data(RunSpec.parse(TINY))


def make(folder: Path, *sets: str) -> tuple[RunSpec, Run]:
    spec = RunSpec.parse(TINY, "tiny.yaml", sets)
    run = RunStore(folder).run(spec.project, run_id(spec.name, spec.fingerprint(), spec.seed))
    return spec, run if run.exists else run.create(spec.to_yaml(), {"steps": spec.steps})


def phased(name: str, until: str = "50%") -> str:
    first, second = PHASES[name]
    return f"precision={{phases: [{{until: {until}, {first}}}, {{{second}}}]}}"


def alone(phase: str) -> list[str]:
    """The same as a run of one phase."""
    for key, path in ((", storage: ", "storage"), (", states: ", "optimizer.states")):
        if key in phase:
            casts, _, said = phase.partition(key)
            return [f"precision={{{casts}}}", f"{path}={said}"]
    return [f"precision={{{phase}}}"]


def tensors(run: Run) -> dict[str, bytes]:
    newest = run.checkpoints.newest()
    assert newest is not None
    return {name: newest.file(name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")}


DAILY = ("an operand less", "a storage left", "turned")


def parameters(daily: tuple[str, ...], of: Iterable[str]) -> list[Any]:
    """The others take long together."""
    return [pytest.param(each, marks=[pytest.mark.long] * (each not in daily)) for each in of]


@pytest.mark.parametrize("name", parameters(DAILY, PHASES))
def test_a_run_of_two_phases_is_a_run_and_a_branch_of_it(tmp_path: Path, dataset: Any, name: str) -> None:
    """Numbers, weights, moments, histories and places in the random bits; those of a cast that stays go on."""
    spec, whole = make(tmp_path, phased(name))
    assert train_run(spec, whole, dataset).status == "completed"
    before, until = make(tmp_path, *alone(PHASES[name][0]))
    train_run(before, until, dataset, until=5)
    there = f"branch={{run: tests/{until.id}, step: 5}}"
    later, branch = make(tmp_path, *alone(PHASES[name][1]), there)
    train_run(later, branch, dataset)
    assert lines(until) + lines(branch) == lines(whole)
    assert tensors(branch) == tensors(whole)
    assert not [event for event in branch.events() if event["event"] == "notice"]


@pytest.mark.parametrize("name", parameters(("other formats",), ("other formats", "a storage left", "turned")))
def test_stopped_and_resumed_at_any_step_it_is_the_same_run(tmp_path: Path, dataset: Any, name: str) -> None:
    spec, run = make(tmp_path / "whole", phased(name))
    train_run(spec, run, dataset)
    whole = lines(run), tensors(run), [event["step"] for event in run.events() if event["event"] == "phase"]
    assert whole[2] == [6]
    for step in (5, 6):
        spec, run = make(tmp_path / f"stopped-{step}", phased(name))
        assert train_run(spec, run, dataset, until=step).status == "interrupted"
        assert train_run(spec, run, dataset).status == "completed"
        assert (lines(run), tensors(run), [e["step"] for e in run.events() if e["event"] == "phase"]) == whole


def test_what_both_phases_cast_alike_goes_on_and_the_rest_begins_at_its_step(dataset: Any) -> None:
    spec = RunSpec.parse(TINY, sets=[phased("an operand less")])
    state = TrainState.build(spec.at(1), dataset, torch.device("cpu"))
    before = {q.site: q for q in quantizers(state.model)}
    for quantizer in before.values():
        for buffer in quantizer.buffers():
            buffer.add_(3)
    state.step = 5
    later = carry(state, spec.at(6), dataset)
    after_ = {q.site: q for q in quantizers(later.model)}
    assert after_.keys() < before.keys()
    for site, quantizer in after_.items():
        own, theirs = dict(quantizer.named_buffers()), dict(before[site].named_buffers())
        assert all(torch.equal(own[name], theirs[name]) for name in theirs), site
    # A cast that the first phase did not have draws the bits of the steps to come, not those of the first steps.
    other = RunSpec.parse(TINY, sets=[phased("casts at the end")])
    plain = TrainState.build(other.at(1), dataset, torch.device("cpu"))
    plain.step = 5
    drawn = [q for q in quantizers(carry(plain, other.at(6), dataset).model) if q.draws]
    assert drawn and all(int(q.counter) == 5 << 16 for q in drawn)


def test_a_storage_begins_from_the_weight_with_what_the_one_before_owes(tmp_path: Path, dataset: Any) -> None:
    spec, run = make(tmp_path, phased("a storage left"))
    train_run(spec, run, dataset, until=5)
    state = restore(run, 5).state
    name = "blocks.0.mlp.up.weight"
    p = state.model.get_parameter(name)
    owed = state.optimizer.state[p]["compensation"].clone()
    stored = p.detach().clone()
    assert float(owed.abs().max()) > 0
    later = carry(state, spec.at(6), dataset)
    q = later.model.get_parameter(name)
    assert torch.equal(q, stored + owed)
    assert "compensation" not in later.optimizer.state[q] and "exp_avg" in later.optimizer.state[q]
    entered = RunSpec.parse(TINY, sets=[phased("a storage entered")])
    begun = carry(TrainState.build(entered.at(1), dataset, torch.device("cpu")), entered.at(6), dataset)
    weight = begun.model.get_parameter(name)
    scale = begun.optimizer.state[weight]["storage_scale"]
    assert torch.equal(weight, round_to(weight.detach(), parse_format("e3m4"), scale=scale))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
def test_phases_that_say_the_same_are_the_run_without_and_trace_the_same_graph(tmp_path: Path, dataset: Any) -> None:
    spec, run = make(tmp_path, f"precision={{{FIRST}}}")
    other, twice = make(tmp_path, f"precision={{phases: [{{until: 3, {FIRST}}}, {{{FIRST}}}]}}")
    train_run(spec, run, dataset)
    train_run(other, twice, dataset)
    assert lines(run) == lines(twice) and tensors(run) == tensors(twice)
    assert _code(spec, dataset) == _code(other.at(1), dataset) == _code(other.at(9), dataset)


def _code(spec: RunSpec, dataset: Any) -> list[str]:
    """The code of the graphs of a step's forward through one Linear: others trace alike."""
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.append(graph.code)
        return graph

    ready_compiler()
    torch._dynamo.reset()
    shape = spec.model.model_copy(update={"layers": 1})
    state = TrainState.build(spec.model_copy(update={"model": shape}), dataset, torch.device("cpu"))
    layer = next(
        module for module in state.model.modules() if isinstance(module, torch.nn.Linear) and quantizers(module)
    )
    torch.compile(layer, backend=backend, fullgraph=True)(torch.ones(4, layer.in_features))
    assert seen
    return seen


WRONG = {
    "a gap": ("[{until: 3, rules: []}, {until: 60%, rules: []}]", "the last phase has until: 60%"),
    "an overlap": ("[{until: 6, rules: []}, {until: 50%, rules: []}, none]", "where the one before it ends at 6"),
    "no end": ("[none, none]", "only the last phase may be without until"),
    "beyond the run": ("[{until: 10, rules: []}, none]", "in a run of 10 steps"),
    "beyond 100 %": ("[{until: 120%, rules: []}, none]", "below 100%"),
    "no steps": ("[{until: 5%, rules: []}, none]", "would end at step 0"),
    "no number": ("[{until: half, rules: []}, none]", "a percentage such as 82%"),
    "no such state": ("[{until: 5, states: {exp_av: e4m3fn}}, none]", "exp_av"),
    "no recipe": ("[{until: 5, recipe: te_nvfp}, none]", "te_nvfp4"),
}


@pytest.mark.parametrize("name", WRONG)
def test_phases_without_meaning_are_refused_in_one_line_with_their_place(name: str) -> None:
    phases, said = WRONG[name]
    with pytest.raises(SpecError) as caught:
        RunSpec.parse(TINY + f"precision:\n  phases: {phases}\n", "tiny.yaml")
    assert said in str(caught.value) and "tiny.yaml:15:" in str(caught.value) and "\n" not in str(caught.value)


def test_a_rule_that_decides_nothing_is_placed_in_its_phase() -> None:
    text = TINY + "precision:\n  phases:\n  - {until: 5, rules: []}\n  - {rules: [{match: nothing, weight: e4m3fn}]}\n"
    with pytest.raises(SpecError, match="tiny.yaml:17:22: 'nothing' matches no Linear"):
        prepare(text_spec(text))
    both = TINY + f"precision: {{{FIRST}, phases: [{{until: 5, rules: []}}, none]}}\n"
    with pytest.raises(SpecError, match="rules or phases"):
        RunSpec.parse(both)
    shifts = TINY + f"precision: {{phases: [{{until: 5, rules: []}}, {{{FIRST}}}]}}\ninterventions: [mantissa_shift]\n"
    with pytest.raises(SpecError, match="and so do phases"):
        RunSpec.parse(shifts)


def text_spec(text: str) -> Any:
    from altgrad.document import Document

    return Document.parse(text, "tiny.yaml")


def test_dry_run_has_every_phase() -> None:
    prepared = prepare(text_spec(TINY + "precision: {phases: [{until: 40%, recipe: te_block}, none]}\n"))
    slots = [{row["layer"]: row["slots"]["forward.weight"] for row in prepared.casts(n)} for n in prepared.spec.phases]
    assert slots[0]["blocks.0.mlp.up"].startswith("e4m3") and set(slots[1].values()) == {"-"}
    assert prepared.quantised == sum(
        p.numel() for name, p in prepared.fitted.model.named_parameters() if "blocks" in name and p.ndim == 2
    )


def test_each_expert_counts_as_quantised_and_a_stored_stack_once() -> None:
    experts = "model={kind: llama, layers: 1, width: 16, heads: 2, context: 16, experts: 4, active: 2}"
    one = "precision={rules: [{match: '*experts.up.0', weight: e4m3fn}]}"
    whole = "storage=[{match: '*experts.up.weight', kind: nearest, format: e4m3fn}]"
    some, stored = (prepare(text_spec(TINY), [experts, one, *more]) for more in ([], [whole]))
    stack = some.fitted.model.get_parameter("blocks.0.experts.up.weight")
    assert stack.ndim == 3 and some.quantised == stack[0].numel() and stored.quantised == stack.numel()


def test_validation_with_other_casts_leaves_training_alone(tmp_path: Path, dataset: Any) -> None:
    spec, run = make(tmp_path, f"precision={{{FIRST}}}", "evaluate_every=4")
    other, plain = make(tmp_path, f"precision={{{FIRST}}}", "evaluate_every=4", "evaluate_with=none")
    for each, its in ((spec, run), (other, plain)):
        train_run(each, its, dataset)
    trained = [[row for row in lines(its) if "train/loss" in row] for its in (run, plain)]
    assert trained[0] == trained[1] and tensors(run) == tensors(plain)
    restored = restore(plain, 10)
    expected = evaluate(dequantize_model(restored.model), dataset)
    assert expected is not None
    assert plain.last("validation/loss")["validation/loss"] == expected["loss"]
    assert run.last("validation/loss")["validation/loss"] != expected["loss"]


def test_a_branch_needs_its_run_only_until_it_has_begun(tmp_path: Path, dataset: Any) -> None:
    """And says, once, what of that run's state it goes on without."""
    spec, run = make(tmp_path, f"precision={{{FIRST}}}", "interventions=[oscillation_reset]")
    train_run(spec, run, dataset, until=5)
    there = f"branch={{run: tests/{run.id}, step: 5}}"
    later, branch = make(tmp_path, "precision=none", "optimizer=lion", there)
    train_run(later, branch, dataset, until=6)
    run.delete()
    assert train_run(later, branch, dataset).status == "completed"
    assert [row["step"] for row in branch.metrics(["train/loss"])] == [6, 7, 8, 9, 10]
    assert restore(branch).step == 10
    assert [event["message"] for event in branch.events() if event["event"] == "notice"] == [
        "The moments of AdamW are no moments of Lion, which begins without any.",
        "The state of oscillation_reset is not taken over, since interventions are others now.",
    ]


def test_what_cannot_be_branched_from_is_said_before_anything_is_written(tmp_path: Path, dataset: Any) -> None:
    spec, run = make(tmp_path, f"precision={{{FIRST}}}")
    train_run(spec, run, dataset, until=5)
    wrong = {
        "has no checkpoint of step 4": [f"branch={{run: tests/{run.id}, step: 4}}"],
        "is not a run": ["branch={run: tests/nothing, step: 5}"],
        "the model is another one": [f"branch={{run: tests/{run.id}, step: 5}}", "model.layers=1"],
    }
    for said, sets in wrong.items():
        prepared = prepare(text_spec(TINY), sets)
        with pytest.raises(SpecError, match=said):
            prepared.train(tmp_path)
        assert not prepared.run(tmp_path).exists
    with pytest.raises(SpecError, match="the run has 10 steps"):
        RunSpec.parse(TINY, sets=[f"branch={{run: tests/{run.id}, step: 10}}"])


def test_an_alarm_changes_the_precision_as_a_phase_would(tmp_path: Path, dataset: Any) -> None:
    """The alarm of step 4 (all of a scale far too large underflows) brings about what a phase from step 5 does."""
    lost = "rules: [{weight: e4m3fn, input: {format: e4m3fn, scaling: {kind: fixed, value: 1048576.0}}}]"
    watch = "monitors=[{kind: range, every: 2, patience: 3}]"
    change = "interventions=[{kind: change_precision, on: [stall, range/underflow_rate], precision: none}]"
    spec, run = make(tmp_path / "whole", f"precision={{{lost}}}", watch, change)
    train_run(spec, run, dataset)
    other, by_phase = make(tmp_path, f"precision={{phases: [{{until: 4, {lost}}}, none]}}", watch)
    train_run(other, by_phase, dataset)
    assert [e["step"] for e in run.events() if e["event"] == "intervention"] == [4]
    assert lines(run) == lines(by_phase) and tensors(run) == tensors(by_phase)
    for step in (4, 7):
        again, stopped = make(tmp_path / f"{step}", f"precision={{{lost}}}", watch, change)
        train_run(again, stopped, dataset, until=step)
        train_run(again, stopped, dataset)
        assert lines(stopped) == lines(run)
    assert not quantizers(restore(run, 10).model)
    with pytest.raises(LocatedError, match="names no monitor"):
        make_state(["interventions=[{kind: change_precision, on: [rang], precision: none}]"], dataset)


def make_state(sets: list[str], dataset: Any) -> TrainState:
    return TrainState.build(RunSpec.parse(TINY, sets=sets), dataset, torch.device("cpu"))


def test_a_run_of_percentages_is_not_lengthened(tmp_path: Path) -> None:
    import altgrad

    phases = [{"until": "50%", "rules": []}, "none"]
    spec = RunSpec.parse(TINY, sets=["evaluate_limit=1"])
    run = altgrad.train(spec, precision={"phases": phases}, runs=tmp_path, until=3, progress=False)
    with pytest.raises(ValueError, match="give them in steps"):
        run.resume(steps=20, progress=False)


def test_reports_read_all_phases() -> None:
    spec = RunSpec.parse(TINY, sets=[phased("turned"), "seed=3", "branch={run: tests/run-12345678-s3, step: 5}"]).tree()
    assert recipe_of(spec) == "te_nvfp4 to 50%, then te_nvfp4 (forward none)"
    assert len(rules_said(spec, "precision")) == 4
    assert operand_bits(spec, "grad_output") == [4.5, 32.0]
    kept = RunSpec.parse(TINY, sets=[phased("a storage left")]).tree()
    assert stored_bits(kept)[0] < 32
    again = RunSpec.parse(
        TINY, sets=[phased("turned"), "seed=4", "branch={run: tests/run-12345678-s4, step: 5}"]
    ).tree()
    assert settings_of(spec) == settings_of(again)
    assert json.loads(settings_of(spec))["branch"] == {"run": "tests/run-12345678", "step": 5}


def test_a_precision_in_phases_is_never_taken_for_one_without_casts() -> None:
    spec = RunSpec.parse(TINY, "tiny.yaml", [phased("turned")])
    model = spec.model.build(256, 256)
    with pytest.raises(ValueError, match=r"says no casts by itself; take that of a step: spec\.at\(step\)\.precision"):
        altgrad.quantize_model(model, spec.precision)
    assert all(each.rule is not None for each in spec.at(1).precision.decide(model) if each.name.startswith("blocks"))
