"""The names that rules go by: every module's, in all its spellings, and those of parameters that belong to no layer.

A module may be registered under several names and answers to each; the first is its site. The children of a list answer
to `first` and `last` as well as to their numbers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from altgrad.nn.experts import ExpertHolder, ExpertLinear
from altgrad.nn.layers import experts, is_layer, matrices
from altgrad.nn.library_experts import stacks_of


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
        stacks, of_stack = stacks_of(module), isinstance(module, ExpertLinear) and stacks_of(module.holder)
        if is_layer(module) and not of_stack:
            found.append(Nameable({name: spelled[name] for name in names}, None, True))
        for leaf in stacks:  # each expert has the names of all of them, too
            for number in range(len(getattr(module, leaf))):
                found.append(Nameable(_leaf(names, spelled, f"{number}.{leaf}", leaf), None, True))
        if isinstance(module, ExpertHolder) or stacks:
            continue
        own = [(leaf, p, True) for leaf, p in experts(module).items()]
        own += [(leaf, p, False) for leaf, p in matrices(module).items()]
        found += [Nameable(_leaf(names, spelled, leaf), tuple(p.shape), cast) for leaf, p, cast in own]
    return found


def _leaf(names: Sequence[str], spelled: Mapping[str, set[str]], *leaves: str) -> dict[str, set[str]]:
    """What belongs to a module of these names under the first of `leaves`, and answers to each and to the module's."""
    return {
        _joined(name, leaves[0]): spelled[name] | {_joined(also, leaf) for also in spelled[name] for leaf in leaves}
        for name in names
    }


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
