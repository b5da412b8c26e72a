"""Gaussian transition kernels in the units of the reference's innovation.

With eps = (z_{k+1} - a_k z_k) / scale_k the reference is eps ~ N(0, I) and the controlled kernel is
eps ~ N(shift, Sigma). The ratio of the two densities is accumulated directly: a difference of two
log-densities would lose 0.03-0.2 nats in float32 at image sizes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def event_sum(value: Tensor) -> Tensor:
    """Sum over the event dimensions of (S, N, *shape)."""
    return value.flatten(2).sum(-1)


@dataclass
class Kernel:
    """N(shift, Sigma), Sigma^{1/2} = V diag(scale) V^T (I + L)^{-1}; V = I and L = 0 if absent.

    Attributes:
        shift: Mean of eps, (S, N, *shape).
        log_scale: Log standard deviations along the columns of V, (S, N, *shape).
        basis: Orthogonal matrices V, (N, d, d), or None.
        lower: Strictly lower triangular L, (S, N, d, d), or None. It has unit diagonal in I + L, so
            that the log-determinant of Sigma stays the sum of `log_scale`.
    """

    shift: Tensor
    log_scale: Tensor
    basis: Tensor | None = None
    lower: Tensor | None = None

    def _scaled(self, value: Tensor, sign: int) -> Tensor:
        if self.basis is None:
            return torch.exp(sign * self.log_scale) * value
        # As a change of `value`: V V^T is the identity only up to rounding.
        change = torch.expm1(sign * self.log_scale)
        return value + rotate(self.basis, change * rotate(self.basis, value, transpose=True))

    def standardise(self, eps: Tensor) -> Tensor:
        """Sigma^{-1/2} (eps - shift): N(0, I) under the controlled kernel."""
        eta = self._scaled(eps - self.shift, -1)
        if self.lower is not None:
            eta = eta + (self.lower @ eta.unsqueeze(-1)).squeeze(-1)
        return eta

    def sample(self, eta: Tensor) -> Tensor:
        """eps = shift + Sigma^{1/2} eta for standard normal eta (S, N, *shape)."""
        if self.lower is not None:
            eta = torch.linalg.solve_triangular(
                self.lower, eta.unsqueeze(-1), upper=False, unitriangular=True
            ).squeeze(-1)
        return self.shift + self._scaled(eta, 1)

    def log_ratio(self, eps: Tensor, eta: Tensor | None = None) -> Tensor:
        """log N(eps; shift, Sigma) - log N(eps; 0, I) in nats, (S, N)."""
        eta = self.standardise(eps) if eta is None else eta
        return event_sum(0.5 * (eps - eta) * (eps + eta) - self.log_scale)


class LowRankKernel(Kernel):
    """N(shift, Sigma), Sigma^{1/2} = diag(scale) M (I + L)^{-1}, M = V diag(inside) V^T + outside
    (I - V V^T) for orthonormal columns V (N, d, r).

    Attributes:
        log_inside: (S, N, r).
        log_outside: (S, N, 1).
    """

    def __init__(
        self,
        shift: Tensor,
        log_scale: Tensor,
        basis: Tensor,
        lower: Tensor | None,
        log_inside: Tensor,
        log_outside: Tensor,
    ):
        super().__init__(shift, log_scale, basis, lower)
        self.log_inside, self.log_outside = log_inside, log_outside

    def _scaled(self, value: Tensor, sign: int) -> Tensor:
        assert self.basis is not None
        scales = (sign * self.log_inside).exp(), (sign * self.log_outside).exp()
        if sign < 0:
            return within(self.basis, (-self.log_scale).exp() * value, *scales)
        return self.log_scale.exp() * within(self.basis, value, *scales)

    def log_ratio(self, eps: Tensor, eta: Tensor | None = None) -> Tensor:
        """See `Kernel.log_ratio`."""
        d, rank = self.basis.shape[1:]  # type: ignore[union-attr]
        log_det = self.log_inside.sum(-1) + (d - rank) * self.log_outside[..., 0]
        return super().log_ratio(eps, eta) - log_det


@dataclass
class Mixture:
    """A mixture of M kernels, for steps so large that z_{k+1} given z_k is far from Gaussian.

    Attributes:
        parts: The kernels, their first axis M and S flattened, (M S, N, *shape).
        log_share: Log-probabilities of the parts, (M, S, N).
    """

    parts: Kernel
    log_share: Tensor

    def log_ratio(self, eps: Tensor) -> Tensor:
        """log of the mixture's density over that of N(0, I) at eps (S, N, *shape), in nats."""
        each = self.parts.log_ratio(eps.repeat(len(self.log_share), *[1] * (eps.ndim - 1)))
        return (self.log_share + each.unflatten(0, self.log_share.shape[:2])).logsumexp(0)

    def pick(self, choice: Tensor) -> Kernel:
        """The part of each row that a uniform number in [0, 1) chooses, (S, N)."""
        below = self.log_share.softmax(0).cumsum(0)[:-1]
        index = (choice > below).sum(0)
        step = torch.arange(index.shape[0], device=index.device)[:, None]
        row = torch.arange(index.shape[1], device=index.device)

        def of(value: Tensor) -> Tensor:
            return value.unflatten(0, self.log_share.shape[:2])[index, step, row]

        lower = self.parts.lower
        shift, log_scale = of(self.parts.shift), of(self.parts.log_scale)
        return Kernel(shift, log_scale, self.parts.basis, None if lower is None else of(lower))


def rotate(basis: Tensor, value: Tensor, transpose: bool = False) -> Tensor:
    """V value, or V^T value, for V (N, d, d) and value (S, N, d)."""
    return torch.einsum("nji,snj->sni" if transpose else "nij,snj->sni", basis, value)


def within(basis: Tensor, value: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """(V diag(inside) V^T + outside (I - V V^T)) value for orthonormal columns V.

    Args:
        basis: V, (N, d, r).
        value: (S, N, *shape) of d entries.
        inside: factors along the columns, (S, N, r).
        outside: factor of all other directions, (S, N, 1).
    """
    flat = value.flatten(2)
    along = torch.einsum("ndr,snd->snr", basis, flat)
    change = torch.einsum("ndr,snr->snd", basis, (inside - outside) * along)
    return (outside * flat + change).reshape(value.shape)


def strictly_lower(entries: Tensor, dim: int) -> Tensor:
    """Strictly lower triangular matrices (..., dim, dim) from (..., dim (dim - 1) / 2) entries."""
    matrix = entries.new_zeros(*entries.shape[:-1], dim, dim)
    row, column = torch.tril_indices(dim, dim, offset=-1, device=entries.device)
    matrix[..., row, column] = entries
    return matrix
