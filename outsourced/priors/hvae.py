"""A hierarchical variational autoencoder with spatial latents as a prior."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from outsourced.priors.base import Prior
from outsourced.priors.hvae_networks import Encoder, Level, Picture
from outsourced.weights import Embedded

# (features at a level, level) -> its standardised noise
Source = Callable[[Tensor, int], Tensor]


class HVAE(Embedded, Prior):
    """A hierarchical variational autoencoder: x = decoder(h), h built level by level from z.

    The latents of a level are mean(parents) + std(parents) · ε, ε ~ N(0, I), where the parents
    enter through the features h that the levels above have left; the noise z is the ε of all
    levels, flattened and concatenated from the top down (Sønderby et al., 2016, arXiv 1602.02282;
    Vahdat & Kautz, 2020, arXiv 2007.03898; Child, 2021, arXiv 2011.10650). The approximate
    posterior is Gaussian in ε given the features and the image, which is the residual
    parametrisation of Vahdat & Kautz (eq. 4): its divergence to the prior does not depend on the
    scale of the latents. `HVAE.from_weights("fashion_hvae")` gives the embedded Fashion-MNIST
    prior.

    Args:
        levels: (channels, side) of each level's latents from the top down; sides are 1, or double
            from 4 up to at most half of the image's; a side of 1 is a vector.
        widths: channels of h at each of the sides 1, 4, 8, ... up to half of the image's.
        features: channels of the encoder at a quarter of the image's side; half as many at half
            of it, doubled at each coarser side; even.
        image_shape: (C, H, W) of x, H = W.
        sigma: standard deviation of the Gaussian decoder, in units of [-1, 1] images; the prior is
            the decoder's mean, so sigma enters only the ELBO of the model.

    Raises:
        ValueError: a size or sigma is not positive, or the sides and widths do not fit together.
    """

    embedded = "fashion_hvae"

    def __init__(
        self,
        levels: Sequence[Sequence[int]] = ((4, 1), (8, 1), (1, 4), (2, 4)),
        widths: Sequence[int] = (256, 96, 48, 32),
        features: int = 32,
        image_shape: Sequence[int] = (1, 32, 32),
        sigma: float = 0.25,
    ) -> None:
        _check(levels, widths, features, image_shape, sigma)
        shapes = [(channels, side, side) for channels, side in levels]
        super().__init__((sum(torch.Size(s).numel() for s in shapes),), tuple(image_shape))
        self.config = {
            "levels": [list(level) for level in levels],
            "widths": list(widths),
            "features": features,
            "image_shape": list(image_shape),
            "sigma": float(sigma),
        }
        self.shapes = shapes
        self.sigma = float(sigma)
        width = dict(zip(_sides(image_shape[-1]), widths, strict=True))
        sides = [side for _, side in levels]
        self.start = nn.Parameter(torch.randn(1, width[1], 1, 1))
        self.encoder = Encoder(image_shape, features, sorted(set(sides)))
        self.levels: Any = nn.ModuleList(
            Level(channels, width[before], width[side], self.encoder.channels[side], (before, side))
            for channels, (before, side) in zip(
                [channels for channels, _ in levels],
                itertools.pairwise([1, *sides]),
                strict=True,
            )
        )
        below = {side: size for side, size in width.items() if side >= sides[-1]}
        self.picture = Picture(below, image_shape[0])
        self.freeze()

    def forward(self, z: Tensor) -> Tensor:
        """Decode noise.

        Args:
            z: the ε of all levels, flattened, (B, D).

        Returns:
            images in (-1, 1), (B, C, H, W).
        """
        noise = self.split(z)
        return self.decode(lambda h, level: noise[level], len(z))

    def split(self, z: Tensor) -> list[Tensor]:
        """The noise of each level, top down: (B, D) to a list of (B, channels, side, side)."""
        sizes = [torch.Size(shape).numel() for shape in self.shapes]
        parts = z.split(sizes, dim=-1)
        return [part.unflatten(-1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def decode(self, source: Source, n: int) -> Tensor:
        """Build the features level by level and paint the image.

        Args:
            source: called as source(h, level) from the top down, with the features (B, ...) that
                the level sees; returns the level's noise ε, (B, channels, side, side).
            n: number of images.

        Returns:
            images in (-1, 1), (n, C, H, W).
        """
        h = self.start.expand(n, -1, -1, -1)
        for index, level in enumerate(self.levels):
            h = level.features(h)
            h = level.absorb(h, source(h, index))
        return self.picture(h)

    def infer(
        self, x: Tensor, draw: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Run the approximate posterior from the top down.

        Args:
            x: images in [-1, 1], (B, C, H, W).
            draw: the ε to go on with, from the posterior's mean and log standard deviation.

        Returns:
            the decoded image, (B, C, H, W), and for each level the mean and the log standard
            deviation of ε given the image and the ε above, (B, channels, side, side) each.
        """
        seen = self.encoder(x)
        terms: list[tuple[Tensor, Tensor]] = []

        def source(h: Tensor, index: int) -> Tensor:
            side = self.shapes[index][-1]
            mean, log_std = self.levels[index].posterior(h, seen[side])
            terms.append((mean, log_std))
            return draw(mean, log_std)

        return self.decode(source, len(x)), terms

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the noise that explains an image.

        Below the top they are conditional on the means above.

        Args:
            x: images in [-1, 1], (B, C, H, W).

        Returns:
            mean and std, (B, D) each; forward(mean) is the reconstruction.
        """
        _, terms = self.infer(x, lambda mean, log_std: mean)
        mean = torch.cat([mean.flatten(1) for mean, _ in terms], dim=1)
        log_std = torch.cat([log_std.flatten(1) for _, log_std in terms], dim=1)
        return mean, log_std.exp()


def _sides(image_side: int) -> list[int]:
    """1, then 4, 8, ... up to half of the image's side."""
    sides = [1]
    while (side := max(4, 2 * sides[-1])) < image_side:
        sides.append(side)
    return sides


def _check(
    levels: Sequence[Sequence[int]],
    widths: Sequence[int],
    features: int,
    image_shape: Sequence[int],
    sigma: float,
) -> None:
    for name, value in {"features": features, "sigma": sigma}.items():
        if value <= 0:
            raise ValueError(f"HVAE.{name} must be > 0, got {value}")
    _, height, side = image_shape
    if height != side or side < 8 or side & (side - 1):
        raise ValueError(
            f"HVAE.image_shape must be square with a side of 8, 16, 32, ..., got "
            f"{tuple(image_shape)}; pad the images"
        )
    sides = _sides(side)
    if len(widths) != len(sides) or min(widths) <= 0:
        raise ValueError(
            f"HVAE.widths must hold one number > 0 for each of the sides {sides}, got "
            f"{list(widths)}"
        )
    given = [level[-1] for level in levels]
    if not levels or min(channels for channels, _ in levels) <= 0:
        raise ValueError(f"HVAE.levels must be pairs (channels > 0, side), got {list(levels)}")
    steps = [1, *given]
    allowed = all(
        b == a or sides.index(b) == sides.index(a) + 1
        for a, b in itertools.pairwise(steps)
        if b in sides and a in sides
    )
    if not allowed or any(side not in sides for side in given):
        raise ValueError(
            f"HVAE.levels must have sides that start at 1 or 4, and stay or move one further in "
            f"{sides}, got {given}"
        )
