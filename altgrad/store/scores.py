"""What a run's validation split is judged by beside its loss, as its meta.json says."""

from collections.abc import Mapping
from typing import Any

TEXT_SCORES = ("bits_per_byte", "perplexity")


def recorded_scores(meta: Mapping[str, Any]) -> list[str]:
    """Names of scores, the main one first; runs of earlier versions, all of text, said nothing."""
    found = meta.get("scores")
    return [str(name) for name in found] if isinstance(found, list) else list(TEXT_SCORES)
