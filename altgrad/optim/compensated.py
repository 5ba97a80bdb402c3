"""Storages that keep what rounding lost, and make up for it in later steps.

    kahan   nearest, and what it lost is added to the next request: c <- Qc(w~ + c - Q(w~ + c))
    eco     stochastic (or nearest), and what it lost goes into the momentum buffer: error feedback without memory

kahan (Zamirai et al., arXiv 2010.06192): c is kept in a format of its own, rounded to nearest even. Rounded towards
zero it leaks: a request against the sign of c would cost a whole gap of c, one along it would be lost, and small
requests of mean zero would pull to zero what is owed.

eco (Nikdan et al., arXiv 2601.22101): a step is value * f * m / d with m <- beta m + ..., so to make up next time for
e = w~ - Q(w~), m must change by a e with value f beta a / d = 1; and what was put in earlier for the error before it
has shrunk to beta of that by then and must go. Taking the two errors for equal, as the paper does,

    m <- m + (1 / beta - 1) e d / (value f).

The paper rounds stochastically, and so does eco. The first edition rounded to nearest even unless told otherwise, under
a field `rounding` that is part of every spec it wrote. That field stays as it was written, so that a spec names the run
it always named, and decides nothing any more: `stochastic` does. A run that rounds stochastically says so in the state
of each parameter (`stochastic`). States of the first edition do not, so a run that it began goes on to nearest even.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from altgrad.formats import FloatFormat, Rounding
from altgrad.optim.request import Request
from altgrad.optim.storage import GridStorage, State, on_grid
from altgrad.quantize import CurrentSpec, round_to
from altgrad.quantize.engine import Engine
from altgrad.spec import Format, Since


class Kahan(GridStorage):
    """Compensated: what rounding lost is kept next to the weight, in a format of its own, and added next time."""

    kind: ClassVar[str] = "kahan"
    compensation: Format = FloatFormat.parse("e8m7")
    """The format in which what rounding lost is kept."""

    @model_validator(mode="after")
    def _domain(self) -> "Kahan":
        self.compensation.require_tensor_domain()
        return self

    def adopt(self, w: Tensor, state: State) -> None:
        """Nothing is owed yet: what putting w on the grid lost is no request."""
        super().adopt(w, state)
        state["compensation"] = torch.zeros_like(w, dtype=torch.float32)

    def convert(self, w: Tensor, state: State) -> None:
        """What is owed counts as part of the weight, and what the new grid loses is owed."""
        whole = self.whole(w, state)
        w.copy_(whole)
        super().convert(w, state)
        state["compensation"].copy_(self._kept(whole - w))

    def whole(self, w: Tensor, state: State) -> Tensor:
        owed: Tensor = state["compensation"]
        return w.detach().to(torch.float32) + owed

    def land(self, wanted: Tensor, state: State, key: int, request: Request, engine: Engine) -> Tensor:
        whole = wanted + state["compensation"]
        stored = on_grid(whole, self.grid(wanted, state), engine=engine)
        state["compensation"].copy_(self._kept(whole - stored))
        return stored

    def _kept(self, lost: Tensor) -> Tensor:
        scaling = CurrentSpec().build(self.compensation, None)
        return round_to(lost, self.compensation, scale=scaling.scale(lost, live=False))


class Eco(GridStorage):
    """Error feedback through the momentum buffer, rounded stochastically; see the head of this file."""

    kind: ClassVar[str] = "eco"
    rounding: Literal["nearest_even", "stochastic"] = "nearest_even"
    """What the first edition wrote here. It decides nothing: `stochastic` does."""
    stochastic: Annotated[bool, Since(2)] = True
    """Whether it rounds stochastically, as the paper does; false rounds to nearest even."""

    @model_validator(mode="after")
    def _one_rounding(self) -> "Eco":
        if self.rounding == "stochastic" and not self.stochastic:
            raise ValueError("eco: rounding is stochastic and stochastic is false; leave rounding out.")
        return self

    def adopt(self, w: Tensor, state: State) -> None:
        super().adopt(w, state)
        if self.stochastic:
            state["stochastic"] = torch.ones((), dtype=torch.bool)

    @property
    def wants_momentum(self) -> bool:
        return True

    def land(self, wanted: Tensor, state: State, key: int, request: Request, engine: Engine) -> Tensor:
        stochastic = "stochastic" in state or self.rounding == "stochastic"
        rounding = Rounding.stochastic if stochastic else Rounding.nearest_even
        bits = self._bits(state, key) if stochastic else None
        stored = on_grid(wanted, self.grid(wanted, state), rounding, bits, engine)
        (value,), (momentum,), beta = request.values, request.numerators, request.beta
        assert beta, "the optimizer was asked whether it has momentum"
        if value != 0:
            lost = (wanted - stored) * ((1 / beta - 1) / value)
            if request.denominators is not None:
                lost.mul_(request.denominators[0])
            if request.factors is not None:
                (factor,) = request.factors
                lost = torch.where(factor > 0, lost / factor, 0)
            momentum.add_(lost)
        return stored
