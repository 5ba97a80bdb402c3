"""Whose attention can be computed elsewhere, and how its module is made to call there.

    ours             a module whose forward calls the function `attention` of `altgrad.models`, or any other that is
                     marked by `reaches_products`: it looks for the child that computes attention
    transformers'    a module whose forward asks ALL_ATTENTION_FUNCTIONS for the function that its configuration names

That is read off the code of the class's forward, since nothing else of a module tells. In transformers a configuration
names two things by one word: the function of attention and the one that makes its mask. To register a function alone
loses the causal mask without a word, since a model then makes none for a name that it does not know. So both are
registered under `altgrad_sdpa` and `altgrad_eager`: the mask is that of the implementation before, and so is the
function for modules of the model that have no casts. With sdpa a mask may be None for a causal module, which its
function has to know of.
"""

import dis
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from altgrad.nn.attention import CHILD, QuantizedAttention, products_of
from altgrad.nn.attention_slots import AttentionSpec

Function = TypeVar("Function", bound=Callable[..., Any])
_MARK = "reaches_attention_products"
INTERFACE = "ALL_ATTENTION_FUNCTIONS"
PREFIX = "altgrad_"
SERVED = ("sdpa", "eager")
UNKNOWN = ("softcap", "position_bias", "s_aux", "sinks", "head_mask")
"""What transformers' attention functions may be given that changes what they compute."""
DROPOUTS = ("dropout", "attention_dropout", "attn_dropout", "dropout_p", "dropout_prob")


def reaches_products(function: Function) -> Function:
    """Mark a function that has a module's attention computed by `products_of` it, where there are any."""
    setattr(function, _MARK, True)
    return function


def attends(module: nn.Module) -> bool:
    """Whether this module's attention can have casts."""
    return any(_is_ours(each) or _is_interface(each) for each in _globals_called(type(module)))


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules whose attention can have casts, by name."""
    return {name: module for name, module in model.named_modules() if attends(module)}


def refuse_dropout(name: str, module: nn.Module) -> None:
    """ValueError for a module in training that would drop probabilities."""
    for attribute in DROPOUTS:
        found = getattr(module, attribute, 0.0)
        share = found.p if isinstance(found, nn.Dropout) else found
        if isinstance(share, float) and share > 0:
            raise ValueError(
                f"{name} has {attribute} {share:g}, which attention with casts does not do; set it to 0 (model.dropout "
                "in a spec)."
            )


def check_reach(model: nn.Module, name: str) -> None:
    """ValueError for attention that cannot be computed elsewhere as it is set."""
    module = model.get_submodule(name)
    if CHILD in module._modules:
        raise ValueError(f"{name} has casts of attention already; dequantize_model it first.")
    if module.training:
        refuse_dropout(name, module)
    for config in _configs(model) if _uses_interface(module) else ():
        how = config._attn_implementation or "eager"
        if how.removeprefix(PREFIX) not in SERVED:
            raise ValueError(
                f"{name} runs {how}, whose kernel shows no probabilities; load the model with attn_implementation "
                f"{' or '.join(SERVED)} for casts of attention."
            )


def reach(model: nn.Module, name: str, spec: AttentionSpec, seed: int) -> None:
    """Have casts in a module's attention, in place."""
    module = model.get_submodule(name)
    device = next((p.device for p in module.parameters()), None)
    module.add_module(CHILD, QuantizedAttention(spec, name, seed).to(device).train(module.training))
    if _uses_interface(module):
        for config in _configs(model):
            _register(config._attn_implementation or "eager", module)
            config._attn_implementation = PREFIX + (config._attn_implementation or "eager").removeprefix(PREFIX)


def leave(model: nn.Module) -> None:
    """Undo `reach` everywhere."""
    for module in list(model.modules()):
        if isinstance(module._modules.get(CHILD), QuantizedAttention):
            del module._modules[CHILD]
    for config in _configs(model):
        if str(config._attn_implementation).startswith(PREFIX):
            config._attn_implementation = config._attn_implementation.removeprefix(PREFIX)


def _globals_called(cls: type[nn.Module]) -> Iterator[Any]:
    """What the class's forward takes from its file."""
    forward = inspect.unwrap(cls.forward)
    code = getattr(forward, "__code__", None)
    for each in () if code is None else dis.get_instructions(code):
        if each.opname == "LOAD_GLOBAL":
            yield forward.__globals__.get(each.argval)


def _is_ours(thing: Any) -> bool:
    return getattr(thing, _MARK, False) is True


def _is_interface(thing: Any) -> bool:
    return any(cls.__name__ == "AttentionInterface" for cls in type(thing).__mro__)


def _uses_interface(module: nn.Module) -> bool:
    return any(map(_is_interface, _globals_called(type(module))))


def _configs(model: nn.Module) -> list[Any]:
    """The configurations of a transformers model and of its parts, each once."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(type(config), "_attn_implementation"):
            found[id(config)] = config
    return list(found.values())


def _register(how: str, module: nn.Module) -> None:
    """Let transformers know our functions beside those of an implementation."""
    how = how.removeprefix(PREFIX)
    interface = next(filter(_is_interface, _globals_called(type(module))))
    masks = sys.modules["transformers.masking_utils"].ALL_MASK_ATTENTION_FUNCTIONS
    if PREFIX + how not in interface:
        interface.register(PREFIX + how, _computed(None if how == "eager" else interface[how]))
    if PREFIX + how not in masks:
        masks.register(PREFIX + how, masks[how])


def _computed(before: Callable[..., Any] | None) -> Callable[..., Any]:
    """The function to be registered. before: that of the implementation; None: each module's own, which is eager."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None, **other: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        products = products_of(module)
        if products is None:
            plain: Any = _eager_of(type(module)) if before is None else before
            given = {} if is_causal is None else {"is_causal": is_causal}
            made: tuple[Tensor, Tensor | None] = plain(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **given, **other
            )
            return made
        for name in UNKNOWN:
            if other.get(name) is not None:
                raise ValueError(f"{type(module).__name__} has {name}, which attention with casts does not know.")
        causal = before is not None and attention_mask is None and query.shape[2] > 1
        if causal:
            causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        if causal and key.shape[2] > query.shape[2]:  # a cache that is still empty behind the queries
            key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
        mixed = products(query, key, value, attention_mask, causal=causal, scale=scaling, dropout=dropout)
        return mixed.transpose(1, 2).contiguous(), None

    return attention


def _eager_of(cls: type[nn.Module]) -> Callable[..., Any]:
    made: Callable[..., Any] = inspect.unwrap(cls.forward).__globals__["eager_attention_forward"]
    return made
