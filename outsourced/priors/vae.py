"""A small variational autoencoder (Kingma & Welling, 2014, arXiv 1312.6114) as a prior."""

from __future__ import annotations

import torch
from torch import Tensor

from outsourced.priors.base import Prior
from outsourced.priors.vae_networks import Decoder, Encoder, Flow
from outsourced.weights import Embedded


class VAE(Embedded, Prior):
    """A variational autoencoder with a learned prior: x = decoder(flow(z)), z ~ N(0, I).

    The flow maps noise to the aggregate of the encoder's posteriors (Chen et al., 2017, arXiv
    1611.02731), so that prior samples land where the decoder was trained.
    `VAE.from_weights("fashion_vae")` gives the embedded Fashion-MNIST prior.

    Args:
        latent: dimension of the noise z and of the code h; even.
        width: width of the decoder's residual stream.
        hidden: inner width of its residual blocks.
        blocks: number of residual blocks.
        channels: channels of the encoder's first convolution.
        couplings: number of couplings of the flow.
        flow_hidden: width of the networks of the couplings.
        image_shape: (C, H, W) of x.
        sigma: standard deviation of the Gaussian decoder, in units of [-1, 1] images; the prior
            is the decoder's mean, so sigma enters only the ELBO of the model.

    Raises:
        ValueError: a size or sigma is not positive, the latent dimension is odd, or the image
            size is not divisible by 8.
    """

    embedded = "fashion_vae"

    def __init__(
        self,
        latent: int = 16,
        width: int = 512,
        hidden: int = 256,
        blocks: int = 2,
        channels: int = 16,
        couplings: int = 6,
        flow_hidden: int = 128,
        image_shape: tuple[int, ...] = (1, 32, 32),
        sigma: float = 0.3,
    ) -> None:
        sizes = {
            "latent": latent,
            "width": width,
            "hidden": hidden,
            "blocks": blocks,
            "channels": channels,
            "couplings": couplings,
            "flow_hidden": flow_hidden,
        }
        for name, size in (sizes | {"sigma": sigma}).items():
            if size <= 0:
                raise ValueError(f"VAE.{name} must be > 0, got {size}")
        if latent % 2:
            raise ValueError(f"VAE.latent must be even, got {latent}")
        super().__init__((latent,), tuple(image_shape))
        self.config = {**sizes, "image_shape": list(image_shape), "sigma": float(sigma)}
        self.sigma = float(sigma)
        self.encoder = Encoder(latent, channels, image_shape)
        self.flow = Flow(latent, flow_hidden, couplings)
        self.decoder = Decoder(latent, width, hidden, blocks, image_shape)
        self.freeze()

    def forward(self, z: Tensor) -> Tensor:
        """Decode noise.

        Args:
            z: noise, (B, latent).

        Returns:
            images in (-1, 1), (B, C, H, W).
        """
        return self.decoder(self.flow(z))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the noise that explains an image.

        The encoder's Gaussian lives in the code h; it is carried to z through the inverse flow,
        linearised at its mean, and only the diagonal of the covariance is kept.

        Args:
            x: images in [-1, 1], (B, C, H, W).

        Returns:
            mean and std, (B, latent) each; forward(mean) is the reconstruction.
        """
        h, logvar = self.encoder(x)
        columns = []
        for axis in torch.eye(h.shape[-1], dtype=h.dtype, device=h.device):
            tangent = axis.expand_as(h).contiguous()
            pushed = torch.func.jvp(lambda code: self.flow.inverse(code)[0], (h,), (tangent,))
            columns.append(pushed[1])
        jacobian = torch.stack(columns, dim=-1)
        variance = (jacobian.square() * logvar.exp().unsqueeze(-2)).sum(-1)
        return self.flow.inverse(h)[0], variance.sqrt()
