"""Recipe of the embedded Fashion-MNIST VAE: `python -m outsourced.zoo.fashion_vae`.

Trains on all 60 000 images with the evidence lower bound (Kingma & Welling, 2014) under a flow
prior on the code (Chen et al., 2017, arXiv 1611.02731) and a Gaussian decoder of fixed standard
deviation. Sigma trades reconstruction for prior samples: a larger one makes the codes of
different garments overlap, which leaves fewer holes for the flow to bridge.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from outsourced.allocator import keep_freed_memory
from outsourced.data import load_fashion_mnist, to_model_range
from outsourced.priors.vae import VAE
from outsourced.weights import ZOO_WEIGHTS
from outsourced.zoo import evaluate as measures
from outsourced.zoo.quality import blurred, nearest_distance, sampling_seconds


def elbo_terms(
    vae: VAE, x: Tensor, generator: torch.Generator | None, half: bool = False
) -> tuple[Tensor, Tensor]:
    """Squared error of one reconstruction, and one draw of the KL of the code.

    Args:
        vae: the autoencoder.
        x: images in [-1, 1], (B, C, H, W).
        generator: source of the reparametrised draw h ~ q(h|x).
        half: run encoder and decoder in bfloat16, which is faster; the flow stays in float32.

    Returns:
        squared error summed over pixels, (B,), and log q(h|x) - log p(h) in nats, (B,).
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        mean, logvar = vae.encoder(x)
    noise = torch.randn(mean.shape, generator=generator)
    h = mean.float() + (0.5 * logvar.float()).exp() * noise
    z, log_det = vae.flow.inverse(h)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        decoded = vae.decoder(h)
    log_q = -0.5 * (noise.square() + logvar.float()).sum(1)
    log_p = -0.5 * z.square().sum(1) + log_det
    return (decoded.float() - x).square().flatten(1).sum(1), log_q - log_p


def train(vae: VAE, images: Tensor, epochs: int, batch: int, rate: float, seed: int) -> VAE:
    """Maximise the ELBO with Adam, a cosine learning rate and an average of the weights.

    Args:
        vae: the autoencoder, changed in place.
        images: uint8 (N, 28, 28).
        epochs: passes over the images.
        batch: images a step.
        rate: peak learning rate.
        seed: seed of the order and the draws from q(z|x).

    Returns:
        the exponential moving average of the autoencoder.
    """
    from tqdm import trange

    generator = torch.Generator().manual_seed(seed)
    vae.requires_grad_(True)
    average = AveragedModel(vae, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    optimizer = torch.optim.Adam(vae.parameters(), lr=rate)
    x_all, per_epoch = to_model_range(images), len(images) // batch
    progress = trange(epochs * per_epoch, unit="step", mininterval=2)
    for step in progress:
        if step % per_epoch == 0:
            order = torch.randperm(len(images), generator=generator)
        start = (step % per_epoch) * batch
        x = x_all[order[start : start + batch]]
        done = step / len(progress)
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done))
        error, kl = elbo_terms(vae, x, generator, half=True)
        loss = (error / (2 * vae.sigma**2) + kl).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 200.0)
        optimizer.step()
        average.update_parameters(vae)
        if step % 50 == 0:
            mse = error.detach().mean().item() / x[0].numel()
            progress.set_postfix(mse=f"{mse:.4f}", kl=f"{kl.detach().mean():.1f}")
    vae.freeze()
    trained = cast(VAE, average.module)
    trained.freeze()
    return trained


@torch.no_grad()
def evaluate(vae: VAE, train: Tensor, test: Tensor, labels: Tensor) -> dict[str, str]:
    """Compute the rows of the card, each distance between its brackets.

    Args:
        vae: the trained autoencoder.
        train: training images in [-1, 1], (N, C, H, W), N >= 8192.
        test: test images in [-1, 1], (M, C, H, W), M >= 5000.
        labels: classes of the training images, (N,).

    Returns:
        name -> value, in the order of the card.
    """
    generator = torch.Generator().manual_seed(0)
    error, kl = elbo_terms(vae, test, generator)
    pixels = test[0].numel()
    constant = pixels * (math.log(vae.sigma) + 0.5 * math.log(2 * math.pi))
    bound = (-error / (2 * vae.sigma**2) - constant - kl).mean().item()
    units, active = measures.active_units(vae, test[:2000])
    reconstructions = vae(vae.encode(test)[0])
    samples = vae(torch.randn(5000, *vae.noise_shape, generator=generator))
    target = test[:5000]
    shares = measures.class_shares(samples[:2000], train[:8192], labels[:8192])
    noisy = train[:1000] + 0.1 * torch.randn(train[:1000].shape, generator=generator)

    def distance(x: Tensor) -> str:
        return f"{measures.sliced_wasserstein(x, target, torch.Generator().manual_seed(0)):.4f}"

    def neighbour(x: Tensor) -> str:
        return f"{nearest_distance(x, train).mean():.4f}"

    return {
        f"test ELBO, nats an image of {pixels} dimensions": f"{bound:.1f}",
        "test ELBO, nats a dimension": f"{bound / pixels:.4f}",
        "test bits a dimension (density on [-1, 1])": f"{-bound / pixels / math.log(2):.4f}",
        "test KL of the code to the flow, nats": f"{kl.mean():.1f}",
        "active noise coordinates (KL > 0.1)": f"{active} of {len(units)}",
        "test reconstruction PSNR, dB": f"{measures.psnr(reconstructions, test).mean():.2f}",
        "sliced W2 to test images: 5000 training images": distance(train[:5000]),
        "sliced W2 to test images: 5000 reconstructions": distance(reconstructions[-5000:]),
        "**sliced W2 to test images: 5000 samples**": distance(samples),
        "sliced W2 to test images: blurred (3x3) test images": distance(blurred(target)),
        "RMS to nearest training image: 1000 noisy (0.1) training images": neighbour(noisy),
        "RMS to nearest training image: 1000 test images": neighbour(test[:1000]),
        "RMS to nearest training image: 1000 test reconstructions": neighbour(
            reconstructions[:1000]
        ),
        "**RMS to nearest training image: 1000 samples**": neighbour(samples[:1000]),
        "class shares of samples, smallest to largest": f"{shares.min():.3f} to {shares.max():.3f}",
        "seconds for 64 decodes, one thread": f"{sampling_seconds(vae, repeats=20):.4f}",
    }


def print_card_rows(weights: Path, folder: str | None, sheet: Path | None) -> None:
    """Evaluate a weights file on the full data set, print the rows, draw the sheet."""
    vae = VAE.from_weights(weights)
    (train_images, labels), (test_images, _) = (
        load_fashion_mnist(split, folder) for split in ("train", "test")
    )
    test = to_model_range(test_images)
    if sheet is not None:
        measures.save_sheet(vae, test, sheet)
    for name, value in evaluate(vae, to_model_range(train_images), test, labels).items():
        print(f"| {name} | {value} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ZOO_WEIGHTS / "fashion_vae.safetensors")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--latent", type=int, default=16)
    parser.add_argument("--sigma", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where the full data set lies")
    parser.add_argument("--evaluate", action="store_true", help="print the card's rows of --out")
    parser.add_argument("--sheet", type=Path, help="with --evaluate: PNG of samples to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    if args.evaluate:
        print_card_rows(args.out, args.folder, args.sheet)
        return
    images, _ = load_fashion_mnist("train", args.folder)
    torch.manual_seed(args.seed)
    vae = VAE(latent=args.latent, sigma=args.sigma)
    trained = train(vae, images, args.epochs, args.batch, args.rate, args.seed)
    recipe = {name: getattr(args, name) for name in ("epochs", "batch", "rate", "seed")}
    trained.save_weights(args.out, {name: str(value) for name, value in recipe.items()})
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
