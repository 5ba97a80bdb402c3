"""Some formats compared on a distribution or a tensor: which keeps most of it, and at which scale.

The figures are those of `altgrad.measures.format_fit`; here they are asked for, and the best of each measure marked.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from altgrad.formats import NumberFormat, parse_format
from altgrad.measures.format_fit import fit_formats
from altgrad.measures.reference_sample import DISTRIBUTIONS, reference_sample
from altgrad.progress import progress
from altgrad.training.weights import read_tensor

MORE_IS_BETTER = {"sqnr_db": True, "underflow_rate": False, "saturation_rate": False, "code_utilisation": True}

Json = dict[str, Any]


def compare_formats(
    formats: Iterable[str | NumberFormat], *, dist: str | None = None, tensor: str | None = None
) -> list[Json]:
    """The figures of each input, as `altgrad formats compare --json` prints them.

    dist: names of distributions, by commas; all where nothing is asked for. tensor: FILE:NAME of a .safetensors file.
    ValueError for formats that no tensor can enter and for inputs that are not there.
    """
    chosen = list(dict.fromkeys(parse_format(str(name)) for name in formats))
    if dist is not None and tensor is not None:
        raise ValueError("--dist and --tensor name two different things to compare on; give one of them.")
    if tensor is None:
        names = dict.fromkeys(DISTRIBUTIONS) if dist is None else dict.fromkeys(n.strip() for n in dist.split(","))
        # All are made before any figure is, so that a mistake shows at once.
        inputs = {name: reference_sample(name) for name in names}
    else:
        path, _, name = tensor.rpartition(":")
        if not path or not name:
            raise ValueError(
                f"--tensor {tensor} names no tensor; write FILE:NAME, such as model.safetensors:embed.weight."
            )
        inputs = {name: read_tensor(path, name)}
    compared: list[Json] = []
    for name, values in inputs.items():
        progress(f"comparing formats on {name}", len(compared), len(inputs))
        compared.append(_compared(name, values, chosen))
    return compared


def _compared(name: str, values: Any, formats: list[NumberFormat]) -> Json:
    fits: dict[str, Json] = {
        fmt: {scale: cast._asdict() for scale, cast in fit._asdict().items()}
        for fmt, fit in fit_formats(values, formats).items()
    }
    scales = next(iter(fits.values()))
    return {
        "name": name,
        "count": values.numel(),
        "finite_count": int(values.isfinite().sum()),
        "formats": fits,
        "best": {scale: {measure: best_of(fits, scale, measure) for measure in MORE_IS_BETTER} for scale in scales},
    }


def best_of(formats: Mapping[str, Json], scale: str, measure: str) -> list[str]:
    """The formats that are best in a measure under a scale, ties included; none where all are alike."""
    sign = 1 if MORE_IS_BETTER[measure] else -1
    values = {name: fits[scale][measure] * sign for name, fits in formats.items()}
    known = [value for value in values.values() if not math.isnan(value)]
    if not known or min(known) == max(known):
        return []
    return [name for name, value in values.items() if value == max(known)]
