"""Weights wherever a folder of them is taken: which files are read, where index and shards disagree, what is named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from altgrad.models.huggingface import readable_weights
from altgrad.quantize.packed import PackedWriter, PlannedTensor, load_quantized
from altgrad.training.initial import read_weights
from altgrad.training.weights import find_weights, read_tensor

A, B = torch.arange(4.0).reshape(2, 2), torch.arange(4.0, 8.0).reshape(2, 2)
STALE = torch.full((2, 2), -1.0)

Reader = Callable[[Path], dict[str, Tensor]]


def found(folder: Path) -> dict[str, Tensor]:
    return {tensor.name: tensor.load() for tensor in find_weights(folder).tensors}


def initial(folder: Path) -> dict[str, Tensor]:
    return read_weights(str(folder))


def quantised(folder: Path) -> dict[str, Tensor]:
    """The same files as quantize-model would have written them."""
    for file in folder.glob("*.safetensors"):
        tensors = read_all(file)
        plans = [PlannedTensor(name, "F32", tuple(x.shape), None) for name, x in sorted(tensors.items())]
        file.unlink()
        with PackedWriter(file, plans, {}) as writer:
            for name, x in sorted(tensors.items()):
                writer.begin(name)
                writer.write(x)
            writer.finish()
    return load_quantized(folder)


def read_all(file: Path) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def by_transformers(folder: Path) -> dict[str, Tensor]:
    return {name: x for file in readable_weights(folder).files for name, x in read_all(file).items()}


def one_by_one(folder: Path) -> dict[str, Tensor]:
    return {name: read_tensor(folder, name) for name in found(folder)}


READERS: dict[str, Reader] = {
    "find_weights": found, "init_from": initial, "load_quantized": quantised, "hf": by_transformers,
    "read_tensor": one_by_one,
}  # fmt: skip
EVERYWHERE = pytest.mark.parametrize("read", READERS.values(), ids=READERS)


def sharded(folder: Path, one: dict[str, Tensor], two: dict[str, Tensor], index: dict[str, int]) -> Path:
    names = {number: f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    folder.mkdir()
    save_file(one, folder / names[1])
    save_file(two, folder / names[2])
    places = {tensor: names[number] for tensor, number in index.items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


@EVERYWHERE
def test_shards_are_read_by_their_index(tmp_path: Path, read: Reader) -> None:
    tensors = read(sharded(tmp_path / "m", {"a": A}, {"b": B}, {"a": 1, "b": 2}))
    assert tensors.keys() == {"a", "b"} and torch.equal(tensors["a"], A) and torch.equal(tensors["b"], B)


@EVERYWHERE
def test_of_a_tensor_in_two_shards_the_one_that_the_index_names_is_read(tmp_path: Path, read: Reader) -> None:
    folder = sharded(tmp_path / "m", {"a": STALE, "b": B}, {"a": A}, {"a": 2, "b": 1})
    if read is by_transformers:  # the library would take either
        with pytest.raises(ValueError, match="00001-of-00002.safetensors holds a, which its index places in .*00002"):
            read(folder)
        return
    tensors = read(folder)
    assert torch.equal(tensors["a"], A) and torch.equal(tensors["b"], B)


@EVERYWHERE
@pytest.mark.parametrize(
    ("one", "two", "index", "message"),
    [
        ({"a": A}, {"c": B}, {"a": 1, "b": 2}, "places b in model-00002-of-00002.safetensors, which lacks it"),
        (
            {"a": A, "b": B},
            {"c": B},
            {"a": 1, "b": 2, "c": 2},
            "(places b in model-00002.*, which lacks it|00001.* holds b, which its index places in)",
        ),
        ({"a": A}, {"b": B, "c": STALE}, {"a": 1, "b": 2}, "holds c, which model.safetensors.index.json does not list"),
    ],
)
def test_an_index_that_disagrees_with_its_shards_is_an_error(
    tmp_path: Path, read: Reader, one: dict[str, Tensor], two: dict[str, Tensor], index: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(sharded(tmp_path / "m", one, two, index))
    assert "\n" not in str(caught.value)


@EVERYWHERE
def test_files_that_are_missing_or_two_models_are_named(tmp_path: Path, read: Reader) -> None:
    lost = sharded(tmp_path / "lost", {"a": A}, {"b": B}, {"a": 1, "b": 2})
    (lost / "model-00002-of-00002.safetensors").unlink()
    both = sharded(tmp_path / "both", {"a": A}, {"b": B}, {"a": 1, "b": 2})
    save_file({"a": STALE}, both / "model.safetensors")
    bare = sharded(tmp_path / "bare", {"a": A}, {"b": B}, {"a": 1, "b": 2})
    (bare / "model.safetensors.index.json").unlink()
    alone = tmp_path / "alone"
    alone.mkdir()
    save_file({"a": A}, alone / "model-00001-of-00002.safetensors")
    for folder, message in {
        lost: "model-00002-of-00002.safetensors, which is not there; fetch the missing shard",
        both: "holds model.safetensors, and model.safetensors.index.json names model-00001",
        bare: "holds model-00001.* and no model.safetensors.index.json that says what is where",
        alone: "holds model-00001-of-00002.safetensors and no model.safetensors.index.json",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            read(folder)
        assert "\n" not in str(caught.value)


@EVERYWHERE
@pytest.mark.parametrize(
    "name",
    ["model.fp16.safetensors", "diffusion_pytorch_model.safetensors", "consolidated.safetensors", "w.safetensors"],
)
def test_a_plain_file_of_another_name_is_read_where_it_is_the_only_one(tmp_path: Path, read: Reader, name: str) -> None:
    save_file({"a": A}, tmp_path / name)
    if read is by_transformers and not name.startswith("model."):
        with pytest.raises(ValueError, match=f"no model.safetensors but {name}, which transformers does not read"):
            read(tmp_path)
        return
    assert torch.equal(read(tmp_path)["a"], A)


@EVERYWHERE
def test_what_is_no_model_is_called_by_its_name(tmp_path: Path, read: Reader) -> None:
    def folder(*names: str) -> Path:
        made = tmp_path / str(len(list(tmp_path.iterdir())))
        for name in names:
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            save_file({"a": A}, made / name) if name.endswith(".safetensors") else (made / name).write_bytes(b"x")
        return made

    for made, message in {
        folder("adapter_model.safetensors", "adapter_config.json"): r"an adapter \(adapter_model.safetensors\) and no",
        folder("adapter_model.bin"): r"an adapter \(adapter_model.bin\)",
        folder("model.fp16.safetensors", "model.bf16.safetensors"): "2 variants: model.bf16.safetensors, model.fp16.",
        folder("pytorch_model.bin"): r"only pickles \(pytorch_model.bin\)",
        folder("model-q4.gguf"): "model-q4.gguf, and gguf is not read",
        folder("tf_model.h5", "config.json"): "tf_model.h5, and h5 is not read",
        folder("model_index.json", "unet/a.safetensors", "vae/b.safetensors"): "one of unet/, vae/",
        folder("checkpoint-5/model.safetensors", "log.txt"): "give the folder in it that does: checkpoint-5/",
        folder("config.json", "notes.txt"): r"no model.safetensors \(there is config.json, notes.txt\)",
    }.items():
        if read is quantised and not list(made.rglob("*.safetensors")):
            message = "holds no .safetensors file"
        with pytest.raises(ValueError, match=message) as caught:
            read(made)
        assert "\n" not in str(caught.value)


def test_files_that_are_not_read_say_why(tmp_path: Path) -> None:
    for name, message in {
        "a.gguf": "is gguf, which is not read", "a.bin": "is a pickle",
        "model.safetensors.index.json": "is an index; give its folder",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=message):
            find_weights(tmp_path / name)


transformers = pytest.importorskip("transformers")


def test_weights_of_the_body_that_are_not_there_are_not_drawn(tmp_path: Path) -> None:
    from altgrad.models.huggingface import HFSpec

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=40, max_position_embeddings=24, **sizes))
    model.half().save_pretrained(tmp_path, variant="fp16")
    spec = HFSpec(folder=str(tmp_path), context=8)
    taken = spec.build(40, 3).model.embeddings.word_embeddings.weight
    assert torch.equal(taken, model.embeddings.word_embeddings.weight.float())
    tensors = read_all(tmp_path / "model.fp16.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    save_file(
        {key: x for key, x in tensors.items() if key != name}, tmp_path / "model.fp16.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=f"its files lack 1 tensors of the model, first {name}; fetch them again"):
        spec.build(40, 3)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an adapter next to its model"):
        spec.build(40, 3)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="has no config.json but adapter_config.json: it is an adapter; merge it"):
        spec.build(40, 3)
