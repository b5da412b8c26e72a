"""Training losses of transports: denoising of latents, regression of the encoder, and the endpoints
of a teacher."""

from math import prod
from typing import Any

import torch
from torch import Tensor

from outsourced.bank import LATENTS, PairBank
from outsourced.losses import Losses, Result
from outsourced.objectives import PathLikelihood
from outsourced.tasks.base import Observation
from outsourced.transport import NoiseTransport

MOMENTS = 4096  # draws of the prior behind the mean and covariance of a first estimate,
BYTES = 2**30  # and how much memory they may take: fewer of large images, but more than axes


class MatchingLosses(Losses):
    """The loss of a transport: denoising of latents beside observations of their images.

    Of simulated pairs the latents are posterior draws. Of real images, if `observations` has some,
    they are what the prior's encoder makes of them: then samples also allow for what the decoder
    cannot show, and follow the images' own frequencies in that share.

    Attributes:
        latents: Of the rows of the bank, by `store`.
    """

    sampler: NoiseTransport  # type: ignore[assignment]
    latents: Tensor
    anchored = True

    def _check(self) -> None:
        if not isinstance(self.objective, PathLikelihood):
            raise ValueError(
                "sampler=transport learns pairs of latents and y; use objective=path_likelihood, "
                f"got {type(self.objective).__name__}"
            )

    def store(self, bank: PairBank) -> None:
        """Latents of all rows of the bank, and the moments of its data for first estimates.

        Raises:
            ValueError: The bank is too small for the principal axes.
        """
        about, posterior = self.sampler.about, self.posterior
        if about is not None:
            if len(bank) <= len(about.axes):
                raise ValueError(
                    f"data.bank_size must be > sampler.axes = {len(about.axes)}, got {len(bank)}"
                )
            each = 4 * prod(posterior.data_shape)
            count = min(MOMENTS, len(bank), max(BYTES // each, len(about.axes) + 1))
            about.fill(bank.rows(torch.arange(count))[1])
        self.latents = bank.column(LATENTS, lambda z: posterior.denoise(z.to(posterior.device)))

    def anchor(self, batch: dict[str, Any], count: int, cpu: torch.Generator) -> Result:
        """Likelihood of latents under the encoder's Gaussian alone."""
        h, obs = self._latents(batch, count, cpu)
        loss = self.sampler.regression_loss(h, obs).mean()
        value = float(loss.detach())
        return loss, {"loss": value, "loss/anchor": value}

    def likelihood(
        self, batch: dict[str, Any], count: int, cpu: torch.Generator, device: torch.Generator
    ) -> Result:
        """Denoising score matching on pairs of latents and observations."""
        h, obs = self._latents(batch, count, cpu)
        loss = self.sampler.matching_loss(h, obs, self.denoising_steps, device).mean()
        value = float(loss.detach())
        return loss, {"loss": value, "loss/pairs": value}

    def distil(
        self, batch: dict[str, Any], count: int, cpu: torch.Generator, device: torch.Generator
    ) -> Result:
        """Squared distance of the latents that a teacher and its student carry the same noise to
        (Luhman & Luhman, 2021, arXiv 2101.02388); observations may be of real images, too."""
        teacher: Any = self.teacher
        obs = self._lesson(batch, count, cpu)
        own = self.sampler.encode(obs).repeat(self.draws)
        shape = (len(own.obs), *self.sampler.noise_shape)
        noise = torch.randn(shape, generator=device, device=obs.y.device)
        with torch.no_grad():
            wanted = teacher.latents(noise, teacher.encode(obs).repeat(self.draws))
        self._ends = (noise, own.obs)
        loss = (self.sampler.latents(noise, own) - wanted).square().mean()
        value = float(loss.detach())
        return loss, {"loss": value, "loss/teacher": value}

    def _latents(
        self, batch: dict[str, Any], count: int, cpu: torch.Generator
    ) -> tuple[Tensor, Observation]:
        """Latents of the bank's rows, and of what the encoder makes of real images, and
        observations of the images behind them."""
        z, obs, images = self._fresh(batch, count, cpu)
        self._ends = (z, obs)
        latents = self.latents[batch["rows"][: len(z)]].to(z)
        if images is None:
            return latents, obs
        encoded = self.posterior.encode_images(batch["images"][: len(images)].to(z))
        return torch.cat([latents, encoded]), Observation.cat([obs, images])
