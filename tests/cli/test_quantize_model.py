"""Claims about `altgrad quantize-model`: what it casts, measures, writes and refuses."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner, Result

from altgrad.cli.quantize_model import quantize_model
from altgrad.formats import CATALOG
from altgrad.measures.sqnr import sqnr
from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.quantize.packed import load_quantized
from altgrad.store import Run

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command("quantize-model")(quantize_model)

    def call(*args: object) -> Result:
        return CliRunner().invoke(app, [str(arg) for arg in args])

    return call


def weights(width: int = 8) -> dict[str, Tensor]:
    """Two blocks with an embedding, a head, norms, a convolution, and a matrix of whole numbers."""
    torch.manual_seed(0)
    found = {"embed.weight": torch.randn(11, width), "head.weight": torch.randn(11, width)}
    for block in range(2):
        found[f"blocks.{block}.mlp.up.weight"] = torch.randn(3 * width, width)
        found[f"blocks.{block}.mlp.down.weight"] = torch.randn(width, 3 * width).bfloat16()
        found[f"blocks.{block}.norm.weight"] = torch.ones(width)
    found["conv.weight"] = torch.randn(4, 4, 3)
    found["mask.weight"] = torch.arange(16).view(4, 4)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(weights(), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def cast(x: Tensor, spec: Any, **options: Any) -> Tensor:
    made = Quantizer(QuantizerSpec.model_validate(spec), role="weight", rows=len(x), **options).cast(x, live=False)
    return made.values(torch.float32)


CAST = {f"blocks.{block}.mlp.{name}.weight" for block in (0, 1) for name in ("up", "down")}


def result(found: Result) -> Any:
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def test_matrices_are_cast_and_the_rest_is_left_as_it_was(invoke: Invoke, file: Path, tmp_path: Path) -> None:
    found = invoke(file, "--format", "e4m3fn", "--out", "out")
    assert found.exit_code == 0, found.output
    assert "written to out" in found.stdout and "4 of 10 tensors quantised" in found.stdout
    loaded, before = load_quantized(tmp_path / "out"), weights()
    assert loaded.keys() == before.keys()
    for name, x in before.items():
        assert same(loaded[name], cast(x, "e4m3fn") if name in CAST else x), name
    stored = load_file(tmp_path / "out" / "w.safetensors")
    assert stored["blocks.0.mlp.up.weight"].dtype == torch.float8_e4m3fn


def test_json_has_the_measures_of_every_tensor(invoke: Invoke, file: Path) -> None:
    summary = result(invoke(file, "--format", "e2m1", "--json"))["results"][0]
    rows = {row["tensor"]: row for row in summary["tensors"]}
    assert rows.keys() == CAST
    for name, row in rows.items():
        x, q = weights()[name].float(), cast(weights()[name], "e2m1")
        assert row["sqnr_db"] == pytest.approx(float(sqnr(x, q)), rel=1e-9)
        assert row["underflow_rate"] == pytest.approx(float(((q == 0) & (x != 0)).sum() / (x != 0).sum()))
        assert row["saturation_rate"] == 0 and row["nonfinite"] == 0
        assert 0 < row["utilisation"] <= 1 and 0 <= row["unused_share"] < 1
        assert row["bytes_before"] == weights()[name].nbytes and row["bytes_after"] == x.numel() + 4
    assert summary["bytes_before"] == sum(x.nbytes for x in weights().values())
    saved = sum(row["bytes_before"] - row["bytes_after"] for row in rows.values())
    assert summary["bytes_after"] == summary["bytes_before"] - saved
    x = torch.cat([weights()[name].float().flatten() for name in sorted(CAST)])
    q = torch.cat([cast(weights()[name], "e2m1").flatten() for name in sorted(CAST)])
    assert summary["sqnr_db"] == pytest.approx(float(sqnr(x, q)), rel=1e-9)


def test_the_bytes_reported_are_those_in_the_file(invoke: Invoke, file: Path, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("rules: [{match: '*up', weight: {format: e3m2, scaling: mx}}]")
    summary = result(invoke(file, "--policy", "p.yaml", "--out", "out", "--json"))["results"][0]
    stored = load_file(tmp_path / "out" / "w.safetensors")
    assert summary["bytes_after"] == sum(tensor.nbytes for tensor in stored.values())


def test_without_format_or_policy_every_format_of_the_catalog_is_measured(invoke: Invoke, file: Path) -> None:
    bare, named = invoke(file, "--json"), invoke(file, "--json", "--format", "all")
    assert bare.stdout == named.stdout
    assert [each["name"] for each in result(bare)["results"]] == [entry.name for entry in CATALOG]
    table = invoke(file).stdout
    assert all(entry.name in table for entry in CATALOG) and "4 of 10 tensors quantised" in table


def test_several_formats_have_a_folder_each(invoke: Invoke, file: Path, tmp_path: Path) -> None:
    invoke(file, "--format", "e3m4", "--format", "E3M4", "--format", "fp4", "--out", "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["e2m1", "e3m4"]
    x = weights()["blocks.1.mlp.up.weight"]
    for name in ("e2m1", "e3m4"):
        assert same(load_quantized(tmp_path / "out" / name)["blocks.1.mlp.up.weight"], cast(x, name))


def test_match_names_the_modules_instead(invoke: Invoke, file: Path) -> None:
    found = result(invoke(file, "--format", "e3m4", "--match", "embed", "--match", "blocks.last.*", "--json"))
    names = {row["tensor"] for row in found["results"][0]["tensors"]}
    assert names == {"embed.weight", "blocks.1.mlp.up.weight", "blocks.1.mlp.down.weight"}


@pytest.mark.parametrize(
    ("scaling", "count"),
    [("current", 1), ("mse", 1), ({"kind": "current", "granularity": "channel"}, 6), ("mx", 6), ("nvfp4", 1)],
)
def test_scales_beyond_their_range_are_counted(invoke: Invoke, tmp_path: Path, scaling: Any, count: int) -> None:
    tiny = {"tiny.weight": torch.full((6, 32), 1e-40), "plain.weight": torch.ones(6, 32)}
    save_file(tiny, tmp_path / "w.safetensors")
    policy = {"rules": [{"match": "*", "weight": {"format": "e4m3fn", "scaling": scaling}}]}
    (tmp_path / "p.yaml").write_text(json.dumps(policy))
    summary = result(invoke("w.safetensors", "--policy", "p.yaml", "--json"))["results"][0]
    assert summary["clamped_scale_count"] == count
    assert {row["tensor"]: row["clamped_scale_count"] for row in summary["tensors"]} == {
        "tiny.weight": count, "plain.weight": 0
    }  # fmt: skip
    line = f"p: scales clamped to the end of their range: {count}\n"
    assert (line in invoke("w.safetensors", "--policy", "p.yaml").stdout) == (count > 0)


POLICY = """rules:
  - {match: blocks.first.*, weight: none}
  - match: "*.up"
    weight: {format: e2m3, scaling: mx, rounding: stochastic}
    input: e5m2
  - {match: "*", weight: {format: e4m3fn, scaling: {kind: current, granularity: channel, scale: real}}}
"""


def test_a_policy_decides_by_name_and_is_kept_in_the_metadata(invoke: Invoke, file: Path, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(POLICY)
    found = invoke(file, "--policy", "p.yaml", "--out", "out")
    assert found.exit_code == 0, found.output
    loaded, before = load_quantized(tmp_path / "out"), weights()
    stochastic = {"format": "e2m3", "scaling": "mx", "rounding": "stochastic"}
    by_channel = {"format": "e4m3fn", "scaling": {"kind": "current", "granularity": "channel", "scale": "real"}}
    expected = dict(before)
    expected["blocks.1.mlp.up.weight"] = cast(
        before["blocks.1.mlp.up.weight"], stochastic, site="blocks.1.mlp.up/weight"
    )
    expected |= {name: cast(before[name], by_channel) for name in ("blocks.1.mlp.down.weight", "head.weight")}
    for name, x in expected.items():
        assert same(loaded[name], x), name
    data = (tmp_path / "out" / "w.safetensors").read_bytes()
    ours = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["altgrad"])
    assert [rule["match"] for rule in ours["policy"]["rules"]] == ["blocks.first.*", "*.up", "*"]
    assert ours["tensors"]["blocks.1.mlp.up.weight"]["cast"]["rounding"] == "stochastic"


def test_sharded_folders_stay_sharded_and_bring_their_config_but_no_pickle(invoke: Invoke, tmp_path: Path) -> None:
    folder, names = tmp_path / "model", sorted(weights())
    folder.mkdir()
    for shard, part in (("a.safetensors", names[:5]), ("b.safetensors", names[5:])):
        save_file({name: weights()[name] for name in part}, folder / shard)
    index = {name: "a.safetensors" if name in names[:5] else "b.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text('{"model_type": "x"}')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert invoke(folder, "--format", "e3m4", "--out", "out").exit_code == 0
    out = tmp_path / "out"
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    tables = ["1_Pooling/config.json", "a.safetensors", "b.safetensors", "config.json", "model.safetensors.index.json"]
    assert written == tables
    places = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    for shard in ("a.safetensors", "b.safetensors"):
        assert load_file(out / shard).keys() == {name for name, place in places.items() if place == shard}
    assert same(load_quantized(out)["blocks.0.mlp.up.weight"], cast(weights()["blocks.0.mlp.up.weight"], "e3m4"))


def test_a_run_is_its_newest_checkpoint_without_the_state_of_its_casts(invoke: Invoke, tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "p" / "r").create("steps: 1\n", {})
    state = weights() | {"blocks.0.mlp.up.casts.weight.scaling.amax_now": torch.ones(())}
    run.checkpoints.write(1, {"model.safetensors": lambda path: save_file(state, path)})
    assert invoke(run.path, "--format", "e3m4", "--out", "out").exit_code == 0
    assert load_quantized(tmp_path / "out").keys() == weights().keys()
    assert (tmp_path / "out" / "spec.yaml").read_text() == "steps: 1\n"


def test_a_run_without_a_whole_checkpoint_is_damaged(invoke: Invoke, tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "p" / "r").create("steps: 1\n", {})
    snapshot = run.checkpoints.write(1, {"model.safetensors": lambda path: save_file(weights(), path)})
    snapshot.file("model.safetensors").write_bytes(b"")
    found = invoke(run.path, "--format", "e3m4", "--out", "out")
    assert found.exit_code == 5 and found.stderr.count("\n") == 1 and "can be used" in found.stderr
    assert not (tmp_path / "out").exists()


def test_conv1d_weights_have_their_channels_along_the_other_axis(invoke: Invoke, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes = {"c_attn": (8, 24), "c_proj": (8, 8), "c_fc": (8, 32)}
    gpt2 = {f"h.0.attn.{name}.weight": torch.randn(*shape).contiguous() for name, shape in shapes.items()}
    save_file(gpt2, tmp_path / "w.safetensors")
    spec = {"format": "e3m4", "scaling": {"kind": "current", "granularity": "channel", "scale": "real"}}
    (tmp_path / "p.yaml").write_text(f"rules: [{{match: '*', weight: {json.dumps(spec)}}}]")
    assert invoke("w.safetensors", "--policy", "p.yaml", "--out", "out").exit_code == 0
    loaded = load_quantized(tmp_path / "out")
    for name, x in gpt2.items():
        assert same(loaded[name], cast(x.T.contiguous(), spec).T), name


@pytest.mark.parametrize("name", ["block_sparse_moe.input_linear.weight", "mlp.experts.gate_up_proj"])
def test_experts_in_one_tensor_are_refused_by_name_and_can_be_left_out(
    invoke: Invoke, tmp_path: Path, name: str
) -> None:
    tensors = {f"blocks.0.{name}": torch.ones(2, 4, 4), "blocks.0.q.weight": torch.ones(4, 4)}
    save_file(tensors, tmp_path / "w.safetensors")
    found = invoke("w.safetensors", "--format", "e3m4", "--out", "out")
    assert found.exit_code == 2 and f"blocks.0.{name} is 3-D [2, 4, 4]" in found.stderr
    assert not (tmp_path / "out").exists()
    assert invoke("w.safetensors", "--format", "e3m4", "--match", "*.q", "--out", "out").exit_code == 0


def bad_model(path: Path, what: str) -> None:
    contents: Mapping[str, Any] = {
        "float64": {"a.weight": torch.ones(4, 4, dtype=torch.float64)},
        "float8": {"a.weight": torch.ones(4, 4).to(torch.float8_e5m2)},
        "nothing": {"a.bias": torch.ones(4)},
        "nan": {"a.weight": torch.full((4, 4), torch.nan)},
        "clash": {"a.weight": torch.ones(4, 4), "a.weight.scale": torch.ones(4)},
    }
    if what in contents:
        save_file(contents[what], path)
    elif what == "truncated":
        save_file(weights(), path)
        path.write_bytes(path.read_bytes()[:-7])
    else:
        path.write_bytes({"empty": b"", "noise": b"\xff" * 64}[what])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("float64", "a.weight is F64; casts take F32, BF16, F16: convert it"),
        ("float8", "a.weight is F8_E5M2; casts take F32, BF16, F16: start from"),
        ("nothing", "no 2-D weight"),
        ("nan", "a.weight has inf or NaN, and a quantised model is written of finite weights only: 16 of 16 entries"),
        ("clash", "a.weight.scale is a tensor of the model"),
        ("truncated", "cannot be read"),
        ("empty", "cannot be read"),
        ("noise", "cannot be read"),
    ],
)
def test_a_bad_file_is_one_line_and_nothing_is_written(invoke: Invoke, tmp_path: Path, what: str, message: str) -> None:
    bad_model(tmp_path / "w.safetensors", what)
    found = invoke("w.safetensors", "--format", "e2m1", "--out", "deep/out")
    assert found.exit_code == 2
    assert message in found.stderr and found.stderr.count("\n") == 1 and found.stdout == ""
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "w.safetensors"]


def test_a_cast_that_cannot_keep_nan_can_still_be_measured(invoke: Invoke, tmp_path: Path) -> None:
    bad_model(tmp_path / "w.safetensors", "nan")
    row = result(invoke("w.safetensors", "--format", "e2m1", "--json"))["results"][0]["tensors"][0]
    assert row["nonfinite"] == 16 and row["sqnr_db"] == "nan" and row["unused_share"] == 1


@pytest.mark.parametrize("fmt", ["e4m3fn", "e5m2", "e2m1", "{format: e4m3fn, scaling: mx}"])
def test_tensors_that_are_not_finite_are_named_counted_and_the_worst(invoke: Invoke, tmp_path: Path, fmt: str) -> None:
    torch.manual_seed(0)
    broken, bias = torch.randn(64, 64), torch.zeros(64)
    broken[3, 3], broken[4, 4], broken[4, 5], bias[0] = torch.nan, torch.inf, -torch.inf, torch.nan
    tensors = {"b.weight": broken, "c.bias": bias, "c.weight": torch.randn(64, 64), "zero.weight": torch.zeros(64, 64)}
    save_file(tensors, tmp_path / "w.safetensors")
    (tmp_path / "p.yaml").write_text(f"rules: [{{match: '*', weight: {fmt}}}]")
    asked = ("w.safetensors", "--policy", "p.yaml")
    summary = result(invoke(*asked, "--json"))["results"][0]
    assert (summary["worst"], summary["worst_sqnr_db"]) == ("b.weight", "nan")
    rows = {row["tensor"]: row for row in summary["tensors"]}
    assert (rows["b.weight"]["nan_count"], rows["b.weight"]["inf_count"]) == (1, 2)
    assert (rows["c.weight"]["nan_count"], rows["zero.weight"]["inf_count"]) == (0, 0)
    assert summary["nonfinite_tensors"] == [
        {"tensor": "b.weight", "elements": 4096, "cast": True, "nan_count": 1, "inf_count": 2},
        {"tensor": "c.bias", "elements": 64, "cast": False, "nan_count": 1, "inf_count": 0},
    ]
    shown = invoke(*asked).stdout
    assert "nan (3 not finite)" in shown and "nan in b.weight" in shown
    assert "not finite: b.weight, 3 of 4,096 entries are not finite (1 NaN, 2 Inf)" in shown
    assert "not finite: c.bias, 1 of 64 entries are not finite (1 NaN, 0 Inf); not cast" in shown
    refused = invoke(*asked, "--out", "out")
    assert refused.exit_code == 2 and "b.weight has inf or NaN" in refused.stderr and not (tmp_path / "out").exists()
    tensors["b.weight"] = torch.randn(64, 64)
    save_file(tensors, tmp_path / "w.safetensors")
    assert invoke(*asked, "--out", "out").exit_code == 0  # a bias is copied as it was
    whole = result(invoke(*asked, "--json"))["results"][0]
    assert whole["worst"] in ("b.weight", "c.weight")  # a tensor of zeros loses nothing


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--format", "e9m9"], "e9m9 has 19 bits; AltGrad emulates 2 to 16."),
        (["--format", "e8m8"], "e8m8 has 17 bits"),
        (["--format", "e4m3"], "say e4m3fn (max 448"),
        (["--format", "e4m3fm"], "Did you mean 'e4m3fn'?"),
        (["--format", "e10m5"], "casts run in float32"),
        (["--format", "e3m4", "--match", "blocks.*.upp"], "matches no Linear layer"),
        (["--out", "out"], "give a format, such as e4m3fn, or a policy"),
        (["--format", "e3m4", "--policy", "p.yaml"], "leave out format and match"),
        (["--policy", "absent.yaml"], "absent.yaml: cannot be read"),
        (["--policy", "p.yaml"], "p.yaml:1:17: 'nothing.*' matches no Linear layer"),
        (["--policy", "bad.yaml"], "bad.yaml:1:"),
        (["--policy", "none.yaml"], "no rule casts a weight"),
        (["--format", "e3m4", "--out", "full"], "full already exists; choose another path"),
        (["--format", "e3m4", "--out", "w.safetensors"], "w.safetensors already exists"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    invoke: Invoke, file: Path, tmp_path: Path, args: list[str], message: str
) -> None:
    (tmp_path / "p.yaml").write_text("rules: [{match: nothing.*, weight: e3m4}]")
    (tmp_path / "bad.yaml").write_text("rules: [{match: '*', weigth: e3m4}]")
    (tmp_path / "none.yaml").write_text("rules: [{match: '*', input: e3m4}]")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    found = invoke(file, *args)
    assert found.exit_code == 2
    assert message in found.stderr and found.stderr.count("\n") == 1 and found.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_model_is_one_line(invoke: Invoke, file: Path, tmp_path: Path) -> None:
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (tmp_path / "none").mkdir()
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a.safetensors"}}')
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../w.safetensors"}}')
    invoke(file, "--format", "e3m4", "--out", "out")
    for model, message in {
        "absent": "absent is not there",
        "pickles": "holds only pickles (pytorch_model.bin)",
        "pickles/pytorch_model.bin": "is a pickle",
        "none": "holds no model.safetensors",
        "lost": "a.safetensors, which is not there",
        "away": "not in its folder",
        "out/w.safetensors": "is quantised already",
    }.items():
        found = invoke(model, "--format", "e3m4")
        assert found.exit_code == 2 and message in found.stderr and found.stderr.count("\n") == 1, found.stderr


def test_an_empty_folder_may_be_filled_and_a_failed_one_stays_empty(invoke: Invoke, file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "deep").mkdir()
    bad_model(tmp_path / "nan.safetensors", "nan")
    assert invoke("nan.safetensors", "--format", "e2m1", "--out", "out").exit_code == 2
    assert list((tmp_path / "out").iterdir()) == []
    assert invoke(file, "--format", "e2m1", "--out", "out").exit_code == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["w.safetensors"]


def test_a_folder_that_cannot_be_written_is_the_machines_fault(invoke: Invoke, file: Path) -> None:
    found = invoke(file, "--format", "e2m1", "--out", file / "out")
    assert found.exit_code == 3 and found.stderr.count("\n") == 1


def test_a_grid_in_many_slabs_is_the_grid_of_the_whole(invoke: Invoke, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(700, 1100)
    save_file({"a.weight": x}, tmp_path / "w.safetensors")
    assert invoke("w.safetensors", "--format", "e2m5", "--out", "out").exit_code == 0
    assert same(load_quantized(tmp_path / "out")["a.weight"], cast(x, "e2m5"))
