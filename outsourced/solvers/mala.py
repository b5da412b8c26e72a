"""Metropolis-adjusted Langevin chains: a gold standard to compare faster solvers with."""

from __future__ import annotations

from outsourced.solvers.chains import Chains


class Mala(Chains):
    """`Chains` of Langevin moves, one gradient each; see there for the arguments.

    Source: Roberts & Tweedie, 1996; Roberts & Rosenthal, 1998 (acceptance 0.574).
    """

    kernel = "mala"
