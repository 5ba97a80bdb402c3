"""Claims about init_from: weights of runs, of Hugging Face's GPT-2 layout and of nanoGPT's, or a clear refusal."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from altgrad.models.model import ModelSpec
from altgrad.training.initial import initialise

SIZES = {"kind": "gpt", "layers": 2, "width": 8, "heads": 2, "context": 6, "bias": True}


def fresh(**sizes: object) -> tuple[ModelSpec, nn.Module]:
    spec = ModelSpec.of(SIZES | sizes)
    return spec, spec.build(11, 11)


def gpt2(width: int = 8, layers: int = 2, *, conv1d: bool, context: int = 6) -> dict[str, Tensor]:
    """A GPT-2 of random weights, named and laid out as its publishers do."""
    torch.manual_seed(0)
    shapes = {"wte.weight": (11, width), "wpe.weight": (context, width), "ln_f.weight": (width,), "ln_f.bias": (width,)}
    for i in range(layers):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{i}.{norm}.{leaf}": (width,) for leaf in ("weight", "bias")}
        for name, (rows, columns) in {
            "attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width),
            "mlp.c_fc": (width, 4 * width), "mlp.c_proj": (4 * width, width),
        }.items():  # fmt: skip
            shapes[f"h.{i}.{name}.weight"] = (rows, columns) if conv1d else (columns, rows)
            shapes[f"h.{i}.{name}.bias"] = (columns,)
    return {f"transformer.{name}": torch.randn(*shape) for name, shape in shapes.items()}


def reference(weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """GPT-2's forward pass written out on its own names, Conv1D layout, heads of width 4, exact GELU."""
    w = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    x = w["wte.weight"][tokens] + w["wpe.weight"][: tokens.shape[1]]
    for i in range(2):
        h = nn.functional.layer_norm(x, (8,), w[f"h.{i}.ln_1.weight"], w[f"h.{i}.ln_1.bias"])
        q, k, v = (h @ w[f"h.{i}.attn.c_attn.weight"] + w[f"h.{i}.attn.c_attn.bias"]).split(8, dim=-1)
        q, k, v = (t.view(*t.shape[:2], 2, 4).transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.transpose(-1, -2) / 2).masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
        x = x + mixed @ w[f"h.{i}.attn.c_proj.weight"] + w[f"h.{i}.attn.c_proj.bias"]
        h = nn.functional.layer_norm(x, (8,), w[f"h.{i}.ln_2.weight"], w[f"h.{i}.ln_2.bias"])
        h = nn.functional.gelu(h @ w[f"h.{i}.mlp.c_fc.weight"] + w[f"h.{i}.mlp.c_fc.bias"])
        x = x + h @ w[f"h.{i}.mlp.c_proj.weight"] + w[f"h.{i}.mlp.c_proj.bias"]
    return nn.functional.layer_norm(x, (8,), w["ln_f.weight"], w["ln_f.bias"]) @ w["wte.weight"].T


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("conv1d", [True, False])
def test_gpt2_weights_compute_what_gpt2_computes(tmp_path: Path, tied: bool, conv1d: bool) -> None:
    weights = gpt2(conv1d=conv1d)
    extra = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 6, 6),
        "lm_head.weight": weights["transformer.wte.weight"] + 0,
    }
    (tmp_path / "config.json").write_text("{}")
    save_file({name: t.contiguous() for name, t in (weights | extra).items()}, tmp_path / "model.safetensors")
    spec, model = fresh(tied=tied)
    initialise(model, spec, str(tmp_path))
    tokens = torch.randint(11, (3, 6))
    flipped = {n: t if conv1d or ".c_" not in n or t.ndim < 2 else t.T for n, t in weights.items()}
    torch.testing.assert_close(model(tokens), reference(flipped, tokens))


def test_sharded_folders_are_read_by_their_index(tmp_path: Path) -> None:
    weights = gpt2(conv1d=True)
    names = sorted(weights)
    for shard, part in (("a.safetensors", names[:10]), ("b.safetensors", names[10:])):
        save_file({name: weights[name] for name in part}, tmp_path / shard)
    index = {name: "a.safetensors" if name in names[:10] else "b.safetensors" for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    spec, model = fresh(tied=True)
    initialise(model, spec, str(tmp_path))
    assert torch.equal(model.get_parameter("embed.weight"), weights["transformer.wte.weight"])
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../a.safetensors"}}))
    with pytest.raises(ValueError, match="not in its folder"):
        initialise(model, spec, str(tmp_path))


def test_a_longer_table_of_positions_is_cut(tmp_path: Path) -> None:
    weights = gpt2(conv1d=True, context=9)
    save_file(weights, tmp_path / "w.safetensors")
    spec, model = fresh(tied=True)
    initialise(model, spec, str(tmp_path / "w.safetensors"))
    assert torch.equal(model.get_parameter("positions.weight"), weights["transformer.wpe.weight"][:6])


def test_weights_that_do_not_fit_leave_the_model_as_it_was(tmp_path: Path) -> None:
    spec, model = fresh()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = {name: p.detach().clone() for name, p in model.named_parameters()}
    cases = {
        "lacks 1 of": {n: t for n, t in state.items() if n != "norm.weight"},
        "has 1 tensors this model lacks, first other": state | {"other": torch.ones(1)},
        r"embed.weight is \[11, 9\], the model's is \[11, 8\]": state | {"embed.weight": torch.ones(11, 9)},
    }
    for number, (message, tensors) in enumerate(cases.items()):
        save_file(tensors, tmp_path / f"{number}.safetensors")
        with pytest.raises(ValueError, match=message):
            initialise(model, spec, str(tmp_path / f"{number}.safetensors"))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pt", b"\x80\x04", "is a pickle"),
        ("w.safetensors", b"", "cannot be read"),
        ("w.safetensors", b"\xff" * 64, "cannot be read"),
        ("missing", None, "is not there"),
        ("", None, "holds no model.safetensors"),
    ],
)
def test_what_is_no_weights_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    spec, model = fresh()
    with pytest.raises(ValueError, match=message) as error:
        initialise(model, spec, str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_rows_that_only_pad_the_vocabulary_are_cut(tmp_path: Path) -> None:
    weights = gpt2(conv1d=True)
    table = torch.cat([weights["transformer.wte.weight"], torch.zeros(53, 8)])
    (tmp_path / "m").mkdir()
    save_file(weights | {"transformer.wte.weight": table}, tmp_path / "m" / "model.safetensors")
    spec, model = fresh()
    initialise(model, spec, str(tmp_path / "m"))
    for name in ("embed.weight", "head.weight"):
        assert torch.equal(model.get_parameter(name), weights["transformer.wte.weight"])
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 40}}}))
    with pytest.raises(ValueError, match=r"embed.weight is \[64, 8\], the model's is \[11, 8\]"):
        initialise(model, spec, str(tmp_path / "m"))
