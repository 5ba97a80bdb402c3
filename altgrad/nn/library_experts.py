"""Experts of transformers (from version 5 on): modules that multiply by parameters [experts, ., .] themselves.

    model.layers.0.mlp.experts                  MixtralExperts: gate_up_proj [experts, 2 inner, width], down_proj
    model.layers.0.mlp.experts.3.gate_up_proj   the layer of one expert, which rules name, and which is cast

Names are those that a list of experts would have. A rule finds all experts of a parameter by the parameter's own name,
or by its module's, too. What is fused stays so: gate and up of an expert are one weight with one scale, as a fused qkv.

The module becomes a `CastExperts` by change of class, as layers do, and gets a child for each expert; its parameters
stay where and what they are. Its forward is that of the library's `grouped_mm`, product by product: the rows of each
expert one after another, the gate, the weights of the router, a sum over a token's experts in float32 or the dtype of
the model. The library has an interface for such functions, by a name in the configuration. It was the road not taken:
`generate` and `set_experts_implementation` change that name, and casts would be left out without a word.

What is such a module is told by what the library's decorator `use_experts_implementation` leaves on it. Other modules
that hold experts in one tensor (Llama 4's, DBRX's) multiply in ways of their own, and are refused by name.
"""

from collections.abc import Callable
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from altgrad.nn.experts import ExpertHolder, ExpertLinear, sorted_by_expert
from altgrad.nn.layers import core_of, exchanged, refuse_own_forward

FIRST, LAST, BIASES = ("gate_up_proj", "up_proj"), "down_proj", "_bias"


class Expert(nn.Module):
    """The layers of one expert."""


class CastExperts(ExpertHolder):
    """Experts of transformers whose products are those of layers, mixed into the class that they were."""

    plain: ClassVar[type[nn.Module]]
    """The class that it was."""
    has_gate: bool
    act_fn: Callable[[Tensor], Tensor]
    post_expert_norm: Callable[[Tensor], Tensor]
    _apply_gate: Callable[[Tensor], Tensor]

    @property
    def stacked(self) -> tuple[str, ...]:
        return stacks_of(self)

    def expert_layers(self, parameter: str) -> list[ExpertLinear]:
        experts = len(getattr(self, parameter))
        return [cast(Any, self._modules[str(number)])._modules[parameter] for number in range(experts)]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """[tokens, width] to the same; the experts of each token and their weights are [tokens, active]."""
        first, last = self.stacked
        sent, counts, back = sorted_by_expert(hidden_states, top_k_index, len(getattr(self, last)))
        inner = self.expert_product(first, sent, counts)
        inner = self._apply_gate(inner) if getattr(self, "has_gate", True) else self.act_fn(inner)
        made = self.expert_product(last, inner, counts)
        if getattr(self, "has_post_expert_norm", False):
            made = self.post_expert_norm(made)
        weighed = made[back].view(*top_k_index.shape, -1) * top_k_weights.unsqueeze(-1)
        return weighed.sum(dim=1).to(hidden_states.dtype)


def stacks_of(module: nn.Module) -> tuple[str, ...]:
    """The names of the parameters [experts, ., .] of such a module, in the order of its products; none of any other."""
    decorated = hasattr(type(module).forward, "__wrapped__") and hasattr(module, "is_transposed")
    if not isinstance(module, CastExperts) and not (decorated and hasattr(type(module), "_apply_gate")):
        return ()
    found = tuple(name for name in (*FIRST, LAST) if getattr(module._parameters.get(name), "ndim", 0) == 3)
    return found if len(found) == 2 and found[1] == LAST else ()


def layer_at(model: nn.Module, name: str, *, keep: bool = False) -> nn.Module:
    """The layer of this name. That of an expert of transformers comes about when it is asked for, and with `keep` its
    module has it from then on. ValueError for experts whose products cannot be those of layers."""
    above, _, parameter = name.rpartition(".")
    path, _, number = above.rpartition(".")
    holder = _module_at(model, path) if number.isdecimal() else None
    if holder is None or isinstance(holder, CastExperts) or parameter not in stacks_of(holder):
        return model.get_submodule(name)
    refuse_own_forward(path, holder)
    if getattr(holder, "_is_expert_parallel", False):
        raise ValueError(f"{path} has experts on other devices, where no cast reaches them; load it without tp_plan.")
    if not keep:
        return _layer(holder, parameter, int(number))
    _give_layers(holder)
    return model.get_submodule(name)


def layers_off(model: nn.Module) -> None:
    """Undo what `layer_at` did, everywhere. The layers have no casts any more."""
    for module in list(model.modules()):
        if isinstance(module, CastExperts):
            for number in range(len(getattr(module, LAST))):
                del module._modules[str(number)]
            module.__class__ = exchanged(type(module), module.plain)


def _give_layers(holder: nn.Module) -> None:
    stacks = stacks_of(holder)
    for number in range(len(getattr(holder, LAST))):
        holder.add_module(str(number), expert := Expert())
        for parameter in stacks:
            expert.add_module(parameter, _layer(holder, parameter, number))
        expert.train(holder.training)
    holder.__class__ = exchanged(type(holder), _cast_class(core_of(type(holder))))


def _layer(holder: nn.Module, parameter: str, number: int) -> ExpertLinear:
    biases = parameter + BIASES if parameter + BIASES in holder._parameters else None
    turned = bool(cast(Any, holder).is_transposed)
    return ExpertLinear(cast(ExpertHolder, holder), parameter, number, biases=biases, turned=turned)


def _module_at(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


_MADE: dict[type[nn.Module], type[CastExperts]] = {}


def _cast_class(plain: type[nn.Module]) -> type[CastExperts]:
    if plain not in _MADE:
        again = {"plain": plain, "__reduce__": lambda holder: (_blank, (plain,), holder.__dict__)}
        _MADE[plain] = type(f"Cast{plain.__name__}", (CastExperts, plain), again)
    return _MADE[plain]


def _blank(plain: type[nn.Module]) -> nn.Module:
    """What a pickle (or deepcopy) of a class made above begins with, since no module has that class by name."""
    made = _cast_class(plain)
    return made.__new__(made)
