"""Solvers: anything that turns observations into posterior samples, called the same way."""

from outsourced.solvers.amortized import Amortized
from outsourced.solvers.base import Samples, Solver
from outsourced.solvers.mala import Mala

__all__ = ["Amortized", "Mala", "Samples", "Solver"]
