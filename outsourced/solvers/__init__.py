"""Solvers: anything that turns observations into posterior samples, called the same way."""

from outsourced.solvers.amortized import Amortized
from outsourced.solvers.base import Samples, Solver
from outsourced.solvers.hmc import Hmc
from outsourced.solvers.importance import Importance
from outsourced.solvers.mala import Mala
from outsourced.solvers.pcn import Pcn
from outsourced.solvers.rejection import Rejection
from outsourced.solvers.smc import Smc

__all__ = [
    "Amortized",
    "Hmc",
    "Importance",
    "Mala",
    "Pcn",
    "Rejection",
    "Samples",
    "Smc",
    "Solver",
]
