"""Students: mixtures of kernels, steps of the teacher's grid, weights that are handed down."""

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from outsourced.distilling import inherit, student_config
from outsourced.kernels import Kernel, Mixture, strictly_lower
from outsourced.reference import Reference
from outsourced.sampler import Path

M, S, N, D = 3, 2, 4, 3


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def a_mixture(full: bool = True) -> Mixture:
    shift, scale = randn(M * S, N, D, seed=1), 0.4 * randn(M * S, N, D, seed=2)
    basis = torch.linalg.qr(randn(N, D, D, seed=3))[0]
    lower = strictly_lower(randn(M * S, N, 3, seed=4), D) if full else None
    share = randn(M, S, N, seed=5).log_softmax(0)
    return Mixture(Kernel(shift, scale, basis, lower), share)


def law(mixture: Mixture, s: int, n: int) -> MixtureSameFamily:
    """The same mixture by torch, from the columns of each part's square root."""
    parts = mixture.parts
    eye = torch.eye(D, dtype=torch.float64)
    zero = torch.zeros(M * S, N, D, dtype=torch.float64)
    root = torch.stack([parts.sample(zero + e) - parts.shift for e in eye], -1)
    rows = torch.arange(M) * S + s
    covariance = (root @ root.mT)[rows, n]
    means = MultivariateNormal(parts.shift[rows, n], covariance)
    return MixtureSameFamily(Categorical(logits=mixture.log_share[:, s, n]), means)


@pytest.mark.parametrize("full", [False, True])
def test_mixture_has_the_density_of_torch(full: bool) -> None:
    """Mutant: parts of other steps or rows, shares that do not weigh, or a mean of log-ratios."""
    mixture, eps = a_mixture(full), randn(S, N, D, seed=6)
    found = mixture.log_ratio(eps)
    normal = MultivariateNormal(torch.zeros(D).double(), torch.eye(D).double())
    for s in range(S):
        for n in range(N):
            expected = law(mixture, s, n).log_prob(eps[s, n]) - normal.log_prob(eps[s, n])
            torch.testing.assert_close(found[s, n], expected, rtol=1e-10, atol=1e-10)


def test_mixture_draws_from_its_own_density() -> None:
    """Shares of the parts by counting, and E_q[p / (p + q)] = E_p[q / (p + q)] for p = N(0, I).

    Mutant: the largest share always, cumulated shares off by one part, or the scale of another.
    """
    mixture, count = a_mixture(), 3_000
    generator = torch.Generator().manual_seed(0)
    counts, gap = torch.zeros(M, S, N), torch.zeros(S, N, dtype=torch.float64)
    shifts = mixture.parts.shift.unflatten(0, (M, S))
    for choice in torch.rand(count, S, N, generator=generator, dtype=torch.float64):
        kernel = mixture.pick(choice)
        counts += (shifts == kernel.shift).all(-1)
        eta, eps = torch.randn(2, S, N, D, generator=generator, dtype=torch.float64)
        gap += torch.sigmoid(-mixture.log_ratio(kernel.sample(eta)))
        gap -= torch.sigmoid(mixture.log_ratio(eps))
    assert (counts / count - mixture.log_share.exp()).abs().max() < 4 * 0.5 / count**0.5
    assert (gap / count).abs().max() < 4 * 0.5 * (2 / count) ** 0.5


@pytest.mark.parametrize("kind", ["vector", "flat"])
def test_untrained_mixture_is_the_prior_and_its_parts_can_part(kind, problems, make_sampler):
    """Log-ratio 0 on any path; a gradient that is not the same for all parts.

    Mutant: heads of the parts that start apart, or equal shares too, so that all learn the same.
    """
    problem = problems["vector" if kind == "vector" else "spatial"]
    options = {"components": 3, "steps": 2, "informed": "none"}
    sampler = make_sampler(problem, problem.shape, problem.shape, random=False, **options)
    obs, generator = problem.observe(3), torch.Generator().manual_seed(0)
    path = sampler.forward_path(obs, 5, generator)
    assert path.log_ratio.abs().max() < 1e-12
    end = 1 + randn(5, 3, *problem.shape)
    loss = -sampler.log_ratio(sampler.backward_path(end, generator), obs).mean()
    loss.backward()
    network = sampler.control.network
    head = network.head if kind == "vector" else network.dense.head
    rows = head.bias.grad[
        : len(head.bias.grad) * 3 * problem.shape[0] // sum(sampler.control.sizes)
    ]
    parts = rows.unflatten(0, (3, -1))
    assert (parts[0] - parts[1]).abs().max() > 1e-3 * parts.abs().max()


@pytest.mark.parametrize(
    "mode",
    [
        ("vector", "none", "full"),
        ("vector", "gauss_newton", "full"),
        ("vector", "anchor", "diagonal"),
        ("vector", "gradient", "diagonal"),
        ("spatial", "anchor", "diagonal"),
    ],
)
def test_forward_log_ratio_of_a_mixture_is_that_of_scoring(mode, sampler_of):
    """The ratio that a draw carries equals the one that scoring its path gives.

    Mutant: a draw that carries the ratio of the part it came from, or parts in another order.
    """
    sampler, obs = sampler_of(mode, components=3)
    path = sampler.forward_path(obs, 6, torch.Generator().manual_seed(1))
    assert path.log_ratio.abs().max() > 0.1
    scored = sampler.log_ratio(Path(path.z), obs)
    torch.testing.assert_close(path.log_ratio, scored, rtol=1e-8, atol=1e-8)


def test_mixtures_are_refused_where_they_cannot_be(problems, make_sampler):
    """Mutant: a convolutional mixture, or the path-wise gradient of a choice."""
    problem = problems["spatial"]
    shape = problem.shape, problem.shape
    for components, network in ((0, "auto"), (2, "convolutional")):
        with pytest.raises(ValueError, match=r"sampler.components must be >= 1, .*, got"):
            make_sampler(problem, *shape, components=components, network=network)
    sampler = make_sampler(problem, *shape, components=2, informed="none")
    with pytest.raises(ValueError, match=r"needs sampler.components=1, got 2"):
        sampler.differentiable_path(problem.observe(1), 1)


@pytest.mark.parametrize("steps", [1, 2, 5, 7, 12])
def test_grid_is_a_part_of_the_finer_one(steps: int) -> None:
    """Mutant: a grid of its own, positions of it, or one without an end."""
    fine, coarse = Reference(12, late=0.8), Reference(steps, late=0.8, grid=12)
    index = [round(12 * i / steps) for i in range(steps + 1)]
    assert torch.equal(coarse.rho, fine.rho[index])
    assert torch.equal(coarse.position, fine.position[index])
    torch.testing.assert_close(coarse.a, coarse.rho[:-1] / coarse.rho[1:])
    with pytest.raises(ValueError, match=r"sampler.grid must be >= sampler.steps = 5, got 4"):
        Reference(5, grid=4)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_gaussian_teacher_hands_down_a_perfect_student(steps, linear, optimal, make_sampler):
    """From the optimal sampler of a linear-Gaussian problem, log-weights are constant untrained.

    Mutant: gates of the first steps instead of the same times, or a network that is told the
    position on the student's own grid.
    """
    options = {"informed": "gauss_newton", "anchor_steps": 1, "grid": 7}
    student = make_sampler(linear, (4,), (3,), random=False, steps=steps, **options)
    with torch.no_grad():  # wrong gates at the times that the student has no step at
        kept = [round(7 * i / steps) for i in range(steps)]
        others = [k for k in range(7) if k not in kept]
        optimal.control.gate[:, others] = 0.3
    done, total = inherit(student, optimal)
    assert done == total
    obs = linear.observe(3)
    path = student.forward_path(obs, 16, torch.Generator().manual_seed(0))
    reward = linear.log_reward(path.end.flatten(0, 1), obs[torch.arange(3).repeat(16)])
    weight = reward.unflatten(0, (16, 3)) - path.log_ratio
    torch.testing.assert_close(weight, linear.log_z(obs).expand(16, 3), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "mode",
    [
        ("vector", "gauss_newton", "full"),
        ("vector", "gradient", "diagonal"),
        ("spatial", "none", "diagonal"),
    ],
)
def test_parts_start_as_the_teachers_gaussian(mode, sampler_of):
    """Kernels of a student that is a mixture equal the teacher's at the same times.

    Mutant: blocks of the output layer shuffled, a skip that reaches one part only, a gain per part.
    """
    teacher, obs = sampler_of(mode, steps=4)
    student, _ = sampler_of(mode, steps=2, grid=4, components=3)
    done, total = inherit(student, teacher)
    assert done == total
    z, k = randn(2, 3, *teacher.noise_shape, seed=9), torch.tensor([0, 1])
    kernels = []
    for sampler, index in ((teacher, 2 * k), (student, k)):
        context = sampler.encode(obs)
        guide = sampler.control.guide(z, index, context, sampler.conditioning)
        kernels.append(sampler.control(z, index, context, sampler.conditioning, guide))
    w = [s.reference.information[i] for s, i in ((teacher, 2 * k), (student, k))]
    shape = (-1, *[1] * (z.ndim - 1))
    guess = kernels[0].shift / w[0].reshape(shape)
    for part in kernels[1].parts.shift.unflatten(0, (3, 2)):
        torch.testing.assert_close(part / w[1].reshape(shape), guess, rtol=1e-8, atol=1e-8)


TEACHER = {
    "prior": {"a": 1},
    "task": {"b": 2},
    "posterior": {"beta": 2.0},
    "data": {"bank_size": 9, "observations": "mixed"},
    "sampler": {"_target_": "a.NoiseSampler", "steps": 24, "width": 64, "informed": "none"},
}
COMMAND = {
    "distill": "runs/a/",
    "run": "runs/x",
    "prior": {"a": 0},
    "task": {},
    "posterior": {"beta": 1.0},
    "data": {"bank_size": 5, "bank_chunk": 1, "observations": "simulated"},
    "sampler": {"steps": 4, "width": 999, "components": 2, "grid": None},
    "objective": {"_target_": "x"},
    "trainer": {"batch": 12, "groups": 3, "anchor_steps": 7, "beta_start": 0.1, "lr": 1.0},
}


def test_student_config_is_the_teachers_but_for_what_was_chosen() -> None:
    """Mutant: defaults of the command in the place of the teacher's, choices that are lost, a
    student of another posterior, or a run over the teacher's folder."""
    chosen = ["distill", "sampler.steps", "sampler.components", "data.bank_size", "trainer.lr"]
    found = student_config(COMMAND, TEACHER, chosen)
    assert all(found[name] == TEACHER[name] for name in ("prior", "task", "posterior"))
    assert found["data"] == {"bank_size": 5, "bank_chunk": 1, "observations": "mixed"}
    expected = {"steps": 4, "width": 64, "informed": "none", "components": 2, "grid": 24}
    expected["_target_"] = "a.NoiseSampler"
    assert found["sampler"] == expected
    assert found["objective"]["_target_"].endswith("PathLikelihood")
    trainer = {"batch": 12, "groups": 12, "anchor_steps": 0, "beta_start": None, "lr": 1.0}
    assert found["trainer"] == trainer | {"observations": "mixed"}
    assert found["run"] == "runs/a-4x2"
    assert student_config(COMMAND, TEACHER, [*chosen, "run"])["run"] == "runs/x"
    grand = TEACHER | {"sampler": TEACHER["sampler"] | {"steps": 6, "grid": 24}}
    assert student_config(COMMAND, grand, chosen)["sampler"]["grid"] == 24


@pytest.mark.parametrize(
    "name", ["prior", "task.sigma", "objective", "posterior.beta", "experiment"]
)
def test_student_has_no_problem_of_its_own(name: str) -> None:
    """Mutant: an option that is accepted and ignored."""
    with pytest.raises(ValueError, match=rf"leave {name}=\.\.\. out"):
        student_config(COMMAND, TEACHER, ["sampler.steps", name])
    with pytest.raises(ValueError, match="needs the number of steps"):
        student_config(COMMAND, TEACHER, ["distill"])
