"""A folder before transformers reads it: what it would pass over in silence, or read in part, is refused with its name.

The library draws weights that the files lack, takes whichever of two shards it opened last for a tensor that lies in
both, and follows adapter_config.json to another model on the Hub. Each would train, and none is what the folder says.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from altgrad.quantize.weight_folder import MODEL, WeightFolder, weight_folder

__all__ = ["readable_weights", "require_body", "require_config"]

_ELSE = {
    "adapter_config.json": "an adapter; merge it into its base model first (PEFT's merge_and_unload)",
    "model_index.json": "a pipeline of diffusers; give the folder of a transformers model",
    "params.json": "weights in their maker's own form; convert them to transformers' first",
}


def require_config(name: str, folder: Path) -> None:
    """ValueError, which says what is there, for a folder without a config.json. name: how the spec calls it."""
    if (folder / "config.json").is_file():
        return
    for file, what in _ELSE.items():
        if (folder / file).is_file():
            raise ValueError(f"folder {name} has no config.json but {file}: it is {what}.")
    inside = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    there = f"there is {', '.join(inside[:4])}" if inside else "it is empty" if folder.is_dir() else "it is not there"
    raise ValueError(f"folder {name} has no config.json; give the folder of a transformers model ({there}).")


def readable_weights(folder: Path) -> WeightFolder:
    """The files that the library is to read. ValueError for those that it would pass over or read in part."""
    found = weight_folder(folder)
    found.check()
    if not found.is_transformers:
        raise ValueError(f"it has no {MODEL} but {found.files[0].name}, which transformers does not read.")
    if (folder / "adapter_config.json").is_file():
        raise ValueError("it holds an adapter beside its model; merge the two, or move adapter_config.json out.")
    return found


def require_body(model: Any, missing: Collection[str]) -> None:
    """ValueError where weights of the body were drawn, since the files lack them; a head, or BERT's pooler, may be."""
    prefix = f"{model.base_model_prefix}."
    is_base = not hasattr(model, model.base_model_prefix)
    lacking = {name for name, _ in model.named_parameters()} & set(missing)
    body = sorted(name for name in lacking if is_base or name.startswith(prefix))
    body = [name for name in body if not name.removeprefix(prefix).startswith("pooler.")]
    if body:
        raise ValueError(f"its files lack {len(body)} tensors of the model, first {body[0]}; fetch them again.")
