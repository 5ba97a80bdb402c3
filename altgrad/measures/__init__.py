"""Measures: pure functions of tensors, used by monitors, interventions and diagnose."""

from altgrad.measures.range import range_counts

__all__ = ["range_counts"]
