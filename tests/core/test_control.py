"""Kernels of the control: the untrained prior, the DDPM limits, the optimum of a linear problem."""

import math

import pytest
import torch
from torch import nn

from outsourced.control import GATE_GAIN, LOG_SCALE_LIMIT, Control
from outsourced.guidance import Context, LaplaceTarget
from outsourced.kernels import Kernel, rotate
from outsourced.laplace import fit_laplace
from outsourced.reference import Reference

REFERENCE = Reference(5)
STEPS = torch.arange(5)
VECTOR_MODES = [
    (informed, covariance)
    for informed in ("none", "gradient", "gauss_newton")
    for covariance in ("diagonal", "full")
]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=atol)


class Outputs(nn.Module):
    """Stands for the control network: fixed outputs, and a record of what it was shown."""

    def __init__(self, value: torch.Tensor):
        super().__init__()
        self.value = value

    def forward(self, x, k, e):
        self.seen = x
        return self.value.expand(*x.shape[:2], *self.value.shape[-(x.ndim - 2) :])


def control(shape, informed="none", covariance="diagonal", **options) -> Control:
    torch.manual_seed(0)
    options = {"width": 16, "depth": 1} | options
    return Control(REFERENCE, shape, 3, informed, covariance, **options).double()


def context_of(problem, obs, informed: str) -> Context:
    if informed != "gauss_newton":
        return Context(obs.y, obs)
    laplace = fit_laplace(
        LaplaceTarget(problem, obs),
        torch.zeros(len(obs), 4).double(),
        1,
    )
    return Context(obs.y, obs, laplace)


def kernel_of(unit: Control, z, context, problem, k=STEPS) -> Kernel:
    return unit(z, k, context, problem, unit.guide(z, k, context, problem))


def dense(kernel: Kernel) -> torch.Tensor:
    """Covariance of the innovation, (S, N, d, d), from samples at unit noise."""
    zero = torch.zeros_like(kernel.shift)
    eye = torch.eye(zero.shape[-1], dtype=zero.dtype)
    root = torch.stack([kernel.sample(zero + e) - kernel.shift for e in eye], -1)
    return root @ root.mT


@pytest.mark.parametrize(("informed", "covariance"), VECTOR_MODES)
def test_untrained_kernels_are_the_reference(linear, informed, covariance):
    """Mutant: gates that start open, or a covariance that starts at the point-mass bridge."""
    obs, z = linear.observe(2), draw(5, 2, 4)
    unit = control((4,), informed, covariance)
    kernel = kernel_of(unit, z, context_of(linear, obs, informed), linear)
    assert kernel.shift.abs().max() == 0
    assert kernel.log_scale.abs().max() == 0
    assert (kernel.lower is None) == (covariance == "diagonal")
    close(dense(kernel), torch.eye(4).double().expand(5, 2, 4, 4), 1e-12)


@pytest.mark.parametrize("network", ["dense", "convolutional"])
@pytest.mark.parametrize("informed", ["none", "gradient"])
def test_untrained_spatial_kernels_are_the_reference(problems, informed, network):
    """Mutant: the guess network of the gradient mode with a head that is not zero."""
    problem = problems["spatial"]
    obs, z = problem.observe(2), draw(5, 2, 2, 4, 3)
    unit = control((2, 4, 3), informed, network=network)
    embedding = draw(2, 3) if network == "dense" else draw(2, 3, 4, 3)
    kernel = kernel_of(unit, z, Context(embedding, obs), problem)
    assert kernel.shift.abs().max() == 0
    assert kernel.log_scale.abs().max() == 0


def test_lower_limit_is_the_bridge_of_a_point_mass(linear):
    """delta points to `end` and log_std is -inf. Mutant: a variance below the bridge's, w for w^2,
    or the mean without w."""
    obs, z, end = linear.observe(2), draw(5, 2, 4), draw(5, 2, 4, seed=1)
    mean, variance = REFERENCE.bridge_moments(z, end, STEPS)
    rho, spread = (REFERENCE.at(name, STEPS, z) for name in ("rho", "spread"))
    unit = control((4,))
    unit.network = Outputs(torch.cat([(end - rho * z) / spread, torch.full_like(z, -1e6)], -1))
    kernel = kernel_of(unit, z, Context(obs.y, obs), linear)
    close(REFERENCE.advance(z, kernel.shift, STEPS), mean)
    scale = REFERENCE.at("scale", STEPS, z)
    std = scale * kernel.log_scale.exp()
    # The network's standard deviation stops at e^-LIMIT of the reference's: z_K keeps a density.
    share = REFERENCE.at("information", STEPS, z) ** 2 * math.exp(-2 * LOG_SCALE_LIMIT)
    close(std**2, (variance + scale**2 * share).expand_as(std), 1e-12)


def test_upper_limit_is_the_variance_of_the_reference(linear):
    """Mutant: log_std = 0 giving the point-mass bridge."""
    obs, z = linear.observe(2), draw(5, 2, 4)
    unit = control((4,))
    unit.network = Outputs(torch.cat([draw(5, 2, 4, seed=1), torch.zeros_like(z)], -1))
    kernel = kernel_of(unit, z, Context(obs.y, obs), linear)
    assert kernel.log_scale.abs().max() < 1e-15
    close(kernel.shift, REFERENCE.at("information", STEPS, z) * draw(5, 2, 4, seed=1))


def test_variances_interpolate_by_the_share_that_the_end_explains(linear):
    """Independent problem per coordinate, solved by conditioning. Mutant: log_std read as a log
    variance, or C applied to the whole innovation instead of the share w^2."""
    diagonal = type(linear)(torch.diag(torch.tensor([1.0, -2.0, 0.5, 3.0]).double()))
    obs, z = diagonal.observe(2), draw(5, 2, 4)
    unit = control((4,))
    moments = [
        diagonal.posterior(obs, r * z[k], float(1 - r**2)) for k, r in enumerate(REFERENCE.rho[:-1])
    ]
    rho, spread = (REFERENCE.at(name, STEPS, z) for name in ("rho", "spread"))
    delta = (torch.stack([mean for mean, _ in moments]) - rho * z) / spread
    c = torch.stack([v.diagonal(dim1=-2, dim2=-1) for _, v in moments]) / spread**2
    log_std = LOG_SCALE_LIMIT * torch.atanh(0.5 * c.log() / LOG_SCALE_LIMIT)
    unit.network = Outputs(torch.cat([delta, log_std], -1))
    kernel = kernel_of(unit, z, Context(obs.y, obs), diagonal)
    for k in range(5):
        mean, covariance = diagonal.next_state(z[k], k, REFERENCE, obs)
        close(REFERENCE.a[k] * z[k] + REFERENCE.scale[k] * kernel.shift[k], mean)
        close(REFERENCE.scale[k] ** 2 * dense(kernel)[k], covariance)


def test_open_gates_give_the_optimal_kernel_of_a_linear_problem(linear):
    """Against conditioning of (z_{k+1}, y) on z_k: mean and full covariance. Mutant: wrong bridge
    variance, missing rho, a basis transposed, or gates that act on the wrong part."""
    obs, z = linear.observe(2), draw(5, 2, 4)
    unit = control((4,), "gauss_newton")
    with torch.no_grad():
        unit.gate.fill_(1 / GATE_GAIN)
    kernel = kernel_of(unit, z, context_of(linear, obs, "gauss_newton"), linear)
    for k in range(5):
        mean, covariance = linear.next_state(z[k], k, REFERENCE, obs)
        close(REFERENCE.a[k] * z[k] + REFERENCE.scale[k] * kernel.shift[k], mean)
        close(REFERENCE.scale[k] ** 2 * dense(kernel)[k], covariance)


def test_network_outputs_move_an_informed_kernel_in_posterior_deviations(linear):
    """Mutant: the shift added in the eigenbasis without rotating it, or not scaled by sqrt(C)."""
    obs, z = linear.observe(2), draw(5, 2, 4)
    context = context_of(linear, obs, "gauss_newton")
    unit = control((4,), "gauss_newton")
    with torch.no_grad():
        unit.gate.fill_(1 / GATE_GAIN)
    base = kernel_of(unit, z, context, linear)
    shift, log_std = draw(4, seed=1), 0.1 * draw(4, seed=2)
    unit.network = Outputs(torch.cat([shift, log_std]))
    moved = kernel_of(unit, z, context, linear)
    w = REFERENCE.information
    for k in range(5):
        covariance = linear.posterior(obs, 0.0, float(REFERENCE.spread[k] ** 2))[1]
        values, vectors = torch.linalg.eigh(covariance / REFERENCE.spread[k] ** 2)
        root = vectors @ torch.diag_embed(values.sqrt()) @ vectors.mT
        close(moved.shift[k] - base.shift[k], w[k] * root @ shift)
    gain = LOG_SCALE_LIMIT * torch.tanh(log_std / LOG_SCALE_LIMIT)
    w2 = w[:, None, None] ** 2
    before, after = ((v.log_scale * 2).exp() - (1 - w2) for v in (base, moved))
    close(after, before * (2 * gain).exp())


def test_gradient_mode_adds_shift_gain_and_guess(linear):
    """Mutant: the gain on the shift, the guess left out, or inputs in another order."""
    obs, z, guess = linear.observe(2), draw(5, 2, 4), 0.2 * draw(5, 2, 4, seed=1)
    unit = control((4,), "gradient")
    unit.guidance.network = Outputs(guess)
    shift, log_std, gain = draw(4, seed=2), 0.1 * draw(4, seed=3), draw(4, seed=4)
    unit.network = Outputs(torch.cat([shift, log_std, gain]))
    context = Context(obs.y, obs)
    kernel = kernel_of(unit, z, context, linear)
    _, force, size = unit.guidance(z, STEPS, context, linear)
    w = REFERENCE.at("information", STEPS, z)
    close(kernel.shift, w * (guess + shift + gain * force))
    close(unit.network.seen, torch.cat([z, guess, force, size[..., None]], -1))


def test_full_covariance_adds_a_triangle_of_the_explained_share(linear):
    """Mutant: w for w^2 in the triangle, or entries in the upper half."""
    obs, z, entries = linear.observe(2), draw(5, 2, 4), draw(6, seed=1)
    unit = control((4,), "none", "full")
    unit.network = Outputs(torch.cat([torch.zeros(8).double(), entries]))
    kernel = kernel_of(unit, z, Context(obs.y, obs), linear)
    for k in range(5):
        lower = torch.zeros(4, 4).double()
        lower[[1, 2, 2, 3, 3, 3], [0, 0, 1, 0, 1, 2]] = entries
        root = torch.linalg.inv(torch.eye(4).double() + REFERENCE.information[k] ** 2 * lower)
        close(dense(kernel)[k], (root @ root.T).expand(2, 4, 4))


def test_learned_deviations_stay_within_their_limit(linear):
    """Mutant: an unbounded exponential: the first bad step overflows."""
    obs, z = linear.observe(2), draw(5, 2, 4)
    unit = control((4,))
    for extreme in (-1e9, 1e9):
        unit.network = Outputs(torch.cat([torch.zeros(4), torch.full((4,), extreme)]).double())
        log_scale = kernel_of(unit, z, Context(obs.y, obs), linear).log_scale
        assert torch.isfinite(log_scale).all()
        assert log_scale.abs().max() <= LOG_SCALE_LIMIT + 1e-9
        # The last kernel is explained by z_K entirely: there the limit itself shows.
        assert abs(log_scale[-1, 0, 0].abs() - LOG_SCALE_LIMIT) < 1e-9


def test_gauss_newton_network_sees_guess_and_error(linear):
    """Mutant: the anchor in place of the guess at this state."""
    obs, z = linear.observe(2), draw(5, 2, 4)
    context = context_of(linear, obs, "gauss_newton")
    unit = control((4,), "gauss_newton")
    unit.network = Outputs(torch.zeros(8).double())
    delta, error = unit.guide(z, STEPS, context, linear)
    kernel_of(unit, z, context, linear)
    rho, spread = (REFERENCE.at(name, STEPS, z) for name in ("rho", "spread"))
    close(unit.network.seen, torch.cat([z, rho * z + spread * delta, delta, error], -1))
    close(rotate(context.laplace.basis, rotate(context.laplace.basis, z, True)), z)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (
            (2, 4, 3),
            {"informed": "gauss_newton"},
            r"need vector noise; for spatial noise \(2, 4, 3\)",
        ),
        ((2, 4, 3), {"covariance": "full"}, "sampler.covariance=full need vector noise"),
        ((4,), {"informed": "score"}, "sampler.informed must be one of none, .* got 'score'"),
        ((4,), {"covariance": "lower"}, "sampler.covariance must be one of .* got 'lower'"),
        ((4, 3), {}, r"noise must have shape \(d,\) or \(C, H, W\), got \(4, 3\)"),
    ],
)
def test_bad_options_are_refused(shape, options, message):
    """Mutant: a silent fall-back to the diagonal, uninformed control."""
    with pytest.raises(ValueError, match=message):
        control(shape, **options)


@pytest.mark.parametrize("informed", ["none", "gradient", "gauss_newton"])
def test_a_fixed_covariance_is_that_of_the_guide(linear, informed):
    """With random weights: the untrained kernel's, for any state; means still are learned.

    Mutant: an option that is accepted and ignored.
    """
    obs, z = linear.observe(2), draw(5, 2, 4)
    context = context_of(linear, obs, informed)
    fixed, untrained = control((4,), informed, "fixed"), control((4,), informed, "fixed")
    with torch.no_grad():
        for parameter in fixed.network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    found = kernel_of(fixed, z, context, linear)
    start = kernel_of(untrained, z, context, linear)
    close(dense(found), dense(start), 1e-12)
    assert (found.shift - start.shift).abs().max() > 0.01
