"""The sampler: drawing and scoring agree, whatever the mode, the batch or the memory."""

import copy

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from outsourced.sampler import NoiseSampler, Path
from outsourced.tasks.base import Observation

VECTOR_MODES = [
    ("vector", informed, covariance)
    for informed in ("none", "anchor", "gradient", "gauss_newton")
    for covariance in ("diagonal", "full")
]
SPATIAL_MODES = [
    (kind, informed, "diagonal")
    for kind in ("spatial", "convolutional")
    for informed in ("none", "anchor", "gradient")
]
MODES = VECTOR_MODES + SPATIAL_MODES


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=atol)


def kernels_by_hand(sampler: NoiseSampler, path: Path, obs: Observation) -> torch.Tensor:
    """log P_phi - log P_ref of every step, (K, n, B), one path and one step at a time, as densities
    of z_{k+1} from the kernel's mean and covariance."""
    k, n, batch = len(path.z) - 1, *path.z.shape[1:3]
    ratio = torch.zeros(k, n, batch).double()
    for b in range(batch):
        of_paths = sampler.encode(obs[b]).repeat(n)
        for i in range(n):
            context = of_paths.select(torch.tensor([i]))  # that of an anchor of its own, if any
            for step in range(k):
                ratio[step, i, b] = one_step(sampler, path.z[step : step + 2, i, b], step, context)
    return ratio


def one_step(sampler: NoiseSampler, pair: torch.Tensor, step: int, context) -> torch.Tensor:
    z, index = pair[:1][None], torch.tensor([step])
    guide = sampler.control.guide(z, index, context, sampler.conditioning)
    kernel = sampler.control(z, index, context, sampler.conditioning, guide)
    a, scale = sampler.reference.a[step], sampler.reference.scale[step]
    mean = (a * z + scale * kernel.shift)[0, 0]
    uncontrolled = Normal(a * pair[0], scale).log_prob(pair[1]).sum()
    if kernel.basis is None and kernel.lower is None:
        return (
            Normal(mean, scale * kernel.log_scale.exp()[0, 0]).log_prob(pair[1]).sum()
            - uncontrolled
        )
    eye = torch.eye(len(mean)).double()
    v = eye if kernel.basis is None else kernel.basis[0]
    lower = 0 * eye if kernel.lower is None else kernel.lower[0, 0]
    root = v @ torch.diag(kernel.log_scale[0, 0].exp()) @ v.T @ torch.linalg.inv(eye + lower)
    return MultivariateNormal(mean, scale**2 * root @ root.T).log_prob(pair[1]) - uncontrolled


@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_untrained_sampler_is_the_prior(sampler_of, mode):
    """Same states as the uncontrolled chain from the same noise, and log-ratio 0. Mutant: an output
    layer that is not zero, or kernels of another grid than the reference."""
    sampler, obs = sampler_of(mode, random=False)
    path = sampler.forward_path(obs, 2, seeded())
    g, shape = seeded(), (6, *sampler.noise_shape)
    start = torch.randn(shape, generator=g, dtype=torch.float64)
    free = sampler.reference.forward_path(start, g).unflatten(1, (2, 3))
    scored = sampler.log_ratio(path, obs)
    close(path.z, free, 1e-12)
    # Rotating to the eigenbasis and back costs one rounding; elsewhere the zero is exact.
    limit = 1e-12 if mode[1] == "gauss_newton" else 0.0
    assert path.log_ratio.abs().max() <= limit
    assert scored.abs().max() <= limit


@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_log_ratio_is_the_product_of_the_kernels(sampler_of, mode):
    """Against torch.distributions, path by path. Mutant: steps off by one, observations in another
    order, or a ratio to the bridge instead of the reference."""
    sampler, obs = sampler_of(mode)
    path = sampler.forward_path(obs, 2, seeded())
    with torch.no_grad():
        expected = kernels_by_hand(sampler, path, obs)
        close(sampler.step_log_ratio(path, sampler.encode(obs)), expected)
        close(sampler.log_ratio(path, obs), expected.sum(0))
    assert expected.abs().max() > 0.05


@pytest.mark.parametrize("exploration", [0.0, 0.5])
@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_drawing_and_scoring_give_the_same_log_ratio(sampler_of, mode, exploration):
    """Mutant: the ratio of the exploring kernel instead of P_phi, another time grid, or a cached
    guidance in another order."""
    sampler, obs = sampler_of(mode)
    path = sampler.forward_path(obs, 2, seeded(), exploration=exploration)
    with torch.no_grad():
        scored = sampler.log_ratio(path, obs)
        fresh = sampler.log_ratio(Path(path.z), obs)  # without the cached guidance
    close(path.log_ratio, scored)
    close(scored, fresh)


def test_exploration_widens_the_kernels_by_its_factor(sampler_of, play_noise):
    """Mutant: exploration added to the variance, or to the start law too."""
    sampler, obs = sampler_of(("vector", "none", "diagonal"), steps=1)
    noise = [torch.randn(6, 3, generator=seeded(i), dtype=torch.float64) for i in range(2)]
    ends = []
    for exploration in (-1.0, 0.0, 0.5):  # -1 leaves the mean of the kernel
        play_noise(noise)
        path = sampler.forward_path(obs, 2, exploration=exploration)
        close(path.z[0].flatten(0, 1), noise[0])
        ends.append(path.end)
    close(ends[2] - ends[0], 1.5 * (ends[1] - ends[0]))
    assert (ends[1] - ends[0]).abs().max() > 0.1


@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_a_batch_of_observations_equals_single_calls(sampler_of, play_noise, mode):
    """The same noise, one observation at a time. Mutant: any statistic over the batch, or noise
    levels and embeddings paired with the wrong path."""
    sampler, obs = sampler_of(mode)
    shape = (5, 2, 3, *sampler.noise_shape)
    noise = torch.randn(shape, generator=seeded(), dtype=torch.float64)
    play_noise(list(noise.flatten(1, 2)))
    together = sampler.forward_path(obs, 2)
    for b in range(3):
        play_noise(list(noise[:, :, b]))
        alone = sampler.forward_path(obs[b], 2)
        close(together.z[:, :, b], alone.z[:, :, 0])
        close(together.log_ratio[:, b], alone.log_ratio[:, 0])


@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_gradients_do_not_depend_on_checkpointing(sampler_of, monkeypatch, mode):
    """Mutant: pieces scored without grad, steps dropped at the seams, or a guidance cached for the
    wrong piece."""
    sampler, obs = sampler_of(mode, steps=5)
    path = sampler.forward_path(obs, 2, seeded())
    score, rows = sampler._score, []

    def watched(z, *rest):
        rows.append(len(z) * z.shape[1])
        return score(z, *rest)

    monkeypatch.setattr(sampler, "_score", watched)
    results = []
    for max_rows in (10**6, 12, 1):  # all five steps, two steps, one step at a time
        sampler.max_rows, rows[:] = max_rows, []
        sampler.zero_grad()
        ratio = sampler.log_ratio(Path(path.z), obs)
        ratio.square().sum().backward()
        results.append([p.grad for p in sampler.parameters() if p.grad is not None])
        results[-1].append(ratio.detach())
        assert max(rows) <= max(max_rows, 6)
    assert len(results[0]) > 5
    assert sum(g.abs().sum() > 0 for g in results[0]) > 5
    for other in results[1:]:
        for whole, piece in zip(results[0], other, strict=True):
            close(piece, whole, 1e-8)


def test_memory_of_scoring_does_not_grow_with_the_steps(sampler_of):
    """Counts what autograd keeps. Mutant: no checkpointing, which keeps 16 times as much."""
    kept = {}
    for steps in (4, 64):
        sampler, obs = sampler_of(("vector", "none", "diagonal"), steps=steps, max_rows=6, width=64)
        path, total = sampler.forward_path(obs, 2, seeded()), [0]

        def pack(tensor, total=total):
            total[0] += tensor.numel()
            return tensor

        context = sampler.encode(obs)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            sampler.log_ratio(path, context)
        kept[steps] = total[0]
    states = 61 * 2 * 3 * 3  # the path itself is longer
    assert kept[64] < 2 * kept[4] + 20 * states


def test_same_seed_same_samples_and_forward_is_the_end(sampler_of):
    """Mutant: randomness from the global generator, or an intermediate state returned."""
    sampler, obs = sampler_of(("vector", "gradient", "full"))
    before = torch.get_rng_state()
    first, again, other = (sampler(obs, 2, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert (first - other).abs().min() > 1e-6
    assert torch.equal(first, sampler.forward_path(obs, 2, seeded(1)).z[-1])
    assert torch.equal(before, torch.get_rng_state())


def test_backward_path_keeps_its_ends_in_place(sampler_of):
    """Mutant: samples and observations exchanged on the way, which only the ends can show."""
    sampler, obs = sampler_of(("vector", "none", "diagonal"), steps=25)
    z = torch.arange(2 * 3 * 3).double().reshape(2, 3, 3) * 1e3
    path = sampler.backward_path(z, seeded())
    assert torch.equal(path.end, z)
    close(path.z[-2], sampler.reference.rho[-2] * z, 5 * float(sampler.reference.spread[-1]))
    close(path.z[0], torch.zeros_like(z), 6.0)
    with torch.no_grad():
        close(sampler.log_ratio(path, obs), kernels_by_hand(sampler, path, obs).sum(0), 1e-3)


@pytest.mark.parametrize("informed", ["none", "anchor"])
def test_pathwise_gradient_matches_finite_differences(sampler_of, problems, informed):
    """ELBO along a random direction of all weights, with the noise held. Mutant: a detached state
    in the roll-out, or the ratio's dependence on the path left out."""
    sampler, obs = sampler_of(("vector", informed, "full"))

    def loss(model):
        path = model.differentiable_path(obs, 2, seeded())
        ends, index = path.end.flatten(0, 1), torch.arange(3).repeat(2)
        return (path.log_ratio.flatten() - problems["vector"].log_reward(ends, obs[index])).sum()

    loss(sampler).backward()
    generator, slope, moved = seeded(4), 0.0, []
    for sign in (1, -1):
        moved.append(copy.deepcopy(sampler))
        generator.manual_seed(4)
        with torch.no_grad():
            for shifted, p in zip(moved[-1].parameters(), sampler.parameters(), strict=True):
                direction = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                shifted.add_(sign * 1e-6 * direction)
                if sign == 1 and p.grad is not None:
                    slope += float((p.grad * direction).sum())
    with torch.no_grad():
        numeric = float(loss(moved[0]) - loss(moved[1])) / 2e-6
    assert abs(slope) > 1
    assert abs(slope - numeric) < 1e-5 * abs(slope)


def test_guided_returns_what_the_draw_cached(sampler_of):
    """Mutant: guidance of all states in another order than the roll-out's."""
    sampler, obs = sampler_of(("vector", "gauss_newton", "full"))
    path = sampler.forward_path(obs, 2, seeded())
    assert sampler.guided(path, sampler.encode(obs)) is path.guide
    close(sampler.guided(Path(path.z), sampler.encode(obs)), path.guide)


def test_the_frozen_problem_stays_out_of_the_weights(make_sampler, problems):
    """Mutant: the conditioning kept as a sub-module: the prior would be saved and trained."""

    class Weighty(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def features(self, obs):
            return self.weight * obs.y

    problem = Weighty()
    sampler = make_sampler(problem, (3,), (3,))
    assert sampler.conditioning is problem
    assert torch.equal(problem.weight, torch.ones(3))  # `randomise` did not reach it
    assert not any(p is problem.weight for p in sampler.parameters())
    assert all("reference" not in name for name in sampler.state_dict())


def test_bad_requests_are_refused(sampler_of, make_sampler, problems):
    """Mutant: a path-wise gradient that silently misses the guidance's part."""
    informed, obs = sampler_of(("vector", "gradient", "diagonal"))
    with pytest.raises(ValueError, match=r"needs sampler.informed=none\|anchor, got 'gradient'"):
        informed.differentiable_path(obs, 1)
    with pytest.raises(ValueError, match=r"no flow network; build it with sampler.flow=true"):
        informed.log_flow(informed.forward_path(obs, 1), informed.encode(obs))
    with pytest.raises(
        ValueError, match=r"spatial noise \(2, 4, 3\) needs image features, got \(5,\)"
    ):
        make_sampler(problems["spatial"], (2, 4, 3), (5,), network="convolutional")
