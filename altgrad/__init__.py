"""AltGrad: a wind tunnel for low-precision training.

The names below are the library. They are resolved at first use, so that `import altgrad` loads no torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "PrecisionPolicy": "altgrad.nn",
    "QuantizedLinear": "altgrad.nn",
    "RunSpec": "altgrad.training",
    "commit": "altgrad.nn",
    "compare": "altgrad.reports.compare",
    "dequantize_model": "altgrad.nn",
    "diagnose": "altgrad.diagnosis.examination",
    "load_quantized": "altgrad.quantize.packed",
    "load_run": "altgrad.training.trained_run",
    "quantize_model": "altgrad.nn",
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
