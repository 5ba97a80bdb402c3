"""Token rings on disk: tokenised once, memory-mapped ever after, shared by every process of a sweep.

The folder of a tokenised corpus is named by everything that decides its content,

    sha256(what decides the documents: a file's bytes, suffix and column; tokenizer setting and its files, version of
           `tokenizers`; the source of the modules that read and tokenise)

so nothing in the cache is ever stale and nothing needs a clean-up rule; deleting any of it costs only time. A folder is
built aside, under a lock, and renamed into place whole: readers see all of it or nothing, two builders of the same
folder build it once, and what a killed builder left is swept away by the next. Its manifest, tokens.json, has the
sha256 of every file and of itself; a folder in which one bit differs is built again. The cache is $ALTGRAD_CACHE, or
~/.cache/altgrad.

Small corpora under the byte tokenizer are not cached: reading them is all the work there is.

A ring is one flat file of unsigned integers, a separator before each document; `altgrad.data.text` says why a ring.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from altgrad.data import bad_rows as bad_rows_module
from altgrad.data import documents as documents_module
from altgrad.data import source_file as source_file_module
from altgrad.data import tokenizer as tokenizer_module
from altgrad.data.dataset import SPLITS
from altgrad.data.documents import Corpus, content_hash
from altgrad.data.tokenizer import BPE, ByteTokenizer, SubwordTokenizer, make_tokenizer, tokenizer_files

__all__ = ["Tokens", "cache_folder", "load_tokens", "on_progress"]

Ring = NDArray[np.unsignedinteger[Any]]

on_progress: ContextVar[Callable[[int, int], None] | None] = ContextVar("on_progress", default=None)
"""Who wants to hear how tokenising goes: called with (bytes done, bytes in all), after every document."""

_DIRECT_BYTES = 16 << 20
_MANIFEST = "tokens.json"


@dataclass(frozen=True)
class Tokens:
    """A tokenised corpus. `rings` has the splits that have text; `counts`, per split, documents, bytes and tokens, and
    the rows that were left out, by reason."""

    rings: dict[str, Ring]
    token_bytes: NDArray[np.int64]
    counts: dict[str, int]


def cache_folder() -> Path:
    """$ALTGRAD_CACHE if it is set and not empty, or ~/.cache/altgrad."""
    return Path(os.environ.get("ALTGRAD_CACHE") or "~/.cache/altgrad").expanduser()


def load_tokens(corpus: Corpus, setting: str | BPE) -> Tokens:
    """The tokens of a corpus, from the cache or built now.

    ValueError if the source or the tokenizer is wrong, a split that every run needs has no text, or the cache cannot be
    written.
    """
    if setting == "bytes" and corpus.size < _DIRECT_BYTES:
        documents = _complete(corpus)
        tokenizer = ByteTokenizer()
        pieces = {split: list(_pieces(tokenizer, texts)) for split, texts in documents.items()}
        rings = {split: np.concatenate(pieces[split]) for split in pieces}
        return Tokens(rings, tokenizer.token_bytes, _counts(corpus, documents, rings))
    folder = cache_folder() / "tokens" / _key(corpus, setting)
    found = _opened(folder)
    if found is None:
        try:
            found = _built(folder, corpus, setting)
        except OSError as error:
            raise ValueError(
                f"{folder}: {error.strerror or error}; set ALTGRAD_CACHE to a folder with space."
            ) from None
    return found


def _key(corpus: Corpus, setting: str | BPE) -> str:
    decides = [*corpus.decides]
    if isinstance(setting, BPE):
        decides += ["bpe", str(setting.bpe), version("tokenizers")]
    elif setting == "bytes":
        decides += ["bytes"]
    elif setting == "gpt2":
        decides += ["gpt2", version("tokenizers")]
    else:
        decides += ["folder", *map(_hash_if_there, tokenizer_files(setting)), version("tokenizers")]
    readers = (documents_module, bad_rows_module, source_file_module, tokenizer_module)
    decides += [content_hash(Path(str(file))) for file in (__file__, *(module.__file__ for module in readers))]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _hash_if_there(path: Path) -> str:
    return content_hash(path) if path.is_file() else "absent"


def _complete(corpus: Corpus) -> dict[str, list[str]]:
    """The splits that have documents; training and validation must."""
    found = {split: texts for split, texts in corpus.documents().items() if texts}
    for split in SPLITS[:2]:
        if split not in found:
            left_out = f" ({sum(corpus.skipped.values())} rows were left out)" if corpus.skipped else ""
            raise ValueError(f"{corpus.name} has no text for {split}{left_out}; put some documents into that split.")
    return found


def _pieces(tokenizer: ByteTokenizer | SubwordTokenizer, texts: list[str]) -> Iterator[Ring]:
    """A document's ids with the separator before them, document by document."""
    for ids in tokenizer.encode(texts):
        yield np.concatenate([np.array([tokenizer.separator], ids.dtype), ids])


def _counts(corpus: Corpus, documents: dict[str, list[str]], rings: dict[str, Ring]) -> dict[str, int]:
    counts = {f"skipped_{reason}": count for reason, count in corpus.skipped.items()}
    for split, texts in documents.items():
        counts[f"{split}_documents"] = len(texts)
        counts[f"{split}_bytes"] = sum(len(text.encode()) for text in texts)
        counts[f"{split}_tokens"] = len(rings[split])
    return counts


def _built(folder: Path, corpus: Corpus, setting: str | BPE) -> Tokens:
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f"{folder.name}.building")
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        # Whoever held the lock before may have built it; and only we can own what lies aside now.
        if (found := _opened(folder)) is not None:
            return found
        for leftover in (aside, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        aside.mkdir()
        try:
            _write(aside, corpus, setting)
            aside.rename(folder)
        except BaseException:  # a request to stop is one too
            shutil.rmtree(aside, ignore_errors=True)
            raise
        found = _opened(folder)
        assert found is not None
        return found


def _write(aside: Path, corpus: Corpus, setting: str | BPE) -> None:
    documents = _complete(corpus)
    passes = [documents["train"]] if isinstance(setting, BPE) else []
    heard = _Progress(sum(len(text.encode()) for texts in [*passes, *documents.values()] for text in texts))
    tokenizer = make_tokenizer(setting, heard.through(documents["train"]))
    rings: dict[str, Ring] = {}
    for split, texts in documents.items():
        with (aside / f"{split}.bin").open("wb") as file:
            for text, piece in zip(texts, _pieces(tokenizer, texts), strict=True):
                file.write(piece.tobytes())
                heard.add(text)
        rings[split] = np.memmap(aside / f"{split}.bin", piece.dtype, "r")
    np.save(aside / "token_bytes.npy", tokenizer.token_bytes)
    if isinstance(tokenizer, SubwordTokenizer):
        tokenizer.model.save(str(aside / "tokenizer.json"))
    about = {"source": corpus.name, "dtype": piece.dtype.str, "separator": tokenizer.separator}
    about |= {
        "counts": _counts(corpus, documents, rings),
        "sha256": {file.name: content_hash(file) for file in aside.iterdir()},
    }
    manifest = {"about": about, "sha256": _digest(about)}
    (aside / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


class _Progress:
    """Bytes of text done, told to `on_progress`; the training of a BPE is one more pass over the training split."""

    def __init__(self, total: int) -> None:
        self._report = on_progress.get()
        self._done = 0
        self._total = total

    def add(self, text: str) -> None:
        self._done += len(text.encode())
        if self._report is not None:
            self._report(self._done, self._total)

    def through(self, texts: list[str]) -> Iterator[str]:
        for text in texts:
            yield text
            self.add(text)


def _digest(about: Any) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _opened(folder: Path) -> Tokens | None:
    """None if the folder is absent, or if anything in it is not as it was written (a full disk, a copy that stopped, a
    bad sector); every byte is read, about as fast as the source was hashed to find the folder."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        about = manifest["about"]
        if _digest(about) != manifest["sha256"]:
            return None
        if any(content_hash(folder / name) != expected for name, expected in about["sha256"].items()):
            return None
        counts, dtype = about["counts"], np.dtype(about["dtype"])
        splits = [split for split in SPLITS if f"{split}_tokens" in counts]
        rings = {split: np.asarray(np.memmap(folder / f"{split}.bin", dtype, "r")) for split in splits}
        return Tokens(rings, np.load(folder / "token_bytes.npy"), counts)
    except (OSError, ValueError, KeyError, TypeError):
        return None
