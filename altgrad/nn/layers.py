"""Which modules are layers y = x W^T + b, and how each keeps its W.

    nn.Linear               weight [out, in]
    transformers' Conv1D    weight [in, out], as GPT-2 has it; in spite of its name there is no convolution in it
    ExpertLinear            weight [out, in] or [in, out], a slice of its holder's (`altgrad.nn.experts`)

transformers is optional and slow to load, so its class is known by its name. Weights of other experts that lie in one
3-D tensor belong to no such layer, nor do matrices that a module multiplies by itself (attention's in_proj_weight, an
LSTM's weights, a router's); both are found so that a policy that means them is refused or answered by a notice, instead
of leaving most of a model uncast in silence.

Torch itself exchanges a module's class: `parametrize` for one in which `weight` is a property, `fully_shard` for one
that is an FSDPModule, too. Both derive from what was there, before or after it was quantised, and neither has a forward
of its own. So a layer's class is its wrappers around one core, and quantising exchanges the core alone (`exchanged`):

    Parametrized(Linear)  <->  Parametrized(QuantizedLinear)        FSDP(Linear)  <->  FSDP(QuantizedLinear)

To set the class to nn.Linear, as the first edition did, took the property away. A flag asked in forward would keep the
class, but what runs would no longer *be* nn.Linear, and a compiled graph would have to guard on it.
"""

from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList

from altgrad.nn.experts import ExpertLinear

EMBEDDINGS = ("*embed*", "*wte", "*wpe", "*positions", "*shared", "*relative_attention_bias")
"""Names of tables, which hold no Linear though in a file they look like one."""
HEADS = ("*lm_head", "head", "*.head", "*classifier", "*score", "*output_projection")
"""Names of output heads, which FP8 training and inference leave alone unless told otherwise."""

CONV1D = "transformers.pytorch_utils.Conv1D"


def is_layer(module: nn.Module) -> bool:
    """Whether the module is one of these layers, or derived from one."""
    return isinstance(module, nn.Linear | ExpertLinear) or any(map(_is_conv1d, type(module).__mro__))


def is_plain(module: nn.Module) -> bool:
    """Whether it is exactly one of these layers, torch's wrappers apart; what is derived may compute something else."""
    core = core_of(type(module))
    return core in (nn.Linear, ExpertLinear) or _is_conv1d(core)


def is_turned(module: nn.Module) -> bool:
    """Whether a layer keeps its weight as [in, out]."""
    return module.turned if isinstance(module, ExpertLinear) else not isinstance(module, nn.Linear)


def features_of(module: nn.Module, operand: str) -> tuple[int, Literal["last", "first"]]:
    """How many features an operand of the layer has, as columns, and the axis of it across which they lie.

    Those of a weight are the input's.
    """
    outputs, inputs = cast(Tensor, module.weight).shape[:: -1 if is_turned(module) else 1]
    across: Literal["last", "first"] = "first" if operand == "weight" and is_turned(module) else "last"
    return (outputs if operand == "grad_output" else inputs), across


def experts(module: nn.Module) -> dict[str, Tensor]:
    """The module's own parameters that are a matrix for each of several experts: [experts, ., .].

    Neither convolutions count, which have such weights, too, nor tables that broadcast (class tokens, positions), whose
    first axis is 1.
    """
    if isinstance(module, _ConvNd | ParametrizationList):
        return {}
    own = module.named_parameters(recurse=False)
    return {name: p for name, p in own if p.ndim == 3 and p.shape[0] > 1 and p.is_floating_point()}


def matrices(module: nn.Module) -> dict[str, Tensor]:
    """The module's own parameters that are a matrix, where it is no layer of these and no table of embeddings."""
    if is_layer(module) or isinstance(module, nn.Embedding | nn.EmbeddingBag | ParametrizationList):
        return {}
    own = module.named_parameters(recurse=False)
    return {name: p for name, p in own if p.ndim == 2 and min(p.shape) > 1 and p.is_floating_point()}


def core_of(cls: type) -> type:
    """What torch's wrappers were put around; the class itself if there are none."""
    inner = _wrapped_by(cls)
    return cls if inner is None else core_of(inner)


def exchanged(cls: type, core: type) -> type[Any]:
    """The class with the same wrappers around another core. Asked again, it is the same class, as guards of compiled
    graphs need; parametrisations registered since make a new one."""
    inner = _wrapped_by(cls)
    if inner is None:
        return core
    known = _EXCHANGED.setdefault(cls, {})
    around = exchanged(inner, core)
    own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    key = (around, *sorted(own))
    if key not in known:
        name = cls.__name__.removesuffix(inner.__name__) + around.__name__
        known[key] = type(name, (*cls.__bases__[:-1], around), own)
    return known[key]


def refuse_own_forward(name: str, layer: nn.Module) -> None:
    """ValueError if an attribute of this one layer stands for its forward, which a change of class cannot reach.

    Where it is the class's own, as accelerate's hooks leave it when they are removed, it goes.
    """
    own = vars(layer).get("forward")
    if own is None:
        return
    if getattr(own, "__self__", None) is layer and getattr(own, "__func__", None) is type(layer).forward:
        del layer.forward
        return
    raise ValueError(
        f"{name or type(layer).__name__} has a forward of its own, set on the object (accelerate does so for "
        "device_map), which a change of its class would not change; take that off first (accelerate: "
        "remove_hook_from_module)."
    )


_EXCHANGED: WeakKeyDictionary[type, dict[tuple[Any, ...], type]] = WeakKeyDictionary()


def _wrapped_by(cls: type) -> type | None:
    """The class that this one, made by torch for a module in use, was put around; None if it is no such class."""
    *mixed_in, last = cls.__bases__ or (None,)
    by_parametrize = getattr(vars(cls).get("__getstate__"), "__module__", "") == ParametrizationList.__module__
    if mixed_in:
        sharded = all(base.__module__.startswith("torch.distributed.") for base in mixed_in)
        return last if sharded else None
    return last if by_parametrize else None


def _is_conv1d(cls: type) -> bool:
    return f"{cls.__module__}.{cls.__qualname__}" == CONV1D
