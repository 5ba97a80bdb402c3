"""The names that rules go by: every module's, in all its spellings, and those of parameters that belong to no layer.

A module may be registered under several names and answers to each; the first is its site. The children of a list answer
to `first` and `last` as well as to their numbers.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from altgrad.nn.experts import StackedLinear
from altgrad.nn.layers import experts, is_layer, matrices


@dataclass(frozen=True)
class Nameable:
    """What a rule may name: a layer, or a parameter (which has a shape here), under each of its names. A parameter
    answers to its module's names, too.

    spellings: all that each name answers to. cast: whether it can be decided; other parameters are only found.
    """

    spellings: Mapping[str, set[str]]
    shape: tuple[int, ...] | None
    cast: bool

    @property
    def name(self) -> str:
        """The first of its names, which is its site."""
        return next(iter(self.spellings))


def nameable(model: nn.Module) -> list[Nameable]:
    """All that rules may name, in module order."""
    spelled = _spelled(model)
    paths: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(name)
    found = []
    for module, names in paths.items():
        if is_layer(module):
            found.append(Nameable({name: spelled[name] for name in names}, None, True))
        whole = {} if isinstance(module, StackedLinear) else experts(module)  # a stack's experts are layers
        own = [(leaf, p, True) for leaf, p in whole.items()]
        own += [(leaf, p, False) for leaf, p in matrices(module).items()]
        for leaf, p, cast in own:
            spellings = {
                _joined(name, leaf): spelled[name] | {_joined(also, leaf) for also in spelled[name]} for name in names
            }
            found.append(Nameable(spellings, tuple(p.shape), cast))
    return found


def _joined(above: str, leaf: str) -> str:
    return f"{above}.{leaf}" if above else leaf


def _spelled(model: nn.Module) -> dict[str, set[str]]:
    """Every name of every module, with what it answers to by its place in lists: `blocks.0.up` is `blocks.first.up`.

    A model that holds another's may say which names its modules have there, by a method `also_named(name)`.
    """
    names: dict[str, set[str]] = {"": {""}}
    for name, module in model.named_modules(remove_duplicate=False):
        for child, inner in module._modules.items():
            if inner is None:
                continue
            also = {child}
            if isinstance(module, nn.ModuleList | nn.Sequential):
                also |= {"first"} if child == "0" else set()
                also |= {"last"} if child == str(len(module) - 1) else set()
            names[_joined(name, child)] = {_joined(above, word) for above in names[name] for word in also}
    if callable(also_named := getattr(model, "also_named", None)):
        names = {name: known.union(*map(also_named, known)) for name, known in names.items()}
    return names


def aliases(model: nn.Module) -> dict[str, set[str]]:
    """Every name of every module, with all that the module also answers to, its other names among it."""
    names = _spelled(model)
    together: dict[nn.Module, set[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        together.setdefault(module, set()).update(names[name])
    return {name: together[module] for name, module in model.named_modules(remove_duplicate=False)}


def matches(pattern: str, names: Iterable[str]) -> bool:
    """Whether the pattern matches any of a module's (or parameter's) names."""
    return any(fnmatchcase(name, pattern) for name in names)


def literal(name: str) -> str:
    """A pattern that matches this name alone."""
    return re.sub(r"([\[?*])", r"[\1]", name)
