"""What a sampler is worth on given observations: evidence bounds, residuals, image quality."""

from copy import copy
from pathlib import Path

import torch
from torch import Tensor

from outsourced.figures import posterior_figure
from outsourced.metrics import evidence, image
from outsourced.posterior import Posterior
from outsourced.sampler import NoiseSampler
from outsourced.solvers.amortized import Amortized
from outsourced.solvers.base import Samples, tile
from outsourced.tasks.base import Observation
from outsourced.tasks.measurement import Measurement

SCORED = 4  # samples of an observation whose image quality is averaged; SSIM is the slow part


@torch.no_grad()
def upper_bound(
    sampler: NoiseSampler,
    posterior: Posterior,
    obs: Observation,
    z: Tensor,
    n: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """EUBO of each observation, n paths from its exact posterior draw z (B, *noise_shape): (B,)."""
    path = sampler.backward_path(z.expand(n, *z.shape), generator)
    log_weight = posterior.log_reward(z, obs) - sampler.log_ratio(path, obs)
    return evidence.eubo(log_weight)


@torch.no_grad()
def residuals(posterior: Posterior, samples: Samples, obs: Observation) -> Tensor:
    """Root-mean-square residual of each sample in units of sigma, (n, B); needs a `Measurement`."""
    task = posterior.task
    assert isinstance(task, Measurement)
    tiled = tile(obs, samples.x.shape[0])
    whitened = task.whitened_residual(samples.x.flatten(0, 1), tiled)
    return image.residual(whitened, task.count(tiled)).unflatten(0, samples.x.shape[:2])


def summary(posterior: Posterior, samples: Samples, obs: Observation) -> dict[str, Tensor]:
    """Figures of merit of each observation, (B,) each: those that need no truth."""
    figures: dict[str, Tensor] = {}
    weight = samples.proposal_log_weight
    if weight is not None:
        figures |= {
            "elbo": evidence.elbo(weight),
            "log_z": evidence.log_z(weight),
            "ess": evidence.ess(weight),
        }
    figures |= _worst(samples.diagnostics)
    if isinstance(posterior.task, Measurement):
        figures["residual"] = residuals(posterior, samples, obs).mean(0)
    return figures


def _worst(diagnostics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each diagnostic as one number per observation: worst coordinate, or mean over chains."""
    reduce = {
        "rhat": lambda value: value.amax(1),
        "ess_bulk": lambda value: value.amin(1),
        "acceptance": lambda value: value.mean(1),
    }
    known = ("log_z", "log_z_std")
    figures = {name: diagnostics[name] for name in known if name in diagnostics}
    for name, function in reduce.items():
        if name in diagnostics:
            figures[name] = function(diagnostics[name].reshape(len(diagnostics[name]), -1))
    return figures


def against_truth(samples: Samples, truth: Tensor) -> dict[str, Tensor]:
    """PSNR and SSIM of samples and of their mean against images x (B, C, H, W), (B,) each.

    Single samples count as equal, and the first `SCORED` of each observation are enough.
    """
    n = min(SCORED, samples.x.shape[0])
    repeated = truth.repeat(n, *[1] * (truth.ndim - 1))
    flat, mean = samples.x[:n].flatten(0, 1), samples.x.mean(0)
    return {
        "psnr": image.psnr(flat, repeated).unflatten(0, (n, -1)).mean(0),
        "ssim": image.ssim(flat, repeated).unflatten(0, (n, -1)).mean(0),
        "psnr_of_mean": image.psnr(mean, truth),
        "ssim_of_mean": image.ssim(mean, truth),
    }


def averages(figures: dict[str, Tensor]) -> dict[str, float]:
    """Mean of each figure over observations; ESS also as median."""
    values = {name: float(value.double().mean()) for name, value in figures.items()}
    if "ess" in figures:
        values["ess_median"] = float(figures["ess"].double().median())
    return values


def figure(
    posterior: Posterior, samples: Samples, obs: Observation, truth: Tensor | None, path: Path
) -> bool:
    """Draw samples beside their observation, if both can be shown; returns whether they were.

    Measurements that are no pictures are shown as A^T y. A figure takes >= 2 samples.
    """
    n, channels = samples.x.shape[0], samples.x.shape[2:][:1]
    if n < 2 or samples.x.ndim != 5 or channels[0] not in (1, 3):
        return False
    shown, mask = obs.y, obs.params.get("mask")
    if shown.ndim != 4 or shown.shape[1] not in (1, 3):
        task = posterior.task
        if not (isinstance(task, Measurement) and task.linear):
            return False
        shown, mask = task.adjoint(obs.y, obs.params), None
    if mask is not None:
        fits = mask.ndim == 4 and mask.shape[2:] == shown.shape[2:]
        mask = mask.amin(1, keepdim=True) if fits else None
    posterior_figure(truth, shown, samples.x, mask, path)
    return True


class Evaluator:
    """Figures of merit on a fixed set of simulated observations and one of held-out images.

    Args:
        sampler, posterior: The pair under test.
        images: Held-out images (N, C, H, W), or None.
        observations: Number of observations of each kind.
        n: Samples for each.
        seed: Of observations and samples.

    Raises:
        ValueError: Numbers below 1.
    """

    shown = 6  # observations in a figure

    def __init__(
        self,
        sampler: NoiseSampler,
        posterior: Posterior,
        images: Tensor | None,
        observations: int,
        n: int,
        seed: int = 0,
    ):
        for name, value in (("observations", observations), ("n", n)):
            if value < 1:
                raise ValueError(f"evaluate.{name} must be >= 1, got {value}")
        generator = torch.Generator().manual_seed(seed + 7)
        self.sampler, self.posterior, self.n, self.seed = sampler, posterior, n, seed
        self.z, self.x, self.simulated = posterior.simulate(observations, generator)
        self.images = None if images is None else images[:observations]
        self.real: Observation | None = None
        if self.images is not None:
            x = self.images.to(posterior.device)  # where the operator is
            self.real = posterior.task.sample(x, generator=generator)  # type: ignore[operator]

    def of(self, sampler: NoiseSampler) -> "Evaluator":
        """The same evaluation of another sampler of the posterior."""
        other = copy(self)
        other.sampler = sampler
        return other

    def _generator(self, device: torch.device) -> torch.Generator:
        return torch.Generator(device).manual_seed(self.seed)

    def draw(self, obs: Observation, n: int) -> Samples:
        """Samples of the sampler under test."""
        self.sampler.to(self.posterior.device)  # Lightning leaves it on the CPU after a training
        generator = self._generator(self.posterior.device)
        return Amortized(self.sampler, self.posterior)(obs.to(self.posterior.device), n, generator)

    def __call__(self) -> dict[str, float]:
        """All figures, prefixed by the kind of observation; `gap` is EUBO - ELBO, at beta = 1."""
        device, calls = self.posterior.device, self.posterior.prior_calls
        figures = self._figures("simulated", self.simulated, self.x)
        # At another beta the simulated z are no posterior draws.
        if self.posterior.beta == 1 and self.sampler.weighted:
            pair = self.simulated.to(device), self.z.to(device)
            eubo = upper_bound(self.sampler, self.posterior, *pair, 8, self._generator(device))
            figures["simulated/eubo"] = float(eubo.mean())
            figures["simulated/gap"] = figures["simulated/eubo"] - figures["simulated/elbo"]
        if self.real is not None:
            assert self.images is not None
            figures |= self._figures("real", self.real, self.images)
        self.posterior.prior_calls = calls  # evaluation is not training
        return figures

    def picture(self, path: Path) -> bool:
        """Draw samples for a few of the observations, held-out ones if there are any."""
        device, calls = self.posterior.device, self.posterior.prior_calls
        obs, truth = self.simulated, self.x
        if self.real is not None and self.images is not None:
            obs, truth = self.real, self.images
        obs, truth = obs[: self.shown].to(device), truth[: self.shown].to(device)
        written = figure(self.posterior, self.draw(obs, 16), obs, truth, path)
        self.posterior.prior_calls = calls
        return written

    def _figures(self, kind: str, obs: Observation, truth: Tensor) -> dict[str, float]:
        samples = self.draw(obs, self.n)
        figures = summary(self.posterior, samples, obs.to(samples.x.device))
        if truth.ndim == 4:
            figures |= against_truth(samples, truth.to(samples.x.device))
        values = averages(figures)
        values["seconds"] = samples.seconds / (self.n * len(obs))
        return {f"{kind}/{name}": value for name, value in values.items()}
