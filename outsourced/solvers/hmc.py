"""Hamiltonian chains: fewest moves for smooth posteriors of many dimensions."""

from __future__ import annotations

from typing import Any

from outsourced.posterior import Posterior
from outsourced.solvers.chains import Chains
from outsourced.solvers.transition import LEAPFROG, check_kernel


class Hmc(Chains):
    """`Chains` of Hamiltonian moves whose integrator rotates the prior's part exactly.

    The rotation (see `moves.hmc`) makes the step independent of the dimension. Every move takes a
    number of leapfrog steps, one gradient each, that is drawn uniformly from 1 .. leapfrog, so that
    no trajectory length is periodic for all moves.

    Args:
        posterior: prior and task; the prior must be differentiable.
        leapfrog: largest number of leapfrog steps of a move.
        options: further arguments of `Chains`.

    Source: Duane, Kennedy, Pendleton & Roweth, 1987; Beskos et al., 2011; Hoffman & Gelman, 2014.
    """

    kernel = "hmc"

    def __init__(self, posterior: Posterior, leapfrog: int = LEAPFROG, **options: Any) -> None:
        check_kernel("hmc", posterior, None, leapfrog)
        super().__init__(posterior, **options)
        self.leapfrog = leapfrog
