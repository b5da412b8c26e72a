"""Recipe of the two embedded classifiers: `python -m outsourced.zoo.fashion_classifier`.

`--which fashion_classifier` (for rewards) or `--which fashion_features` (for evaluation only).
Both see all 60 000 training images under random shifts and flips and minimise the cross-entropy;
they differ in architecture, seed and order of the images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from outsourced.classifiers import Classifier, FashionClassifier, FashionFeatures
from outsourced.data import FASHION_CLASSES, load_fashion_mnist, to_model_range
from outsourced.weights import ZOO_WEIGHTS
from outsourced.zoo.recipe import metadata, recipe_parser, settings, start

# Class, its sizes and its seed.
RECIPES: dict[str, tuple[type[Classifier], dict[str, Any], int]] = {
    "fashion_classifier": (FashionClassifier, {"width": 24}, 0),
    "fashion_features": (FashionFeatures, {"width": 40}, 1),
}
AVERAGE = 0.998  # of the weights, over about one epoch
WARM = 0.05  # share of the steps over which the learning rate rises
CHUNK = 500  # images a forward pass in the evaluation

Network = TypeVar("Network", bound=Classifier)


def augment(x: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Shift each image by up to `shift` pixels along each axis, and mirror every other one.

    Args:
        x: images in [-1, 1], (B, C, H, W); what moves in from outside is black.
        shift: largest shift, in pixels.
        generator: source of randomness.

    Returns:
        images of the same shape.
    """
    count, _, height, width = x.shape
    padded, device = F.pad(x, (shift,) * 4, value=-1.0), x.device
    draws: dict[str, Any] = {"generator": generator, "device": device}
    offsets = torch.randint(0, 2 * shift + 1, (2, count, 1), **draws)
    rows = torch.arange(height, device=device) + offsets[0]
    columns = torch.arange(width, device=device) + offsets[1]
    mirrored = torch.rand(count, 1, **draws) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    batch = torch.arange(count, device=device)[:, None, None]
    # Advanced indices around a slice put the channels last.
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def rate_at(done: float, peak: float) -> float:
    """Learning rate after the share `done` of the steps: a linear rise, then a cosine."""
    if done < WARM:
        return peak * done / WARM
    return peak * 0.5 * (1 + math.cos(math.pi * (done - WARM) / (1 - WARM)))


def train(
    network: Network,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    batch: int,
    rate: float,
    seed: int,
) -> Network:
    """Minimise the cross-entropy with AdamW and an average of the weights.

    Args:
        network: the classifier, changed in place.
        images: uint8 (N, 28, 28).
        labels: classes, (N,).
        epochs: passes over the images.
        batch: images a step.
        rate: peak learning rate.
        seed: seed of the order and the augmentation.

    Returns:
        the exponential moving average of the classifier, frozen.
    """
    from tqdm import trange

    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    network.requires_grad_(True).to(memory_format=torch.channels_last)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.02)
    x_all, labels = to_model_range(images).to(device), labels.to(device)
    per_epoch = len(images) // batch
    progress = trange(epochs * per_epoch, unit="step", mininterval=2)
    for step in progress:
        if step % per_epoch == 0:
            order = torch.randperm(len(images), generator=generator, device=device)
        picked = order[step % per_epoch * batch :][:batch]
        x = augment(x_all[picked], 2, generator).contiguous(memory_format=torch.channels_last)
        optimizer.param_groups[0]["lr"] = rate_at((step + 1) / len(progress), rate)
        with torch.autocast(device.type, torch.bfloat16):
            logits = network(x)
        loss = F.cross_entropy(logits.float(), labels[picked])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        average.update_parameters(network)
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    network.freeze()
    trained: Network = average.module  # type: ignore[assignment]
    trained.freeze()
    return trained


@torch.no_grad()
def evaluate(network: Classifier, images: Tensor, labels: Tensor) -> dict[str, str]:
    """Compute the rows of the card.

    The expected calibration error (Guo et al., 2017, arXiv 1706.04599) takes 15 bins of equal
    width.

    Args:
        network: the trained classifier.
        images: test images in [-1, 1], (N, C, H, W).
        labels: their classes, (N,).

    Returns:
        name -> value, in the order of the card.
    """
    log_probs = torch.cat([network.log_probs(x) for x in images.split(CHUNK)])
    confidence, guess = log_probs.exp().max(1)
    right = (guess == labels).float()
    bins = (confidence * 15).long().clamp_max(14)
    gaps = torch.zeros(15).index_add_(0, bins, confidence - right).abs().sum() / len(labels)
    recalls = [right[labels == label].mean().item() for label in range(network.classes)]
    worst = min(range(network.classes), key=recalls.__getitem__)
    return {
        "test accuracy": f"{right.mean():.4f}",
        "test cross-entropy, nats": f"{F.nll_loss(log_probs, labels):.4f}",
        "expected calibration error": f"{gaps:.4f}",
        "smallest recall of a class": f"{recalls[worst]:.3f} ({FASHION_CLASSES[worst]})",
        "features": str(network.features(images[:1]).shape[1]),
        "parameters": str(sum(p.numel() for p in network.parameters())),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = recipe_parser(__doc__, None)
    parser.add_argument("--which", choices=sorted(RECIPES), default="fashion_classifier")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, help="by default that of the embedded network")
    parser.add_argument("--evaluate", action="store_true", help="print the card's rows of --out")
    args = parser.parse_args(argv)
    kind, sizes, seed = RECIPES[args.which]
    out = args.out or ZOO_WEIGHTS / f"{args.which}.safetensors"
    seed = seed if args.seed is None else args.seed
    device = start(args, seed)
    if not args.evaluate:
        images, labels = load_fashion_mnist("train", args.folder)
        recipe = {**settings(args, ("epochs", "batch", "rate")), "seed": seed}
        trained = train(kind(**sizes).to(device), images, labels, **recipe)
        trained.save_weights(out, metadata(recipe, device))
        print(f"wrote {out}")
    images, labels = load_fashion_mnist("test", args.folder)
    for name, value in evaluate(kind.from_weights(out), to_model_range(images), labels).items():
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
