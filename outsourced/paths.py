"""Where training paths come from: five sources, mixed by weight, grouped by observation.

A batch holds n paths for each of B observations. The weights of `on_policy` and `reference` against
the other three set how many of the n paths each contributes; those three start from a *known* end
point and are noised backward, and their own weights set how many of the B observations are fresh
(`simulated`: the z that made y, an exact posterior draw) or come from the buffer (`replay`: its
best draws; `refined`: its draws after a few Markov moves). Fresh observations of real images have
no known end point: their paths are drawn on-policy; from the buffer they return with one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from outsourced import moves
from outsourced.guidance import Context
from outsourced.posterior import Posterior
from outsourced.replay import ReplayBuffer
from outsourced.sampler import NoiseSampler, Path
from outsourced.tasks.base import Observation

SOURCES = ("on_policy", "reference", "simulated", "replay", "refined")
KERNELS = ("auto", "pcn", "mala")


@dataclass
class Plan:
    """The observations of a batch, by origin: fresh simulated, fresh images, replayed, refined.

    Attributes:
        obs: B observations in that order.
        z: Noise of the simulated ones, (sizes[0], *noise_shape).
        sizes: How many of each origin.
        rows: Buffer rows of the last two, (sizes[2] + sizes[3],).
    """

    obs: Observation
    z: Tensor
    sizes: tuple[int, int, int, int]
    rows: Tensor


@dataclass
class Batch:
    """Paths with their rewards.

    Attributes:
        path: n paths for each of B observations.
        log_reward: beta log r of their ends, (n, B).
        source: Index into `SOURCES`, (n, B).
    """

    path: Path
    log_reward: Tensor
    source: Tensor


class PathMixture:
    """Draws batches from the five sources; see the module's text for what the weights mean.

    Args:
        sampler: Draws the on-policy paths.
        posterior: Scores ends.
        buffer: Replay buffer.
        weights: Weight >= 0 of each source; those left out are 0.
        n: Paths for each observation.
        exploration: Relative increase of the on-policy kernels' standard deviation.
        kernel: The moves of `refined`: `mala` (no black boxes), `pcn`, or `auto`: the first of
            them that fits.
        moves: Number of moves of `refined` at each visit.
        step: First step size of the moves; it follows their acceptance.

    Raises:
        ValueError: Unknown source or kernel, negative or all-zero weights, numbers out of range, or
            `mala` for a black box.
    """

    def __init__(
        self,
        sampler: NoiseSampler,
        posterior: Posterior,
        buffer: ReplayBuffer,
        weights: dict[str, float],
        n: int = 8,
        exploration: float = 0.0,
        kernel: str = "auto",
        moves: int = 2,
        step: float = 0.3,
    ):
        unknown = sorted(set(weights) - set(SOURCES))
        if unknown or any(w < 0 for w in weights.values()) or not sum(weights.values()) > 0:
            raise ValueError(
                f"paths.weights must be >= 0, not all 0, over {', '.join(SOURCES)}; got "
                f"{dict(weights)}"
            )
        if n < 1:
            raise ValueError(f"paths.n must be >= 1, got {n}")
        if exploration < 0 or moves < 1 or not 0 < step <= 1:
            raise ValueError(
                "paths.exploration must be >= 0, paths.moves >= 1 and paths.step in (0, 1], got "
                f"{exploration}, {moves} and {step}"
            )
        kernel = self._kernel(kernel, posterior.differentiable)
        self.sampler, self.posterior, self.buffer = sampler, posterior, buffer
        self.weights = {name: float(weights.get(name, 0.0)) for name in SOURCES}
        self.exploration, self.kernel, self.moves = exploration, kernel, moves
        self.step = torch.tensor(float(step))
        self.on, self.free, self.known = self._split(n)
        if self.weights["replay"] + self.weights["refined"] > 0 and n < buffer.slots:
            raise ValueError(f"paths.n must be >= paths.buffer.slots = {buffer.slots}, got {n}")

    @staticmethod
    def _kernel(kernel: str, differentiable: bool) -> str:
        if kernel not in KERNELS:
            raise ValueError(f"paths.kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
        if kernel == "mala" and not differentiable:
            raise ValueError(
                "paths.kernel=mala needs a differentiable prior and task; use pcn or auto"
            )
        return ("mala" if differentiable else "pcn") if kernel == "auto" else kernel

    def _split(self, n: int) -> tuple[int, int, int]:
        """Numbers of on-policy, reference and known-end paths of an observation, n in all."""
        known = sum(self.weights[s] for s in ("simulated", "replay", "refined"))
        shares = [self.weights["on_policy"], self.weights["reference"], known]
        exact = [n * share / sum(shares) for share in shares]
        counts = [int(e) for e in exact]
        while sum(counts) < n:  # largest remainder; ties go to the later source, known ends first
            gaps = [e - c for e, c in zip(exact, counts, strict=True)]
            counts[max(range(3), key=lambda i: (gaps[i], i))] += 1
        return counts[0], counts[1], counts[2]

    def plan(
        self, z: Tensor, obs: Observation, images: Observation | None, generator: torch.Generator
    ) -> Plan:
        """Choose the observations of a batch of B = len(obs) + len(images).

        Args:
            z: Noise behind the simulated observations, (B_s, *noise_shape).
            obs: B_s simulated observations.
            images: Observations of real images, if any.
            generator: CPU generator.
        """
        total = len(obs) + (0 if images is None else len(images))
        share = {s: self.weights[s] for s in ("simulated", "replay", "refined")}
        stored = [0, 0]
        if len(self.buffer) and sum(share.values()) > 0:
            fractions = [share[s] / sum(share.values()) for s in ("replay", "refined")]
            stored = [round(total * f) for f in fractions]
        rows = (
            self.buffer.draw_rows(sum(stored), generator) if sum(stored) else torch.zeros(0).long()
        )
        stored[0] = min(stored[0], len(rows))
        stored[1] = len(rows) - stored[0]
        fresh = total - len(rows)
        real = 0 if images is None else round(fresh * len(images) / total)
        pieces = [obs[: fresh - real]]
        if images is not None and real:
            pieces.append(images[:real])
        if len(rows):
            pieces.append(self.buffer.observations(rows).to(obs.y.device))
        sizes = (fresh - real, real, stored[0], stored[1])
        return Plan(Observation.cat(pieces), z[: fresh - real], sizes, rows)

    @torch.no_grad()
    def draw(
        self,
        plan: Plan,
        context: Context,
        cpu: torch.Generator,
        generator: torch.Generator | None = None,
    ) -> Batch:
        """Draw n paths for each observation of a plan.

        Args:
            plan: As returned by `plan`.
            context: Of `plan.obs`; used without gradient.
            cpu: Generator of choices.
            generator: Generator of noise, on the device of the context.
        """
        paths, sources, device = [], [], context.embedding.device
        if self.on:
            paths.append(self._on_policy(context, self.on, generator))
            sources.append(torch.zeros(self.on, len(plan.obs), dtype=torch.long))
        if self.free:
            shape = (self.free * len(plan.obs), *self.sampler.noise_shape)
            start = torch.randn(shape, generator=generator, device=device)
            states = self.sampler.reference.forward_path(start, generator)
            paths.append(Path(states.unflatten(1, (self.free, len(plan.obs)))))
            sources.append(torch.full((self.free, len(plan.obs)), SOURCES.index("reference")))
        if self.known:
            path, source = self._known(plan, context, cpu, generator)
            paths.append(path)
            sources.append(source)
        path = self._join(paths, context)
        ends = path.end.flatten(0, 1)
        repeated = context.repeat(path.end.shape[0])
        log_reward = self.posterior.log_reward(ends, repeated.obs).unflatten(0, path.end.shape[:2])
        self._remember(plan, path, log_reward)
        return Batch(path, log_reward, torch.cat(sources).to(log_reward.device))

    def _on_policy(self, context: Context, n: int, source: torch.Generator | None) -> Path:
        return self.sampler.forward_path(context.obs, n, source, self.exploration, context)

    def _join(self, paths: list[Path], context: Context) -> Path:
        """One Path of all; where some carry guidance it is computed for the rest."""
        if len(paths) == 1:
            return paths[0]
        z = torch.cat([path.z for path in paths], 1)
        if all(path.guide is None for path in paths):
            return Path(z)
        guides = [self.sampler.guided(path, context) for path in paths]
        return Path(z, torch.cat(guides, 2))

    def _known(
        self, plan: Plan, context: Context, cpu: torch.Generator, generator: torch.Generator | None
    ) -> tuple[Path, Tensor]:
        """Backward paths from known ends, and on-policy paths for images, which have none."""
        simulated, real, replayed, refined = plan.sizes
        ends = [plan.z.expand(self.known, *plan.z.shape)]
        if len(plan.rows):
            ends.append(self._stored(plan, context, cpu, generator).to(plan.z.device))
        back = self.sampler.backward_path(torch.cat(ends, 1), generator)
        labels = [SOURCES.index("simulated")] * simulated + [0] * real
        labels += [SOURCES.index("replay")] * replayed + [SOURCES.index("refined")] * refined
        source = torch.tensor(labels).expand(self.known, -1)
        if not real:
            return back, source
        rows = torch.arange(simulated, simulated + real, device=context.embedding.device)
        fresh = self._on_policy(context.select(rows), self.known, generator)
        z = torch.cat([back.z[:, :, :simulated], fresh.z, back.z[:, :, simulated:]], 2)
        return Path(z), source

    def _stored(
        self, plan: Plan, context: Context, cpu: torch.Generator, generator: torch.Generator | None
    ) -> Tensor:
        """Ends from the buffer, the refined rows after their moves, (known, rows, ...)."""
        slots = self.buffer.draw_slots(plan.rows, self.known, cpu)
        z, _ = self.buffer.read(plan.rows, slots)
        count = plan.sizes[3]
        if not count:
            return z
        first = len(plan.obs) - count
        index = torch.arange(first, len(plan.obs), device=context.embedding.device)
        moved = self._refine(z[:, -count:].to(index.device), context.select(index), generator)
        value = moved.log_reward / self.posterior.beta
        self.buffer.write(plan.rows[-count:], slots[:, -count:], moved.z, value)
        return torch.cat([z[:, :-count].to(moved.z.device), moved.z], 1)

    def _refine(
        self, z: Tensor, context: Context, generator: torch.Generator | None
    ) -> moves.State:
        """A few moves of each draw; a row is met too rarely to learn a step size of its own."""
        n, batch = z.shape[:2]
        repeated = context.repeat(n)
        state = moves.State(z.flatten(0, 1), *self._value(z.flatten(0, 1), repeated.obs))
        mala = self.kernel == "mala"
        target, most = (moves.MALA_TARGET, 10.0) if mala else (moves.PCN_TARGET, 1.0)
        for _ in range(self.moves):
            state, rate = self._move(state, repeated, generator)
            change = torch.exp(0.05 * (rate.mean() - target)).cpu()
            self.step = (self.step * change).clamp(1e-4, most)
        size = (n, batch)
        return moves.State(state.z.unflatten(0, size), state.log_reward.unflatten(0, size))

    def _value(self, z: Tensor, obs: Observation) -> tuple[Tensor, ...]:
        """What the kernel needs to know of z: beta log r, for MALA with its gradient."""
        if self.kernel == "mala":
            return self.posterior.grad_log_reward(z, obs)
        return (self.posterior.log_reward(z, obs),)

    def _move(
        self, state: moves.State, context: Context, generator: torch.Generator | None
    ) -> tuple[moves.State, Tensor]:
        step, obs, laplace = self.step.to(state.z.device), context.obs, context.laplace
        if self.kernel == "pcn":
            return moves.pcn(state, lambda u: self.posterior.log_reward(u, obs), step, generator)
        metric = None
        if laplace is not None:
            metric = moves.Preconditioner(laplace.basis, (1 + laplace.curvature).rsqrt())
        return moves.mala(
            state, lambda u: self.posterior.grad_log_reward(u, obs), step, metric, generator
        )

    def _remember(self, plan: Plan, path: Path, log_reward: Tensor) -> None:
        fresh = plan.sizes[0] + plan.sizes[1]
        wanted = self.weights["replay"] + self.weights["refined"] > 0
        if wanted and fresh:
            raw = log_reward[:, :fresh] / self.posterior.beta
            self.buffer.add(plan.obs[:fresh], path.end[:, :fresh], raw)

    def state_dict(self) -> dict[str, Tensor]:
        """The buffer and the step size."""
        return {"step": self.step, **self.buffer.state_dict()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore `state_dict()`."""
        self.step = state["step"].clone()
        self.buffer.load_state_dict({k: v for k, v in state.items() if k != "step"})
