"""A model in one GGUF file, as llama.cpp keeps it: which file of a folder it is, and what its head says.

The library transformers reads such a file into its own model, weights and all; here is only what has to be known
without it, the tokenizer above all. Weights in such a file lie on a grid already (Q4_1: a scale and an offset for every
32 of them), and are read as the float32 numbers they stand for.
"""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["GGUFHead", "gguf_file", "read_gguf"]


@dataclass(frozen=True)
class GGUFHead:
    """What it is a model of, and its tokenizer: sort, tokens by id, and merges of byte-level BPE, in order."""

    architecture: str
    tokenizer: str
    tokens: tuple[str, ...]
    merges: tuple[str, ...]


def gguf_file(folder: Path) -> Path | None:
    """The GGUF file that a folder stands for: the only one in it, and no config.json beside it; or the file itself."""
    if folder.is_file():
        return folder if folder.suffix == ".gguf" else None
    if (folder / "config.json").is_file() or not folder.is_dir():
        return None
    found = sorted(folder.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:4])
        raise ValueError(f"{folder} holds {len(found)} GGUF files ({names}); name one of them.")
    return found[0] if found else None


def read_gguf(path: Path) -> GGUFHead:
    """The head of a file whose tensors are all there. ValueError, one line, for one that is torn or no GGUF."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ValueError(f"{path} is a GGUF file, which needs a package; run pip install 'altgrad[llm]'.") from None
    try:
        fields = GGUFReader(path).fields  # which maps every tensor, so a file that ends too early fails here
        known = {name.removeprefix("tokenizer.ggml."): field for name, field in fields.items()}
        architecture = str(fields["general.architecture"].contents())
        listed = [known[name].contents() if name in known else () for name in ("tokens", "merges")]
        tokenizer = str(known["model"].contents()) if "model" in known else "none"
    # numpy's errors of shapes and of decoding, of no sort of their own.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is torn or no GGUF file ({reason}); fetch it again.") from None
    return GGUFHead(architecture, tokenizer, *(tuple(map(str, each)) for each in listed))
