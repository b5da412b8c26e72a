"""What samples of held-out images are worth: fidelity, distances on named features, residuals."""

from __future__ import annotations

import torch
from torch import Tensor

from outsourced.classifiers import FashionFeatures
from outsourced.evaluation import against_truth, residuals
from outsourced.metrics import frechet, perceptual
from outsourced.posterior import Posterior
from outsourced.solvers.base import Samples
from outsourced.tasks.base import Observation


class Judge:
    """The truth behind observations, other real images, and the network whose features compare.

    Args:
        x: images behind the observations, (B, C, H, W).
        others: real images that nobody observed, (M, C, H, W), on the same device.
        network: the evaluation network.
    """

    def __init__(self, x: Tensor, others: Tensor, network: FashionFeatures) -> None:
        self.x, self.network = x, network.to(x.device)
        with torch.no_grad():
            self.maps, self.features = network.maps(x), network.features(others)

    @torch.no_grad()
    def frechet(self, x: Tensor) -> float:
        """Fréchet distance of a set of images (B, C, H, W) from the others, on their features."""
        return frechet(self.network.features(x), self.features)

    @torch.no_grad()
    def truth(self, posterior: Posterior, obs: Observation) -> dict[str, float]:
        """What the observed images themselves score."""
        alone = Samples(self.x[None], self.x[None], None, 0, 0.0)
        residual = residuals(posterior, alone, obs).double().mean()
        return {"frechet": self.frechet(self.x), "residual": float(residual)}

    @torch.no_grad()
    def __call__(
        self, posterior: Posterior, samples: Samples, obs: Observation
    ) -> dict[str, float]:
        """Averages over n samples of each of the B observations.

        The Fréchet distance is that of B images, one sample of each observation, averaged over the
        n such sets; the standard deviation is the root mean square over pixels and observations.
        """
        fidelity = against_truth(samples, self.x)
        values = {name: float(value.double().mean()) for name, value in fidelity.items()}
        distance = [perceptual(self.network.maps(x), self.maps).mean() for x in samples.x]
        values["perceptual"] = float(torch.stack(distance).mean())
        values["frechet"] = sum(self.frechet(x) for x in samples.x) / len(samples.x)
        values["residual"] = float(residuals(posterior, samples, obs).double().mean())
        if len(samples.x) > 1:
            values["std"] = float(samples.x.double().var(0).mean().sqrt())
        return values
