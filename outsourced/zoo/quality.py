"""How good an embedded Fashion-MNIST prior is: the measures of the cards and of the table."""

from __future__ import annotations

import math
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from outsourced.classifiers import FashionFeatures
from outsourced.metrics import frechet
from outsourced.priors import Prior

CHUNK = 500  # images a forward pass of the network, and rows of a distance matrix
NOISE = 0.1  # standard deviation of the noisy bracket, in units of [-1, 1]


class Judge:
    """Real images, the evaluation network, and what they say about a set of images.

    The Fréchet distance is that between the fashion_features of the judged images and those of all
    test images, which the network has not been trained on either.

    Args:
        train: training images in [-1, 1], (N, C, H, W).
        test: test images in [-1, 1], (M, C, H, W).
        network: the evaluation network.
    """

    def __init__(self, train: Tensor, test: Tensor, network: FashionFeatures) -> None:
        self.train, self.test, self.network = train, test, network
        self.features = self._features(test)

    @torch.no_grad()
    def _features(self, x: Tensor) -> Tensor:
        return torch.cat([self.network.features(part) for part in x.split(CHUNK)])

    @torch.no_grad()
    def fidelity(self, x: Tensor) -> dict[str, float]:
        """Fréchet distance to the test images, and the histogram of the predicted classes.

        Args:
            x: images in [-1, 1], (B, C, H, W), more than features for a full-rank covariance.

        Returns:
            frechet: the distance on fashion_features; entropy of the shares of the classes, in
            nats; classes: its exponential, an effective number of classes; smallest_share: that of
            the rarest class.
        """
        features = self._features(x)
        guess = self.network.logits(features).argmax(1)
        shares = guess.bincount(minlength=self.network.classes).double() / len(x)
        spread = entropy(shares)
        return {
            "frechet": frechet(features, self.features),
            "entropy": spread,
            "classes": math.exp(spread),
            "smallest_share": shares.min().item(),
        }

    def copying(self, x: Tensor, independent: bool = True) -> dict[str, float]:
        """Whether images are copies of training images.

        Args:
            x: images in [-1, 1], (B, C, H, W).
            independent: whether the images are not test images themselves.

        Returns:
            nearest_median and nearest_low: median and 1st percentile of the root-mean-square
            distance to the nearest training image. And, of independent images, nearer_train: the
            share of images that are nearer to a training image than to any test image. It is N / (N
            + M) for draws that know nothing of either, and 1 for copies (after Meehan, Chaudhuri &
            Dasgupta, 2020, arXiv 2004.05675); smooth images, near to everything, do not disturb it.
        """
        near = nearest_distance(x, self.train)
        found = {
            "nearest_median": near.median().item(),
            "nearest_low": near.quantile(0.01).item(),
        }
        if independent:
            nearer = near < nearest_distance(x, self.test)
            found["nearer_train"] = nearer.double().mean().item()
        return found

    @property
    def unlearned(self) -> float:
        """`nearer_train` of draws that know nothing of the training images."""
        return len(self.train) / (len(self.train) + len(self.test))


def entropy(shares: Tensor) -> float:
    """Entropy of a distribution over classes in nats; empty classes count 0."""
    return -torch.special.xlogy(shares, shares).sum().item()


def nearest_distance(x: Tensor, reference: Tensor) -> Tensor:
    """Root-mean-square pixel distance of each image to its nearest one in the reference.

    Args:
        x: images, (N, ...).
        reference: images, (M, ...).

    Returns:
        distances in image units, (N,).
    """
    flat, others = x.flatten(1), reference.flatten(1)
    near = torch.cat([torch.cdist(part, others).amin(1) for part in flat.split(CHUNK)])
    return near / math.sqrt(flat.shape[1])


def blurred(x: Tensor) -> Tensor:
    """Each pixel replaced by the mean of its 3×3 neighbourhood: (B, C, H, W) -> (B, C, H, W)."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def noisy(x: Tensor, seed: int) -> Tensor:
    """Gaussian noise of standard deviation 0.1 added, and clamped to [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return (x + NOISE * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


@torch.no_grad()
def draw(prior: Prior, n: int, seed: int, chunk: int = 64, progress: bool = False) -> Tensor:
    """Samples of a prior.

    Args:
        prior: the prior.
        n: number of samples.
        seed: of the noise; the samples do not depend on the chunk.
        chunk: samples a call.
        progress: show a bar.

    Returns:
        x = f(z), z ~ N(0, I), (n, *data_shape).
    """
    from tqdm import tqdm

    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, *prior.noise_shape, generator=generator)
    parts = tqdm(z.split(chunk), unit="batch", disable=not progress, leave=False)
    return torch.cat([prior(part) for part in parts])


@torch.no_grad()
def sampling_seconds(prior: Prior, n: int = 64, repeats: int = 5) -> float:
    """Median wall-clock seconds of drawing n samples at once, after one call that warms up."""
    z = torch.randn(n, *prior.noise_shape, generator=torch.Generator().manual_seed(0))
    prior(z)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        prior(z)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def save_samples(x: Tensor, path: Path, columns: int = 16, scale: int = 2) -> None:
    """Write images as a grid to a PNG.

    Args:
        x: images in [-1, 1], (B, C, H, W).
        path: the PNG to write.
        columns: images of a row.
        scale: pixels of the file for each pixel of an image.
    """
    from torchvision.utils import make_grid, save_image

    grid = make_grid(x, nrow=columns, value_range=(-1, 1), normalize=True, pad_value=1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(F.interpolate(grid[None], scale_factor=scale)[0], path)
