"""Claims about runs whose products have an accumulator: taken up again, on two ranks, traced, in a dry run."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from altgrad.cli.main import app
from altgrad.nn import commit
from altgrad.store import Run, RunStore
from altgrad.training import RunSpec
from altgrad.training.state import TrainState
from tests.training.rank_job import TINY, run_case
from tests.training.running import lines
from tests.training.test_distributed import together

DELAYED = "{format: e4m3fn, scaling: {kind: delayed, history: 3}}"
ADDING = (
    f"precision.rules=[{{match: 'blocks.*', weight: {DELAYED}, input: {DELAYED}, grad_output: e5m2, "
    "forward: {accumulator: hopper_fast}, grad_input: {accumulator: {instruction: hopper_promote_128, promote: 32}}, "
    "grad_weight: {accumulator: {bits: 6, chunk: 8, result_bits: 9}}}]"
)
SETS = [ADDING, "steps=6", "monitors=[{kind: accumulation, every: 2}]"]


def weights(run: Run) -> bytes:
    newest = run.checkpoints.newest()
    assert newest is not None
    return newest.file("model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("one")
    run_case(folder, "adding", SETS, None)
    return RunStore(folder).run("ranks", "adding")


def test_a_run_that_goes_on_is_the_same(whole: Run, tmp_path: Path) -> None:
    for stop in (3, None):
        run_case(tmp_path, "adding", SETS, stop)
    again = RunStore(tmp_path).run("ranks", "adding")
    assert lines(again) == lines(whole) and weights(again) == weights(whole)
    measured = {key for row in lines(whole) for key in row if key.startswith("accumulation/")}
    assert any("/grad_weight/relative_error" in key for key in measured)


@pytest.mark.long
def test_two_ranks_are_one_rank_with_two_micro_batches(whole: Run, tmp_path: Path) -> None:
    together(2, tmp_path, {"adding": (SETS, None)})
    two = RunStore(tmp_path).run("ranks", "adding")
    assert two.meta()["ranks"] == 2 and weights(two) == weights(whole)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch")
def test_a_traced_model_is_one_graph_with_the_same_losses() -> None:
    torch._dynamo.reset()
    spec = RunSpec.parse(TINY, sets=[ADDING, "model.dropout=0"])
    data, losses = spec.data.build(spec.seed, spec.model.context), []
    for compiled in (False, True):
        state = TrainState.build(spec, data, torch.device("cpu"))
        model = torch.compile(state.model, backend="aot_eager", fullgraph=True) if compiled else state.model
        for step in range(1, 5):
            batch = data.batch(step)
            loss = data.loss(model(batch.inputs), batch)
            loss.backward()
            state.optimizer.step()
            state.optimizer.zero_grad()
            commit(state.model)
            losses.append(loss.item())
    assert losses[:4] == losses[4:]


def dry_run(folder: Path, *sets: str) -> tuple[int, str, str]:
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    asked = [part for each in sets for part in ("--set", each)]
    done = CliRunner().invoke(app, ["train", str(path), "--dry-run", "--json", *asked])
    return done.exit_code, done.stdout, done.stderr


def test_a_dry_run_names_the_accumulator_of_each_product(tmp_path: Path) -> None:
    code, told, _ = dry_run(tmp_path, ADDING)
    slots = json.loads(told)["layers"][0]["slots"]
    named = {slot: text.partition(" added in ")[2] for slot, text in slots.items()}
    assert code == 0 and named == {
        "forward.input": "hopper_fast", "forward.weight": "hopper_fast",
        "grad_input.grad_output": "hopper_promote_128 (promote 32)",
        "grad_input.weight": "hopper_promote_128 (promote 32)",
        "grad_weight.grad_output": "bits 6, chunk 8, result_bits 9",
        "grad_weight.input": "bits 6, chunk 8, result_bits 9",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("accumulator", "said"),
    [
        ("{bits: 60}", "bits"),
        ("{bits: 13, chunk: 0}", "chunk"),
        ("{bits: 13, chunk: 100000}", "chunk"),
        (
            "{bits: 48}",
            "bits: 48 with chunk: 32 needs sums of 56 bits, and at most 52 are exact; use bits: 44 or fewer.",
        ),
        ("hoper_fast", "hopper_fast"),
        (
            "blackwell_fp4",
            "accumulator: blackwell_fp4 takes e2m1, and forward.input is e4m3fn; cast it to one of these",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(accumulator: str, said: str, tmp_path: Path) -> None:
    rule = f"{{weight: e4m3fn, input: e4m3fn, grad_output: e5m2, forward: {{accumulator: {accumulator}}}}}"
    code, _, told = dry_run(tmp_path, f"precision.rules=[{rule}]")
    assert code == 2 and said in told and len(told.strip().splitlines()) == 1, told
