"""Recipe of the embedded Fashion-MNIST GAN: `python -m outsourced.zoo.fashion_gan`.

Trains on all 60 000 images with the relativistic pairing loss (Jolicoeur-Martineau, 2018, arXiv
1807.00734) and zero-centred gradient penalties on real and generated images (R1: Mescheder et al.,
2018, arXiv 1801.04406; both: Huang et al., 2024, arXiv 2501.05441). Pairing each generated image
with a real one keeps all garments in play, the penalties make the game converge; neither needs a
normalisation or a statistic over the batch.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from outsourced.allocator import keep_freed_memory
from outsourced.data import load_fashion_mnist, to_model_range
from outsourced.priors.gan import GAN, preserve_variance
from outsourced.weights import ZOO_WEIGHTS

PENALTY_EVERY = 8  # steps; the penalty is scaled up by as much (Karras et al., 2020)


class Discriminator(nn.Module):
    """Strided convolutions from a 32×32 image to one score, higher for real ones.

    Args:
        planes: channels of the image.
        channels: channels of the first convolution, doubled twice.
    """

    def __init__(self, planes: int = 1, channels: int = 32) -> None:
        super().__init__()
        sizes = (planes, channels, 2 * channels, 4 * channels)
        layers: list[nn.Module] = []
        for size_in, size_out in itertools.pairwise(sizes):
            layers += [nn.Conv2d(size_in, size_out, 4, stride=2, padding=1), nn.SiLU()]
        layers += [nn.Conv2d(sizes[-1], sizes[-1], 4), nn.SiLU(), nn.Flatten()]
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))
        self.apply(preserve_variance)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of images, (B, C, 32, 32) -> (B,)."""
        return self.net(x).squeeze(1).float()


def gradient_penalty(discriminator: nn.Module, x: Tensor) -> Tensor:
    """Squared norm of the score's gradient at each image, (B,), itself differentiable."""
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    return gradient.float().square().flatten(1).sum(1)


def discriminator_loss(scores_real: Tensor, scores_fake: Tensor) -> Tensor:
    """Mean of −log sigmoid(D(real) − D(fake)) over the pairs; swapped, it is the generator's."""
    return F.softplus(scores_fake - scores_real).mean()


def generator_step_loss(gan: GAN, discriminator: nn.Module, real: Tensor, z: Tensor) -> Tensor:
    """The generator's loss against the scores of real images, which it cannot move."""
    scores = discriminator(torch.cat([gan(z).float(), real]))
    fake, anchor = scores.chunk(2)
    return discriminator_loss(fake, anchor.detach())


def discriminator_step_loss(
    discriminator: nn.Module, real: Tensor, fake: Tensor, penalty: float
) -> Tensor:
    """The discriminator's loss, with both gradient penalties of weight `penalty` / 2 if it is > 0.

    Args:
        discriminator: images (B, C, H, W) -> scores (B,).
        real: real images, (B, C, H, W).
        fake: generated images, (B, C, H, W); no gradient flows into them.
        penalty: weight of the sum of the two mean squared gradient norms, times two.
    """
    both = torch.cat([real, fake.detach()])
    scores_real, scores_fake = discriminator(both).chunk(2)
    loss = discriminator_loss(scores_real, scores_fake)
    if penalty > 0:
        # A mean over both halves is half the sum of the two means.
        loss = loss + penalty * gradient_penalty(discriminator, both).mean()
    return loss


def train(
    gan: GAN,
    discriminator: Discriminator,
    images: Tensor,
    steps: int,
    batch: int,
    rate: float,
    penalty: float,
    seed: int,
) -> GAN:
    """Play the two-player game with Adam, learning rates that decay, and an average of the weights.

    Args:
        gan: the generator, changed in place.
        discriminator: its opponent, changed in place.
        images: uint8 (N, 28, 28).
        steps: updates of each player.
        batch: real images, and generated ones, a step.
        rate: learning rate of both players for the first half; it then falls linearly to a tenth.
        penalty: weight of the gradient penalties.
        seed: seed of the order of the images and of the noise.

    Returns:
        the exponential moving average of the generator.
    """
    from tqdm import trange

    generator = torch.Generator().manual_seed(seed)
    gan.requires_grad_(True)
    for network in (gan, discriminator):
        network.to(memory_format=torch.channels_last)
    average = AveragedModel(gan, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    players = [
        torch.optim.Adam(network.parameters(), lr=rate, betas=(0.0, 0.99))
        for network in (gan, discriminator)
    ]
    x_all = to_model_range(images)
    progress = trange(steps, unit="step", mininterval=5)
    for step in progress:
        for player in players:
            player.param_groups[0]["lr"] = rate * min(1.0, 1.9 - 1.8 * step / steps)
        real = x_all[torch.randint(len(x_all), (batch,), generator=generator)]
        z, other = (torch.randn(batch, *gan.noise_shape, generator=generator) for _ in range(2))
        due = penalty * PENALTY_EVERY if step % PENALTY_EVERY == 0 else 0.0
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            fake = gan(other).float()
        with torch.autocast("cpu", torch.bfloat16):
            scored = discriminator_step_loss(discriminator, real, fake, due)
        _update(players[1], scored)
        discriminator.requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16):
            fooled = generator_step_loss(gan, discriminator, real, z)
        _update(players[0], fooled)
        discriminator.requires_grad_(True)
        average.update_parameters(gan)
        if step % 50 == 0:
            progress.set_postfix(scored=f"{scored.item():.3f}", fooled=f"{fooled.item():.3f}")
    gan.freeze()
    trained = cast(GAN, average.module)
    trained.freeze()
    return trained


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ZOO_WEIGHTS / "fashion_gan.safetensors")
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--penalty", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the full data set lies")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    images, _ = load_fashion_mnist("train", args.folder)
    torch.manual_seed(args.seed)
    recipe = {name: getattr(args, name) for name in ("steps", "batch", "rate", "penalty", "seed")}
    trained = train(GAN(), Discriminator(), images, **recipe)
    trained.save_weights(args.out, {name: str(value) for name, value in recipe.items()})
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
