"""The amortised sampler: one roll-out in noise space and one pass of the generator per sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from outsourced.posterior import Posterior
from outsourced.refinement import fits
from outsourced.sampler import NoiseSampler
from outsourced.solvers import corrections
from outsourced.solvers.base import Samples, check_request, clock
from outsourced.solvers.corrections import Draws, Target
from outsourced.solvers.resampling import medoids, pick
from outsourced.solvers.transition import KERNELS, check_kernel
from outsourced.tasks.base import Observation
from outsourced.transport import NoiseTransport

RESAMPLING = ("importance", "smc")
CORRECTIONS = (None, *RESAMPLING, "imh", *KERNELS)
MOVES = 50


class Amortized:
    """Samples of a trained noise sampler, with their weights, or corrected.

    Uncorrected samples cost one roll-out each. They carry log_weight = beta log r - log_ratio of
    their paths, but for those of a `NoiseTransport`, which count equally, and whose x is decoded
    from the latents that it draws. What each correction
    guarantees is said where it is, in `corrections`; in short:

    - `importance`, `smc`: consistent, bias 1 / candidates; samples repeat where weights are few.
    - `imh`: exact in the limit of many moves; proposes whole paths, needs no gradient.
    - `pcn`, `mala`, `hmc`: every move brings samples closer to the posterior; exact in the limit
      within the modes that they started in.

    Args:
        sampler: the trained sampler.
        posterior: prior and task that it was trained for.
        correct: None, or one of the names above.
        candidates: proposals per observation. `importance` and `smc` resample them, by default
            max(4 n, 64); the moves of `pcn`, `mala`, `hmc` start at n resampled ones, by default at
            n proposals as they are.
        moves: of each sample, `imh`, `pcn`, `mala` and `hmc` only; 50 by default.
        step: step size of `pcn`, `mala` and `hmc`; by default it adapts in the first half of the
            moves.
        noise: also find the noise behind the samples of a `NoiseTransport`, which takes an
            inversion of f; other samplers and corrections know it anyway.
        temperature: of the noise that a `NoiseTransport` carries, from 0 to 1. Below 1 samples are
            no draws of the posterior any more but estimates, nearer to one another and to the
            truth; at 0 all of an observation are the same.
        refine: conjugate gradients of each fit of y by a `NoiseTransport`, in the place of those
            that it was trained with; more of them cost time, and fit better.
        medoid: draws behind each sample, without a correction: of so many the one nearest to their
            mean in x is kept. Such samples are estimates, and have no weights: nearer to the mean
            than a draw, and an image of the prior, which the mean is not.
        chunk: most paths rolled out at once; whole observations at a time, so that one observation
            with more candidates still fits one chunk. posterior.chunk by default.

    Raises:
        ValueError: unknown correction, an option that it has no use for, numbers below 1, a
            gradient of a black box, or `smc` where the sampler has no twist.
    """

    def __init__(
        self,
        sampler: NoiseSampler | NoiseTransport,
        posterior: Posterior,
        correct: str | None = None,
        candidates: int | None = None,
        moves: int | None = None,
        step: float | None = None,
        noise: bool = False,
        temperature: float = 1.0,
        refine: int | Sequence[int] | None = None,
        medoid: int = 1,
        chunk: int | None = None,
    ) -> None:
        if correct not in CORRECTIONS:
            names = ", ".join(name for name in CORRECTIONS if name)
            raise ValueError(f"solver.correct must be null or one of {names}, got {correct!r}")
        self._check_use("candidates", candidates, correct, (*RESAMPLING, *KERNELS))
        self._check_use("moves", moves, correct, ("imh", *KERNELS))
        self._check_use("step", step, correct, tuple(KERNELS))
        counts = {"candidates": candidates, "moves": moves, "medoid": medoid, "chunk": chunk}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"solver.{name} must be >= 1, got {value}")
        if medoid > 1 and (correct or temperature == 0):
            raise ValueError(
                "solver.medoid > 1 chooses among uncorrected draws that differ, got "
                f"{medoid} with correct={correct} and temperature={temperature}"
            )
        self.options = self._options(sampler, posterior, correct, temperature, refine)
        if correct in KERNELS:
            check_kernel(correct, posterior, step)
        if correct in (*RESAMPLING, "imh"):
            corrections.check_weighted(sampler, f"solver.correct={correct}")
        if correct == "smc":
            assert isinstance(sampler, NoiseSampler)
            corrections.check_twist(sampler)
        self.sampler, self.posterior = sampler, posterior
        self.correct, self.candidates, self.step = correct, candidates, step
        self.noise, self.medoid = noise, medoid
        self.moves = MOVES if moves is None else moves
        self.chunk = posterior.chunk if chunk is None else chunk

    @staticmethod
    def _check_use(
        name: str, value: float | None, correct: str | None, users: tuple[str, ...]
    ) -> None:
        if value is not None and correct not in users:
            raise ValueError(
                f"solver.{name} needs solver.correct={'|'.join(users)}, got {name}={value} with "
                f"correct={correct}"
            )

    @staticmethod
    def _options(
        sampler: NoiseSampler | NoiseTransport,
        posterior: Posterior,
        correct: str | None,
        temperature: float,
        refine: int | Sequence[int] | None,
    ) -> dict[str, Any]:
        """What is asked of a transport, if anything."""
        if not 0 <= temperature <= 1:
            raise ValueError(f"solver.temperature must lie in 0 .. 1, got {temperature}")
        transport = isinstance(sampler, NoiseTransport)
        if temperature != 1 and (correct or not transport):
            raise ValueError(
                "solver.temperature < 1 is for uncorrected samples of a transport (a run of "
                f"sampler=transport), got {temperature} with a {type(sampler).__name__} and "
                f"correct={correct}"
            )
        if refine is not None and not transport:
            raise ValueError(
                "solver.refine is for a transport (a run of sampler=transport), got "
                f"{refine} with a {type(sampler).__name__}"
            )
        options: dict[str, Any] = {} if temperature == 1 else {"temperature": temperature}
        if refine is not None:
            options["refine"] = fits(refine, posterior.black_box, "solver.refine")
        return options

    def _proposals(self, n: int) -> int:
        """Proposals for each observation at once."""
        if self.correct not in (*RESAMPLING, *KERNELS):
            return n * self.medoid
        default = max(4 * n, 64) if self.correct in RESAMPLING else n
        count = default if self.candidates is None else self.candidates
        if count < n:
            raise ValueError(
                f"solver.candidates must be >= n = {n} samples per observation, got {count}; "
                "raise it or leave it out"
            )
        if count > n and self.correct in KERNELS:
            corrections.check_weighted(self.sampler, f"solver.candidates={count} > n = {n}")
        return count

    @torch.no_grad()
    def __call__(
        self,
        obs: Observation,
        n: int,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Samples:
        """Draw n samples for each of the B observations.

        Args:
            obs: B observations.
            n: samples for each.
            generator: source of randomness, on the device of obs.
            progress: show a progress bar over chunks of observations.

        Returns:
            samples with `proposal_log_weight`, and the diagnostics of their correction: `log_z`,
            `log_z_std` and `resampled` (B,) of smc; `acceptance` (B, n) of the others with moves,
            `step` too where it has one, and `rhat` and `ess_bulk` (B, *noise_shape) over the
            second half of the moves if they are enough.

        Raises:
            ValueError: when n < 1, there are fewer candidates than n, no candidate of an
                observation has a usable weight, or moves start where the reward is not finite.
        """
        check_request(obs, n)
        proposals = self._proposals(n)
        width = max(1, self.chunk // proposals)
        calls, start = self.posterior.prior_calls, clock(obs.y.device)
        pieces = [
            self._draw(obs[first : first + width], n, proposals, generator)
            for first in tqdm(range(0, len(obs), width), disable=not progress, desc="sampling")
        ]
        x, z, weight = (
            torch.cat([getattr(piece, name) for piece in pieces], 1)
            for name in ("x", "z", "log_weight")
        )
        names = pieces[0].diagnostics
        return Samples(
            x,
            z if len(z) else None,
            log_weight=weight if self.correct is None and len(weight) else None,
            prior_calls=self.posterior.prior_calls - calls,
            seconds=clock(obs.y.device) - start,
            proposal_log_weight=weight if len(weight) else None,
            diagnostics={name: torch.cat([p.diagnostics[name] for p in pieces]) for name in names},
            estimates=self.medoid > 1 or "temperature" in self.options,
        )

    def _draw(
        self, obs: Observation, n: int, proposals: int, generator: torch.Generator | None
    ) -> Draws:
        context = self.sampler.encode(obs, max(n, proposals))
        target = Target(self.sampler, self.posterior, obs, context, generator, self.options)
        if self.correct is None:
            known = self.noise or self.sampler.weighted
            draws = target.propose(proposals) if known else target.propose_data(proposals)
            return draws if self.medoid == 1 else self._medoids(draws, n)
        if self.correct == "importance":
            return corrections.importance(target, n, proposals)
        if self.correct == "smc":
            return corrections.smc(target, n, proposals)
        if self.correct == "imh":
            return corrections.imh(target, n, self.moves)
        return corrections.finish(target, n, proposals, self.correct, self.moves, self.step)

    @staticmethod
    def _medoids(draws: Draws, n: int) -> Draws:
        """One draw of each of n groups, without its weight, which is not that of a chosen one."""
        index = medoids(draws.x, n)
        z = pick(draws.z, index) if len(draws.z) else draws.z
        return Draws(z, pick(draws.x, index), draws.log_weight[:0])
