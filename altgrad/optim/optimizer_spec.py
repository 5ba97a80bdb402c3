"""What every optimizer's spec has: a rate, a decay, exceptions by parameter name, and formats of states."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from altgrad.optim.numbers import LearningRate, WeightDecay
from altgrad.optim.optimizer import Optimizer
from altgrad.optim.states import StateSpec, check_state
from altgrad.spec import Kind, LocatedError, Since, Spec


class ParameterGroup(Spec):
    """Parameters whose name matches, and what is different for them. `match` as in precision rules."""

    match: Annotated[str, Field(min_length=1)]
    """A pattern of parameter names."""
    lr: LearningRate | None = None
    """Peak learning rate of these parameters; null: the optimizer's."""
    weight_decay: WeightDecay | None = None
    """Weight decay of these parameters; null: the optimizer's."""

    noun: ClassVar[str] = "a parameter group"


class OptimizerSpec(Kind, family="optimizer", package="altgrad.optim"):
    """What every optimizer has: a peak learning rate, decoupled or plain decay, and exceptions by parameter name.

    Unless a group says otherwise, weight_decay holds for parameters of two or more dimensions only.
    """

    lr: LearningRate = 1e-3
    """Peak learning rate."""
    weight_decay: WeightDecay = 0.0
    """Weight decay of parameters of two or more dimensions, unless a group says otherwise."""
    groups: tuple[ParameterGroup, ...] = ()
    """Parameters by name with a rate or a decay of their own."""
    states: Annotated[dict[str, StateSpec], Since(2)] = Field(default_factory=dict)
    """The formats in which states are kept between steps, by the state's name; what is not named is float32."""

    @model_validator(mode="after")
    def _keeps_states(self) -> Self:
        self._check(self.states)
        return self

    def _check(self, states: Mapping[str, StateSpec]) -> None:
        known = self.product().keeps(dict(self)) if states else ()
        for name, spec in states.items():
            try:
                check_state(name, spec, known, self.kind)
            except ValueError as error:
                raise LocatedError(("states", name), str(error)) from None

    def with_states(self, states: Mapping[str, StateSpec]) -> Self:
        """The same with its states kept so. LocatedError for a state that it lacks."""
        try:
            self._check(states)
        except LocatedError as error:
            raise error.within("optimizer") from None
        return self.model_copy(update={"states": dict(states)})

    def build(self, groups: Iterable[dict[str, Any]], *, seed: int = 0) -> Optimizer:
        """The optimizer over what `parameter_groups` returned; `seed` keys the random bits of storage."""
        left_out = {"groups"} if self.states else {"groups", "states"}  # which an optimizer need not know of
        settings = {name: getattr(self, name) for name in type(self).model_fields if name not in left_out}
        made: Optimizer = self.product()(groups, **settings, seed=seed)
        return made
