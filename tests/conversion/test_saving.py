"""Claims about `altgrad.save_quantized`: what it saves, `load_quantized` gives back, and a quantised model computes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import altgrad
from altgrad.nn import QuantizedLayer
from altgrad.quantize import ScalingSpec

ROOT = Path(__file__).resolve().parents[2]


def model() -> nn.Module:
    """An embedding, two blocks with a norm each, and a head."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(8, 24), nn.LayerNorm(24), nn.Linear(24, 8, bias=False)) for _ in range(2)]
    parts = {"embed": nn.Embedding(11, 8), "blocks": nn.ModuleList(blocks), "lm_head": nn.Linear(8, 11)}
    return nn.ModuleDict(parts)


LAYERS = {f"blocks.{block}.{place}.weight" for block in (0, 1) for place in (0, 2)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, x in a.items():
        assert x.dtype == b[name].dtype and torch.equal(x, b[name]), name


def test_a_model_its_file_and_its_folder_are_saved_alike(tmp_path: Path) -> None:
    made = model()
    (tmp_path / "folder").mkdir()
    save_file(made.state_dict(), tmp_path / "folder" / "model.safetensors")
    sources = [made, str(tmp_path / "folder"), tmp_path / "folder" / "model.safetensors"]
    reports = [altgrad.save_quantized(each, tmp_path / str(n), format="e3m4") for n, each in enumerate(sources)]
    saved = [altgrad.load_quantized(tmp_path / str(number)) for number in range(3)]
    same(saved[0], saved[1])
    same(saved[0], saved[2])
    assert reports[0].results == reports[1].results == reports[2].results
    assert {row["tensor"] for row in reports[0].results[0]["tensors"]} == LAYERS
    same(
        {n: x for n, x in made.state_dict().items() if n not in LAYERS},
        {n: saved[0][n] for n in saved[0].keys() - LAYERS},
    )


SPECS: list[Any] = [
    "e4m3fn", {"format": "e2m1", "scaling": "mx"}, {"format": "e2m1", "scaling": "nvfp4"},
    {"format": "e4m3fn", "scaling": {"kind": "delayed", "granularity": "channel", "scale": "real"}},
    {"format": "e3m4", "rounding": "stochastic", "scaling": "delayed"},
    {"format": "e4m3fn", "scaling": {"kind": "block", "shape": "square"}},
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_quantised_model_is_saved_as_its_forward_has_it(tmp_path: Path, spec: Any) -> None:
    made = model()
    altgrad.quantize_model(made, altgrad.PrecisionPolicy.uniform(match="blocks.*", weight=spec))
    layers = {name: module for name, module in made.named_modules() if isinstance(module, QuantizedLayer)}
    for _ in range(2):  # so that delayed scales have a history, and random bits a counter
        for layer in layers.values():
            layer(torch.randn(4, layer.weight.shape[1]))
            layer.weight.data.mul_(1.5)
        altgrad.commit(made)
    made.eval()
    report = altgrad.save_quantized(made, tmp_path / "out")
    loaded = altgrad.load_quantized(tmp_path / "out")
    assert not any(".casts." in name for name in loaded)
    for name, layer in layers.items():
        used = layer.operands(layer.weight.detach(), "weight", False, torch.float32, {}).values
        assert torch.equal(loaded[f"{name}.weight"], used["forward"]), name
    assert set(report.tensors["tensor"]) == LAYERS and report.results[0]["name"] == "quantised"
    altgrad.dequantize_model(made)
    assert made.load_state_dict(loaded).missing_keys == []


def test_a_policy_is_an_object_its_data_or_its_file(tmp_path: Path) -> None:
    rules = {"rules": [{"match": "blocks.last.*", "weight": "e2m1"}, {"match": "lm_head", "weight": "e4m3fn"}]}
    (tmp_path / "p.yaml").write_text(altgrad.PrecisionPolicy.made_from(rules).to_yaml())
    policies = [rules, altgrad.PrecisionPolicy.made_from(rules), tmp_path / "p.yaml"]
    for number, policy in enumerate(policies):
        report = altgrad.save_quantized(model(), tmp_path / str(number), policy=policy)
        casts = {row["tensor"]: row["format"] for row in report.results[0]["tensors"]}
        assert casts == {"blocks.1.0.weight": "e2m1", "blocks.1.2.weight": "e2m1", "lm_head.weight": "e4m3fn"}


def test_several_formats_have_a_folder_each_and_a_row_for_each_tensor(tmp_path: Path) -> None:
    report = altgrad.save_quantized(model(), tmp_path / "out", format=["e3m4", "e2m1"], match="blocks.*")
    assert [each["name"] for each in report.results] == ["e3m4", "e2m1"]
    assert altgrad.load_quantized(tmp_path / "out" / "e2m1").keys() == model().state_dict().keys()
    table = report.tensors
    assert len(table) == 8 and {"sqnr_db", "underflow_rate", "saturation_rate", "nonfinite"} <= set(table.columns)
    assert "e2m1" in repr(report) and report._repr_html_().startswith("<pre>")


def test_layers_of_two_names_and_conv1d_are_saved_as_they_are_used(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.other, self.turned = self.one, Conv1D(6, 4)

    spec = {"format": "e3m4", "scaling": {"kind": "current", "granularity": "channel", "scale": "real"}}
    made, policy = Twice(), altgrad.PrecisionPolicy.uniform(weight=spec)
    altgrad.save_quantized(made, tmp_path / "plain", policy=policy)
    altgrad.quantize_model(made, policy)
    altgrad.save_quantized(made, tmp_path / "quantised")
    plain, quantised = altgrad.load_quantized(tmp_path / "plain"), altgrad.load_quantized(tmp_path / "quantised")
    same(plain, quantised)
    used = made.turned.operands(made.turned.weight.detach(), "weight", False, torch.float32, {}).values
    assert torch.equal(plain["turned.weight"], used["forward"].mT)
    assert torch.equal(plain["one.weight"], plain["other.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing says what to write; give a format"),
        ({"format": "e4m3"}, "e4m3fn"),
        ({"format": "e4m3fn", "match": "head"}, "match: 'head' matches no Linear layer"),
        ({"format": "e4m3fn", "policy": {"rules": []}}, "leave out format and match"),
        ({"policy": {"rules": [{"match": "lm_hed", "weight": "e3m4"}]}}, "policy: 'lm_hed' matches no Linear layer"),
        ({"policy": {"rules": [{"match": "*", "input": "e3m4"}]}}, "no rule casts a weight"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        altgrad.save_quantized(model(), tmp_path / "out", **options)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_no_file_could_hold_is_refused(tmp_path: Path) -> None:
    made = model()
    altgrad.quantize_model(made, altgrad.PrecisionPolicy.uniform(weight="e4m3fn"))
    with pytest.raises(ValueError, match="quantised already"):
        altgrad.save_quantized(made, tmp_path / "out", format="e3m4")
    with pytest.raises(ValueError, match=r"^weight is on the meta device"):
        altgrad.save_quantized(nn.Linear(2, 2, bias=False, device="meta"), tmp_path / "out", format="e3m4")
    nn.utils.parametrizations.orthogonal(made["blocks"][0][0])
    with pytest.raises(ValueError, match=r"no tensor blocks.0.0.weight of its own"):
        altgrad.save_quantized(made, tmp_path / "out")
    with pytest.raises(ValueError, match="ReLU holds no tensors"):
        altgrad.save_quantized(nn.ReLU(), tmp_path / "out", format="e3m4")


# Not ru_maxrss: a process inherits that from the one that started it.
MEASURE = """
import json, pathlib, sys
import altgrad
out, models, specs = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
for model in models:
    for number, spec in enumerate(specs):
        policy = {"rules": [{"match": "*", "weight": spec}]}
        altgrad.save_quantized(model, f"{out}/{pathlib.Path(model).stem}-{number}", policy=policy)
        print(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""

EVERY_SCALING: list[Any] = [
    "e4m3fn",
    *({"format": "e2m1", "scaling": kind} for kind in ScalingSpec.kinds()),
    *({"format": "e2m1", "scaling": {"kind": k, "granularity": "channel"}} for k in ("current", "delayed", "mse")),
    {"format": "e4m3fn", "scaling": {"kind": "block", "shape": "square"}},
    {"format": "e4m3fn", "rounding": "stochastic", "scaling": {"kind": "block", "size": 16, "scale": "real"}},
]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.long
@pytest.mark.parametrize("turned", [False, True])
def test_memory_is_three_of_the_largest_tensor_besides_the_process_under_every_scaling(
    tmp_path: Path, turned: bool
) -> None:
    names = ["c_attn", "c_fc"] if turned else ["q", "k"]  # a fused projection of this shape is a Conv1D, [in, out]
    large, size = {f"h.0.{name}.weight": torch.randn(1100, 3300) for name in names}, 1100 * 3300 * 4
    save_file(large, tmp_path / "large.safetensors")
    save_file({name: x[:200, :600].contiguous() for name, x in large.items()}, tmp_path / "small.safetensors")
    models = [str(tmp_path / "small.safetensors"), str(tmp_path / "large.safetensors")]
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "out"), json.dumps(models), json.dumps(EVERY_SCALING)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    peaks = [int(line) for line in found.stdout.split()]
    base = peaks[len(EVERY_SCALING) - 1]
    for spec, peak in zip(EVERY_SCALING, peaks[len(EVERY_SCALING) :], strict=True):
        assert peak - base <= 3 * size // 1024, spec
