"""Objectives: values by hand, known identities, and zero at the exact optimum."""

import math

import pytest
import torch
from torch.distributions import Normal

from outsourced.objectives import (
    AdjointSampling,
    DetailedBalance,
    LogVariance,
    PathLikelihood,
    ReverseKL,
    Scores,
    SubTrajectoryBalance,
    TrajectoryBalance,
)
from outsourced.sampler import Path

SOURCES = ["forward", "explored", "backward"]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=atol)


@pytest.fixture
def exact_scores(optimal, linear):
    """Scores of paths under the optimal sampler, with log Z and the flow in closed form."""

    def build(source: str) -> Scores:
        obs, generator = linear.observe(3), torch.Generator().manual_seed(1)
        path = {
            "forward": lambda: optimal.forward_path(obs, 4, generator),
            "explored": lambda: optimal.forward_path(obs, 4, generator, exploration=0.7),
            "backward": lambda: optimal.backward_path(2 * draw(4, 3, 4), generator),
        }[source]()
        with torch.no_grad():
            steps = optimal.step_log_ratio(Path(path.z), optimal.encode(obs))
        reward = torch.stack([linear.log_reward(z, obs) for z in path.end])
        flows = [
            linear.log_flow(z, optimal.reference.rho[k], obs) for k, z in enumerate(path.z[:-1])
        ]
        return Scores(steps.sum(0), reward, linear.log_z(obs), steps, torch.stack(flows))

    return build


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "objective",
    [
        TrajectoryBalance(),
        TrajectoryBalance(huber=0.1),
        LogVariance(),
        DetailedBalance(),
        *(SubTrajectoryBalance(lam) for lam in (0.0, 0.5, 0.9, 1.0, 2.0)),
    ],
    ids=lambda o: f"{type(o).__name__}{getattr(o, 'lam', '')}",
)
def test_squares_vanish_at_the_exact_optimum(exact_scores, objective, source):
    """Mutant: wrong bridge variance, missing rho, another time grid, the sign of the ratio."""
    loss = objective(exact_scores(source))
    assert loss.shape == (4, 3)
    assert loss.max() < 1e-9


@pytest.mark.parametrize("source", SOURCES)
def test_divergences_reach_their_bounds_at_the_exact_optimum(exact_scores, source):
    """Both are -log Z on every path: ReverseKL itself, PathLikelihood after adding the reward.
    Mutant: the reward's sign, or a ratio to N(z_K) instead of the reference path."""
    scores = exact_scores(source)
    close(ReverseKL()(scores), -scores.log_z.expand(4, 3), 1e-9)
    close(PathLikelihood()(scores) + scores.log_reward, scores.log_z.expand(4, 3), 1e-9)


def test_gradients_of_all_objectives_vanish_at_the_exact_optimum(optimal, linear):
    """In the gates, with the closed-form log Z; the divergences in expectation. Mutant: a variance
    that is off by the bridge's, whose squares vanish only in the first order."""
    obs, gate, n = linear.observe(1), optimal.control.gate, 4000
    path = optimal.forward_path(obs, n, torch.Generator().manual_seed(0))
    context = optimal.encode(obs)
    ratio = optimal.log_ratio(path, context)
    reward = linear.log_reward(path.end[:, 0], obs[torch.zeros(n).long()])[:, None]
    scores = Scores(ratio, reward, linear.log_z(obs))
    for objective in (TrajectoryBalance(), LogVariance()):
        (gradient,) = torch.autograd.grad(objective(scores).mean(), gate, retain_graph=True)
        assert gradient.abs().max() < 1e-9
    # The score of on-policy paths has mean zero: the gradient of either divergence, up to the sign.
    (gradient,) = torch.autograd.grad(PathLikelihood()(scores).mean(), gate)
    k = torch.arange(optimal.steps)
    z = path.z[:, :50].flatten(1, 2)
    singles = []
    for i in range(50):
        single = optimal.score(z[:-1, i : i + 1], z[1:, i : i + 1], k, context)
        singles.append(torch.autograd.grad(single.sum(), gate)[0])
    error = torch.stack(singles).std(0) / math.sqrt(n)
    assert (gradient.abs() < 5 * error + 1e-9).all()
    assert (error > 1e-3).any()


def test_adjoint_target_averages_to_the_optimal_kernel(optimal, linear):
    """The reward gradient is linear in z_K here, so the mean target given z_k is the target at the
    mean of z_K. Mutant: spread^2 for spread, a target without w, or w of the next step."""
    obs, z = linear.observe(2), draw(7, 2, 4)
    k, context = torch.arange(7), optimal.encode(obs)
    guide = optimal.control.guide(z, k, context, linear)
    shift = optimal.control(z, k, context, linear, guide).shift.detach().requires_grad_()
    reference, targets = optimal.reference, []
    for step in range(7):
        rho, spread = reference.rho[step], reference.spread[step]
        mean, covariance = linear.posterior(obs, rho * z[step], float(spread**2))
        root = torch.linalg.cholesky(covariance)
        ends = [mean + s * root[..., i] * 2 for s in (1, -1) for i in range(4)]  # moments match
        gradients = [linear.grad_log_reward(end, obs)[1] for end in ends]
        targets.append(reference.information[step] * spread * torch.stack(gradients))
    targets = torch.stack(targets, 1)
    close(shift.detach(), targets.mean(0), 1e-9)
    loss = sum(AdjointSampling()(Scores(shift=shift, target=target)).sum() for target in targets)
    (gradient,) = torch.autograd.grad(loss, shift)
    assert loss > 1
    close(gradient, torch.zeros_like(shift), 1e-8)


def test_trajectory_balance_by_hand():
    """Mutant: the sign of log_ratio, or log Z of another observation."""
    scores = Scores(
        log_ratio=torch.tensor([[1.0, 0.0], [2.0, -1.0]]),
        log_reward=torch.tensor([[0.5, 3.0], [-1.0, 1.0]]),
        log_z=torch.tensor([2.0, -1.0]),
    )
    close(TrajectoryBalance()(scores), torch.tensor([[6.25, 16.0], [25.0, 9.0]]))
    # Beyond one nat: 2 |r| - 1, with value and slope continuous at 1.
    close(TrajectoryBalance(huber=1.0)(scores), torch.tensor([[4.0, 7.0], [9.0, 5.0]]))
    close(TrajectoryBalance(huber=4.0)(scores), torch.tensor([[6.25, 16.0], [24.0, 9.0]]))


def test_log_variance_is_half_the_unbiased_variance_of_each_observation():
    """Mutant: the biased variance, or a variance over the batch; both change with n or B."""
    scores = Scores(draw(5, 3), 3 * draw(5, 3, seed=1) + torch.tensor([0.0, 100.0, -7.0]))
    loss = LogVariance()(scores)
    close(loss.mean(0), 0.5 * (scores.log_reward - scores.log_ratio).var(0, unbiased=True))
    wide = LogVariance(huber=0.5)(scores)
    deviation = (scores.log_weight - scores.log_weight.mean(0)).abs()
    close(wide[deviation < 0.5], loss[deviation < 0.5])
    linear_part = (0.5 * (2 * 0.5 * deviation - 0.25) * 5 / 4)[deviation > 0.5]
    assert len(linear_part) > 0
    close(wide[deviation > 0.5], linear_part)


def test_log_variance_and_reverse_kl_have_the_gradient_of_the_kl():
    """One step, P = N(m, s^2), log r = -(z - 1)^2: both gradients against the closed form,
    m + 2 (m - 1) and, in log s, 3 s^2 - 1. Mutant: variance without the factor 1/2."""
    m, log_s = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (-0.4, 0.3))
    exact = torch.tensor([-0.4 + 2 * (-0.4 - 1), 3 * math.exp(0.6) - 1], dtype=torch.float64)
    eta, groups = draw(50, 4000), 50

    def scores(z: torch.Tensor) -> Scores:
        controlled, reference = Normal(m, log_s.exp()), Normal(torch.zeros_like(m), 1.0)
        return Scores(controlled.log_prob(z) - reference.log_prob(z), -((z - 1) ** 2))

    z = m + log_s.exp() * eta
    for loss in (ReverseKL()(scores(z)), LogVariance()(scores(z.detach()))):
        single = []
        for part in loss.mean(0).reshape(groups, -1).mean(1):
            single.append(torch.stack(torch.autograd.grad(part, [m, log_s], retain_graph=True)))
        gradient = torch.stack(single)
        error = gradient.std(0) / math.sqrt(groups)
        assert (error < 0.05).all()
        assert ((gradient.mean(0) - exact).abs() < 4 * error).all()


def residuals_by_hand(scores: Scores, lam: float) -> torch.Tensor:
    steps = len(scores.step_log_ratio)
    value = [*scores.log_flow, scores.log_reward]
    total, weights = torch.zeros_like(scores.log_reward), 0.0
    for i in range(steps):
        for j in range(i + 1, steps + 1):
            weight = lam ** (j - i - 1) if j > i + 1 else 1.0
            residual = value[i] + sum(scores.step_log_ratio[i:j]) - value[j]
            total, weights = total + weight * residual**2, weights + weight
    return total / weights


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0, 1.5])
def test_sub_trajectory_balance_sums_all_sub_paths(lam):
    """Mutant: lam^(j - i) without normalisation, or ratios shifted by one step against the flow."""
    scores = Scores(None, draw(2, 3), None, draw(4, 2, 3, seed=1), draw(4, 2, 3, seed=2))
    close(SubTrajectoryBalance(lam)(scores), residuals_by_hand(scores, lam), 1e-6)


def test_detailed_balance_is_the_mean_of_adjacent_squares():
    """Mutant: the last step, into the reward, left out."""
    scores = Scores(None, draw(2, 3), None, draw(4, 2, 3, seed=1), draw(4, 2, 3, seed=2))
    value = torch.cat([scores.log_flow, scores.log_reward[None]])
    adjacent = (value[:-1] + scores.step_log_ratio - value[1:]).square().mean(0)
    close(DetailedBalance()(scores), adjacent)
    close(SubTrajectoryBalance(0.0)(scores), adjacent)
    clipped = DetailedBalance(huber=0.01)(scores)
    assert (clipped < 0.05 * adjacent.max()).all()


def test_whole_paths_dominate_for_large_lam():
    """lam to infinity is trajectory balance. Mutant: weights that always decay with length."""
    flow = draw(4, 2, 3, seed=2)
    scores = Scores(None, draw(2, 3), flow[0, 0], draw(4, 2, 3, seed=1), flow)
    scores.log_flow[0] = scores.log_z
    scores.log_ratio = scores.step_log_ratio.sum(0)
    close(SubTrajectoryBalance(1e8)(scores), TrajectoryBalance()(scores), 1e-5)


def test_adjoint_sampling_by_hand():
    """Mutant: a mean over the event instead of the sum, which depends on the size of z."""
    scores = Scores(shift=torch.tensor([[[1.0, 2.0]]]), target=torch.tensor([[[0.0, -1.0]]]))
    assert AdjointSampling()(scores).tolist() == [[5.0]]
    image = Scores(shift=torch.ones(2, 3, 2, 4, 5), target=torch.zeros(2, 3, 2, 4, 5))
    close(AdjointSampling()(image), torch.full((2, 3), 20.0))


def test_path_objectives_by_hand():
    """Mutant: signs."""
    scores = Scores(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 4.0]]))
    assert PathLikelihood()(scores).tolist() == [[-1.0, 2.0]]
    assert ReverseKL()(scores).tolist() == [[0.5, -6.0]]


def test_each_objective_names_what_it_needs():
    """Mutant: a need left out, so that training passes None into the loss."""
    needs = {
        TrajectoryBalance: {"log_z"},
        LogVariance: {"groups"},
        SubTrajectoryBalance: {"log_z", "flow"},
        DetailedBalance: {"log_z", "flow"},
        PathLikelihood: {"posterior"},
        ReverseKL: {"path_gradient"},
        AdjointSampling: {"reward_gradient"},
    }
    assert {kind: set(kind.needs) for kind in needs} == needs


@pytest.mark.parametrize("kind", [TrajectoryBalance, LogVariance, DetailedBalance])
@pytest.mark.parametrize("huber", [0.0, -1.0])
def test_bad_huber_is_refused(kind, huber):
    """Mutant: huber = 0 accepted: a loss that is 0 everywhere."""
    with pytest.raises(ValueError, match=f"objective.huber must be > 0 or null, got {huber}"):
        kind(huber=huber)


def test_bad_use_is_refused():
    """Mutant: a variance of one path, 0 / 0."""
    with pytest.raises(ValueError, match=r"needs >= 2 paths for each observation, got 1"):
        LogVariance()(Scores(draw(1, 3), draw(1, 3)))
    with pytest.raises(ValueError, match=r"objective.lam must be >= 0, got -0.5"):
        SubTrajectoryBalance(-0.5)
