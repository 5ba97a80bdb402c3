"""AltGrad: a wind tunnel for low-precision training.

The names below are the library. They are resolved at first use, so that `import altgrad` loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what a type checker and an editor see; the program resolves the same names by _HOMES
    from altgrad.conversion.export import export_checkpoint as export_checkpoint
    from altgrad.conversion.policies.expression import express_policy as express_policy
    from altgrad.conversion.saving import save_quantized as save_quantized
    from altgrad.diagnosis.examination import diagnose as diagnose
    from altgrad.nn import (
        PrecisionPolicy as PrecisionPolicy,
    )
    from altgrad.nn import (
        QuantizedLinear as QuantizedLinear,
    )
    from altgrad.nn import (
        commit as commit,
    )
    from altgrad.nn import (
        dequantize_model as dequantize_model,
    )
    from altgrad.nn import (
        quantize_model as quantize_model,
    )
    from altgrad.quantize.packed import load_quantized as load_quantized
    from altgrad.recipes.book import recipe as recipe
    from altgrad.reports.compare import compare as compare
    from altgrad.reports.report import report as report
    from altgrad.store.frames import runs as runs
    from altgrad.sweeps.result import sweep as sweep
    from altgrad.training import RunSpec as RunSpec
    from altgrad.training.trained_run import load_run as load_run
    from altgrad.training.trained_run import train as train
    from altgrad.watching import watch as watch
    from altgrad.watching.trainer import watch_trainer as watch_trainer

__version__ = "0.1.0"

_HOMES = {
    "PrecisionPolicy": "altgrad.nn",
    "QuantizedLinear": "altgrad.nn",
    "RunSpec": "altgrad.training",
    "commit": "altgrad.nn",
    "compare": "altgrad.reports.compare",
    "dequantize_model": "altgrad.nn",
    "diagnose": "altgrad.diagnosis.examination",
    "export_checkpoint": "altgrad.conversion.export",
    "express_policy": "altgrad.conversion.policies.expression",
    "load_quantized": "altgrad.quantize.packed",
    "load_run": "altgrad.training.trained_run",
    "quantize_model": "altgrad.nn",
    "recipe": "altgrad.recipes.book",
    "report": "altgrad.reports.report",
    "runs": "altgrad.store.frames",
    "save_quantized": "altgrad.conversion.saving",
    "sweep": "altgrad.sweeps.result",
    "train": "altgrad.training.trained_run",
    "watch": "altgrad.watching",
    "watch_trainer": "altgrad.watching.trainer",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'altgrad' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
