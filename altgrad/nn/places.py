"""Places: parts that every transformer has, found in the module tree alone, so that one rule fits models of any naming.

    body          layers of the repeated blocks but their routers: all of the four below
    attention     those inside attention modules
    attention_output    of these the last, behind a module's other layers or matrices: what gathers its heads
    experts       those of a mixture's experts; a shared expert, which every token passes, is none of them
    mlp           the rest of a block, a shared expert among it
    router        what chooses experts: it stands beside them, and has as many outputs as there are experts, or one
    head          layers behind the blocks, or named like a head: the language model's, a classifier's, a pooler
    embeddings    tables, and layers before the blocks        norms    hold no layer, but weights (`altgrad.nn.targets`)
    body.first(2), body.last(15%)     blocks by number, a percentage rounded up; likewise of every place inside blocks

The repeated blocks are the children, named by numbers, of the outermost list whose members hold layers; several lists
(an encoder's and a decoder's) count one after the other. A model without any (a plain MLP) is all body but for what is
named like a head or a table. Names are those of libraries: a component with `attn` or `attention`, one that ends in
`experts`, `gate` or `router` beside it. To ask forward which module runs when would know more, and needs data.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor, nn

from altgrad.nn.layers import EMBEDDINGS, HEADS, experts, is_layer, is_turned, matrices
from altgrad.nn.library_experts import stacks_of
from altgrad.nn.names import Nameable, matches
from altgrad.spec import did_you_mean
from altgrad.spec.messages import LONGEST

BODY = ("attention", "experts", "mlp")
OUTPUT = "attention_output"
INSIDE = ("body", "attention", OUTPUT, "experts", "mlp", "router")
NAMES = (*INSIDE, "head", "norms", "embeddings")
_GRAMMAR = re.compile(r"(?P<name>\w+)(\.(?P<end>first|last)\((?P<count>\d{1,6}|\d{1,3}(\.\d{1,6})?%)\))?")


@dataclass(frozen=True)
class RulePlace:
    """A place as a rule says it: its name, and of which blocks; end None: of all."""

    name: str
    end: str | None = None
    count: str = ""

    @classmethod
    def parse(cls, text: str) -> "RulePlace":
        """ValueError, in one line, for what is no place."""
        found = _GRAMMAR.fullmatch(text)
        if found is None or found["name"] not in NAMES:
            name = re.split(r"\W", text, maxsplit=1)[0]
            hint = "" if name in NAMES else did_you_mean(name, NAMES)
            raise ValueError(
                f"'{text[:LONGEST]}' is not a place.{hint} There are {', '.join(NAMES)}; those inside blocks take "
                ".first(2) or .last(15%)."
            )
        if found["end"] and found["name"] not in INSIDE:
            raise ValueError(f"{text}: {found['name']} is outside of the blocks; write {found['name']}.")
        return cls(found["name"], found["end"], found["count"] or "")

    def holds(self, spot: "Spot", blocks: int) -> bool:
        """Whether what is there belongs to this place, of a model with so many blocks."""
        is_part = spot.is_output if self.name == OUTPUT else spot.part == self.name
        if not is_part and not (self.name == "body" and spot.part in BODY):
            return False
        if self.end is None:
            return True
        share = Fraction(self.count[:-1]) / 100 * blocks if self.count.endswith("%") else Fraction(self.count)
        count = math.ceil(share)
        return spot.block is not None and (spot.block < count if self.end == "first" else spot.block >= blocks - count)


@dataclass(frozen=True)
class Spot:
    """Where a layer is: the part of the model, the number of its block (None outside of blocks), and whether it is the
    output of an attention."""

    part: str
    block: int | None = None
    is_output: bool = False


class Places:
    """Where everything is that rules may name."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._order = {name: number for number, name in enumerate(self._modules)}
        roots = [name for stack in _stacks("", model) for name in stack]
        self.blocks = len(roots)
        self._root = {name: number for number, name in enumerate(roots)}
        self._mixtures = dict(_mixtures(self._modules))
        self._outputs_of_attention = set(self._last_of_attention())
        inside = [self._order[name] for name in self._modules if self._block_of(name) is not None]
        self._begin, self._end = (min(inside), max(inside)) if inside else (0, 0)

    def spots(self, thing: Nameable) -> set[Spot]:
        """Where it is, under each of its names."""
        return {self._spot(name, thing.shape) for name in thing.spellings}

    def holds(self, place: RulePlace, thing: Nameable) -> bool:
        """Whether a place holds it, under any of its names."""
        return any(place.holds(spot, self.blocks) for spot in self.spots(thing))

    def block_of(self, name: str) -> int | None:
        """The number of the block that a module is in; None outside of blocks."""
        root = self._block_of(name)
        return None if root is None else self._root[root]

    def summary(self, things: Sequence[Nameable]) -> str:
        """What each place holds, in words: how many layers, and the first of them."""
        layers = [thing for thing in things if thing.cast]
        told = []
        for name in NAMES:
            held = [thing.name for thing in layers if self.holds(RulePlace(name), thing)]
            if held:
                told.append(f"{name} {len(held)} ({held[0]}{', ...' * (len(held) > 1)})")
        return ", ".join(told) or "none"

    def _spot(self, name: str, shape: tuple[int, ...] | None) -> Spot:
        root = self._block_of(name)
        if root is not None:
            return Spot(self._inner(name, root, shape), self._root[root], self._is_output(name))
        holder = next(each for each in ("", *_prefixes(name))[::-1] if each in self._modules)
        if any(matches(pattern, [name, holder]) for pattern in HEADS):
            return Spot("head")
        if any(matches(pattern, [name, holder]) for pattern in EMBEDDINGS):
            return Spot("embeddings")
        if not self._root:
            return Spot(self._inner(name, "", shape), None, self._is_output(name))
        at = self._order[holder]
        return Spot("embeddings" if at < self._begin else "head" if at > self._end else "between")

    def _block_of(self, name: str) -> str | None:
        return next((prefix for prefix in _prefixes(name) if prefix in self._root), None)

    def _inner(self, name: str, root: str, shape: tuple[int, ...] | None) -> str:
        """The part of a block."""
        inner = [prefix for prefix in _prefixes(name) if len(prefix) > len(root)]
        words = [prefix.rpartition(".")[2].casefold() for prefix in inner]
        above = [type(self._modules[prefix]).__name__.casefold() for prefix in inner[:-1] if prefix in self._modules]
        if (shape is not None and len(shape) == 3) or any(
            stacks_of(self._modules[prefix]) for prefix in ("", *inner) if prefix in self._modules
        ):
            above.append("experts")
        if self._is_router(name, shape):
            return "router"
        if any(_is_experts(word) for word in words) or "experts" in above:
            return "experts"
        return "mlp" if self._attention_of(name) is None else "attention"

    def _attention_of(self, name: str) -> str | None:
        """The outermost attention that a module of a block is in, or is."""
        root = self._block_of(name) or ""
        for prefix in _prefixes(name):
            inside = prefix != name and prefix in self._modules
            kind = type(self._modules[prefix]).__name__.casefold() if inside else ""
            word = prefix.rpartition(".")[2].casefold()
            if len(prefix) > len(root) and any(each in word or each in kind for each in ("attn", "attention")):
                return prefix
        return None

    def _is_output(self, name: str) -> bool:
        return not self._outputs_of_attention.isdisjoint((name, name.rpartition(".")[0]))

    def _last_of_attention(self) -> Iterator[str]:
        """The last layer of each attention that multiplies by others, or by matrices of its own, before."""
        held: dict[str, list[str]] = {}
        for name, module in self._modules.items():
            attention = self._attention_of(name)
            if attention is not None and (not self._root or self._block_of(name) is not None):
                held.setdefault(attention, []).extend([name] if is_layer(module) else matrices(module))
        return (names[-1] for names in held.values() if len(names) > 1 and names[-1] in self._modules)

    def _is_router(self, name: str, shape: tuple[int, ...] | None) -> bool:
        for parent in (name.rpartition(".")[0], *reversed(list(_prefixes(name))[:-1])):
            if parent not in self._mixtures:
                continue
            beside = name.removeprefix(f"{parent}." if parent else "").split(".")[0].casefold()
            return ("gate" in beside or "router" in beside) and self._outputs(name, shape) in (
                1,
                self._mixtures[parent],
            )
        return False

    def _outputs(self, name: str, shape: tuple[int, ...] | None) -> int:
        if shape is not None:
            return shape[0]
        module = self._modules[name]
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.shape[1 if is_turned(module) else 0]


def _stacks(name: str, module: nn.Module) -> Iterator[list[str]]:
    """The names of the blocks of each outermost list of blocks, in order."""
    blocks = _blocks(module)
    if blocks and not any(matches(pattern, [name]) for pattern in HEADS):
        yield [f"{name}.{each}" if name else each for each in blocks]
        return
    for child, inner in module._modules.items():
        if inner is not None:
            yield from _stacks(f"{name}.{child}" if name else child, inner)


def _blocks(module: nn.Module) -> list[str]:
    """The children that are blocks: all of a list; those that are alike of a sequence, where they are two or more."""
    children = {name: inner for name, inner in module._modules.items() if inner is not None}
    if not children or not all(map(str.isdecimal, children)):
        return []
    holding = {name: inner for name, inner in children.items() if not is_layer(inner) and _holds_layers(inner)}
    if isinstance(module, nn.ModuleList):
        return list(holding)
    kinds = [type(inner) for inner in holding.values()]
    return list(holding) if len(kinds) > 1 and len(set(kinds)) == 1 else []


def _holds_layers(module: nn.Module) -> bool:
    return any(is_layer(inner) or experts(inner) or matrices(inner) for inner in module.modules())


def _mixtures(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, int]]:
    """What holds experts, by name, and how many of them."""
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        if _is_experts(last.casefold()):
            stacked = [p.shape[0] for inner in module.modules() for p in experts(inner).values()]
            yield parent, stacked[0] if stacked else len(list(module.children()))
        elif (own := experts(module)) and not any(map(_is_experts, name.casefold().split("."))):
            yield parent, next(iter(own.values())).shape[0]


def _is_experts(word: str) -> bool:
    return word.endswith("experts") and not word.startswith("shared")


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))
