"""Weights of norms and of tables on a grid: the module computes with its weight's cast.

The module's class is exchanged, as a layer's is, for one in which `weight` is a property: the Parameter, cast each time
that it is read, with the gradient passed straight through. `torch.nn.utils.parametrize` does the same under other names
(`norm.parametrizations.weight.original`), by which neither checkpoints nor optimizer groups, storage rules, exports or
a tied head would know the parameter again; so here the Parameter stays where it is, under its own name.

A weight is cast as it lies: a norm's along its only axis, a table's along its rows, which is what is looked up.
"""

from typing import Any, ClassVar, cast

from torch import Tensor, nn

from altgrad.nn.attention_slots import unfit_elsewhere
from altgrad.nn.layers import core_of, exchanged
from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.quantize.counted import Counted


def is_norm(module: nn.Module) -> bool:
    """Whether it scales what it normalised by a weight of its own."""
    named = "norm" in type(module).__name__.casefold()
    weight = module._parameters.get("weight")
    return named and weight is not None and weight.ndim == 1 and not isinstance(module, nn.Linear | nn.Embedding)


def is_table(module: nn.Module) -> bool:
    """Whether it looks up rows."""
    return isinstance(module, nn.Embedding) and module._parameters.get("weight") is not None


class QuantizedWeight(nn.Module):
    """A norm or table whose weight is on a grid, mixed into the class that it was."""

    plain: ClassVar[type[nn.Module]]
    """The class that it was."""
    casts: nn.ModuleDict

    @property
    def weight(self) -> Tensor:
        """The Parameter's cast; the Parameter itself while FSDP2 has it sharded."""
        parameter = self._parameters["weight"]
        assert parameter is not None
        if any(placement.is_shard() for placement in getattr(parameter, "placements", ())):
            return parameter  # which FSDP2 alone reads then, between passes, to know it again
        made: Tensor = self.casts["weight"](parameter)
        return made

    @property
    def quantizer(self) -> Quantizer:
        """What casts it."""
        return cast(Quantizer, self.casts["weight"])

    def reset_parameters(self) -> None:
        """A new weight, as the plain module draws it, and a cast that begins anew."""
        now = type(self)
        self.__class__ = exchanged(now, self.plain)
        try:
            drawn: Any = getattr(self, "reset_parameters", None)
            if drawn is not None:
                drawn()
        finally:
            self.__class__ = now
        cast(Counted, self.quantizer).reset_parameters()


def weight_cast(module: nn.Module, spec: QuantizerSpec, site: str, seed: int) -> Quantizer:
    """The cast of a module's weight. ValueError for what the weight cannot enter."""
    if (unfit := unfit_elsewhere(spec)) is not None:
        raise ValueError(f"{site}: weight has {unfit}, which belongs to the slots of a Linear.")
    weight = module._parameters.get("weight")
    if weight is None:
        raise ValueError(f"{site} has no weight of its own to cast; take off what computes it (a parametrization).")
    if isinstance(module, QuantizedWeight):
        raise ValueError(f"{site} is quantised already; dequantize_model it first.")
    rows = None if weight.ndim == 1 else weight.shape[0]
    try:
        return Quantizer(spec, f"{site}/weight", "weight", seed=seed, rows=rows, shape=tuple(weight.shape))
    except ValueError as error:
        raise ValueError(f"{site}, weight: {error}") from None


def install_weight_cast(module: nn.Module, quantizer: Quantizer) -> None:
    """Have a norm or table compute with its weight's cast, in place."""
    parameter = module._parameters["weight"]
    assert parameter is not None
    casts = nn.ModuleDict({"weight": quantizer.to(parameter.device).train(module.training)})
    core = core_of(type(module))
    module.__class__ = exchanged(type(module), weight_class(core))
    module.add_module("casts", casts)


def take_weight_cast_off(module: QuantizedWeight) -> None:
    """Make it the plain module on the same Parameter again."""
    del module.casts
    module.__class__ = exchanged(type(module), module.plain)


_MADE: dict[type[nn.Module], type[QuantizedWeight]] = {}


def weight_class(plain: type[nn.Module]) -> type[QuantizedWeight]:
    """The class that a plain norm or table of this class becomes."""
    if plain not in _MADE:
        again = {"plain": plain, "__reduce__": lambda module: (_blank, (plain,), module.__dict__)}
        _MADE[plain] = type(f"Quantized{plain.__name__}", (QuantizedWeight, plain), again)
    return _MADE[plain]


def _blank(plain: type[nn.Module]) -> nn.Module:
    made = weight_class(plain)
    return made.__new__(made)
