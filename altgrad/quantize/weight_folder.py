"""Which files of a folder hold a model's weights, and what else is there where none do.

    model.safetensors                       one file
    model.safetensors.index.json            shards; the index says which tensor lies in which
    model.fp16.safetensors                  a variant, if it is the only one (model.safetensors.index.fp16.json)
    diffusion_pytorch_model.safetensors     the same of diffusers
    anything.safetensors                    if it is the only one

With an index it alone decides where a tensor lies, and it has to agree with the files: a tensor that its shard lacks,
or that no line lists, is an error, since one of the two is of another model. Of a tensor that lies in two shards the
one that the index names is read. An adapter is no model, and neither are pickles, GGUF and the like: the message names
what is there.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

__all__ = ["INDEX", "MODEL", "PICKLES", "WeightFolder", "tensors_in", "tensors_to_read", "unread", "weight_folder"]

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_STEMS = ("model", "diffusion_pytorch_model")
_FOREIGN = (".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".npz", ".ot", ".tflite", ".keras")
_BESIDE = re.compile(r"(classifier|optimizer|scheduler|monitors|interventions|altgrad_watch).*\.safetensors")
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class WeightFolder:
    """The files with weights, in order. listed: the file name of each tensor, by the index; empty without one.

    variant: what stands between `model` and `.safetensors`, such as fp16.
    """

    files: tuple[Path, ...]
    index: Path | None = None
    listed: Mapping[str, str] = field(default_factory=dict)
    variant: str = ""

    @property
    def is_transformers(self) -> bool:
        """Whether the names are those that transformers looks for."""
        return (self.index or self.files[0]).name.startswith("model.")

    def check(self) -> None:
        """ValueError, in one line, where files cannot be read or disagree with the index, or hold a tensor twice."""
        for file in self.files:
            try:
                with safe_open(file, framework="pt") as opened:
                    names = list(opened.keys())
            except SafetensorError as error:
                raise ValueError(f"{file} cannot be read: {str(error).splitlines()[0].rstrip('.')}.") from None
            for name in set(names) - set(tensors_to_read(self, file, names)):
                raise ValueError(f"{file} holds {name}, which its index places in {self.listed[name]}; remove one.")


def weight_folder(folder: Path) -> WeightFolder:
    """The weights of a folder that is there. ValueError, which names what is there, for a folder without a model's."""
    for stem in _STEMS:
        if (found := _of_stem(folder, stem)) is not None:
            return found
    inside = sorted(path for path in folder.iterdir() if path.is_file())
    files = [path for path in inside if path.suffix == ".safetensors" and not _BESIDE.fullmatch(path.name)]
    adapter = next((path.name for path in inside if path.name.startswith("adapter_model.")), None)
    if adapter is not None:
        raise ValueError(
            f"{folder} holds an adapter ({adapter}) and no model; merge it into its base model first (PEFT's "
            "merge_and_unload) and give that folder."
        )
    if len(files) == 1 and not _SHARD.fullmatch(files[0].name):
        return WeightFolder((files[0],))
    if files:
        names = ", ".join(path.name for path in files[:4]) + (" ..." if len(files) > 4 else "")
        raise ValueError(f"{folder} holds {names} and no {INDEX} that says what is where; fetch it, or name one file.")
    raise ValueError(_nothing(folder, inside))


def tensors_to_read(folder: WeightFolder, file: Path, names: Iterable[str]) -> list[str]:
    """Those of a file's tensors that are to be read from it, sorted. ValueError where index and file disagree."""
    there = set(names)
    if folder.index is None:
        return sorted(there)
    here = {name for name, place in folder.listed.items() if place == file.name}
    if missing := sorted(here - there):
        raise ValueError(
            f"{folder.index} places {missing[0]} in {file.name}, which lacks it; fetch the two again, they are of "
            "different models."
        )
    if unlisted := sorted(there - folder.listed.keys()):
        raise ValueError(
            f"{file} holds {unlisted[0]}, which {folder.index.name} does not list; fetch the two again, they are of "
            "different models."
        )
    return sorted(here)


def tensors_in(folder: WeightFolder) -> dict[str, tuple[str, tuple[int, ...], Path]]:
    """The dtype (safetensors' word), shape and file of every tensor of a folder."""
    found = {}
    for file in folder.files:
        with safe_open(file, framework="pt") as opened:
            for name in tensors_to_read(folder, file, opened.keys()):
                entry = opened.get_slice(name)
                found[name] = (str(entry.get_dtype()), tuple(entry.get_shape()), file)
    return found


def unread(path: Path) -> str | None:
    """Why a file of weights is not read, by its suffix; None if nothing speaks against it."""
    if path.suffix in PICKLES:
        return f"{path} is a pickle, which can run code; convert it to safetensors first."
    if path.suffix in _FOREIGN:
        return f"{path} is {path.suffix[1:]}, which is not read; give the safetensors that it was made from."
    if path.name.endswith(".index.json"):
        return f"{path} is an index; give its folder, {path.parent}."
    return None


def _of_stem(folder: Path, stem: str) -> WeightFolder | None:
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        found = _by_index(folder, index, "")
        if single.is_file() and single not in found.files:
            raise ValueError(
                f"{folder} holds {single.name}, and {index.name} names {found.files[0].name} instead; remove what is "
                "not the model."
            )
        return found
    if single.is_file():
        return WeightFolder((single,))
    variants = {
        match[1]: path
        for path in sorted(folder.iterdir())
        if (match := re.fullmatch(rf"{stem}\.safetensors\.index\.(\w+)\.json", path.name)) is not None
    }
    variants |= {
        match[1]: path
        for path in sorted(folder.iterdir())
        if (match := re.fullmatch(rf"{stem}\.(\w+)\.safetensors", path.name)) is not None
    }
    if len(variants) > 1:
        names = ", ".join(path.name for path in variants.values())
        raise ValueError(f"{folder} holds no {single.name}, but {len(variants)} variants: {names}; name one as a file.")
    for variant, path in variants.items():
        return _by_index(folder, path, variant) if path.suffix == ".json" else WeightFolder((path,), variant=variant)
    return None


def _by_index(folder: Path, index: Path, variant: str) -> WeightFolder:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        listed = {str(tensor): Path(name).as_posix() for tensor, name in places.items()}
        names = sorted(set(listed.values()))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{index} maps no weights to files; fetch it again.") from None
    if not names:
        raise ValueError(f"{index} maps no weights to files; fetch it again.")
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index} names {name}, which is not in its folder.")
        if not (folder / name).is_file():
            raise ValueError(f"{index} names {name}, which is not there; fetch the missing shard.")
    return WeightFolder(tuple(folder / name for name in names), index, listed, variant)


def _nothing(folder: Path, inside: list[Path]) -> str:
    if pickles := [path.name for path in inside if path.suffix in PICKLES]:
        return f"{folder} holds only pickles ({pickles[0]}), which can run code; convert it to safetensors."
    if foreign := [path for path in inside if path.suffix in _FOREIGN]:
        kind = foreign[0].suffix[1:]
        return f"{folder} holds {foreign[0].name}, and {kind} is not read; give the safetensors that it was made from."
    below = sorted({path.parent.name for path in folder.glob("*/*.safetensors")})
    if below:
        several = f"one of {', '.join(f'{name}/' for name in below[:6])}" if len(below) > 1 else f"{below[0]}/"
        return f"{folder} holds no {MODEL} itself; give the folder in it that does: {several}."
    shown = ", ".join(path.name for path in inside[:4]) + (" ..." if len(inside) > 4 else "")
    there = f" (there is {shown})" if shown else ""
    return f"{folder} holds no {MODEL}{there}; give a run, a Hugging Face folder or a .safetensors file."
