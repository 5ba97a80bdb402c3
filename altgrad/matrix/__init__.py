"""Matrices of runs: one base spec, axes that vary some of its values, named arms, and seeds."""

from altgrad.matrix.matrix import ARM, Arm, Matrix, Place, Smoke
from altgrad.matrix.runs import runs

__all__ = ["ARM", "Arm", "Matrix", "Place", "Smoke", "runs"]
