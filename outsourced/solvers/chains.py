"""Markov chains on posteriors: one runner for all kernels, adapted first and frozen then."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from outsourced.guidance import LaplaceTarget
from outsourced.laplace import Laplace, fit_laplace
from outsourced.moves import DualAveraging, Preconditioner, RobbinsMonro, State
from outsourced.posterior import Posterior
from outsourced.solvers.base import Samples, check_request, clock, tile
from outsourced.solvers.diagnostics import FEWEST, bulk_ess, split_rhat
from outsourced.solvers.transition import LEAPFROG, Transition, check_kernel
from outsourced.tasks.base import Observation

STARTS = ("prior", "laplace")
CLIMB = 10  # Gauss-Newton steps from each start to the mode that it belongs to


@dataclass
class Trace:
    """What is kept of N chains.

    Attributes:
        z: states after the warm-up, (kept, N, *noise_shape).
        acceptance: mean probability after the warm-up, (N,).
        step: the frozen one, (N,).
    """

    z: Tensor
    acceptance: Tensor
    step: Tensor

    def summary(self, batch: int) -> dict[str, Tensor]:
        """`rhat` and `ess_bulk` (batch, *noise_shape), `acceptance` and `step` (batch, chains)."""
        draws = self.z.unflatten(1, (-1, batch))
        summary = {
            "acceptance": self.acceptance.reshape(-1, batch).T,
            "step": self.step.reshape(-1, batch).T,
        }
        if len(draws) < FEWEST:
            return summary
        return {"rhat": split_rhat(draws), "ess_bulk": bulk_ess(draws), **summary}


def run_chains(
    transition: Transition,
    state: State,
    adaptation: DualAveraging | RobbinsMonro,
    warm_up: int,
    moves: int,
    thin: int,
    generator: torch.Generator | None,
    progress: bool = False,
) -> Trace:
    """Move N chains `warm_up` times with adapted steps, then `moves` times with frozen ones.

    Args:
        transition: the kernel.
        state: where the chains start, as `transition.begin` gives it.
        adaptation: of their steps; its first steps are kept where warm_up = 0.
        warm_up: moves that are dropped.
        moves: moves after them, at least 1.
        thin: moves between states that are kept; the last state is one of them.
        generator: source of randomness.
        progress: show a progress bar over moves.
    """
    kept: list[Tensor] = []
    accepted = torch.zeros_like(state.log_reward)
    for i in tqdm(range(1 - warm_up, moves + 1), disable=not progress, desc=transition.name):
        step = adaptation.step if i <= 0 else adaptation.settled
        state, probability = transition(state, step, generator)
        if i <= 0:
            adaptation.update(probability)
            continue
        accepted = accepted + probability / moves
        if (moves - i) % thin == 0:
            kept.append(state.z)
    return Trace(torch.stack(kept), accepted, adaptation.settled)


def check_start(state: State, batch: int, name: str) -> None:
    """Refuse chains that start where the reward is not finite: they might never leave.

    Raises:
        ValueError: naming the observations.
    """
    bad = ~torch.isfinite(state.log_reward)
    if bad.any():
        which = sorted(set((bad.nonzero().flatten() % batch).tolist()))
        raise ValueError(
            f"{name} needs a finite log_reward at the start of each chain, got {int(bad.sum())} "
            f"that are not, for observations {which}; start elsewhere (solver.start), or use "
            "solver=smc"
        )


def gaussian(laplace: Laplace) -> Preconditioner:
    """The normal distribution that approximates each posterior, as a preconditioner."""
    zero, one = torch.zeros_like(laplace.anchor)[None], torch.ones_like(laplace.anchor[0, 0])
    mean = laplace.posterior(zero, one * 0, one)[0][0]
    return Preconditioner(laplace.basis, (1 + laplace.curvature).rsqrt(), mean)


class Chains:
    """Parallel chains for every observation, adapted during burn-in, frozen after it.

    Exact in the limit of many steps. Chains start apart and climb apart, so that R-hat sees modes
    that do not mix. Steps follow the acceptance of their own chain by dual averaging (Hoffman &
    Gelman, 2014). A subclass names its kernel.

    Args:
        posterior: prior and task; differentiable, unless the kernel is pcn.
        steps: moves of each chain after burn-in.
        burn_in: moves of each chain before it; they adapt the chain's step size and are dropped.
        chains: independent chains per observation.
        thin: moves between states that are kept.
        start: `prior` draws from N(0, I); `laplace` draws from the Gaussian approximation at the
            mode that the chain's own prior draw climbs to; or noise (chains, B, *noise_shape).
        precondition: propose with the mean and covariance of that approximation; like
            start=laplace, it needs vector noise, a Gaussian likelihood and a differentiable prior.
        step: first step size > 0; the kernel's own by default.

    Raises:
        ValueError: out-of-range arguments, a black-box prior where the kernel needs a gradient, or
            a Laplace approximation where there is none.
    """

    kernel: str
    leapfrog = LEAPFROG

    def __init__(
        self,
        posterior: Posterior,
        steps: int = 1000,
        burn_in: int = 500,
        chains: int = 4,
        thin: int = 5,
        start: str | Tensor = "prior",
        precondition: bool = False,
        step: float | None = None,
    ) -> None:
        for name, value, least in (
            ("burn_in", burn_in, 0),
            ("chains", chains, 1),
            ("thin", thin, 1),
            ("steps", steps, FEWEST * max(thin, 1)),
        ):
            if value < least:
                raise ValueError(f"solver.{name} must be >= {least}, got {value}")
        if isinstance(start, str) and start not in STARTS:
            raise ValueError(f"solver.start must be a tensor or one of {STARTS}, got {start!r}")
        kernel = check_kernel(self.kernel, posterior, step)
        self.posterior = posterior
        self.steps, self.burn_in, self.chains, self.thin = steps, burn_in, chains, thin
        self.start, self.precondition = start, precondition
        self.step = kernel.step if step is None else step
        self.laplace = precondition or (isinstance(start, str) and start == "laplace")
        if self.laplace:
            self._check_laplace()

    def _check_laplace(self) -> None:
        prior, task = self.posterior.prior, self.posterior.task
        vector = len(prior.noise_shape) == 1
        smooth = self.posterior.differentiable
        if not (vector and smooth and hasattr(task, "whitened_residual")):
            kind = "" if smooth else f", and {self.posterior.black_box} is a black box"
            raise ValueError(
                "solver.start=laplace and solver.precondition need vector noise, a differentiable "
                f"prior and task, and a likelihood of residuals, got noise {prior.noise_shape} and "
                f"{type(task).__name__}{kind}; use solver.start=prior and solver.precondition=false"
            )

    @torch.no_grad()
    def __call__(
        self,
        obs: Observation,
        n: int,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Samples:
        """Run the chains and pick n of their states, as evenly over chains and time as n allows.

        Args:
            obs: B observations.
            n: samples for each, at most chains * (steps // thin).
            generator: source of randomness.
            progress: show a progress bar over moves.

        Returns:
            samples with the diagnostics `rhat` and `ess_bulk` of all kept states (B, *noise_shape),
            `acceptance` after burn-in and the frozen `step` (B, chains).

        Raises:
            ValueError: when n is out of range, the given start has another shape, or a chain
                starts where the reward is not finite.
        """
        check_request(obs, n)
        kept, batch = self.steps // self.thin, len(obs)
        if n > kept * self.chains:
            raise ValueError(
                f"solver {self.kernel} keeps chains * (steps // thin) = {kept * self.chains} "
                f"states per observation, got n = {n}; raise solver.steps or solver.chains"
            )
        calls, start = self.posterior.prior_calls, clock(obs.y.device)
        trace = self._run(obs, generator, progress)
        z = trace.z.unflatten(1, (self.chains, batch))[_spread(n, kept, self.chains)]
        x = self.posterior.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        used = self.posterior.prior_calls - calls
        seconds = clock(obs.y.device) - start
        return Samples(x, z, None, used, seconds, diagnostics=trace.summary(batch))

    def _run(self, obs: Observation, generator: torch.Generator | None, progress: bool) -> Trace:
        rows = tile(obs, self.chains)
        z, preconditioner = self._begin(rows, generator)
        transition = Transition(
            self.kernel, self.posterior, rows, preconditioner, None, self.leapfrog
        )
        state = transition.begin(z)
        check_start(state, len(obs), f"solver {self.kernel}")
        kernel, first = transition.kernel, torch.full_like(state.log_reward, self.step)
        adaptation = DualAveraging(first, kernel.target, kernel.largest)
        last = self.steps // self.thin * self.thin
        return run_chains(
            transition, state, adaptation, self.burn_in, last, self.thin, generator, progress
        )

    def _begin(
        self, rows: Observation, generator: torch.Generator | None
    ) -> tuple[Tensor, Preconditioner | None]:
        z = self._first(rows, generator)
        if not self.laplace:
            return z, None
        approximation = gaussian(fit_laplace(LaplaceTarget(self.posterior, rows), z, CLIMB))
        if isinstance(self.start, str) and self.start == "laplace":
            z = approximation.place(self._draw(rows, generator))
        return z, approximation if self.precondition else None

    def _first(self, rows: Observation, generator: torch.Generator | None) -> Tensor:
        if isinstance(self.start, str):
            return self._draw(rows, generator)
        expected = (self.chains, len(rows) // self.chains, *self.posterior.prior.noise_shape)
        if tuple(self.start.shape) != expected:
            raise ValueError(
                f"solver.start must be noise of shape (chains, B, *noise_shape) = {expected}, got "
                f"{tuple(self.start.shape)}"
            )
        return self.start.to(rows.y.device).flatten(0, 1)

    def _draw(self, rows: Observation, generator: torch.Generator | None) -> Tensor:
        device = rows.y.device
        shape = (len(rows), *self.posterior.prior.noise_shape)
        source = device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=source).to(device)


def _spread(n: int, kept: int, chains: int) -> tuple[Tensor, Tensor]:
    """Times and chains of n distinct states: chains in turn, times evenly up to the last."""
    i = torch.arange(n)
    rounds = -(-n // chains)
    return (i // chains + 1) * kept // rounds - 1, i % chains
