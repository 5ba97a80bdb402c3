"""Which modules are layers y = x W^T + b, and how each keeps its W.

    nn.Linear               weight [out, in]
    transformers' Conv1D    weight [in, out], as GPT-2 has it; in spite of its name there is no convolution in it

transformers is optional and slow to load, so its class is known by its name. Weights of experts that lie in one 3-D
tensor belong to no such layer; they are found so that a policy that means them can be refused, instead of leaving
most of a mixture of experts uncast in silence.
"""

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

EMBEDDINGS = ("*embed*", "*wte", "*wpe", "*positions", "*shared", "*relative_attention_bias")
"""Names of tables, which hold no Linear though in a file they look like one."""
HEADS = ("*lm_head", "head", "*.head", "*classifier", "*score", "*output_projection")
"""Names of output heads, which FP8 training and inference leave alone unless told otherwise."""

CONV1D = "transformers.pytorch_utils.Conv1D"


def is_layer(module: nn.Module) -> bool:
    """Whether the module is one of these layers, or derived from one."""
    return isinstance(module, nn.Linear) or any(map(_is_conv1d, type(module).__mro__))


def is_plain(module: nn.Module) -> bool:
    """Whether it is exactly one of these layers; what is derived may compute something else."""
    return type(module) is nn.Linear or _is_conv1d(type(module))


def is_turned(module: nn.Module) -> bool:
    """Whether a layer keeps its weight as [in, out]."""
    return not isinstance(module, nn.Linear)


def experts(module: nn.Module) -> dict[str, Tensor]:
    """The module's own parameters that are a matrix for each of several experts: [experts, ., .].

    Neither convolutions count, which have such weights, too, nor tables that broadcast (class tokens, positions), whose
    first axis is 1.
    """
    if isinstance(module, _ConvNd):
        return {}
    own = module.named_parameters(recurse=False)
    return {name: p for name, p in own if p.ndim == 3 and p.shape[0] > 1 and p.is_floating_point()}


def _is_conv1d(cls: type) -> bool:
    return f"{cls.__module__}.{cls.__qualname__}" == CONV1D
