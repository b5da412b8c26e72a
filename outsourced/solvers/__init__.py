"""Solvers: anything that turns observations into posterior samples, called the same way."""

from outsourced.solvers.amortized import Amortized
from outsourced.solvers.base import Samples, Solver
from outsourced.solvers.daps import DAPS
from outsourced.solvers.dps import DPS
from outsourced.solvers.flow_chef import FlowChef
from outsourced.solvers.flow_dps import FlowDPS
from outsourced.solvers.gml_dps import GMLDPS
from outsourced.solvers.hmc import Hmc
from outsourced.solvers.importance import Importance
from outsourced.solvers.latent_dps import LatentDPS
from outsourced.solvers.mala import Mala
from outsourced.solvers.pcn import Pcn
from outsourced.solvers.psld import PSLD
from outsourced.solvers.rejection import Rejection
from outsourced.solvers.resample import ReSample
from outsourced.solvers.smc import Smc

__all__ = [
    "DAPS",
    "DPS",
    "GMLDPS",
    "PSLD",
    "Amortized",
    "FlowChef",
    "FlowDPS",
    "Hmc",
    "Importance",
    "LatentDPS",
    "Mala",
    "Pcn",
    "ReSample",
    "Rejection",
    "Samples",
    "Smc",
    "Solver",
]
