"""Path sources: numbers, labels, ends, rewards and the moves of refined draws."""

import pytest
import torch
from scipy.stats import kstest

from outsourced.paths import SOURCES
from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian
from outsourced.tasks.base import Observation

ALL = {"on_policy": 2, "reference": 1, "simulated": 2, "replay": 1, "refined": 1}
INDEX = {name: i for i, name in enumerate(SOURCES)}


def draw(p, mixture, generator, simulated=6, images=0):
    z, _, obs = p.posterior.simulate(simulated, generator)
    real = None
    if images:
        real = p.posterior.task.sample(torch.full((images, p.dim), 9.0), generator=generator)
    plan = mixture.plan(z, obs, real, generator)
    context = p.sampler.encode(plan.obs)
    return plan, mixture.draw(plan, context, generator, generator), (z, obs, real)


@pytest.mark.parametrize(
    ("weights", "n", "counts"),
    [
        ({"on_policy": 0.75, "simulated": 0.1, "replay": 0.05, "refined": 0.1}, 8, (6, 0, 2)),
        ({"on_policy": 1, "reference": 1, "simulated": 1}, 8, (2, 3, 3)),
        ({"on_policy": 1, "reference": 1, "simulated": 1}, 7, (2, 2, 3)),
        ({"on_policy": 0.6, "reference": 0.0, "simulated": 0.4}, 4, (2, 0, 2)),
        ({"simulated": 3.0}, 5, (0, 0, 5)),
    ],
)
def test_weights_become_counts_by_largest_remainder(problem, weights, n, counts) -> None:
    """Mutants: rounding (8/3 three times is 9), ties that go to the on-policy paths."""
    mixture = problem().mixture(n, weights=weights)
    assert (mixture.on, mixture.free, mixture.known) == counts


def test_labels_and_ends(problem, generator) -> None:
    """Every path is labelled by its source, and ends where that source says.

    Known ends of simulated rows are the z behind that row's y; those of replayed rows lie in the
    buffer row of that observation. Rewards are those of the ends under the row's own y.
    Mutants: labels or rows shifted by one source, z of another row, rewards of other observations.
    """
    p = problem()
    mixture = p.mixture(7, weights=ALL)
    draw(p, mixture, generator, 12)
    plan, batch, (z, obs, _) = draw(p, mixture, generator, 12)
    assert (mixture.on, mixture.free, mixture.known) == (2, 1, 4)
    assert plan.sizes == (6, 0, 3, 3)
    assert torch.equal(plan.obs.y[:6], obs.y[:6])
    names = [["on_policy"] * 12] * 2 + [["reference"] * 12]
    names += [["simulated"] * 6 + ["replay"] * 3 + ["refined"] * 3] * 4
    assert batch.source.tolist() == [[INDEX[name] for name in row] for row in names]
    assert torch.equal(batch.path.end[3:, :6], z[:6].expand(4, 6, 2))
    stored = mixture.buffer.observations(plan.rows)
    assert torch.equal(stored.y, plan.obs.y[6:])
    kept = mixture.buffer.state_dict()["z"][plan.rows]
    for i in range(3):
        for end in batch.path.end[3:, 6 + i]:
            assert (kept[i] == end).all(-1).any()
    index = torch.arange(12).repeat(7)
    expected = p.posterior.log_reward(batch.path.end.flatten(0, 1), plan.obs[index])
    assert torch.allclose(batch.log_reward.flatten(), expected, rtol=1e-5)


def test_reference_and_backward_paths_have_their_laws(problem, generator) -> None:
    """Reference ends are N(0, I); backward paths from the prior's z start at N(0, I) too and keep
    the reference's correlation rho_0 between start and end.

    Mutants: reference paths that are on-policy, known ends that are noised by other kernels.
    """
    p = problem(steps=3)
    with torch.no_grad():
        for value in p.sampler.control.parameters():
            value.add_(0.3)  # on-policy paths must differ from the reference
    mixture = p.mixture(2, weights={"reference": 1, "simulated": 1})
    _, batch, _ = draw(p, mixture, generator, 3000)
    for row in (0, 1):
        for values in (batch.path.end[row], batch.path.z[0, row]):
            assert kstest(values.flatten().numpy(), "norm").pvalue > 1e-3
        pair = torch.stack([batch.path.z[0, row].flatten(), batch.path.end[row].flatten()])
        rho = float(p.sampler.reference.rho[0])
        assert abs(float(torch.corrcoef(pair)[0, 1]) - rho) < 0.04


def test_images_never_get_a_simulated_end(problem, generator) -> None:
    """Observations of images have no known z: all their first paths are on-policy, then the buffer
    returns them with draws of their own.

    Mutant: the z of a simulated row under the y of an image.
    """
    p = problem()
    mixture = p.mixture(4, weights={"on_policy": 1, "simulated": 1, "replay": 1})
    plan, batch, (z, _, real) = draw(p, mixture, generator, 3, images=5)
    assert plan.sizes == (3, 5, 0, 0)
    assert torch.equal(plan.obs.y[3:], real.y)
    assert (batch.source[:, 3:] == INDEX["on_policy"]).all()
    ends = batch.path.end[:, 3:].reshape(-1, 1, 2)
    assert not (ends == z).all(-1).any()
    plan, batch, (z, _, _) = draw(p, mixture, generator, 3, images=5)
    simulated, images, replayed, _ = plan.sizes
    assert replayed == 4
    assert simulated + images == 4
    first = batch.source[mixture.on :, :simulated]
    assert (first == INDEX["simulated"]).all()
    assert torch.equal(batch.path.end[mixture.on, :simulated], z[:simulated])
    assert (batch.source[mixture.on :, simulated : simulated + images] == 0).all()
    from_images = plan.obs.y[-replayed:].abs().amax(1) > 6
    assert from_images.any()


def bad_entries(p, mixture, count=1500):
    """A buffer of posterior draws, or of draws far from any posterior."""
    generator = torch.Generator().manual_seed(5)
    _, _, one = p.posterior.simulate(1, generator)
    obs = one.repeat(count)
    mean, covariance, _ = p.exact(obs)
    factor = torch.linalg.cholesky(covariance)
    z = mean + torch.randn(2, count, p.dim, generator=generator) @ factor.T
    reward = p.posterior.log_reward(z.flatten(0, 1), Observation.cat([obs, obs])).reshape(2, count)
    return obs, z, reward, mean, factor


@pytest.mark.parametrize(
    ("kernel", "informed"), [("mala", "gauss_newton"), ("mala", "none"), ("pcn", "none")]
)
def test_refining_leaves_the_posterior_invariant(problem, generator, kernel, informed) -> None:
    """Exact posterior draws stay exact draws, though most of them move (KS, whitened).

    Mutants: a metric that is used without its correction, a proposal that is always accepted, an
    observation of another row.
    """
    p = problem(informed=informed)
    weights = {"refined": 1.0}
    mixture = p.mixture(2, 2000, weights=weights, kernel=kernel, moves=4, step=0.9)
    obs, z, reward, mean, factor = bad_entries(p, mixture)
    mixture.buffer.add(obs, z, reward)
    plan, batch, _ = draw(p, mixture, generator, 1500)
    assert plan.sizes == (0, 0, 0, 1500)
    end = batch.path.end
    white = torch.linalg.solve_triangular(factor, (end - mean[:1]).mT, upper=False)
    for values in (white[:, 0], white[:, 1]):
        assert kstest(values[0].flatten().numpy(), "norm").pvalue > 1e-3
    _, kept = mixture.buffer.read(plan.rows, torch.zeros(1, 1500, dtype=torch.long))
    before = mixture.buffer.state_dict()["z"]
    moved = (before[plan.rows][:, :, None] != z.transpose(0, 1)[plan.rows][:, None]).any(-1)
    assert moved.all(-1).any(-1).float().mean() > 0.4
    fresh = p.posterior.log_reward(before[plan.rows, 0], plan.obs)
    assert torch.allclose(kept[0], fresh, atol=1e-4)  # z and its reward are written together


def test_refining_raises_the_density_of_bad_draws(problem, generator) -> None:
    """Draws far from the posterior climb, visit after visit, and the learned step stays in range.

    Mutant: moves whose result is not written back.
    """
    p = problem()
    mixture = p.mixture(2, 64, weights={"refined": 1.0}, kernel="mala", moves=3)
    obs, z, _, _, _ = bad_entries(p, mixture, 64)
    start = 6 * torch.ones_like(z)
    reward = p.posterior.log_reward(start.flatten(0, 1), Observation.cat([obs, obs])).reshape(2, 64)
    mixture.buffer.add(obs, start, reward)
    before = mixture.buffer.statistics()["log_reward"]
    values = []
    for _ in range(25):
        draw(p, mixture, generator, 64)
        values.append(mixture.buffer.statistics()["log_reward"])
    exact = p.posterior.log_reward(z.flatten(0, 1), Observation.cat([obs, obs])).mean()
    assert before < exact - 50
    assert abs(values[-1] - exact) < 3
    assert 0.01 < float(mixture.step) < 10


def test_step_follows_the_acceptance(problem, generator) -> None:
    """A step that is nearly always rejected shrinks, one that is nearly always accepted grows.

    Mutant: the sign of the adaptation.
    """
    p = problem(sigma=0.05)
    mixture = p.mixture(2, 200, weights={"refined": 1.0}, kernel="pcn", moves=5, step=1.0)
    obs, z, reward, _, _ = bad_entries(p, mixture, 200)
    mixture.buffer.add(obs, z, reward)
    draw(p, mixture, generator, 200)
    assert float(mixture.step) < 0.97
    mixture.step = torch.tensor(0.001)
    draw(p, mixture, generator, 200)
    assert float(mixture.step) > 0.001 * 1.1


def test_rewards_are_stored_at_beta_one(problem, generator) -> None:
    """The buffer outlives an annealed beta, so it holds log r and not beta log r.

    Mutant: the annealed rewards in the buffer.
    """
    p = problem()
    p.posterior.beta = 0.25
    mixture = p.mixture(4, weights={"on_policy": 1, "replay": 0.5, "refined": 0.5}, kernel="mala")
    for _ in range(2):
        draw(p, mixture, generator)
    state, count = mixture.buffer.state_dict(), len(mixture.buffer)
    p.posterior.beta = 1.0
    obs = mixture.buffer.observations(torch.arange(count))
    for slot in range(2):
        expected = p.posterior.log_reward(state["z"][:count, slot], obs)
        assert torch.allclose(state["log_reward"][:count, slot], expected, rtol=1e-4, atol=1e-4)


def test_guidance_of_joined_paths(problem, generator) -> None:
    """Cached guidance of a mixed batch is that of its states: the log-ratio does not change.

    Mutant: guidance joined along the wrong axis, so that paths read that of others.
    """
    p = problem(informed="gauss_newton")
    with torch.no_grad():
        p.sampler.control.gate.fill_(0.05)
    mixture = p.mixture(7, weights=ALL)
    draw(p, mixture, generator)
    plan, batch, _ = draw(p, mixture, generator)
    with torch.no_grad():
        context = p.sampler.encode(plan.obs)
        cached = p.sampler.log_ratio(batch.path, context)
        batch.path.guide = None
        direct = p.sampler.log_ratio(batch.path, context)
    assert direct.abs().mean() > 0.1
    assert torch.allclose(cached, direct, atol=1e-4)


def test_state_round_trip(problem, generator) -> None:
    """Mutant: the learned step of the moves is not saved."""
    p = problem()
    mixture, copy = (p.mixture(7, weights=ALL) for _ in range(2))
    draw(p, mixture, generator)
    draw(p, mixture, generator)
    copy.load_state_dict(mixture.state_dict())
    assert float(copy.step) == float(mixture.step) != 0.3
    a, b = (draw(p, m, torch.Generator().manual_seed(3))[1] for m in (mixture, copy))
    assert torch.equal(a.path.z, b.path.z)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"teacher": 1.0}}, "on_policy, reference, simulated, replay, refined"),
        ({"weights": {"on_policy": -1.0}}, "must be >= 0"),
        ({"weights": {"on_policy": 0.0}}, "not all 0"),
        ({"n": 0}, "paths.n must be >= 1, got 0"),
        ({"n": 1, "weights": {"replay": 1.0}}, "must be >= paths.buffer.slots = 2, got 1"),
        ({"kernel": "hmc"}, "paths.kernel must be one of auto, pcn, mala"),
        ({"exploration": -0.1}, "paths.exploration must be >= 0"),
        ({"moves": 0}, "paths.moves >= 1"),
        ({"step": 0.0}, r"paths.step in \(0, 1\]"),
    ],
)
def test_bad_arguments(problem, options, message) -> None:
    """Mutant: an error in the middle of training."""
    with pytest.raises(ValueError, match=message):
        problem().mixture(**options)


def test_moves_of_a_black_box(problem) -> None:
    """Mutant: MALA as the default of a prior without gradient, which fails at the first visit."""
    p = problem()
    prior = LinearGaussian(2)
    prior.differentiable = False
    p.posterior = Posterior(prior, p.posterior.task)
    assert p.mixture().kernel == "pcn"
    with pytest.raises(ValueError, match="kernel=mala needs a differentiable prior"):
        p.mixture(kernel="mala")
    assert problem().mixture().kernel == "mala"
