"""Distances between two sets of samples, each (n, d)."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor


def _checked(a: Tensor, b: Tensor, same_size: bool, least: int = 2) -> tuple[Tensor, Tensor]:
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"two sample sets must be (n, d) with one d, got {tuple(a.shape)} and "
            f"{tuple(b.shape)}; flatten images first"
        )
    if min(len(a), len(b)) < least or (same_size and len(a) != len(b)):
        size = f"equally many and at least {least}" if same_size else f"at least {least} each"
        raise ValueError(f"two sample sets must hold {size} samples, got {len(a)} and {len(b)}")
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ValueError("two sample sets must be finite, got NaN or infinity")
    return a.detach().double(), b.detach().double()


def c2st(a: Tensor, b: Tensor, seed: int = 0, folds: int = 5) -> float:
    """Return the cross-validated accuracy of a classifier that tells a from b; 0.5 = alike.

    Lopez-Paz & Oquab, 2017, with a two-layer perceptron on jointly standardised coordinates as
    in sbibm (Lueckmann et al., 2021). Under equality it scatters around 0.5 by roughly
    0.5 / sqrt(2 n). It sees shifts, scales, correlations and missing modes.

    Args:
        a: samples, (n, d), at least 10 a fold.
        b: samples, (n, d), as many as a so that chance is 0.5.
        seed: decides folds and initial weights; the result is deterministic.
        folds: number of cross-validation folds, at least 2.

    Raises:
        ValueError: when the sets differ in shape, are too small or not finite, or folds < 2.
    """
    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if folds < 2:
        raise ValueError(f"c2st.folds must be at least 2, got {folds}")
    a, b = _checked(a, b, same_size=True, least=10 * folds)
    width = min(max(10 * a.shape[1], 40), 256)
    network = MLPClassifier(
        (width, width),
        alpha=0.3,
        learning_rate_init=3e-3,
        batch_size=128,
        max_iter=30,
        random_state=seed,
    )
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    x, label = torch.cat([a, b]).cpu().numpy(), np.repeat([0, 1], len(a))
    with warnings.catch_warnings():
        # Few epochs and weight decay on purpose: more freedom memorises small sets and sees less.
        warnings.simplefilter("ignore", ConvergenceWarning)
        scores = cross_val_score(make_pipeline(StandardScaler(), network), x, label, cv=splits)
    return float(scores.mean())


def sliced_wasserstein(
    a: Tensor, b: Tensor, projections: int = 128, generator: torch.Generator | None = None
) -> float:
    """Return the sliced 2-Wasserstein distance, in the units of the samples.

    Bonneel, Rabin, Peyré & Pfister, 2015: the root mean square, over random directions on the
    unit sphere, of the exact W2 between the one-dimensional projections.

    Args:
        a: samples, (n, d).
        b: samples, (n, d), as many as a.
        projections: number of random directions.
        generator: source of randomness.

    Raises:
        ValueError: when the sets differ in shape or are not finite, or projections < 1.
    """
    if projections < 1:
        raise ValueError(f"sliced_wasserstein.projections must be at least 1, got {projections}")
    a, b = _checked(a, b, same_size=True)
    device = generator.device if generator is not None else a.device
    shape = (a.shape[1], projections)
    direction = torch.randn(shape, generator=generator, device=device, dtype=torch.float64).to(a)
    direction = direction / torch.linalg.vector_norm(direction, dim=0)
    gap = (a @ direction).sort(0).values - (b @ direction).sort(0).values
    return math.sqrt(gap.square().mean().item())


def mmd(a: Tensor, b: Tensor) -> float:
    """Return the unbiased squared maximum mean discrepancy; about 0, of either sign, when alike.

    Gretton et al., 2012, lemma 6, with the mean of five Gaussian kernels exp(-r^2 / (2 s h)),
    h the median squared distance within the pooled samples and s = 1/4, 1/2, 1, 2, 4.

    Args:
        a: samples, (n, d).
        b: samples, (m, d).

    Raises:
        ValueError: when the sets differ in d, hold fewer than 2 samples or are not finite.
    """
    a, b = _checked(a, b, same_size=False)
    n, m = len(a), len(b)
    pooled = torch.cat([a, b])
    square = torch.cdist(pooled, pooled).square()
    above = torch.triu_indices(n + m, n + m, 1, device=square.device)
    width = square[above[0], above[1]].median().clamp_min(torch.finfo(torch.float64).tiny)
    scales = (0.25, 0.5, 1.0, 2.0, 4.0)
    kernel = torch.stack([torch.exp(-square / (2 * s * width)) for s in scales]).mean(0)
    within_a = (kernel[:n, :n].sum() - n) / (n * (n - 1))  # the diagonal is 1: leave it out
    within_b = (kernel[n:, n:].sum() - m) / (m * (m - 1))
    return float(within_a + within_b - 2 * kernel[:n, n:].mean())


def frechet(a_features: Tensor, b_features: Tensor) -> float:
    """Return the squared Fréchet distance between Gaussians fitted to two sets of features.

    Dowson & Landau, 1982: |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)). It is "FID"
    only on the Inception features of that name, so name the features beside the number.

    Args:
        a_features: features of one image each, (n, d).
        b_features: features of one image each, (m, d).

    Raises:
        ValueError: when the sets differ in d, hold fewer than 2 samples or are not finite.
    """
    a, b = _checked(a_features, b_features, same_size=False)
    cov_a, cov_b = torch.cov(a.T).view(2 * a.shape[1:]), torch.cov(b.T).view(2 * a.shape[1:])
    # tr (C_a C_b)^(1/2) = tr (R C_b R)^(1/2) with R = C_a^(1/2): symmetric, so no complex roots.
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(distance.item(), 0.0)
