"""Claims about `altgrad export --to`: the values of the cast are written in the layouts of others, or nothing is."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import altgrad
from altgrad.conversion import export as room
from altgrad.conversion.export import export_checkpoint
from altgrad.quantize import Quantizer
from altgrad.quantize.checkpoint_layout import LAYOUTS, PRESETS, Layout, layout_of, preset_cast, scale_dtype
from altgrad.quantize.tensor_file import TensorFile
from altgrad.training.initial import read_weights
from altgrad.training.weights import find_weights
from bench.reference_casts import recorded

HIDDEN, INNER = 128, 192
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN}
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
ALL = [(name, "compressed-tensors") for name in LAYOUTS] + [("FP8_BLOCK", "hf-fp8")]


def weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"self_attn.q_proj": (HIDDEN, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.gate": (4, HIDDEN)}
    made = {f"model.layers.0.{name}.weight": torch.randn(shape) * 0.02 for name, shape in shapes.items()}
    made["model.layers.0.self_attn.q_proj.weight"][3] = 0
    made |= {"model.embed_tokens.weight": torch.randn(50, HIDDEN), "lm_head.weight": torch.randn(50, HIDDEN)}
    made["model.norm.weight"] = torch.ones(HIDDEN)
    return {name: x.to(dtype) for name, x in made.items()}


CAST = {"model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"}


def folder(path: Path, tensors: dict[str, Tensor] | None = None) -> Path:
    path.mkdir()
    save_file(tensors or weights(), path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text("{}")
    return path


def by_the_readers_rule(out: Path, name: str, layout: str, shape: tuple[int, ...]) -> Tensor:
    """The weight as the libraries' documents have it, from nothing of ours."""
    stored = {}
    for file in out.glob("*.safetensors"):
        stored |= load_file(file)
    at = name.removesuffix("weight")
    scale = stored.get(f"{at}weight_scale_inv", stored.get(f"{at}weight_scale"))
    assert scale is not None
    if f"{at}weight_packed" in stored:
        packed = stored[f"{at}weight_packed"]
        q = FP4[torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()]
    else:
        q = stored[name].float()
    if scale.dtype == torch.uint8:
        scale = 2.0 ** (scale.double() - 127)
    scale = scale.float()
    if layout == "NVFP4":
        scale = scale / stored[f"{at}weight_global_scale"]
    if scale.numel() > 1:
        rows, columns = (128, 128) if layout == "FP8_BLOCK" else (1, -(-shape[1] // scale.shape[1]))
        scale = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[: shape[0], : shape[1]]
    return q * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "to"), ALL)
def test_every_weight_is_that_of_its_cast_whoever_reads_it(
    tmp_path: Path, name: str, to: Any, dtype: torch.dtype
) -> None:
    tensors = weights(dtype)
    if to == "hf-fp8":
        tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"][:100].contiguous()
    report = export_checkpoint(folder(tmp_path / "in", tensors), tmp_path / "out", to=to, preset=name)
    read, wanted = altgrad.load_quantized(tmp_path / "out"), tensors
    assert read.keys() == tensors.keys() and {row["tensor"] for row in report.tensors} == CAST
    assert report.compared == sum(x.numel() for x in tensors.values())
    assert report.ignored == ["lm_head", "model.layers.0.mlp.gate"]
    spec = preset_cast(name, bfloat16=dtype == torch.bfloat16 and to != "hf-fp8")
    for each in CAST:
        x = wanted[each]
        values = Quantizer(spec, "s", "weight", shape=tuple(x.shape)).values(x, False, torch.float32)
        assert torch.equal(read[each], values)
        assert torch.equal(by_the_readers_rule(tmp_path / "out", each, name, tuple(x.shape)), values)
    assert all(
        torch.equal(read[each], x) and read[each].dtype == x.dtype for each, x in wanted.items() if each not in CAST
    )
    begun = read_weights(str(tmp_path / "out"))
    assert all(torch.equal(begun[each], read[each]) for each in read)


NAMES = {
    "FP8": {"weight": ("F8_E4M3", [256, 256]), "weight_scale": ("F32", [1])},
    "FP8_DYNAMIC": {"weight": ("F8_E4M3", [256, 256]), "weight_scale": ("F32", [256, 1])},
    "FP8_BLOCK": {"weight": ("F8_E4M3", [256, 256]), "weight_scale": ("F32", [2, 2])},
    "NVFP4": {
        "weight_packed": ("U8", [256, 128]), "weight_scale": ("F8_E4M3", [256, 16]),
        "weight_global_scale": ("F32", [1]),
    },
    "MXFP4": {"weight_packed": ("U8", [256, 128]), "weight_scale": ("U8", [256, 8])},
    "MXFP8": {"weight": ("F8_E4M3", [256, 256]), "weight_scale": ("U8", [256, 8])},
    "INT8": {"weight": ("I8", [256, 256]), "weight_scale": ("F32", [256, 1])},
}  # fmt: skip
"""As compressed-tensors 0.20.1 stores a Linear of 256 x 256; scales of a bfloat16 model that are floats are BF16."""


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_dtypes_and_shapes_are_compressed_tensors(tmp_path: Path, name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        out = tmp_path / str(dtype)
        made = {"a.weight": torch.randn(256, 256).to(dtype)}
        export_checkpoint(folder(tmp_path / f"in{dtype}", made), out, to="compressed-tensors", preset=name)
        with safe_open(out / "model.safetensors", framework="pt") as file:
            found = {key: file.get_slice(key) for key in list(file.keys())}
        stored = {key: (each.get_dtype(), each.get_shape()) for key, each in found.items()}
        wanted = dict(NAMES[name])
        if dtype == torch.bfloat16 and wanted["weight_scale"][0] == "F32":
            wanted["weight_scale"] = ("BF16", wanted["weight_scale"][1])
        assert stored == {f"a.{suffix}": part for suffix, part in wanted.items()}


def test_what_compressed_tensors_stored_of_recorded_inputs_is_what_is_stored() -> None:
    """Codes packed, scales and global scale, byte for byte but for the sign of a zero, which it drops."""
    tensors, compared = recorded()["compressed_tensors"], 0
    for key in [key for key in tensors if key.endswith(".stored.weight_scale")]:
        stem = key.removesuffix("weight_scale")
        preset, dtype, source, _ = stem.split(".", 3)
        layout, spec = LAYOUTS[preset.upper()], preset_cast(preset.upper())
        stored = tensors[f"{stem}{layout.elements}"]
        x = tensors[f"in.{source}"][: len(stored)].to(torch.bfloat16 if dtype == "bf16" else torch.float32)
        quantizer = Quantizer(spec, "s", "weight", shape=tuple(x.shape))
        ours = layout.scales(quantizer.find_scale(x), x, spec, torch.float32)
        for suffix, scale in ours.items():
            wanted = tensors[f"{stem}{suffix}"]
            found = scale if wanted.dtype == torch.float32 else scale.view(torch.uint8)
            assert torch.equal(found.reshape(wanted.shape), wanted), (stem, suffix)
        theirs = {suffix: tensors[f"{stem}{suffix}"].view(part.dtype) for suffix, part in ours.items()}
        elements = stored if layout.packed else stored.view(torch.float8_e4m3fn)
        values = layout.read(elements) * layout.read_scale(theirs, tuple(x.shape)).spread(tuple(x.shape))
        assert torch.equal(values, quantizer.values(x, False, torch.float32)), stem
        made = layout.stored(quantizer.cast(x, False).rounded).view(torch.uint8)
        assert torch.equal(layout.read(made.view(elements.dtype)), layout.read(elements))
        compared += 1
    assert compared >= 12


def planted(change: Callable[[Tensor], Tensor], suffix: str) -> Callable[..., Any]:
    """`Layout.scales` with one of its tensors changed."""
    plain = Layout.scales

    def scales(self: Layout, *args: Any) -> dict[str, Tensor]:
        return {key: change(part) if key == suffix else part for key, part in plain(self, *args).items()}

    return scales


def swapped(self: Layout, rounded: Tensor) -> Tensor:
    codes = PLAIN_STORED(self, rounded)
    return (codes << 4 | codes >> 4).to(torch.uint8)


PLAIN_STORED = Layout.stored
CT = "compressed-tensors"
FAULTS: dict[str, tuple[str, str, str, Any]] = {
    "inverted scale": ("FP8", "compressed-tensors", "scales", planted(torch.reciprocal, "weight_scale")),
    "inverted scale_inv": ("FP8_BLOCK", "hf-fp8", "scales", planted(torch.reciprocal, "weight_scale_inv")),
    "inverted global scale": ("NVFP4", CT, "scales", planted(torch.reciprocal, "weight_global_scale")),
    "transposed blocks": ("FP8_BLOCK", CT, "scales", planted(lambda s: s.mT.contiguous(), "weight_scale")),
    "exponents one up": ("MXFP8", "compressed-tensors", "scales", planted(lambda s: s + 1, "weight_scale")),
    "nibbles swapped": ("MXFP4", "compressed-tensors", "stored", swapped),
    "rows rolled": ("INT8", "compressed-tensors", "scales", planted(lambda s: s.roll(1, 0), "weight_scale")),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    preset, to, method, broken = FAULTS[fault]
    square = {"a.weight": torch.randn(256, 256) * torch.rand(256, 1)}
    monkeypatch.setattr(Layout, method, broken)
    with pytest.raises(
        ValueError, match=r"^a\.weight: [\d,]+ of 65,536 weights, read from its .* differ .*nothing was"
    ):
        export_checkpoint(folder(tmp_path / "in", square), tmp_path / "out", to=to, preset=preset)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == ["in"]


def test_large_models_are_sharded_and_an_index_says_what_is_where(tmp_path: Path) -> None:
    report = export_checkpoint(
        folder(tmp_path / "in"), tmp_path / "out", to="compressed-tensors", preset="NVFP4", shard_bytes=30_000
    )
    assert report.files == len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index.values()) == {f"model-{n + 1:05d}-of-{report.files:05d}.safetensors" for n in range(report.files)}
    one = export_checkpoint(tmp_path / "in", tmp_path / "one", to="compressed-tensors", preset="NVFP4")
    whole, parts = altgrad.load_quantized(tmp_path / "one"), altgrad.load_quantized(tmp_path / "out")
    assert one.files == 1 and all(torch.equal(whole[name], parts[name]) for name in whole)
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_policy_of_several_casts_has_a_group_for_each(tmp_path: Path) -> None:
    rules = [{"match": "*q_proj", "weight": PRESETS["NVFP4"]}, {"match": "*up_proj", "weight": {"format": "e4m3fn"}}]
    source = folder(tmp_path / "in")
    export_checkpoint(source, tmp_path / "out", to="compressed-tensors", policy={"rules": rules}, activations=False)
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    groups = said["config_groups"].values()
    assert said["format"] == "mixed-precision" and all(each["input_activations"] is None for each in groups)
    assert [each["weights"]["strategy"] for each in groups] == ["tensor", "tensor_group"]
    assert altgrad.load_quantized(tmp_path / "out").keys() == weights().keys()


TE = {"kind": "nvfp4", "arithmetic": "te"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing said": ({"to": "compressed-tensors"}, "nothing says how to quantise; give a preset"),
    "no such preset": ({"to": "compressed-tensors", "preset": "W4A16"}, "preset W4A16 is unknown; there are FP8,"),
    "other blocks": ({"to": "hf-fp8", "preset": "NVFP4"}, "has no layout in hf-fp8, which keeps FP8_BLOCK"),
    "ragged": ({"to": "hf-fp8"}, "up_proj.weight is 192 x 128, no multiple of 128, and transformers takes"),
    "no grid": ({"to": CT, "policy": {"rules": [{"match": "*", "weight": "e3m4"}]}}, "has no layout in"),
    "another order": (
        {
            "to": CT,
            "policy": {"rules": [{"match": "*q_proj", "weight": {"format": "e2m1", "scaling": TE}}]},
        },
        "differ from those of .*nothing was written.*arithmetic: compressed_tensors",
    ),
    "both": ({"to": "hf-fp8", "preset": "FP8", "policy": {}}, "a preset and a policy both say the casts"),
    "no match": ({"to": "hf-fp8", "match": "*.nope"}, "match: "),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_layout_is_refused_by_name(tmp_path: Path, case: str) -> None:
    options, said = REFUSED[case]
    with pytest.raises(ValueError, match=said) as error:
        export_checkpoint(folder(tmp_path / "in"), tmp_path / "out", **options)
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == ["in"]


def test_weights_that_are_not_finite_and_widths_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    broken = {"a.weight": torch.full((4, 32), torch.nan), "b.weight": torch.ones(4, 24)}
    source = folder(tmp_path / "in", broken)
    with pytest.raises(ValueError, match=r"a\.weight has inf or NaN"):
        export_checkpoint(source, tmp_path / "out", to="compressed-tensors", preset="FP8")
    with pytest.raises(ValueError, match=r"b\.weight has 24 columns, no multiple of 16, which NVFP4 needs"):
        export_checkpoint(source, tmp_path / "out", to="compressed-tensors", preset="NVFP4", match="b")
    assert os.listdir(tmp_path) == ["in"]


class Full:
    """A disk that is full after the first piece of a weight."""

    def __init__(self) -> None:
        self.plain, self.left = TensorFile.write, 3

    def __call__(self, file: TensorFile, piece: Tensor) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")
        self.plain(file, piece)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_interrupt_and_a_full_disk_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    full = Full()

    def write(file: TensorFile, piece: Tensor) -> None:
        if error is KeyboardInterrupt and full.left == 1:
            raise KeyboardInterrupt
        full(file, piece)

    monkeypatch.setattr(TensorFile, "write", write)
    with pytest.raises(error):
        export_checkpoint(folder(tmp_path / "in"), tmp_path / "out", to="hf-fp8", match="*q_proj")
    assert os.listdir(tmp_path) == ["in"]


def test_a_folder_in_use_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="already exists"):
        export_checkpoint(folder(tmp_path / "in"), tmp_path / "out", to="hf-fp8", match="*q_proj")
    assert os.listdir(tmp_path / "out") == ["mine"]


def edited(out: Path, config: dict[str, Any] | None = None, **tensors: Any) -> Path:
    """A copy of an export, with another quantization_config or other tensors (None takes one away)."""
    copy = out.parent / "edited"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(out, copy)
    said = json.loads((copy / "config.json").read_text())
    said["quantization_config"] |= config or {}
    (copy / "config.json").write_text(json.dumps(said))
    found = load_file(copy / "model.safetensors") | {name.replace("__", "."): x for name, x in tensors.items()}
    save_file({name: x for name, x in found.items() if x is not None}, copy / "model.safetensors")
    return copy


def test_layouts_of_others_that_are_not_read_are_refused_by_name(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.randn(256, 256)}
    export_checkpoint(folder(tmp_path / "in", tensors), tmp_path / "out", to="compressed-tensors", preset="FP8_BLOCK")
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"]
    group = groups["group_0"]
    out = tmp_path / "out"
    refused: list[tuple[Any, str]] = [
        (lambda: edited(out, {"quant_method": "gptq"}), "its quantization_config is gptq, which is not read"),
        (lambda: edited(out, {"quant_method": "fp8", "weight_block_size": [64, 64]}), r"blocks of \[64, 64\]"),
        (
            lambda: edited(out, {"config_groups": {"g": {**group, "weights": {**group["weights"], "num_bits": 4}}}}),
            "g has weights {num_bits: 4, .*which no layout here holds",
        ),
        (lambda: edited(out, a__weight_zero_point=torch.zeros(2, 2)), "weight_zero_point F32, which is not FP8_BLOCK"),
        (lambda: edited(out, a__weight_scale=None), "a has weight F8_E4M3, which is not FP8_BLOCK"),
        (
            lambda: edited(out, a__weight_scale=torch.ones(2, 3)),
            r"weight_scale is \[2, 3\]; of a weight .* it is \[2, 2\]",
        ),
        (lambda: edited(out, a__weight_g_idx=torch.zeros(256)), "weight_g_idx F32"),
    ]
    for make, said in refused:
        copy = make()
        for read in (altgrad.load_quantized, lambda path: read_weights(str(path))):
            with pytest.raises(ValueError, match=said) as error:
                read(copy)
            assert "\n" not in str(error.value)
            assert str(copy) in str(error.value) or "weight_scale is" in said
    assert altgrad.load_quantized(edited(out, a__input_scale=torch.ones(1))).keys() == {"a.weight"}
    with pytest.raises(ValueError, match=r"is quantised already \(compressed-tensors\)"):
        find_weights(out)


def test_every_preset_has_its_layout_and_its_dtype() -> None:
    for name, layout in LAYOUTS.items():
        for narrow in (False, True):
            spec = preset_cast(name, bfloat16=narrow)
            assert layout_of(spec) == layout
            floats = "scale" in PRESETS[name]["scaling"]
            assert scale_dtype(spec) == (torch.bfloat16 if narrow and floats else torch.float32)
    assert room.SHARD_BYTES == 5 * 10**9
