"""Metropolis-adjusted Langevin chains: the gold standard to compare faster solvers with."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from outsourced.guidance import LaplaceTarget
from outsourced.laplace import fit_laplace
from outsourced.moves import MALA_TARGET, Preconditioner, State, adapt, mala
from outsourced.posterior import Posterior
from outsourced.solvers.base import Samples, check_request, clock, tile
from outsourced.solvers.diagnostics import FEWEST, bulk_ess, split_rhat
from outsourced.tasks.base import Observation

STARTS = ("prior", "laplace")
CLIMB = 10  # Gauss-Newton steps from each start to the mode that it belongs to


class Mala:
    """Parallel MALA chains for every observation, adapted during burn-in, frozen after it.

    Chains start apart and climb apart, so that R-hat sees modes that do not mix.

    Args:
        posterior: prior and task; the prior must be differentiable.
        steps: moves of each chain after burn-in.
        burn_in: moves of each chain before it; they adapt the chain's step size and are dropped.
        chains: independent chains per observation.
        thin: moves between states that are kept.
        start: `prior` draws from N(0, I); `laplace` draws from the Gaussian approximation at the
            mode that the chain's own prior draw climbs to; or noise (chains, B, *noise_shape).
        precondition: propose with the covariance of that approximation; like start=laplace, it
            needs vector noise and a Gaussian likelihood.
        step: first step size > 0.

    Raises:
        ValueError: out-of-range arguments, a black-box prior, or a Laplace approximation where
            there is none.
    """

    def __init__(
        self,
        posterior: Posterior,
        steps: int = 1000,
        burn_in: int = 500,
        chains: int = 4,
        thin: int = 5,
        start: str | Tensor = "prior",
        precondition: bool = False,
        step: float = 0.5,
    ) -> None:
        for name, value, least in (
            ("burn_in", burn_in, 0),
            ("chains", chains, 1),
            ("thin", thin, 1),
            ("steps", steps, FEWEST * max(thin, 1)),
        ):
            if value < least:
                raise ValueError(f"solver.{name} must be >= {least}, got {value}")
        if step <= 0:
            raise ValueError(f"solver.step must be > 0, got {step}")
        if isinstance(start, str) and start not in STARTS:
            raise ValueError(f"solver.start must be a tensor or one of {STARTS}, got {start!r}")
        if not posterior.prior.differentiable:
            raise ValueError(
                f"solver mala needs a differentiable prior, but {type(posterior.prior).__name__} "
                "is a black box; use a gradient-free solver"
            )
        self.posterior = posterior
        self.steps, self.burn_in, self.chains, self.thin = steps, burn_in, chains, thin
        self.start, self.precondition, self.step = start, precondition, step
        self.laplace = precondition or (isinstance(start, str) and start == "laplace")
        if self.laplace:
            self._check_laplace()

    def _check_laplace(self) -> None:
        noise, task = self.posterior.prior.noise_shape, self.posterior.task
        if len(noise) != 1 or not hasattr(task, "whitened_residual"):
            raise ValueError(
                "solver.start=laplace and solver.precondition need vector noise and a task with a "
                f"Gaussian likelihood, got noise {noise} and {type(task).__name__}; use "
                "solver.start=prior and solver.precondition=false"
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
        kept = self.steps // self.thin
        if n > kept * self.chains:
            raise ValueError(
                f"solver mala keeps chains * (steps // thin) = {kept * self.chains} states per "
                f"observation, got n = {n}; raise solver.steps or solver.chains"
            )
        calls, start = self.posterior.prior_calls, clock(obs.y.device)
        draws, diagnostics = self._run(obs, generator, progress)
        diagnostics |= {"rhat": split_rhat(draws), "ess_bulk": bulk_ess(draws)}
        z = draws[_spread(n, kept, self.chains)]
        x = self.posterior.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        used = self.posterior.prior_calls - calls
        return Samples(x, z, None, used, clock(obs.y.device) - start, diagnostics=diagnostics)

    def _run(
        self, obs: Observation, generator: torch.Generator | None, progress: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Kept states (kept, chains, B, *noise_shape); acceptance and step sizes (B, chains)."""
        rows = tile(obs, self.chains)
        z, preconditioner = self._begin(rows, generator)

        def value_and_grad(z: Tensor) -> tuple[Tensor, Tensor]:
            return self.posterior.grad_log_reward(z, rows)

        state = State(z, *value_and_grad(z))
        self._check_start(state, len(obs))
        step = torch.full_like(state.log_reward, self.step)
        kept, accepted = [], torch.zeros_like(step)
        last = self.steps // self.thin * self.thin
        for i in tqdm(range(1 - self.burn_in, last + 1), disable=not progress, desc="mala"):
            state, probability = mala(state, value_and_grad, step, preconditioner, generator)
            if i <= 0:
                step = adapt(step, probability, MALA_TARGET, i + self.burn_in)
                continue
            accepted = accepted + probability / last
            if i % self.thin == 0:
                kept.append(state.z)
        shape = (self.chains, len(obs))
        summary = {"acceptance": accepted.reshape(shape).T, "step": step.reshape(shape).T}
        return torch.stack(kept).unflatten(1, shape), summary

    def _begin(
        self, rows: Observation, generator: torch.Generator | None
    ) -> tuple[Tensor, Preconditioner | None]:
        z = self._first(rows, generator)
        if not self.laplace:
            return z, None
        laplace = fit_laplace(
            LaplaceTarget(self.posterior, rows),
            z,
            CLIMB,
        )
        preconditioner = Preconditioner(laplace.basis, (1 + laplace.curvature).rsqrt())
        if isinstance(self.start, str) and self.start == "laplace":
            zero, one = torch.zeros_like(z)[None], torch.ones_like(z[0, 0])
            mean = laplace.posterior(zero, one * 0, one)[0][0]
            z = mean + preconditioner.color(self._draw(rows, generator))
        return z, preconditioner if self.precondition else None

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

    @staticmethod
    def _check_start(state: State, batch: int) -> None:
        bad = ~torch.isfinite(state.log_reward)
        if bad.any():
            which = sorted(set((bad.nonzero().flatten() % batch).tolist()))
            raise ValueError(
                f"solver mala needs a finite log_reward at the start of each chain, got "
                f"{int(bad.sum())} that are not, for observations {which}; give solver.start"
            )


def _spread(n: int, kept: int, chains: int) -> tuple[Tensor, Tensor]:
    """Times and chains of n distinct states: chains in turn, times evenly up to the last."""
    i = torch.arange(n)
    rounds = -(-n // chains)
    return (i // chains + 1) * kept // rounds - 1, i % chains
