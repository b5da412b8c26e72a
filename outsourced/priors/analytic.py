"""Priors with closed-form densities and posteriors: linear Gaussians and Gaussian mixtures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from outsourced.priors.base import Prior
from outsourced.priors.quantile import LOG_2PI, MixtureQuantile, log_normal, normal_cdf


def condition_gaussian(
    mean: Tensor, covariance: Tensor, matrix: Tensor, y: Tensor, sigma: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior of x ~ N(mean, covariance) given y = matrix x + n, n ~ N(0, sigma² I).

    Args:
        mean: (..., d); leading axes broadcast against those of y.
        covariance: (..., d, d).
        matrix: (m, d).
        y: (..., m).
        sigma: noise standard deviation, a scalar or (m,), in units of y.

    Returns:
        posterior mean (..., d), covariance (..., d, d) and log evidence log N(y) (...), in nats.
    """
    noise = torch.diag(torch.as_tensor(sigma, dtype=y.dtype).expand(y.shape[-1]).square())
    cross = covariance @ matrix.mT
    marginal = torch.linalg.cholesky(matrix @ cross + noise)
    gain = torch.cholesky_solve(cross.mT, marginal).mT
    residual = y - mean @ matrix.mT
    whitened = torch.linalg.solve_triangular(marginal, residual.unsqueeze(-1), upper=False)
    log_det = marginal.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_evidence = -0.5 * whitened.square().sum((-2, -1)) - log_det - 0.5 * y.shape[-1] * LOG_2PI
    posterior_mean = mean + (gain @ residual.unsqueeze(-1)).squeeze(-1)
    return posterior_mean, covariance - gain @ cross.mT, log_evidence


class LinearGaussian(Prior):
    """x = W z + b: the prior N(b, W Wᵀ), for which every posterior is Gaussian.

    Args:
        dim: dimension of z and x where no matrix is given.
        matrix: W, (data, noise), as a tensor or nested lists; the identity by default.
        bias: b, (data,); zero by default.
        data_dim: draw a random W of (data_dim, dim) with entries N(0, 1/dim), from `seed`.
        seed: seed of the random W.

    Raises:
        ValueError: sizes that contradict each other, or neither `dim` nor `matrix`.
    """

    matrix: Tensor
    bias: Tensor

    def __init__(
        self,
        dim: int | None = None,
        matrix: Tensor | Sequence[Sequence[float]] | None = None,
        bias: Tensor | Sequence[float] | None = None,
        data_dim: int | None = None,
        seed: int = 0,
    ) -> None:
        weight = self._build_matrix(dim, matrix, data_dim, seed)
        offset = torch.zeros(len(weight)) if bias is None else _tensor(bias)
        if offset.shape != (len(weight),):
            raise ValueError(
                f"LinearGaussian.bias must have shape ({len(weight)},), got {tuple(offset.shape)}"
            )
        super().__init__((weight.shape[1],), (weight.shape[0],))
        self.register_buffer("matrix", weight)
        self.register_buffer("bias", offset.to(weight.dtype))
        self.freeze()

    @staticmethod
    def _build_matrix(
        dim: int | None,
        matrix: Tensor | Sequence[Sequence[float]] | None,
        data_dim: int | None,
        seed: int,
    ) -> Tensor:
        if matrix is not None:
            weight = _tensor(matrix)
            if weight.ndim != 2 or dim not in (None, weight.shape[1]) or data_dim is not None:
                raise ValueError(
                    f"LinearGaussian.matrix must be (data, noise), got {tuple(weight.shape)} with "
                    f"dim={dim}, data_dim={data_dim}; give the matrix alone"
                )
            return weight
        if dim is None or dim < 1 or (data_dim is not None and data_dim < 1):
            raise ValueError(
                f"LinearGaussian needs dim >= 1 or a matrix, got dim={dim}, data_dim={data_dim}"
            )
        if data_dim is None:
            return torch.eye(dim)
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(data_dim, dim, generator=generator) / math.sqrt(dim)

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.matrix.to(z.dtype).mT + self.bias.to(z.dtype)

    def noise_posterior(
        self, matrix: Tensor, y: Tensor, sigma: float | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Exact posterior of z given y = matrix x + n, n ~ N(0, sigma² I).

        Args:
            matrix: the operator on x, (m, data).
            y: observations, (..., m).
            sigma: noise standard deviation, a scalar or (m,).

        Returns:
            mean (..., noise), covariance (noise, noise) and log Z (...), in the dtype of y.
        """
        operator, noise = matrix.to(y), self.noise_shape[0]
        prior_mean, prior_covariance = y.new_zeros(noise), torch.eye(noise).to(y)
        shifted = y - operator @ self.bias.to(y)
        return condition_gaussian(
            prior_mean, prior_covariance, operator @ self.matrix.to(y), shifted, sigma
        )


@dataclass(frozen=True)
class MixturePosterior:
    """The exact posterior of a Gaussian mixture under a linear-Gaussian measurement.

    Args:
        weights: component weights, (B, K).
        means: component means, (B, K, d).
        covariances: component covariances, (K, d, d): the same for every y.
        log_evidence: log Z(y) in nats, (B,).
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    log_evidence: Tensor

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n exact posterior samples for each observation: (B, n, d)."""
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        index = component.unsqueeze(-1).expand(-1, -1, self.means.shape[-1])
        factors = torch.linalg.cholesky(self.covariances)[component]
        means = self.means
        noise = torch.randn(
            index.shape, generator=generator, dtype=means.dtype, device=means.device
        )
        return means.gather(1, index) + (factors @ noise.unsqueeze(-1)).squeeze(-1)


class GaussianMixture(Prior):
    """Mixture of axis-aligned Gaussians, pushed from noise by the Knothe-Rosenblatt map.

    x_i solves F_i(x_i | x_<i) = Φ(z_i) one coordinate after the other (Rosenblatt, 1952; Knothe,
    1957), so f is a smooth bijection with the exact mixture as its push-forward. Both maps work
    in float64 and on whichever tail is small, hence stay accurate at |z| = 6 and beyond.

    Args:
        means: component means, (K, d), as a tensor or nested lists.
        std: standard deviations: a number, one a component (K,), or one a coordinate (K, d).
        weights: component weights, (K,), normalised here; equal by default.

    Raises:
        ValueError: a std or weight that is not positive, or shapes that do not fit.
    """

    means: Tensor
    stds: Tensor
    log_weights: Tensor

    def __init__(
        self,
        means: Tensor | Sequence[Sequence[float]],
        std: float | Tensor | Sequence[float] | Sequence[Sequence[float]],
        weights: Tensor | Sequence[float] | None = None,
    ) -> None:
        centers = _tensor(means).double()
        if centers.ndim != 2:
            raise ValueError(
                f"GaussianMixture.means must be (K, d), got shape {tuple(centers.shape)}"
            )
        count, dim = centers.shape
        stds = _tensor(std).double()
        stds = stds.unsqueeze(-1) if stds.ndim == 1 else stds
        mass = torch.ones(count).double() if weights is None else _tensor(weights).double()
        if stds.ndim and stds.shape not in ((count, 1), (count, dim)):
            raise ValueError(
                f"GaussianMixture.std must be a number, ({count},) or ({count}, {dim}), "
                f"got shape {tuple(_tensor(std).shape)}"
            )
        if mass.shape != (count,):
            raise ValueError(
                f"GaussianMixture.weights must have shape ({count},), got {tuple(mass.shape)}"
            )
        for name, value in (("std", stds), ("weights", mass)):
            if not (value > 0).all():
                raise ValueError(f"GaussianMixture.{name} must be > 0, got {value.tolist()}")
        super().__init__((dim,), (dim,))
        self.register_buffer("means", centers.clone())
        self.register_buffer("stds", stds.expand(count, dim).clone())
        self.register_buffer("log_weights", (mass / mass.sum()).log())
        self.freeze()

    @classmethod
    def ring(cls, modes: int = 8, radius: float = 4.0, std: float = 0.3) -> GaussianMixture:
        """Equal components evenly spaced on a circle in the plane.

        Args:
            modes: number of components.
            radius: radius of the circle.
            std: standard deviation of each component.
        """
        if modes < 1:
            raise ValueError(f"GaussianMixture.ring modes must be >= 1, got {modes}")
        angles = 2 * math.pi * torch.arange(modes).double() / modes
        return cls(radius * torch.stack([angles.cos(), angles.sin()], dim=-1), std)

    def forward(self, z: Tensor) -> Tensor:
        """Push noise to the mixture: (B, d) -> (B, d), in the dtype of z."""
        log_weights = self.log_weights.double().expand(len(z), -1)
        columns: list[Tensor] = []
        for i, z_i in enumerate(z.double().unbind(-1)):
            mean, std = self.means[:, i].double(), self.stds[:, i].double()
            columns.append(MixtureQuantile.apply(z_i, log_weights, mean, std))
            log_weights = log_weights + log_normal(columns[-1].unsqueeze(-1), mean, std)
        return torch.stack(columns, dim=-1).to(z.dtype)

    def inverse(self, x: Tensor) -> Tensor:
        """The noise that forward maps to x: (B, d) -> (B, d), in the dtype of x."""
        log_weights = self.log_weights.double().expand(len(x), -1)
        columns: list[Tensor] = []
        for i, x_i in enumerate(x.double().unbind(-1)):
            mean, std = self.means[:, i].double(), self.stds[:, i].double()
            u = (x_i.unsqueeze(-1) - mean) / std
            weights = log_weights.softmax(-1)
            below = (weights * normal_cdf(u)).sum(-1)
            above = (weights * normal_cdf(-u)).sum(-1)
            # The smaller tail keeps its digits; Φ⁻¹(1 − p) = −Φ⁻¹(p).
            score = torch.special.ndtri(torch.minimum(below, above))
            columns.append(torch.where(below <= above, score, -score))
            log_weights = log_weights + log_normal(x_i.unsqueeze(-1), mean, std)
        return torch.stack(columns, dim=-1).to(x.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of the mixture in nats: (B, d) -> (B,), in the dtype of x."""
        means, stds = self.means.double(), self.stds.double()
        terms = log_normal(x.double().unsqueeze(-2), means, stds).sum(-1)
        return (self.log_weights.double() + terms).logsumexp(-1).to(x.dtype)

    def posterior(self, matrix: Tensor, y: Tensor, sigma: float | Tensor) -> MixturePosterior:
        """Exact posterior of x given y = matrix x + n, n ~ N(0, sigma² I).

        Args:
            matrix: the operator, (m, d).
            y: observations, (B, m).
            sigma: noise standard deviation, a scalar or (m,).

        Returns:
            the posterior mixture in x, in the dtype of y.
        """
        prior_covariances = torch.diag_embed(self.stds.square()).to(y)
        means, covariances, log_evidence = condition_gaussian(
            self.means.to(y), prior_covariances, matrix.to(y), y.unsqueeze(-2), sigma
        )
        joint = self.log_weights.to(y) + log_evidence
        return MixturePosterior(joint.softmax(-1), means, covariances, joint.logsumexp(-1))


def _tensor(values: Tensor | Sequence | float) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().clone()
    # A list configuration of Hydra is a sequence, but not one that torch converts.
    return torch.tensor(_plain(values), dtype=torch.float32)


def _plain(values: Sequence | float) -> list | float:
    return [_plain(v) for v in values] if isinstance(values, Sequence) else float(values)
