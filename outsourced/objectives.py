"""Training objectives: functions of path log-ratios and log-rewards; they know nothing else.

With log_weight = log_reward - log_ratio, every objective below is minimal exactly when log_weight
is constant on the paths of one observation, and then equals log Z(y). Each objective names what it
needs (`needs`): `log_z`, `flow`, `groups` (several paths of one observation), `posterior` (draws of
z given y, scored on backward paths), `path_gradient` (differentiable roll-out) or
`reward_gradient`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Scores:
    """What an objective may read; n paths for each of B observations, nats.

    Attributes:
        log_ratio: log P_phi / P_ref of paths, (n, B).
        log_reward: beta log r(f(z_K), y), (n, B).
        log_z: Learned log Z(y), (B,).
        step_log_ratio: Its K summands, (K, n, B).
        log_flow: Learned log F(z_k, y) - log N(z_k) of states 0 .. K-1, (K, n, B).
        shift, target: Kernel mean and its regression target in innovation units, (S, N, *shape).
    """

    log_ratio: Tensor | None = None
    log_reward: Tensor | None = None
    log_z: Tensor | None = None
    step_log_ratio: Tensor | None = None
    log_flow: Tensor | None = None
    shift: Tensor | None = None
    target: Tensor | None = None

    @property
    def log_weight(self) -> Tensor:
        """log_reward - log_ratio, (n, B)."""
        assert self.log_reward is not None
        assert self.log_ratio is not None
        return self.log_reward - self.log_ratio


def _square(residual: Tensor, huber: float | None) -> Tensor:
    """Squared residual; linear with slope 2 huber beyond |residual| = huber."""
    if huber is None:
        return residual.square()
    return 2 * F.huber_loss(residual, torch.zeros_like(residual), reduction="none", delta=huber)


class Objective(nn.Module):
    """A loss per path, (n, B), from `Scores`; parameters named in `needs` must be present."""

    needs: frozenset[str] = frozenset()

    def __init__(self, huber: float | None = None):
        super().__init__()
        if huber is not None and huber <= 0:
            raise ValueError(f"objective.huber must be > 0 or null, got {huber}")
        self.huber = huber

    def forward(self, scores: Scores) -> Tensor:
        """Loss per path, (n, B)."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(scores)")


class TrajectoryBalance(Objective):
    """(log Z_psi(y) - log_weight)^2 (Malkin et al. 2022, eq. 14).

    Args:
        huber: Residual in nats beyond which the loss grows linearly; None for the exact square.
    """

    needs = frozenset({"log_z"})

    def forward(self, scores: Scores) -> Tensor:
        assert scores.log_z is not None
        return _square(scores.log_z - scores.log_weight, self.huber)


class LogVariance(Objective):
    """Half the variance of log_weight among the n >= 2 paths of one y (Richter et al. 2020).

    The mean over the paths of one y is unbiased for that half variance, for any source of paths.

    Args:
        huber: Deviation in nats beyond which the loss grows linearly; None for the exact square.
    """

    needs = frozenset({"groups"})

    def forward(self, scores: Scores) -> Tensor:
        log_weight = scores.log_weight
        n = log_weight.shape[0]
        if n < 2:
            raise ValueError(f"LogVariance needs >= 2 paths for each observation, got {n}")
        centre = log_weight.mean(0)
        return 0.5 * _square(log_weight - centre, self.huber) * n / (n - 1)


class SubTrajectoryBalance(Objective):
    """Weighted squared residuals of all sub-paths (Madan et al. 2023, eq. 11); lam = 0 keeps single
    steps.

    A sub-path from i to j has residual V_i + sum_{i <= k < j} log_ratio_k - V_j with V = log_flow,
    V_K = log_reward, and weight lam^(j - i - 1), normalised over all pairs.

    Args:
        lam: Geometric weight >= 0; 0 is detailed balance.
        huber: See `TrajectoryBalance`.
    """

    needs = frozenset({"log_z", "flow"})

    def __init__(self, lam: float = 0.9, huber: float | None = None):
        super().__init__(huber)
        if lam < 0:
            raise ValueError(f"objective.lam must be >= 0, got {lam}")
        self.lam = lam

    def forward(self, scores: Scores) -> Tensor:
        ratio, flow, reward = scores.step_log_ratio, scores.log_flow, scores.log_reward
        assert ratio is not None
        assert flow is not None
        assert reward is not None
        value = torch.cat([flow, reward[None]])
        passed = torch.cat([torch.zeros_like(ratio[:1]), ratio.cumsum(0)])
        level = value - passed
        first, last = torch.triu_indices(len(level), len(level), offset=1, device=level.device)
        weight = self.lam ** (last - first - 1).to(level.dtype)
        residual = _square(level[first] - level[last], self.huber)
        return torch.einsum("p,pnb->nb", weight / weight.sum(), residual)


class DetailedBalance(SubTrajectoryBalance):
    """Squared residuals of single steps: `SubTrajectoryBalance` with lam = 0 (Bengio et al.
    2023)."""

    def __init__(self, huber: float | None = None):
        super().__init__(0.0, huber)


class PathLikelihood(Objective):
    """-log_ratio on backward paths from posterior draws: forward KL, denoising likelihood."""

    needs = frozenset({"posterior"})

    def forward(self, scores: Scores) -> Tensor:
        assert scores.log_ratio is not None
        return -scores.log_ratio


class ReverseKL(Objective):
    """-log_weight of on-policy paths, with its path-wise gradient: the negative ELBO."""

    needs = frozenset({"path_gradient"})

    def forward(self, scores: Scores) -> Tensor:
        return -scores.log_weight


class AdjointSampling(Objective):
    """Regress the kernel's mean on the reward gradient at fresh end points (Havens et al. 2025).

    With exact kernels the target in innovation units is w_k spread_k grad log r(z_K) for z_k drawn
    backward from z_K; the loss 1/2 |shift - target|^2 is minimal at the exact mean of the optimal
    kernel. It does not train the kernel's variance.
    """

    needs = frozenset({"reward_gradient"})

    def forward(self, scores: Scores) -> Tensor:
        assert scores.shift is not None
        assert scores.target is not None
        return 0.5 * (scores.shift - scores.target).square().flatten(2).sum(-1)
