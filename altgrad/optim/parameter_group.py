"""ParameterGroup: parameters by name with a rate or a decay of their own, as a spec says it."""

from typing import Annotated, ClassVar

from pydantic import Field

from altgrad.optim.numbers import LearningRate, WeightDecay
from altgrad.spec import Spec


class ParameterGroup(Spec):
    """Parameters whose name matches, and what is different for them. `match` as in precision rules."""

    match: Annotated[str, Field(min_length=1)]
    """A pattern of parameter names."""
    lr: LearningRate | None = None
    """Peak learning rate of these parameters; null: the optimizer's."""
    weight_decay: WeightDecay | None = None
    """Weight decay of these parameters; null: the optimizer's."""

    noun: ClassVar[str] = "a parameter group"
