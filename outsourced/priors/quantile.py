"""Quantiles of scalar Gaussian mixtures with exact derivatives of every order."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
# Halving a bracket 80 times exhausts float64 for brackets up to 1e8 times the answer.
BISECTIONS = 80


def log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log density of N(mean, std²) at x, elementwise, in nats."""
    return -0.5 * ((x - mean) / std).square() - std.log() - 0.5 * LOG_2PI


def normal_cdf(x: Tensor) -> Tensor:
    """Φ(x) with full relative precision in the lower tail.

    `torch.special.ndtr` is (1 + erf)/2, which has no digit left at x = -8.
    """
    return 0.5 * torch.special.erfc(x * -math.sqrt(0.5))


class MixtureQuantile(torch.autograd.Function):
    """x with F(x) = Φ(z) for a scalar mixture F, by bisection; exact implicit derivatives.

    Arguments of `apply`: z (B,), unnormalised log weights (B, K), means (K,), stds (K,), float64.
    `backward` is written in differentiable operations of the saved output, so that derivatives
    of any order are exact.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, log_weights: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        # Work on the smaller tail: with s = sign(z), P(s x < s X) = Φ(−|z|).
        sign = torch.where(z > 0, -1.0, 1.0).to(z)
        tail, weights = normal_cdf(-z.abs()), log_weights.softmax(-1)
        # The quantile of a mixture lies between the quantiles of its components.
        quantiles = mean + std * z.unsqueeze(-1)
        low, high = quantiles.amin(-1), quantiles.amax(-1)
        for _ in range(BISECTIONS):
            x = 0.5 * (low + high)
            u = sign.unsqueeze(-1) * (x.unsqueeze(-1) - mean) / std
            excess = (weights * normal_cdf(u)).sum(-1) - tail
            right = excess * sign < 0
            low, high = torch.where(right, x, low), torch.where(right, high, x)
        x = 0.5 * (low + high)
        ctx.save_for_backward(z, log_weights, mean, std, x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        z, log_weights, mean, std, x = ctx.saved_tensors
        column = x.unsqueeze(-1)
        log_weights = log_weights.log_softmax(-1)
        log_density = (log_weights + log_normal(column, mean, std)).logsumexp(-1)
        grad_z = (-0.5 * z.square() - 0.5 * LOG_2PI - log_density).exp()
        # dx/dlog w_k = −w_k (F_k − F) / p, with the differences taken on the smaller tail.
        sign = torch.where(z > 0, -1.0, 1.0).to(z)
        tails = normal_cdf(sign.unsqueeze(-1) * (column - mean) / std)
        weights = log_weights.exp()
        excess = sign.unsqueeze(-1) * (tails - (weights * tails).sum(-1, keepdim=True))
        grad_weights = -weights * excess * (-log_density).exp().unsqueeze(-1)
        return grad * grad_z, grad.unsqueeze(-1) * grad_weights, None, None
