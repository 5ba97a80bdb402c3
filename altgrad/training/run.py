"""RunSpec: everything that decides a run, and nothing else.

Two runs with equal resolved specs, on one machine and one version, give the same bits. So what changes last bits is
part of it: the engine and the number of threads are resolved when a run is first made, stored in its spec.yaml and used
again on resume. Where a run happens (the device, the folder) is not; it is noted in meta.json. Where it is also shown
(`track`) stands in the spec, so that a matrix can say it, but is left out of the fingerprint: a run is the same run
whoever looks on. So is the name of a recipe: what it said stands in the other keys, and decides.
"""

import bisect
import copy
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from altgrad.data.dataset import DatasetSpec
from altgrad.document import Document
from altgrad.interventions import InterventionSpec
from altgrad.models.model import ModelSpec
from altgrad.monitors import MonitorSpec
from altgrad.nn import PrecisionPolicy, Processes
from altgrad.optim import OptimizerSpec, Schedule, Storage
from altgrad.quantize.noise import site_key
from altgrad.recipes.expansion import chooses_recipe, expand_run, note_changes
from altgrad.recipes.note import RecipeNote
from altgrad.spec import LocatedError, Since, Spec
from altgrad.spec.assignment import assign_all
from altgrad.store.mirror import MirrorSpec
from altgrad.training.gradient_sums import GradientCasts
from altgrad.training.phases import Phase, Precision, blamed_on_phase

Count = Annotated[int, Field(ge=1)]


class LossScale(Spec):
    """A constant factor on the loss, taken off the gradients again: keeps small ones out of a format's underflow.

    Scaled casts of grad_output make up for any factor, so it is refused with them unless `force` is set.
    """

    factor: Annotated[float, Field(gt=0)] = 1.0
    """What the loss is multiplied by before backward: a power of two."""
    force: bool = False
    """Allow it with scaled casts of grad_output, where it does nothing."""

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        return {"factor": float(value)} if isinstance(value, int | float) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _is_exact(self) -> "LossScale":
        if math.frexp(self.factor)[0] != 0.5:
            raise ValueError(f"loss_scale is {self.factor}; only powers of two scale exactly, such as 1024.")
        return self

    noun: ClassVar[str] = "loss_scale"


class Branch(Spec):
    """A step of another run: `{run: project/id, step: 800}`."""

    run: Annotated[str, Field(min_length=1)]
    """Its project and id, in the folder of runs where this one is kept."""
    step: Count
    """A step of which it has a checkpoint."""

    noun: ClassVar[str] = "a branch"


class RunSpec(Spec):
    """One training run."""

    project: str = "default"
    """The folder of runs that are compared."""
    name: str = "run"
    """How the run's id begins."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """The seed of initial weights, data order and random bits."""
    salt: Annotated[int, Field(ge=0), Since(2)] = 0
    """Of random bits alone: another draw of every rounding and transform, with the same weights and data order."""
    recipe: Annotated[RecipeNote | None, Since(2)] = None
    """A published recipe, which sets every key of its own that this spec leaves out; once expanded, a note."""
    model: ModelSpec
    """What is trained."""
    data: DatasetSpec
    """What it is trained on."""
    precision: Precision = Precision()
    """Ordered rules: which casts which layers make; or phases, each with rules of its own."""
    evaluate_with: Annotated[PrecisionPolicy | None, Since(2)] = None
    """The casts of validation during the run, `none` for none at all; null: those of training."""
    branch: Annotated[Branch | None, Since(2)] = None
    """A checkpoint of another run that this one goes on from; what the spec says holds from there on."""
    init_from: Annotated[str, Field(min_length=1)] | None = None
    """A run's folder, a Hugging Face folder or a .safetensors file to take the first weights from."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """The type products run in. bfloat16 is autocast: parameters, optimizer and loss stay float32."""
    optimizer: OptimizerSpec
    """The rule of the updates."""
    storage: tuple[Storage, ...] = ()
    """How parameters are kept between steps: ordered rules by parameter name; what none matches is float32."""
    schedule: Schedule = Schedule()
    """The learning rate over the run."""
    steps: Count
    """How many optimizer steps the run takes."""
    accumulate: Count = 1
    """Micro-batches in one optimizer step."""
    loss_scale: LossScale = LossScale()
    """A power of two that the loss is multiplied by before backward."""
    gradients: Annotated[GradientCasts, Since(2)] = GradientCasts()
    """The formats gradients are cast to before they are added over micro-batches and processes."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """The largest L2 norm of all gradients together; null: no clipping."""
    monitors: tuple[MonitorSpec, ...] = Field(
        default_factory=lambda: (MonitorSpec.of("range"), MonitorSpec.of("finite"))
    )
    """What is measured while the run goes, and how often."""
    twin: Annotated[str, Field(min_length=1)] | None = None
    """A completed float32 or bfloat16 run with the same data order, by path or id, to compare with step by step."""
    interventions: tuple[InterventionSpec, ...] = ()
    """What may step in when numerics fail; each says in events.jsonl what it did."""
    log_every: Count = 1
    """Steps between two rows of training numbers."""
    evaluate_every: Count = 100
    """Steps between two evaluations."""
    evaluate_limit: Annotated[Count | None, Since(2)] = None
    """Validation batches in each evaluation, from the first on; null: the whole split."""
    checkpoint_every: Count = 100
    """Steps between two checkpoints."""
    keep: Count = 2
    """How many checkpoints stay on disk."""
    engine: Literal["auto", "eager", "compiled", "native"] = "auto"
    """How casts run; auto is decided by `altgrad.training.prepare` when the run is first made. native: compiled, and
    products on the chip's 8-bit units where it takes their operands."""
    compile: Literal[False, "model", "blocks", "auto"] = False
    """Compiled graphs, forward and backward, casts and monitors included: one for the whole model, or one for all
    repeated blocks that are alike, evaluation included. auto is decided when the run is first made."""
    recompute: Annotated[Literal["none", "blocks"], Since(2)] = "none"
    """What backward computes again instead of keeping it: the repeated blocks, to the same bits, for less memory."""
    threads: Count | None = None
    """CPU threads; null means as many as torch takes on the machine where the run is first made."""
    track: tuple[MirrorSpec, ...] = ()
    """Where its numbers go besides the store, such as [wandb]; decides nothing of the run."""

    @classmethod
    def check(cls, document: Document, sets: Iterable[str] = ()) -> Self:
        sets = list(sets)
        choosing = [each for each in sets if chooses_recipe(each)]
        expanded = Document(copy.deepcopy(document.data), document.name, dict(document.values), dict(document.keys))
        try:
            assign_all(expanded, cls, choosing)
            if not expand_run(expanded, cls):
                return super().check(document, sets)
        except LocatedError as error:
            raise expanded.error(error.location, str(error)) from None
        document.data, document.values, document.keys = expanded.data, expanded.values, expanded.keys
        parts = [each for each in sets if each not in choosing]
        note_changes(document, parts)
        return super().check(document, parts)

    @model_validator(mode="before")
    @classmethod
    def _expanded(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        document = Document.of(dict(value), cls.noun)
        expand_run(document, cls)
        return document.data

    @field_validator("project", "name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,59}", value):
            raise ValueError(
                f"{value!r} names a folder: use up to 60 letters, digits, '-', '_' and '.', not first a '.'."
            )
        return value

    @model_validator(mode="after")
    def _agree(self) -> "RunSpec":
        try:
            self.precision.ends(self.steps)
        except LocatedError as error:
            raise error.within("precision") from None
        for number, phase in enumerate(self.precision.phases):
            with blamed_on_phase(number, phase):
                if phase.states is not None:
                    self.optimizer.with_states(phase.states)
        for number, spec in enumerate(self.interventions):
            if self.precision.phases and spec.changes_formats:
                raise LocatedError(
                    ("interventions", number), f"{spec.kind} changes formats on its way, and so do phases; use one."
                )
        if self.branch is not None and self.branch.step >= self.steps:
            raise LocatedError(
                ("branch", "step"),
                f"branch begins at step {self.branch.step}, and the run has {self.steps} steps; say more steps.",
            )
        scaled = [
            f"rule {number}"
            for policy in self.precision.policies
            for number, rule in enumerate(policy.rules)
            for (_, operand), cast in rule.layer().slots.items()
            if operand == "grad_output" and cast is not None and cast.scaling.measures
        ]
        if self.loss_scale.factor != 1 and scaled and not self.loss_scale.force:
            raise ValueError(
                f"loss_scale {self.loss_scale.factor:g} does nothing with the scaled grad_output of {scaled[0]}; "
                "leave it out, use scaling: unscaled there, or say {factor: ..., force: true}."
            )
        if self.model.answers != self.data.answers:
            raise ValueError(
                f"model {self.model.kind} answers for every {self.model.answers}, data {self.data.kind} asks for every "
                f"{self.data.answers}; gpt goes with text, encoder with labels, hf with either by its head."
            )
        if (reduce := self.gradients.reduce) is not None and self.accumulate % reduce.processes:
            raise LocatedError(
                ("gradients", "reduce", "processes"),
                f"accumulate is {self.accumulate}, which {reduce.processes} processes cannot share evenly; make it a "
                "multiple.",
            )
        if self.compile not in (False, "auto") and not self.data.one_shape:
            raise ValueError(f"compile: {self.compile} is for batches of one shape; set data.lengths: mixed.")
        if self.recompute != "none" and self.compile not in (False, "auto"):
            raise ValueError(
                f"recompute: {self.recompute} and compile: {self.compile}: a compiled graph decides for itself what it "
                "computes again; leave out one of them."
            )
        for place, members in (
            ("monitors", self.monitors),
            ("interventions", self.interventions),
            ("track", self.track),
        ):
            kinds = [member.kind for member in members]
            if twice := {kind for kind in kinds if kinds.count(kind) > 1}:
                raise ValueError(f"{place} names {', '.join(sorted(twice))} twice; one of each is enough.")
        return self

    def check_processes(self, processes: Processes) -> None:
        """LocatedError, in one line, if so many processes cannot train this run together."""
        try:
            processes.share_of(self.accumulate)
        except ValueError as error:
            raise LocatedError(("accumulate",), str(error)) from None
        reduce = self.gradients.reduce
        if reduce is not None and reduce.processes % processes.size:
            raise LocatedError(
                ("gradients", "reduce", "processes"),
                f"{reduce.processes} processes are emulated, which {processes.size} cannot share evenly; train on a "
                "divisor of it.",
            )
        for number, spec in enumerate(self.interventions):
            if processes.size > 1 and not spec.alike:
                raise LocatedError(
                    ("interventions", number),
                    f"{spec.kind} decides by one process's micro-batches, and {processes.size} processes would come to "
                    "differ; train on one process, or leave it out.",
                )

    def deciding(self) -> dict[str, Any]:
        said = {key: value for key, value in self.tree().items() if key not in ("track", "recipe")}
        said |= {"precision": self.precision.deciding()}
        return said if self.evaluate_with is None else said | {"evaluate_with": self.evaluate_with.deciding()}

    @property
    def bits_seed(self) -> int:
        """What keys random bits: the seed, or with a salt a number made of both."""
        return site_key(self.seed, f"salt {self.salt}") % 2**31 if self.salt else self.seed

    @property
    def phases(self) -> range:
        """The numbers of its phases, of which a run without has one."""
        return range(len(self.precision.policies))

    def phase_of(self, step: int) -> int:
        """Which phase a step (from 1) belongs to; step 0, before training, to the first one."""
        return bisect.bisect_left(self.precision.ends(self.steps), max(step, 1))

    @contextmanager
    def in_phase(self, number: int) -> Iterator["RunSpec"]:
        """What the run is while a phase lasts: the same spec with the phase's rules. What a block finds wrong with
        them is placed in the phase."""
        phase = self.precision.phases[number] if self.precision.phases else None
        with blamed_on_phase(number, phase):
            yield self if phase is None else self._of(phase)

    def at(self, step: int) -> "RunSpec":
        """What the run is at a step, see `in_phase`."""
        with self.in_phase(self.phase_of(step)) as found:
            return found

    def with_rules(self, policy: PrecisionPolicy) -> "RunSpec":
        """The same with other casts."""
        return self.model_copy(update={"precision": Precision(rules=policy.rules, recipe=policy.recipe)})

    def _of(self, phase: Phase) -> "RunSpec":
        found, changes = self.with_rules(phase), dict[str, Any]()
        if phase.storage is not None:
            changes["storage"] = phase.storage
        if phase.states is not None:
            changes["optimizer"] = self.optimizer.with_states(phase.states)
        return found.model_copy(update=changes)

    noun: ClassVar[str] = "a run spec"

    @property
    def warmup_notice(self) -> str | None:
        """What people should hear where the run is too short for its warm-up."""
        taken = self.schedule.warmup_of(self.steps)
        if taken == self.schedule.warmup:
            return None
        return (
            f"schedule.warmup: {taken} instead of {self.schedule.warmup}, a tenth of the {self.steps} steps, which end "
            "before it does"
        )

    @property
    def recipe_notices(self) -> list[str]:
        """What people should hear of recipes: what of this run is not as they say, and what of the spec is not used."""
        notes = {"recipe": self.recipe, "precision": self.precision.recipe}
        notes |= {f"phase {number}": phase.recipe for number, phase in enumerate(self.precision.phases)}
        return [line for key, note in notes.items() if note is not None for line in note.told(key)]

    @property
    def is_resolved(self) -> bool:
        """Whether nothing is left to the machine."""
        return self.threads is not None and self.engine != "auto"
