"""Texts as token ids of at most so many tokens, for models that answer once for a text.

    bytes, {bpe: N}, gpt2     separator, then the text's first tokens: position 0 is the same in every text
    a folder                  what its tokenizer.json makes of a text, special tokens and all ([CLS] ... [SEP])

Longer texts are cut at the end. Unlike a language model's, a classifier's tokenizer may lower-case and normalise: no
bits per byte hang on it. So a folder's tokenizer is taken as it is here, and not as `altgrad.data.tokenizer` takes it.

Arrays of large corpora are kept in the cache under a hash of everything that decides them: texts, tokenizer and its
files, length, this file. A file that was changed has other texts, hence other arrays; arrays that were changed do not
have the digest stored in them and are made again.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from altgrad.data import tokenizer as tokenizer_module
from altgrad.data.documents import content_hash
from altgrad.data.labelled import Labelled
from altgrad.data.tokenizer import BPE, SubwordTokenizer, make_tokenizer, tokenizer_files
from altgrad.data.tokens import cache_folder, on_progress

__all__ = ["Encoded", "encode_texts"]

Ids = NDArray[np.unsignedinteger[Any]]
Encoded = dict[str, list[Ids]]
"""Split to the ids of its texts, in their order."""

_DIRECT_BYTES = 16 << 20
_BATCH = 512


def encode_texts(labelled: Labelled, setting: str | BPE, length: int) -> tuple[Encoded, int]:
    """The ids of every text and the size of the vocabulary; from the cache, or made now and, if large, kept there.

    ValueError for a tokenizer that is not there or cannot be read, and for a cache that cannot be written.
    """
    size = sum(len(text.encode()) for texts in labelled.texts.values() for text in texts)
    if size < _DIRECT_BYTES:
        return _encoded(labelled, setting, length, size)
    path = cache_folder() / "labelled" / f"{_key(labelled, setting, length)}.npz"
    found = _opened(path)
    if found is None:
        found = _encoded(labelled, setting, length, size)
        try:
            _keep(path, *found)
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror or error}; set ALTGRAD_CACHE to a folder with space.") from None
    return found


def _encoded(labelled: Labelled, setting: str | BPE, length: int, size: int) -> tuple[Encoded, int]:
    is_folder = isinstance(setting, str) and setting not in ("bytes", "gpt2")
    if is_folder:
        model = _folder_tokenizer(str(setting), length)
        vocabulary = model.get_vocab_size(with_added_tokens=True)
    else:
        tokenizer = make_tokenizer(setting, labelled.texts["train"])
        vocabulary = len(tokenizer.token_bytes)
        # Bytes need no look at the rest of the text; BPE does, since a merge may reach over the cut.
        cut = length if not isinstance(tokenizer, SubwordTokenizer) else None
        first = np.array([tokenizer.separator])
    dtype = np.min_scalar_type(vocabulary - 1)
    report, done = on_progress.get(), 0
    found: Encoded = {}
    for split, texts in labelled.texts.items():
        found[split] = []
        for start in range(0, len(texts), _BATCH):
            some = texts[start : start + _BATCH]
            if is_folder:
                ids = [np.array(entry.ids, dtype) for entry in model.encode_batch(some)]
            else:
                pieces = tokenizer.encode(text if cut is None else text[:cut] for text in some)
                ids = [np.concatenate([first, piece[: length - 1]]).astype(dtype) for piece in pieces]
            found[split] += ids
            done += sum(len(text.encode()) for text in some)
            if report is not None:
                report(done, size)
    return found, vocabulary


def _folder_tokenizer(setting: str, length: int) -> Any:
    from tokenizers import Tokenizer

    path, _ = tokenizer_files(setting)
    try:
        model = Tokenizer.from_file(str(path))
    # The library raises bare Exception for a file it cannot read.
    except Exception as error:
        raise ValueError(f"{setting} holds no readable tokenizer: {str(error).splitlines()[0]}") from None
    model.no_padding()
    special = model.num_special_tokens_to_add(False)
    if length <= special:
        raise ValueError(f"a length of {length} leaves no room for the {special} special tokens of {setting}.")
    model.enable_truncation(length)
    return model


def _key(labelled: Labelled, setting: str | BPE, length: int) -> str:
    decides = [labelled.sha256, str(length), version("tokenizers")]
    if isinstance(setting, BPE):
        decides += ["bpe", str(setting.bpe)]
    elif setting in ("bytes", "gpt2"):
        decides += [setting]
    else:
        decides += ["folder", content_hash(tokenizer_files(setting)[0])]
    decides += [content_hash(Path(str(file))) for file in (__file__, tokenizer_module.__file__)]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _flat(found: Encoded, vocabulary: int) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {"vocabulary": np.array([vocabulary])}
    for split, rows in found.items():
        arrays[f"{split}/ids"] = np.concatenate(rows) if rows else np.zeros(0, np.uint8)
        arrays[f"{split}/lengths"] = np.array([len(row) for row in rows], np.int64)
    return arrays


def _digest(arrays: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(arrays[name].tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def _keep(path: Path, found: Encoded, vocabulary: int) -> None:
    """Written aside and renamed: two that make the same arrays at once write the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    arrays = _flat(found, vocabulary)
    try:
        with aside.open("wb") as file:
            np.savez(file, digest=_digest(arrays), **arrays)  # type: ignore[arg-type]
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _opened(path: Path) -> tuple[Encoded, int] | None:
    """None where there is nothing, or not what was written."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        expected = arrays.pop("digest")
        if not np.array_equal(expected, _digest(arrays)):
            return None
        return dict(_splits(arrays)), int(arrays["vocabulary"][0])
    # A torn zip raises errors of its own kinds, zipfile's and zlib's among them.
    except Exception:
        return None


def _splits(arrays: dict[str, NDArray[Any]]) -> Iterator[tuple[str, list[Ids]]]:
    for name, ids in arrays.items():
        split, _, part = name.partition("/")
        if part == "ids":
            lengths = arrays[f"{split}/lengths"]
            yield split, np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []
