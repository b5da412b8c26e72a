"""Markov kernels that leave a posterior pi(z) proportional to N(z; 0, I) r(f(z)) invariant.

Chains are batched and never talk to each other: steps, acceptance and adaptation are per chain.
Proposals whose reward is not finite are rejected.
"""

from outsourced.moves.adaptation import DualAveraging, RobbinsMonro, adapt
from outsourced.moves.crank_nicolson import PCN_TARGET, pcn
from outsourced.moves.hamiltonian import HMC_LARGEST, HMC_TARGET, hmc
from outsourced.moves.langevin import MALA_TARGET, mala
from outsourced.moves.state import Preconditioner, State

__all__ = [
    "HMC_LARGEST",
    "HMC_TARGET",
    "MALA_TARGET",
    "PCN_TARGET",
    "DualAveraging",
    "Preconditioner",
    "RobbinsMonro",
    "State",
    "adapt",
    "hmc",
    "mala",
    "pcn",
]
