"""The kernels of `moves`, applied to the posteriors of many rows of observations."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from outsourced import moves
from outsourced.moves import Preconditioner, State
from outsourced.posterior import Posterior
from outsourced.tasks.base import Observation

LEAPFROG = 8  # default of the largest number of leapfrog steps


@dataclass(frozen=True)
class Kernel:
    """What the users of a kernel must know of it.

    Attributes:
        target: acceptance that its step is adapted to.
        largest: largest step.
        gradient: whether it needs the gradient of log r.
        step: a first step that does no harm.
    """

    target: float
    largest: float
    gradient: bool
    step: float


KERNELS = {
    "pcn": Kernel(moves.PCN_TARGET, 1.0, False, 0.3),
    "mala": Kernel(moves.MALA_TARGET, math.inf, True, 0.5),
    "hmc": Kernel(moves.HMC_TARGET, moves.HMC_LARGEST, True, 0.3),
}


def check_kernel(
    name: str, posterior: Posterior, step: float | None, leapfrog: int = LEAPFROG
) -> Kernel:
    """The kernel of that name, if it suits the posterior and the step.

    Raises:
        ValueError: unknown kernel, one that needs the gradient of a black box, or numbers out of
            range.
    """
    if name not in KERNELS:
        raise ValueError(f"solver.kernel must be one of {', '.join(KERNELS)}, got {name!r}")
    kernel = KERNELS[name]
    if step is not None and not 0 < step <= kernel.largest:
        limit = "" if math.isinf(kernel.largest) else f" and <= {kernel.largest:.4g} for {name}"
        raise ValueError(f"solver.step must be > 0{limit}, got {step}")
    if leapfrog < 1:
        raise ValueError(f"solver.leapfrog must be >= 1, got {leapfrog}")
    if kernel.gradient and not posterior.differentiable:
        raise ValueError(
            f"{name} needs the gradient of log r, but {posterior.black_box} is a black box; use pcn"
        )
    return kernel


class Transition:
    """One kernel on the posteriors of N rows, each at its own share of its log-reward.

    Args:
        name: key of `KERNELS`.
        posterior: prior and task.
        rows: N observations, one for each chain or particle.
        preconditioner: of each row, for vector noise.
        share: factor > 0 of each row's log-reward, (N,); 1 by default.
        leapfrog: `hmc` makes 1 .. leapfrog steps a move, drawn uniformly for each move.
    """

    def __init__(
        self,
        name: str,
        posterior: Posterior,
        rows: Observation,
        preconditioner: Preconditioner | None = None,
        share: Tensor | None = None,
        leapfrog: int = LEAPFROG,
    ) -> None:
        self.name, self.kernel = name, KERNELS[name]
        self.posterior, self.rows, self.share = posterior, rows, share
        self.preconditioner, self.leapfrog = preconditioner, leapfrog

    def begin(self, z: Tensor) -> State:
        """The state of chains at z (N, *noise_shape), scaled by their shares."""
        if not self.kernel.gradient:
            return State(z, self._value(z))
        return State(z, *self._value_and_grad(z))

    def _value(self, z: Tensor) -> Tensor:
        value = self.posterior.log_reward(z, self.rows)
        return value if self.share is None else self.share * value

    def _value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self.posterior.grad_log_reward(z, self.rows)
        if self.share is None:
            return value, gradient
        column = self.share.reshape(-1, *[1] * (z.ndim - 1))
        return self.share * value, column * gradient

    def __call__(
        self, state: State, step: Tensor, generator: torch.Generator | None
    ) -> tuple[State, Tensor]:
        """Move every row once; the new state and the acceptance probabilities (N,)."""
        matrix = self.preconditioner
        if self.name == "pcn":
            return moves.pcn(state, self._value, step, generator, matrix)
        if self.name == "mala":
            return moves.mala(state, self._value_and_grad, step, matrix, generator)
        device = state.z.device if generator is None else generator.device
        count = torch.randint(1, self.leapfrog + 1, (), generator=generator, device=device)
        return moves.hmc(state, self._value_and_grad, step, int(count), matrix, generator)
