"""Numbers at their ends (inf, NaN, sub-normal, huge) through every cast, monitor, optimizer, run and report.

Nothing may raise, and a bad element may harm nothing but itself: what stands beside it comes out as if it were 0.
"""

import json
import math
import random
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from altgrad.formats import Rounding
from altgrad.formats.catalog import CATALOG
from altgrad.monitors import MonitorSpec
from altgrad.nn import commit
from altgrad.optim import OptimizerSpec, Storage, parameter_groups
from altgrad.quantize import Quantizer, QuantizerSpec
from altgrad.reports.report import write_report
from altgrad.reports.sources import load_project
from altgrad.spec import LocatedError, SpecError
from altgrad.store import RunFiles, RunStore
from altgrad.store.files import json_line, read_nonfinite, row_of
from altgrad.training import RunSpec, train_run
from tests.faults.campaign import Figures, spec_text, words_file
from tests.faults.corruption import told
from tests.monitors.conftest import MAKERS
from tests.reports.conftest import spec as study_spec
from tests.reports.conftest import write_run

SUBNORMAL, HUGE = 2.0**-149, 3.4028234e38
ENDS = (math.inf, -math.inf, math.nan, SUBNORMAL, -SUBNORMAL, 2.0**-126, HUGE, -HUGE, 0.0, -0.0)
SCALINGS: tuple[Any, ...] = (
    "unscaled", "current", {"kind": "current", "granularity": "channel"}, {"kind": "current", "power_of_two": False},
    "delayed", {"kind": "delayed", "history": 2}, "mse", {"kind": "block", "size": 4}, {"kind": "mx", "size": 8},
    "nvfp4",
)  # fmt: skip


def drawn(draw: random.Random, shape: tuple[int, ...] = (8, 16)) -> Tensor:
    """Values over the whole range of float32, some of them ends; or nothing but ends."""
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    x = torch.randn(shape, generator=generator) * 2.0 ** draw.choice([-140, -100, -20, 0, 0, 0, 20, 100, 120])
    share = draw.choice([0.0, 0.02, 0.2, 1.0])
    for index in range(x.numel()):
        if draw.random() < share:
            x.view(-1)[index] = draw.choice(ENDS)
    return x


def casts(seed: int, count: int, folder: Path) -> Figures:
    """A drawn tensor through a drawn cast, twice with a commit between, in a drawn dtype."""
    figures, draw = Figures(seed), random.Random(seed)
    while figures.count < count:
        setting = {
            "format": draw.choice([entry.name for entry in CATALOG] + [f"e{e}m{8 - e - 1}" for e in range(8)]),
            "rounding": draw.choice([str(mode) for mode in Rounding]), "scaling": draw.choice(SCALINGS),
            "overflow": draw.choice(["saturate", "saturate", "inf"]),
        }  # fmt: skip
        try:
            spec = QuantizerSpec.made_from(setting)
        except SpecError:
            continue
        dtype = draw.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16])
        tensors = [drawn(draw).to(dtype) for _ in range(2)]
        try:
            wrong = next(filter(None, map(_ill, _through(spec, tensors), _without(spec, tensors), tensors)), None)
        except Exception as error:  # whatever it is, it is the finding
            wrong = f"{type(error).__name__}: {error}"
        case = f"{figures.count} {setting} {dtype}"
        figures.fail(wrong, case) if wrong else figures.add("as it must be")
    return figures


def _through(spec: QuantizerSpec, tensors: Sequence[Tensor]) -> list[Tensor]:
    quantizer = Quantizer(spec, "site/weight", "weight", seed=0, shape=tuple(tensors[0].shape))
    quantizer.train()
    found = []
    for x in tensors:
        found.append(quantizer(x.clone().requires_grad_()).detach())
        commit(quantizer)
    return found


def _without(spec: QuantizerSpec, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same with 0 in place of what is not finite; but a NaN fills its block in MX (OCP MX 1.0, section 6.3)."""
    kept = [x.isnan() if spec.scaling.kind == "mx" else torch.zeros_like(x, dtype=torch.bool) for x in tensors]
    return _through(spec, [torch.where(x.isfinite() | k, x, 0) for x, k in zip(tensors, kept, strict=True)])


def _ill(found: Tensor, without: Tensor, x: Tensor) -> str | None:
    finite = x.isfinite()
    if found.shape != x.shape or found.dtype != x.dtype:
        return "another shape or dtype"
    if not bool((found.isnan() >= x.isnan()).all()):
        return "a NaN became a number"
    if not torch.equal(found[finite].nan_to_num(7, 8, 9), without[finite].nan_to_num(7, 8, 9)):
        return "a bad element changed another"
    if bool((torch.sign(found) * torch.sign(x) < 0).any()):
        return "a sign changed"
    return None


def monitors(seed: int, count: int, folder: Path) -> Figures:
    """Every monitor over models with ends in a weight, a gradient or a batch; what is reported can be kept."""
    figures, draw = Figures(seed), random.Random(seed)
    kinds = list(MonitorSpec.kinds())
    for number in range(count):
        name, chosen = draw.choice(list(MAKERS)), kinds if number % 2 else [kinds[number // 2 % len(kinds)]]
        value, place, at = draw.choice(ENDS), draw.choice(["gradient", "weight", "all gradients"]), draw.choice([1, 2])
        case = f"{number} {name} {chosen[:1]} {value} {place} {at}"
        try:
            reports = MAKERS[name]().run(chosen, 3, every=1, between=_poison(value, place, at))
            for report in (report for reports in reports for report in reports.values()):
                numbers = {key: float(value) for key, value in report.metrics.items()}
                kept = row_of(json_line(numbers))
                assert kept is not None and repr(read_nonfinite(kept)) == repr(numbers)
                assert all(str(alarm) and "\n" not in str(alarm) for alarm in report.alarms)
        except Exception as error:  # whatever it is, it is the finding
            figures.fail(f"{type(error).__name__}: {error}", case)
            continue
        figures.add("as it must be")
    return figures


def _poison(value: float, place: str, at: int) -> Callable[[int, Any], None]:
    @torch.no_grad()
    def poison(step: int, trial: Any) -> None:
        if step != at:
            return
        p = next(p for p in trial.net.parameters() if p.grad is not None and p.dim() == 2)
        if place == "all gradients":
            for each in trial.net.parameters():
                each.grad = None if each.grad is None else torch.full_like(each.grad, value)
        else:
            (p if place == "weight" else p.grad).view(-1)[3] = value

    return poison


OPTIMIZERS = ("adamw", "sgd", "madam", "manifold_adamw", "grid_optim")
STORAGES = ("master", "nearest", "stochastic", "kahan", "eco")


def optimizers(seed: int, count: int, folder: Path) -> Figures:
    """Ends in one element of a gradient: nothing raises, and the parameters beside it stay finite and on their grid."""
    figures, draw = Figures(seed), random.Random(seed)
    for number in range(count):
        kind, storage = OPTIMIZERS[number % 5], STORAGES[number // 5 % 5]
        fmt, value = draw.choice(["e4m3fn", "e5m2", "e2m1", "e3m4", "e7m0"]), draw.choice(ENDS)
        case = f"{number} {kind} {storage} {fmt} {value}"
        torch.manual_seed(number)
        net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
        rule = {"kind": "master"} if storage == "master" else {"kind": storage, "format": fmt}
        try:
            rules = OptimizerSpec.of({"kind": kind, "lr": 1e-2})
            optimizer = rules.build(parameter_groups(net, rules, [Storage.of({"match": "*.weight", **rule})]))
            for _ in range(3):
                for p in net.parameters():
                    p.grad = torch.randn_like(p)
                net[0].weight.grad.view(-1)[5] = value
                optimizer.step()
        except ValueError:
            figures.add("refused by name")
            continue
        except Exception as error:  # whatever it is, it is the finding
            figures.fail(f"{type(error).__name__}: {error}", case)
            continue
        others = [p for name, p in net.named_parameters() if name != "0.weight"]
        beside = torch.cat([net[0].weight.view(-1)[:5], net[0].weight.view(-1)[6:]])
        if not all(bool(p.isfinite().all()) for p in others):
            figures.fail("another parameter is not finite", case)
        elif not bool(beside.isfinite().all()):
            figures.fail("another element is not finite", case)
        else:
            figures.add("as it must be")
    return figures


def runs(seed: int, count: int, folder: Path) -> Figures:
    """Learning rates without sense: a run completes or diverges, can be read, and is never an error."""
    figures, draw = Figures(seed), random.Random(seed)
    source = words_file(folder / "words.txt")
    for number in range(count):
        lr = draw.choice([1e-45, 1e-30, 1.0, 1e4, 1e10, 1e20, 1e30, 1e300])
        kind, storage = OPTIMIZERS[number % 5], STORAGES[1:][number // 5 % 4]
        case = f"{number} {kind} {storage} {lr}"
        try:
            spec = RunSpec.parse(spec_text(source, optimizer=kind, storage=storage, lr=lr, steps=4))
        except SpecError:
            figures.add("refused by name")
            continue
        run = RunStore(folder / str(number)).run("faults", "run").create(spec.to_yaml(), {"steps": 4})
        try:
            data: Any = spec.data.build(0, 16)
            whole = data.evaluation
            data.evaluation = _short(whole)
            outcome = train_run(spec, run, data)
            told(run)
        except LocatedError:
            figures.add("refused by name")
        except ValueError as error:
            if "not finite" in str(error):
                figures.add("diverged, and told in the report")
            else:
                figures.fail(f"{type(error).__name__}: {error}", case)
        except Exception as error:  # whatever it is, it is the finding
            figures.fail(f"{type(error).__name__}: {error}", case)
        else:
            figures.add(outcome.status)
    return figures


def _short(whole: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda split: islice(whole(split), 2)


def reports(seed: int, count: int, folder: Path) -> Figures:
    """Projects whose every number may be an end: a report is written, and its data are JSON that any reader takes."""
    figures, draw = Figures(seed), random.Random(seed)
    for number in range(count):
        root = folder / str(number)
        for kind in ("adamw", "manifold_adamw"):
            for fmt in ("e4m3fn", "fp32"):
                for rate in (1e-3, 3e-3):
                    for run_seed in (0, 100, 101):
                        run = write_run(root, study_spec(fmt, kind, rate, run_seed), points=20)
                        _spoil(run, draw, draw.choice([0.0, 0.05, 0.5, 1.0]))
        try:
            write_report(load_project(RunStore(root), "study"), root / "report")
            for path in (root / "report").rglob("*.json"):
                json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)
        except Exception as error:  # whatever it is, it is the finding
            figures.fail(f"{type(error).__name__}: {error}", number)
        else:
            figures.add("as it must be")
    return figures


def _spoil(run: Any, draw: random.Random, share: float) -> None:
    """Write the run's metrics again with a share of them replaced."""
    ends = (*ENDS, 5e-324, 1.7976931348623157e308, -1.7976931348623157e308)
    rows = list(run.metrics())
    (run.path / "metrics.jsonl").unlink()
    files = RunFiles(run)
    for row in rows:
        step = int(row.pop("step"))
        files.metrics(step, {key: draw.choice(ends) if draw.random() < share else row[key] for key in row})
    files.close()
