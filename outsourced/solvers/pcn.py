"""Preconditioned Crank-Nicolson chains: the gold standard for black-box priors."""

from __future__ import annotations

from outsourced.solvers.chains import Chains


class Pcn(Chains):
    """`Chains` of moves without gradient, one call of the prior each; see there for the arguments.

    Its step does not shrink with the dimension of the noise, but it does with the information in
    the observation: allow many moves, or precondition where the prior is differentiable.

    Source: Cotter, Roberts, Stuart & White, 2013; Rudolf & Sprungk, 2018 (preconditioned).
    """

    kernel = "pcn"
