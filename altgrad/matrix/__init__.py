"""Matrices of runs: one base spec, axes that vary some of its values, named arms, and seeds."""

from altgrad.matrix.matrix import ARM, Matrix, MatrixArm, MatrixPlace, Smoke
from altgrad.matrix.runs import runs_of

__all__ = ["ARM", "Matrix", "MatrixArm", "MatrixPlace", "Smoke", "runs_of"]
