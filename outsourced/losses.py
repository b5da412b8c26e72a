"""Training losses: paths from the mixture, scored by the sampler, judged by the objective."""

from typing import Any

import torch
from torch import Tensor

from outsourced.control import PATHWISE
from outsourced.denoising import adjoint_pair, denoising_log_ratio
from outsourced.guidance import Context
from outsourced.objectives import Objective, PathLikelihood, Scores
from outsourced.paths import SOURCES, Batch, PathMixture
from outsourced.posterior import Posterior
from outsourced.sampler import NoiseSampler, Path
from outsourced.tasks.base import Observation

Result = tuple[Tensor, dict[str, float]]
REAL = {"simulated": 0.0, "mixed": 0.5, "images": 1.0}  # shares of observations of real images


class Losses:
    """The loss of a likelihood step and of a balance step.

    Args:
        sampler, posterior: The pair being matched.
        objective: Of the balance steps.
        mixture: Draws their paths.
        denoising_steps: Kernels scored for each pair of a likelihood step.
        teacher: Whose draws `distil` learns from.
        draws: Of the teacher for each observation.
        observations: Whose y balance steps, students and transports see: `simulated`, real
            `images`, or `mixed`, half of each.

    Raises:
        ValueError: The objective needs what the sampler or the posterior does not have.
    """

    def __init__(
        self,
        sampler: NoiseSampler,
        posterior: Posterior,
        objective: Objective,
        mixture: PathMixture,
        denoising_steps: int,
        teacher: NoiseSampler | None = None,
        draws: int = 1,
        observations: str = "simulated",
    ):
        self.teacher, self.draws, self.observations = teacher, draws, observations
        self.sampler, self.posterior = sampler, posterior
        self.objective, self.mixture = objective, mixture
        self.denoising_steps = denoising_steps
        self.scored: tuple[Tensor, Tensor] | None = None  # log_weight, log_reward: on-policy if any
        self._ends: tuple[Tensor, Observation] | None = None  # of the last step, for `blame`
        self._check()

    @property
    def anchored(self) -> bool:
        """Whether there is an encoder that `anchor` trains."""
        return hasattr(self.sampler, "anchor")

    def _check(self) -> None:
        needs, name = self.objective.needs, type(self.objective).__name__
        if "flow" in needs and self.sampler.flow is None:
            raise ValueError(f"{name} learns a flow; add sampler.flow=true")
        black_box = self.posterior.black_box
        if needs & {"path_gradient", "reward_gradient"} and black_box is not None:
            raise ValueError(
                f"{name} needs the gradient of log r, but {black_box} is a black box; use "
                "objective=log_variance"
            )
        if "path_gradient" in needs and self.sampler.control.informed not in PATHWISE:
            raise ValueError(
                f"{name} needs sampler.informed=none|anchor, whose inputs carry a path gradient"
            )
        smooth = needs & {"path_gradient", "reward_gradient"}  # of the one Gaussian of a kernel
        if smooth and self.sampler.control.components > 1:
            raise ValueError(
                f"{name} needs sampler.components=1, got {self.sampler.control.components}; use "
                "path_likelihood or a balance objective"
            )
        paths = self.mixture.on + self.mixture.free + self.mixture.known
        if "groups" in needs and paths < 2:
            raise ValueError(
                f"{name} compares the paths of one observation; set paths.n >= 2, got {paths}"
            )

    @property
    def scored_paths(self) -> int:
        """Paths of an observation that annealing reads: the on-policy ones, if they are many."""
        mixture = self.mixture
        return mixture.on if mixture.on >= 4 else mixture.on + mixture.free + mixture.known

    @torch.no_grad()
    def blame(self) -> str:
        """Which quantity of the last step was not finite."""
        if self._ends is None:
            return "before any path was drawn"
        z, obs = self._ends
        value = self.posterior.log_reward(z, obs)
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            return f"log_reward is not finite at {bad} of {value.numel()} draws"
        return "log_reward is finite at all draws, so the sampler has diverged"

    def anchor(self, batch: dict[str, Any], count: int, cpu: torch.Generator) -> Result:
        """Likelihood of simulated z under the anchor head alone: an encoder, no path and no
        prior."""
        z, obs = self._observe(batch, count, cpu)
        self._ends = (z, obs)
        loss = self.sampler.anchor_loss(self.sampler.embed(obs), z).mean()
        value = float(loss.detach())
        return loss, {"loss": value, "loss/anchor": value}

    def _observe(
        self, batch: dict[str, Any], count: int, cpu: torch.Generator
    ) -> tuple[Tensor, Observation]:
        device = self.posterior.device
        x = batch["x"][: max(count, 1)].to(device)  # convolutions refuse batches of nothing
        obs = self.posterior.task.sample(x, generator=cpu)  # type: ignore[operator]
        return batch["z"][:count].to(device), obs[:count]

    def likelihood(
        self, batch: dict[str, Any], count: int, cpu: torch.Generator, device: torch.Generator
    ) -> Result:
        """Forward KL on simulated pairs, from a few kernels of each path."""
        z, obs = self._observe(batch, count, cpu)
        return self._likelihood(z[None], obs, "simulated", device)

    def distil(
        self, batch: dict[str, Any], count: int, cpu: torch.Generator, device: torch.Generator
    ) -> Result:
        """Forward KL on the teacher's draws, whose observations may be of real images too."""
        assert self.teacher is not None
        obs = self._lesson(batch, count, cpu)
        return self._likelihood(self.teacher(obs, self.draws, device), obs, "teacher", device)

    def _lesson(self, batch: dict[str, Any], count: int, cpu: torch.Generator) -> Observation:
        """Observations that a teacher is asked about, of simulated data and of real images."""
        _, obs, images = self._fresh(batch, count, cpu)
        return obs if images is None else Observation.cat([obs, images])

    def _likelihood(
        self, ends: Tensor, obs: Observation, name: str, device: torch.Generator
    ) -> Result:
        """Of ends (n, B, ...) of the posteriors of B observations."""
        self._ends = (ends[0], obs)
        context = self.sampler.encode(obs, len(ends))  # of several anchors, those of its draws
        ratio = denoising_log_ratio(self.sampler, ends, context, self.denoising_steps, device)
        loss = PathLikelihood()(Scores(log_ratio=ratio)).mean()
        figures = {"loss": float(loss.detach()), f"loss/{name}": float(loss.detach())}
        if hasattr(self.sampler, "anchor"):
            anchor = self.sampler.anchor_loss(context.embedding, ends).mean()
            loss = loss + anchor
            figures["loss/anchor"] = float(anchor.detach())
        return loss, figures

    def _fresh(
        self, batch: dict[str, Any], count: int, cpu: torch.Generator
    ) -> tuple[Tensor, Observation, Observation | None]:
        """z and observations of simulated data, and observations of real images, if any."""
        real = round(REAL[self.observations] * count)
        z, obs = self._observe(batch, count - real, cpu)
        if not real:
            return z, obs, None
        pictures = batch["images"][:real].to(z.device)
        return z, obs, self.posterior.task.sample(pictures, generator=cpu)  # type: ignore[operator]

    def balance(
        self, batch: dict[str, Any], groups: int, cpu: torch.Generator, device: torch.Generator
    ) -> Result:
        """The objective on n paths for each of `groups` observations."""
        z, obs, images = self._fresh(batch, groups, cpu)
        plan = self.mixture.plan(z, obs, images, cpu)
        if "path_gradient" in self.objective.needs:
            return self._reverse(plan.obs, device)
        context = self.sampler.encode(plan.obs)
        if "reward_gradient" in self.objective.needs:
            return self._adjoint(context, device)
        drawn = self.mixture.draw(plan, context, cpu, device)
        scores = self._scores(drawn, context)
        loss = self.objective(scores)
        weight = scores.log_weight.detach()
        count = self.scored_paths
        self._keep(weight[:count], drawn.log_reward[:count], drawn.path.end, context.obs)
        return loss.mean(), self._figures(loss.detach(), scores, drawn)

    def _keep(self, log_weight: Tensor, log_reward: Tensor, end: Tensor, obs: Observation) -> None:
        """What annealing and `blame` read: the scores (n, B) and all ends (m, B, ...)."""
        self.scored = (log_weight.detach(), log_reward.detach())
        index = torch.arange(len(obs), device=obs.y.device).repeat(len(end))
        self._ends = (end.detach().flatten(0, 1), obs[index])

    def _scores(self, drawn: Batch, context: Context) -> Scores:
        steps = self.sampler.step_log_ratio(drawn.path, context)
        scores = Scores(log_ratio=steps.sum(0), log_reward=drawn.log_reward)
        if "log_z" in self.objective.needs:
            scores.log_z = self.sampler.log_z(context)
        if "flow" in self.objective.needs:
            scores.step_log_ratio = steps
            scores.log_flow = self.sampler.log_flow(drawn.path, context)
        return scores

    def _figures(self, loss: Tensor, scores: Scores, drawn: Batch) -> dict[str, float]:
        weight = scores.log_weight.detach()
        figures = {"loss": float(loss.mean())}
        if len(weight) > 1:
            figures["log_weight/spread"] = float(weight.std(0).mean())
        for index, name in enumerate(SOURCES):
            chosen = drawn.source == index
            if chosen.any():
                figures[f"loss/{name}"] = float(loss[chosen].mean())
                figures[f"log_weight/{name}"] = float(weight[chosen].mean())
                figures[f"log_reward/{name}"] = float(drawn.log_reward[chosen].mean())
        return figures

    def _reverse(self, obs: Observation, device: torch.Generator) -> Result:
        paths = self.mixture.on + self.mixture.free + self.mixture.known
        path = self.sampler.differentiable_path(obs, paths, device)
        index = torch.arange(len(obs), device=path.z.device).repeat(paths)
        reward = self.posterior.log_reward(path.end.flatten(0, 1), obs[index]).reshape(
            paths, len(obs)
        )
        scores = Scores(log_ratio=path.log_ratio, log_reward=reward)
        loss = self.objective(scores).mean()
        self._keep(scores.log_weight, reward, path.end, obs)
        value = float(loss.detach())
        return loss, {"loss": value, "loss/on_policy": value}

    def _adjoint(self, context: Context, device: torch.Generator) -> Result:
        paths, batch = self.mixture.on + self.mixture.free + self.mixture.known, len(context.obs)
        path: Path = self.sampler.forward_path(context.obs, paths, device, context=context)
        repeated = context.repeat(paths)
        end = path.end.flatten(0, 1)
        reward, gradient = self.posterior.grad_log_reward(end, repeated.obs)
        assert path.log_ratio is not None
        reward = reward.reshape(paths, batch)
        self._keep(reward - path.log_ratio, reward, path.end, context.obs)
        shift, target = adjoint_pair(
            self.sampler, end, gradient, repeated, self.denoising_steps, device
        )
        loss = self.objective(Scores(shift=shift, target=target)).mean() * self.sampler.steps
        value = float(loss.detach())
        return loss, {"loss": value, "loss/on_policy": value}
