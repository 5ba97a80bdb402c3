"""Parameter groups by name: each parameter's learning rate, decay and storage; first match wins, as in precision rules.

Learning rates come from the optimizer's `groups`, storage from the run's `storage` rules; both match parameter names
(`blocks.*.weight`), and the children of a list answer to `first` and `last` as well as to their numbers. A tied
parameter has several names but is stored once: rules that give its names different storage are an error.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from altgrad.nn.names import aliases, matches
from altgrad.optim.optimizer import OptimizerSpec
from altgrad.optim.storage import Master, Storage
from altgrad.spec import LocatedError, did_you_mean


def parameter_groups(model: nn.Module, spec: OptimizerSpec, storage: Sequence[Storage] = ()) -> list[dict[str, Any]]:
    """The model's trainable parameters as torch parameter groups with names, lr, weight_decay and storage.

    A parameter belongs to the first group that matches one of its names, else to the defaults; the same for storage,
    whose default is master. Raises LocatedError, with `groups` or `storage` in its location, for a rule that decides
    nothing and for conflicting storage of a tied parameter.
    """
    known, also = _names(model)
    rules, storages = _Rules("groups", spec.groups, known, also), _Rules("storage", storage, known, also)
    found: dict[tuple[float, float, Storage], list[tuple[str, Tensor]]] = {}
    for p, names in known.items():
        lr, decay = spec.lr, spec.weight_decay if p.ndim >= 2 else 0.0
        number = rules.first(p)
        if number is not None:
            group = spec.groups[number]
            lr = lr if group.lr is None else group.lr
            decay = decay if group.weight_decay is None else group.weight_decay
        chosen = storages.first(p, alike=True)
        kept = Master() if chosen is None else storage[chosen]
        found.setdefault((lr, decay, kept), []).append((names[0], p))
    rules.all_used()
    storages.all_used()
    return [
        {"params": members, "lr": lr, "weight_decay": decay, "initial_lr": lr, "storage": kept}
        for (lr, decay, kept), members in found.items()
    ]


class _Rules:
    """Ordered rules with a `match`, and which of them have decided something."""

    def __init__(
        self, place: str, rules: Sequence[Any], known: Mapping[Tensor, list[str]], also: Mapping[str, set[str]]
    ) -> None:
        self.place, self.rules, self.known, self.also = place, rules, known, also
        self.used: set[int] = set()

    def first(self, p: Tensor, *, alike: bool = False) -> int | None:
        """The first rule that matches one of p's names. alike: every name on its own must lead to an equal rule."""
        each = [self._first_of(self.also[name]) for name in self.known[p]]
        decided = [number for number in each if number is not None]
        number = min(decided, default=None)
        if alike and len({None if n is None else self._without_match(n) for n in each}) > 1:
            names = " and ".join(self.known[p])
            raise LocatedError(
                (self.place, number or 0, "match"),
                f"{names} are one tied parameter, and the rules store them differently; let one rule match both.",
            )
        self.used |= set() if number is None else {number}
        return number

    def all_used(self) -> None:
        """LocatedError for the first rule that decided nothing."""
        for number, rule in enumerate(self.rules):
            if number in self.used:
                continue
            pattern = rule.match
            hint = did_you_mean(pattern, [name for names in self.known.values() for name in names])
            what = "groups" if self.place == "groups" else "rules"
            message = f"'{pattern}' decides no parameter: none matches, or earlier {what} match them all.{hint}"
            raise LocatedError((self.place, number, "match"), message)

    def _first_of(self, names: set[str]) -> int | None:
        return next((i for i, rule in enumerate(self.rules) if matches(rule.match, names)), None)

    def _without_match(self, number: int) -> str:
        return str({key: value for key, value in self.rules[number].tree().items() if key != "match"})


def _names(model: nn.Module) -> tuple[dict[Tensor, list[str]], dict[str, set[str]]]:
    """Every trainable parameter's names (several if tied), and all that each name answers to."""
    modules = aliases(model)
    known: dict[Tensor, list[str]] = {}
    also: dict[str, set[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if p.requires_grad:
            known.setdefault(p, []).append(name)
            owner, _, leaf = name.rpartition(".")
            also[name] = {f"{m}.{leaf}" if m else leaf for m in modules[owner]}
    return known, also
