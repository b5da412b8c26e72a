"""The smallest path KL that diagonal Gaussian kernels can reach on a linear-Gaussian problem."""

from __future__ import annotations

import torch
from torch import Tensor

from outsourced.reference import Reference


def optimal_covariances(matrix: Tensor, sigma: float, reference: Reference) -> Tensor:
    """Covariances of the optimal kernels in innovation units, (K, d, d) in float64.

    Given z_k, the end z_K ~ N(0, I) under y = W z_K + n has precision I / spread_k^2 + W^T W /
    sigma^2, hence normalised covariance C_k = (I + spread_k^2 W^T W / sigma^2)^-1, and the bridge
    to it gives Sigma_k = (1 - w_k^2) I + w_k^2 C_k: the same for every state and every y.

    Args:
        matrix: W, (m, d).
        sigma: noise standard deviation, in units of y.
        reference: the time grid.
    """
    weight = matrix.double()
    eye = torch.eye(weight.shape[1], dtype=torch.float64)
    spread, w = reference.spread.double(), reference.information.double()
    curvature = weight.mT @ weight / sigma**2
    normalised = torch.linalg.inv(eye + spread.square()[:, None, None] * curvature)
    share = w.square()[:, None, None]
    return (1 - share) * eye + share * normalised


def diagonal_floor(matrix: Tensor, sigma: float, reference: Reference) -> tuple[float, float]:
    """Path KLs between the posterior and the nearest chain with diagonal kernels, in nats.

    The start law N(0, I) is exact and the mean of every kernel is free, so that a path KL is a sum
    over steps of KLs between centred Gaussians that do not depend on the state, and each step has
    its own minimum. KL(N(0, D) || N(0, S)) is least at D_ii = 1 / (S^-1)_ii with value
    (log det S + sum_i log (S^-1)_ii) / 2; KL(N(0, S) || N(0, D)) at D_ii = S_ii with value
    (sum_i log S_ii - log det S) / 2 (Bishop 2006, section 10.1.2).

    Args:
        matrix: W, (m, d), of y = W z + n.
        sigma: noise standard deviation, in units of y.
        reference: the time grid.

    Returns:
        The reverse floor, min KL(sampler || posterior), below which no ELBO gap log Z - ELBO can
        fall, and the forward floor, min KL(posterior || sampler), below which no EUBO gap
        EUBO - log Z can fall.
    """
    covariances = optimal_covariances(matrix, sigma, reference)
    log_det = torch.logdet(covariances)
    marginal = covariances.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    precision = torch.linalg.inv(covariances).diagonal(dim1=-2, dim2=-1).log().sum(-1)
    reverse, forward = 0.5 * (log_det + precision), 0.5 * (marginal - log_det)
    return float(reverse.sum()), float(forward.sum())
