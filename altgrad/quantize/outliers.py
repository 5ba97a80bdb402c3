"""Outliers: the few elements or columns that decide a scale and need another format.

    elements   beyond a quantile. The rest is x clamped there, the outliers what the clamp took off:
               clamp(x) + C(x - clamp(x)), the outlier clamping and compensation of FP4 training (arXiv 2501.17116)
    columns    those of largest norm or amax. The rest has zeros there, and C carries the columns themselves: the
               outlier channels that TetraJet-v2 keeps in MXFP8 (arXiv 2510.27527)

One word says what is chosen and one what carries it, since these are the two independent choices: any kind goes with
any cast, or none. A column is an index of the features, whichever axis the product sums over: channels of activations
keep their place from token to token, so their choice can be kept from step to step. `record: 50` chooses after 50 steps
by what those steps saw (until then there are none), `renew: false` for good; `follow: input` takes the columns of
forward's input, so that a weight has outliers where the activations have them.

In the weight gradient, whose columns are the input's, they can split the product as well: with `grad_output` columns S
have one of their own, which no transform turns, C' the cast of grad_output there (TetraJet-v2's OutControl):

    dW[:, S] = C'(g)^T C(x)        dW[:, not S] = Q(R g)^T Q(R x)

Blocks are those of the tensor as it lies: a column taken out leaves a zero in its block, which no amax sees. Codes that
gather the columns first have other neighbours in a block and the same law.

Inf and NaN never make an outlier: among elements they stay in the rest, and a column's own go with it.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PlainValidator, model_validator
from torch import Tensor

from altgrad.quantize.grid import in_float32
from altgrad.quantize.parts import Outliers, OutliersSpec, Parts, Place
from altgrad.quantize.quantizer import Quantizer, QuantizerSpec
from altgrad.quantize.scaling import Granularity
from altgrad.quantize.traced import held
from altgrad.spec import Since


def _to_cast(value: Any) -> QuantizerSpec | None:
    return None if value in (None, "none") else QuantizerSpec.model_validate(value)


def _to_partner(value: Any) -> QuantizerSpec | str | None:
    return value if isinstance(value, str) and value == "same" else _to_cast(value)


def _require_plain(field: str, cast: QuantizerSpec | str | None) -> None:
    for name in ("gradient", "source", "correction", "outliers"):
        default = QuantizerSpec.model_fields[name].default
        if isinstance(cast, QuantizerSpec) and (value := getattr(cast, name)) != default:
            said = getattr(value, "kind", value)
            raise ValueError(f"outliers.{field} has {name}: {said}, which is for the cast that has the outliers.")


def _cast_text(cast: QuantizerSpec | str | None) -> str:
    return f"{cast.format.short_name} {cast.scaling.kind}" if isinstance(cast, QuantizerSpec) else "uncast"


class CarriedSpec(OutliersSpec):
    """What kinds of outliers share: how they are carried."""

    cast: Annotated[QuantizerSpec | None, PlainValidator(_to_cast)] = None
    """What carries the outliers; none: they stay as they are."""

    @model_validator(mode="after")
    def _carry_plainly(self) -> "CarriedSpec":
        _require_plain("cast", self.cast)
        return self

    def check_beside(self, spec: Any) -> None:
        if spec.correction != "none":
            raise ValueError(
                f"correction: {spec.correction} rescales whole runs, and outliers: {self.kind} takes a part of them "
                "away; leave out one."
            )

    @property
    def carried(self) -> str:
        """The cast of the outliers in a few characters."""
        return _cast_text(self.cast)


class Carried(Outliers):
    """What kinds share: the outliers' own cast, if they have one."""

    cast: Quantizer | None

    def __init__(self, spec: CarriedSpec, place: Place) -> None:
        super().__init__()
        self.spec, self.reduced = spec, place.reduced
        self.cast = None
        if spec.cast is not None:
            self.cast = Quantizer(
                spec.cast, f"{place.site}.outliers", place.role, seed=place.seed, rows=place.rows, reduced=place.reduced
            )
            self.cast.is_part = True

    def carried(self, outliers: Tensor, live: bool) -> Tensor:
        """The outliers, float32 with zeros elsewhere, as they are carried."""
        return outliers if self.cast is None else self.cast.values(outliers, live, torch.float32)

    @property
    def needs_commit(self) -> bool:
        return self.cast is not None and self.cast.needs_commit

    def commit(self) -> None:
        if self.cast is not None:
            self.cast.commit()

    def reset_parameters(self) -> None:
        if self.cast is not None:
            self.cast.reset_parameters()


class ElementsSpec(CarriedSpec):
    """Elements beyond the quantiles at both ends: the cast takes x clamped there, and what that took off is added."""

    kind: ClassVar[str] = "elements"
    quantile: Annotated[float, Field(gt=0.5, lt=1)] = 0.99
    """Of n sorted elements those below number (1 - quantile) n and above number quantile n are outliers."""
    by: Literal["value", "magnitude"] = "value"
    """Whether elements are sorted as they are, with an end for either sign, or by size, with one for both."""
    granularity: Granularity = "tensor"
    """Quantiles of the tensor, or of each row."""

    @property
    def text(self) -> str:
        return f"elements {self.quantile:g} {self.carried}"


class Elements(Carried):
    spec: ElementsSpec

    def split(self, x: Tensor, live: bool) -> Parts:
        values = in_float32(x)
        low, high = self._bounds(values.mT, turned=True) if self.reduced == "first" else self._bounds(values)
        chosen = ((values < low) | (values > high)) & values.isfinite()
        clamped = torch.where(chosen, torch.minimum(torch.maximum(values, low), high), values)
        return Parts(clamped, self.carried(torch.where(chosen, values - clamped, 0.0), live), chosen, True)

    def _bounds(self, values: Tensor, turned: bool = False) -> tuple[Tensor, Tensor]:
        """The ends of the rest; values: float32 with rows along the last axis."""
        finite = torch.where(values.isfinite(), values.detach(), 0.0)
        seen = finite.abs() if self.spec.by == "magnitude" else finite
        rows = seen if self.spec.granularity == "channel" else seen.reshape(-1)
        if not rows.numel():
            return values.new_zeros(()), values.new_zeros(())
        ascending = rows.sort(-1).values
        # A tensor counts, in float64 as Python would: shapes of a graph are no numbers.
        number = torch.full((1,), rows.shape[-1], dtype=torch.float64, device=values.device)
        high = ascending.index_select(-1, (number * self.spec.quantile).to(torch.int64))
        low = -high
        if self.spec.by == "value":
            low = ascending.index_select(-1, (number * (1 - self.spec.quantile)).to(torch.int64))
        low, high = (held(end.mT if turned and end.ndim > 1 else end) for end in (low, high))
        return low, high


class ColumnsSpec(CarriedSpec):
    """Whole columns (features, as channels of activations are), those of largest norm: the cast takes the others."""

    kind: ClassVar[str] = "columns"
    largest: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] = 0.1
    """How many columns are outliers: a number, or a share of all of them."""
    by: Literal["norm", "amax"] = "norm"
    """What the largest are the largest of."""
    record: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Steps whose passes choose the columns; until then there are none. 0: each tensor has its own."""
    start: Annotated[int, Field(ge=0)] = 0
    """Steps before the first that is recorded."""
    renew: bool = True
    """Whether the columns are chosen again after every `record` steps, or stay as first chosen."""
    follow: Literal["none", "input"] = "none"
    """input: the columns that forward's input has, for a weight or for the input in another product."""
    grad_output: Annotated[QuantizerSpec | str | None, PlainValidator(_to_partner), Since(2)] = "same"
    """For grad_weight.input: what casts grad_output where it meets these columns, in a product of their own that no
    transform turns. same: they are in the one product, turned like the others."""

    @model_validator(mode="after")
    def _agree(self) -> "ColumnsSpec":
        _require_plain("grad_output", self.grad_output)
        if self.grad_output != "same" and self.follow != "input":
            raise ValueError(
                "outliers.grad_output splits the product by the columns that forward's input chose; use follow: input."
            )
        kept = ("largest", "by", "record", "start", "renew") if self.follow == "input" else ("start", "renew")
        for name in kept if self.follow == "input" or not self.record else ():
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                said = str(value).lower()
                if self.follow == "input":
                    raise ValueError(f"follow: input takes the columns that the input chose; leave out {name}: {said}.")
                raise ValueError(f"{name}: {said} is about steps that are recorded, and record is 0; give record.")
        return self

    def check_beside(self, spec: Any) -> None:
        super().check_beside(spec)
        if (statistic := getattr(spec.scaling, "statistic", "amax")) != "amax":
            raise ValueError(
                f"outliers: columns leaves zeros in the rest, which scaling.statistic: {statistic} would count; use "
                "statistic: amax."
            )

    @property
    def of_columns(self) -> bool:
        return True

    @property
    def follows(self) -> bool:
        return self.follow == "input"

    @property
    def leads(self) -> bool:
        return self.record > 0 and not self.follows

    @property
    def splits(self) -> bool:
        return self.grad_output != "same"

    def number(self, columns: int) -> int:
        """How many of so many columns are outliers. ValueError where none would be left."""
        found = self.largest if isinstance(self.largest, int) else max(1, round(self.largest * columns))
        if found >= columns:
            raise ValueError(f"outliers.largest: {self.largest} of {columns} columns leaves none to the cast.")
        return found

    @property
    def text(self) -> str:
        chosen = "of the input" if self.follow == "input" else f"{self.largest:g}"
        partner = f" times grad_output {_cast_text(self.grad_output)}" if self.splits else ""
        return f"columns {chosen} {self.carried}{partner}"


class Columns(Carried):
    """With `record`, buffers: what the present step saw of each column, what its steps did, and the columns chosen.

    partner: the cast of grad_output for the product that the columns have of their own, a site like any other; who
    makes the layer's casts gives it.
    """

    spec: ColumnsSpec
    partner: Quantizer | None
    now: Tensor
    seen: Tensor
    chosen: Tensor
    steps: Tensor

    def __init__(self, spec: ColumnsSpec, place: Place) -> None:
        super().__init__(spec, place)
        self.partner = None
        self.axis = "last" if place.features is None else place.features[1]
        # In a tuple, since it is another cast's own.
        self._leader = (place.leader,) if isinstance(place.leader, Columns) else ()
        if place.features is not None and spec.follow == "none":
            spec.number(place.features[0])
        if not spec.record:
            return
        if place.features is None:
            raise ValueError(
                f"outliers.record: {spec.record} keeps columns from step to step, and this cast's tensors have no "
                "fixed number of them; use record: 0."
            )
        columns = place.features[0]
        self.register_buffer("now", torch.zeros(columns))
        self.register_buffer("seen", torch.zeros(columns))
        # Whole numbers, since averages of models subtract and truncate.
        self.register_buffer("chosen", torch.zeros(columns, dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def split(self, x: Tensor, live: bool) -> Parts:
        values = in_float32(x)
        across = values.mT if self.axis == "first" else values
        mask = self._led() if self.spec.follow == "input" else self._own(across, live)
        mask = mask[:, None] if self.axis == "first" else mask
        zeros = values.new_zeros(())  # what they are in the product of the others, where they have one of their own
        apart = zeros if self.spec.splits else self.carried(torch.where(mask, values, 0.0), live)
        return Parts(torch.where(mask, 0.0, values), apart, mask, False)

    def split_product(self, x: Tensor, live: bool) -> tuple[Tensor, Tensor]:
        """What of x [tokens, features] enters the columns' own product, float32 with zeros elsewhere, and which they
        are."""
        mask = self._led()
        return self.carried(torch.where(mask, in_float32(x), 0.0), live), mask

    def _led(self) -> Tensor:
        if not self._leader:
            raise ValueError(
                "outliers.follow: input is for the casts of a layer, and this one is on its own; use follow: none."
            )
        return self._leader[0].chosen > 0

    def _own(self, across: Tensor, live: bool) -> Tensor:
        if self.spec.record and not live:
            return self.chosen > 0
        found = self._statistic(across)
        if not self.spec.record:
            return held(self._largest(found))
        self.now.copy_(self.now + found if self.spec.by == "norm" else torch.maximum(self.now, found))
        return self.chosen > 0

    def _statistic(self, across: Tensor) -> Tensor:
        """Of each column, float32; sums are float64, so that engines agree on it."""
        finite = torch.where(across.isfinite(), across.detach(), 0.0)
        rows = finite.reshape(-1, across.shape[-1])
        if self.spec.by == "norm":
            return rows.to(torch.float64).square().sum(0).sqrt().to(torch.float32)
        return rows.abs().amax(0) if rows.shape[0] else rows.new_zeros(rows.shape[1])

    def _largest(self, statistic: Tensor) -> Tensor:
        """Where the largest are, bool; of equal ones the first."""
        order = statistic.sort(descending=True, stable=True).indices
        top = order[: self.spec.number(statistic.shape[-1])]
        return torch.zeros_like(statistic, dtype=torch.bool).index_fill(0, top, True)

    @property
    def needs_commit(self) -> bool:
        return bool(self.spec.record) or super().needs_commit

    def commit(self) -> None:
        super().commit()
        spec = self.spec
        if not spec.record:
            return
        self.seen.copy_(self.seen + self.now if spec.by == "norm" else torch.maximum(self.seen, self.now))
        self.now.zero_()
        self.steps.add_(1)
        recorded = self.steps - spec.start
        due = (recorded > 0) & (recorded % spec.record == 0)
        if not spec.renew:
            due = recorded == spec.record
        self.chosen.copy_(torch.where(due, self._largest(self.seen), self.chosen))
        self.seen.copy_(torch.where(due | (recorded <= 0), 0.0, self.seen))

    def sums(self) -> Sequence[Tensor]:
        return (self.now,) if self.spec.record and self.spec.by == "norm" else ()

    def maxima(self) -> Sequence[Tensor]:
        return (self.now,) if self.spec.record and self.spec.by == "amax" else ()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.partner is not None:
            self.partner.reset_parameters()
        for buffer in self.buffers(recurse=False):
            buffer.zero_()
