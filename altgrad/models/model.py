"""The family of models: what a spec says about a network, and the network it builds.

A model here is a plain `torch.nn.Module` made of `nn.Linear`, `nn.Embedding` and `nn.LayerNorm` under stable names. It
knows nothing of number formats: a precision policy addresses its layers by name (`blocks.*.mlp.up`) and surgery
replaces them afterwards, so the same file serves the float32 baseline and every low-precision run, and any model of
someone else's can stand where ours do. Models that quantise themselves were the road not taken: they would need every
format option repeated in every architecture.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from altgrad.spec import Kind

__all__ = ["Answers", "ModelSpec"]

Answers = Literal["token", "text"]
"""What gets an answer of its own, a row of the last axis: every token, or every text as a whole."""


class ModelSpec(Kind, family="model", package="altgrad.models"):
    """What every model spec has. A kind adds its sizes and `build`.

    `context` is the number of positions the model takes at most; the data cuts its blocks to it.
    """

    context: int
    """The most tokens the model takes; the data cuts its blocks to it."""

    @property
    def answers(self) -> Answers:
        """What the module answers for; data of the other sort cannot be learnt with it."""
        return "token"

    def adopt(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights from elsewhere under this model's own names, as far as it knows theirs; the rest as it is."""
        return tensors

    def build(self, vocabulary: int, outputs: int) -> nn.Module:
        """A freshly initialised module whose `forward(inputs)` takes int64 `[batch, time]`, values in [0, vocabulary).

        One that answers for texts also takes values below 0, which are padding, and looks at none of them.
        `outputs` is the width of the last axis of what it returns. Weights come from the global torch generator, which
        the caller seeds; under `torch.device("meta")` nothing is allocated. ValueError where the sizes do not fit.
        """
        made: nn.Module = self.product()(self, vocabulary, outputs)
        return made

    def export(self, trained: nn.Module, folder: Path, labels: Sequence[str] | None) -> None:
        """Write a trained module as a folder that Hugging Face's libraries load; ValueError where they know none such.

        trained: what `build` returned, quantised or not. labels: names of its outputs, where they are labels.
        """
        raise ValueError(f"model {self.kind} is AltGrad's own and has no Hugging Face form; hf and llama have.")
