"""Claims about `compile: blocks`: like blocks are one graph, whatever they cast; the model itself stays plain."""

import copy
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from altgrad.document import Document
from altgrad.models.llama import LlamaSpec
from altgrad.models.model import ModelSpec
from altgrad.monitors import MonitorSpec
from altgrad.nn import PrecisionPolicy, commit, quantize_model
from altgrad.optim import AdamW
from altgrad.quantize import Quantizer, ScalingSpec
from altgrad.quantize.apart import _cast_into
from altgrad.spec import MachineError, SpecError
from altgrad.training import RunSpec
from altgrad.training.prepare import prepare
from altgrad.training.regions import Regions, blocks_of, compile_seconds, drop_other_graphs, is_traceable, run_plainly
from altgrad.watching import MonitorSet

# torch.compile warns of what it does itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")

MX = {"format": "e4m3fn", "scaling": "mx"}
RECIPES: dict[str, Any] = {
    "delayed, stochastic": {
        "weight": {"format": "e4m3fn", "scaling": "delayed"},
        "input": {"format": "e4m3fn", "rounding": "stochastic"},
        "grad_output": {"format": "e5m2", "scaling": "delayed"},
    },
    "mx": {"weight": MX, "input": MX, "grad_output": MX | {"rounding": "stochastic"}, "operands": "per_product"},
}
CALL = {"transform": {"kind": "hadamard", "size": 16, "signs": "call"}}
CALLS = {"signs of each call": {"input": MX, "weight": MX, "grad_output": MX, "grad_input": CALL, "grad_weight": CALL}}


def model_of(layers: int, recipe: str, width: int = 32) -> nn.Module:
    torch.manual_seed(0)
    spec = ModelSpec.of({"kind": "gpt", "layers": layers, "width": width, "heads": 2, "context": 16})
    # Of what is turned one layer of the MLP alone: its graphs take several times as long, and others are like them.
    rules: Any = [{"match": "blocks.*.mlp.up" if recipe in CALLS else "blocks.*", **(RECIPES | CALLS)[recipe]}]
    return quantize_model(spec.build(64, 64), PrecisionPolicy(rules=rules))


def steps(model: nn.Module, regions: Regions | None) -> list[Any]:
    """Two unwatched steps and a watched one; losses, and what the monitor says."""
    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(1))
    run_plainly(model, lambda: model(tokens))
    monitors = (MonitorSpec.of({"kind": "range", "every": 4}),)
    optimizer = AdamW(model.parameters(), lr=1e-3)
    watch = MonitorSet(monitors, model, optimizer)
    found: list[Any] = []
    for step in (2, 3, 4):
        watch.begin(step)
        if regions is None:
            loss = model(tokens).square().mean()
            loss.backward()
        else:
            with regions.at_work():
                loss = model(tokens).square().mean()
                loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        commit(model)
        reports = watch.finish()
        found.append((loss.item(), reports["range"].metrics if "range" in reports else {}))
    return found


LONG = pytest.mark.long
CASES = [
    pytest.param("delayed, stochastic", 2, "eager", marks=LONG),
    ("delayed, stochastic", 4, "eager"),
    ("signs of each call", 2, "aot_eager_decomp_partition"),
    *(pytest.param(recipe, 4, "aot_eager", marks=LONG) for recipe in RECIPES),
    *(pytest.param(recipe, 3, "inductor", marks=[LONG, pytest.mark.needs("c++")]) for recipe in RECIPES),
]


@pytest.mark.parametrize(("recipe", "layers", "backend"), CASES)
def test_like_blocks_are_one_graph_watched_and_one_unwatched(recipe: str, layers: int, backend: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    model = model_of(layers, recipe)
    plain = steps(copy.deepcopy(model), None)
    compiled = steps(model, Regions(model, backend=backend))
    behind = len(_debug_get_cache_entry_list(_cast_into.__code__))  # of watched casts, see altgrad.quantize.apart
    assert counters["stats"]["unique_graphs"] == 2 + behind and not counters["graph_break"]
    assert behind == 0 if backend != "inductor" else behind == 3 or recipe == "mx"
    for (loss, metrics), (loss_compiled, metrics_compiled) in zip(plain, compiled, strict=True):
        assert loss_compiled == pytest.approx(loss, rel=1e-5)
        assert metrics_compiled == pytest.approx(metrics, rel=1e-2, abs=2e-3, nan_ok=True)
    rows = {key: value for key, value in compiled[2][1].items() if ".mlp.up/" in key and key.endswith("/amax")}
    # Two casts of a tensor, each along an axis of its own, have one amax.
    of_blocks = {(layer, cast.partition(".")[0]) for layer, cast, _ in (key.split("/") for key in rows)}
    own = len(rows) if recipe in CALLS else len(of_blocks)  # what is turned has other numbers in each product
    assert len(of_blocks) == 3 * layers and len(set(rows.values())) == own, "rows of its own for every block"


@pytest.mark.long
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.needs("c++"))])
def test_counts_of_a_sixteenth_are_those_of_eager_code(backend: str) -> None:
    """The key of a draw reaches casts within graphs and behind their operator; inputs have 2^16 elements."""
    found = []
    for compiled, sampled in ((False, False), (False, True), (True, True)):
        torch._dynamo.reset()
        model = model_of(2, "delayed, stochastic")
        tokens = torch.randint(64, (128, 16), generator=torch.Generator().manual_seed(1))
        run_plainly(model, lambda model=model, tokens=tokens: model(tokens))
        few = {"sample": "1/16"} if sampled else {}
        watch = MonitorSet([MonitorSpec.of({"kind": "range", **few})], model, AdamW(model.parameters()))
        watch.begin(1)
        with Regions(model, backend=backend).at_work() if compiled else nullcontext():
            model(tokens).square().mean().backward()
        found.append(watch.finish()["range"].metrics)
    full, eager, graph = found
    assert graph == pytest.approx(eager, rel=1e-3, abs=2e-4, nan_ok=True)
    apart = {key for key, value in full.items() if value == value and value != eager[key]}
    assert apart and all(key.rpartition("/")[2].endswith("_rate") for key in apart)


@pytest.mark.long
@pytest.mark.needs("c++")
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_second_process_finds_both_graphs_made(recipe: str, tmp_path: Path) -> None:
    """What the first one compiled, forward and backward, is in torch's cache, autograd Functions and all."""
    with fresh_cache(dir=tmp_path):
        torch._dynamo.reset()
        model = model_of(2, recipe)
        first = steps(model, Regions(model))
        torch._dynamo.reset()
        counters.clear()
        model = model_of(2, recipe)
        again = steps(model, Regions(model))
    found, behind = counters["aot_autograd"], len(_debug_get_cache_entry_list(_cast_into.__code__))
    assert (
        found["autograd_cache_hit"] == 2 + behind
        and not found["autograd_cache_miss"]
        and not found["autograd_cache_bypass"]
    )
    assert not counters["inductor"]["fxgraph_cache_miss"] and first == again


def test_the_model_is_plain_outside() -> None:
    model = model_of(2, "mx")
    regions = Regions(model, backend="eager")
    own = [block.forward for block in blocks_of(model)]
    with regions.at_work():
        assert all("forward" in vars(block) for block in blocks_of(model))
    assert [block.forward for block in blocks_of(model)] == own
    assert not any("forward" in vars(block) for block in blocks_of(model))
    copy.deepcopy(model)
    with pytest.raises(KeyError), regions.at_work():
        raise KeyError
    assert not any("forward" in vars(block) for block in blocks_of(model))


def test_a_model_that_ran_plainly_is_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    quantize_model(model, {"rules": [{"match": "*", "input": {"format": "e4m3fn", "rounding": "stochastic"}}]})
    before = copy.deepcopy(model.state_dict())
    drawn = torch.random.get_rng_state()
    run_plainly(model.eval(), lambda: model(torch.randn(8, 4)))
    assert not model.training and torch.equal(torch.random.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_auto_is_no_graph_where_shapes_vary_and_exact_asks_for_a_choice() -> None:
    labels = "{model: encoder, data: labels, optimizer: adamw, steps: 1, compile: auto}"
    assert RunSpec.parse(labels).compile == "auto"
    with pytest.raises(MachineError, match=r"--exact: .*: it leaves compile to the machine \(here false\)"):
        prepare(Document.parse(SPEC, "spec"), ["compile=auto", "threads=1", "engine=eager"], exact=True)


def test_blocks_are_the_outermost_lists_of_one_class_with_casts() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4)])
            self.layers = nn.ModuleList(nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]) for _ in range(3))
            self.head = nn.ModuleList([nn.Linear(4, 4)])

    model = Two()
    assert blocks_of(model) == []
    quantize_model(model, {"rules": [{"match": "layers.*", "weight": "e4m3fn"}]})
    assert blocks_of(model) == list(model.layers)
    assert blocks_of(model_of(1, "mx")) == []


def test_depth_costs_nothing_by_blocks_and_casts_cost_something() -> None:
    shallow, deep = model_of(2, "mx"), model_of(8, "mx")
    assert compile_seconds(shallow, "blocks") == compile_seconds(deep, "blocks")
    assert compile_seconds(shallow, "model") < compile_seconds(deep, "model")
    assert compile_seconds(deep, "blocks") > compile_seconds(model_of(2, "delayed, stochastic"), "blocks")


SPEC = """
project: tests
model: {kind: gpt, layers: 2, width: 16, heads: 2, context: 16}
data: {kind: text, batch_size: 2}
optimizer: adamw
steps: 3
schedule: {warmup: 0}
precision: {rules: [{match: "blocks.*", weight: e4m3fn, input: e4m3fn}]}
"""


@pytest.mark.needs("c++")
def test_auto_is_decided_by_what_compiling_saves() -> None:
    chosen = {}
    for name, sets in {
        "short": [],
        "long": ["steps=100000000"],
        "one block": ["steps=100000000", "model.layers=1"],
        "asked for": ["compile=blocks"],
    }.items():
        chosen[name] = prepare(
            Document.parse(SPEC, "spec"), [*([] if "compile" in str(sets) else ["compile=auto"]), *sets]
        ).spec.compile
    assert chosen == {"short": False, "long": "blocks", "one block": "model", "asked for": "blocks"}


@pytest.mark.needs("c++")
@pytest.mark.filterwarnings("ignore:schedule.warmup")
def test_a_run_that_differs_by_seed_and_rate_finds_its_graphs_ready_and_has_its_own_bits(tmp_path: Path) -> None:
    def losses(folder: str, *sets: str) -> tuple[list[float], int]:
        """Of a run, and how many graphs it made."""
        counters.clear()
        rule = "{match: 'blocks.*.mlp.up', weight: {format: e4m3fn, rounding: stochastic}, input: e4m3fn}"
        quick = ("compile=blocks", "log_every=1", "monitors=[]", "evaluate_limit=1")
        run = (
            prepare(Document.parse(SPEC, "spec"), [f"precision.rules=[{rule}]", *quick, *sets])
            .train(tmp_path / folder)
            .run
        )
        return [row["train/loss"] for row in run.metrics(["train/loss"])], counters["stats"]["unique_graphs"]

    other = ("seed=7", "optimizer.lr=3e-3", "name=second")
    drop_other_graphs("another model")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        first, made = losses("one")
    assert not [each for each in warned if "Dynamo" in str(each.message)], "what traces is meant to be traced"
    second, again = losses("one", *other)
    losses("one", "compile=false", "name=uncompiled")
    alone, own = losses("two", *other)
    assert made == own > 0 and again == 0
    assert second == alone and second != first


def test_blocks_of_a_model_that_repeats_none_are_refused_at_the_field() -> None:
    with pytest.raises(
        SpecError, match=r"--set compile=blocks: this model repeats no block that has casts; use compile: model\."
    ):
        prepare(Document.parse(SPEC, "spec"), ["compile=blocks", "model.layers=1"])


def test_a_phase_without_casts_runs_its_blocks_as_they_are() -> None:
    rules = '{rules: [{match: "blocks.*", weight: e4m3fn}]}'
    casts = rules.replace("{rules", "{until: 50%, rules")
    found = prepare(Document.parse(SPEC, "spec"), ["compile=blocks", f"precision={{phases: [{casts}, none]}}"])
    assert [len(blocks_of(each.model)) > 1 for each in found.phases] == [True, False]
    with pytest.raises(SpecError, match="repeats no block that has casts"):
        prepare(Document.parse(SPEC, "spec"), ["compile=blocks", "precision={phases: [{until: 50%, rules: []}, none]}"])


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu())  # type: ignore[no-any-return]


def pair_of(format: str, scaling: str, rounding: str = "nearest_even") -> nn.Module:
    cast = {"format": format, "scaling": {"kind": scaling}, "rounding": rounding}
    rules: Any = [{"match": "*", "weight": cast, "input": cast, "grad_output": cast, "operands": "per_product"}]
    return quantize_model(Pair(), PrecisionPolicy(rules=rules))


@pytest.mark.long
def test_formats_one_after_another_are_constants_of_their_graphs() -> None:
    """In torch 2.13 `float(format.max)` became an input of the second graph, and Dynamo failed on it."""
    torch._dynamo.reset()
    for scaling, formats in {"nvfp4": ("e2m1", "e3m2"), "block": ("e5m2",)}.items():
        for format in formats:
            model = pair_of(format, scaling)
            x = torch.randn(16, 32)
            seen = torch.compile(model, fullgraph=True, backend="eager")(x)
            assert torch.equal(seen, model(x))


FORMATS = [f"e{e}m{m}{'fn' if (e, m) == (4, 3) else ''}" for e in range(2, 8) for m in range(1, 9)]
FORMATS += [f"e{e}m{m}fnuz" for e in (4, 5) for m in range(1, 7)]
SHAPES = [(0, 8), (1, 8), (7,), (3, 5), (64, 64), (4096,), (8193,), (2, 3, 4), (128, 130), (1, 1)]


@pytest.mark.long
@pytest.mark.needs("c++")
@pytest.mark.parametrize("scaling", ["current", "block", "mx", "nvfp4"])
def test_all_formats_shapes_and_roundings_in_one_process(scaling: str) -> None:
    """None crashes, falls back to eager by running out of recompilations, or gives other bits."""
    torch._dynamo.reset()
    for number, name in enumerate(FORMATS):
        for rounding in ("nearest_even", "stochastic", "toward_zero"):
            spec: Any = {"format": name, "rounding": rounding, "scaling": {"kind": scaling}}
            compiled, eager = Quantizer(spec, "a"), Quantizer(spec, "a")
            compiled.engine = "compiled"
            for shape in SHAPES:
                x = torch.randn(shape, generator=torch.Generator().manual_seed(number))
                assert torch.equal(compiled(x), eager(x)), (name, rounding, shape)


def test_every_scaling_is_in_the_recipes_here() -> None:
    assert {"current", "block", "mx", "nvfp4"} <= set(ScalingSpec.kinds())


@pytest.mark.long
@pytest.mark.parametrize("casts", [False, True])
def test_a_mixture_compiled_by_blocks_has_eager_s_bits(casts: bool) -> None:
    """Uncast it is one graph; experts with casts run between graphs of the rest."""
    cast = {"format": "e4m3fn", "scaling": "delayed"}
    rule = {"place": "body", "weight": "e4m3fn", "input": cast, "grad_output": {**cast, "rounding": "stochastic"}}
    made = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = LlamaSpec(layers=2, width=32, heads=2, context=8, experts=3, active=2).build(40, 40)
        if casts:
            quantize_model(model, {"rules": (rule,)})
        tokens = torch.randint(40, (3, 2, 8), generator=torch.Generator().manual_seed(1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run_plainly(model, partial(model, tokens[0]))
        assert is_traceable(model) == (not casts)
        regions = Regions(model, "aot_eager", plain=True)
        for x in tokens:
            with regions.at_work() if compiled else nullcontext():
                torch.nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
            commit(model)
        made.append(model.state_dict())
    assert [name for name, tensor in made[0].items() if not torch.equal(tensor, made[1][name])] == []
