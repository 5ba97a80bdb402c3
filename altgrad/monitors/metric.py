"""Metric, under the name by which monitors know it. Interventions report numbers too, so its home is `measures`."""

from altgrad.measures.metric import Metric, Worse, describing, headline

__all__ = ["Metric", "Worse", "describing", "headline"]
