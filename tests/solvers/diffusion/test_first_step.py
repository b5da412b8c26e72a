"""First steps on a Gaussian prior with linear decoder, encoder and measurement, by hand."""

import math

import pytest
import torch
from torch import Tensor

from outsourced.solvers.daps import DAPS
from outsourced.solvers.dps import DPS
from outsourced.solvers.flow_chef import FlowChef
from outsourced.solvers.flow_dps import FlowDPS
from outsourced.solvers.gml_dps import GMLDPS
from outsourced.solvers.latent_dps import LatentDPS
from outsourced.solvers.psld import PSLD
from outsourced.solvers.resample import ReSample
from tests.solvers.diffusion.gaussian import (
    GaussianDiffusion,
    GaussianLatent,
    first,
    observe,
    posterior,
    state,
)

OMEGA, GAMMA, SIGMA = 0.7, 0.3, 0.05


class Hand:
    """Tweedie's formula and the chain rule with matrices, for a state at ᾱ_999 and the next ᾱ."""

    def __init__(self, problem, obs, z: Tensor, next_alpha: Tensor) -> None:
        prior, self.M = problem.prior, problem.task.matrix
        alpha, eye = prior.alphas_cumprod[-1], torch.eye(len(prior.mean)).double()
        inverse = torch.linalg.inv(alpha * prior.covariance + (1 - alpha) * eye)
        gap = z - alpha.sqrt() * prior.mean
        self.epsilon = (1 - alpha).sqrt() * gap @ inverse
        self.clean = (z - (1 - alpha).sqrt() * self.epsilon) / alpha.sqrt()
        self.G = (eye - (1 - alpha) * inverse) / alpha.sqrt()  # d clean / d z, symmetric
        self.ddim = next_alpha.sqrt() * self.clean + (1 - next_alpha).sqrt() * self.epsilon
        self.x = prior.decode(self.clean)
        self.r = obs.y - self.x @ self.M.T

    def pull(self, r: Tensor, through: Tensor) -> Tensor:
        """Gradient of ‖r‖ where d r / d clean = -through, by rows."""
        return -(r / r.norm(dim=1, keepdim=True)) @ through @ self.G


FLOWS = (FlowDPS, FlowChef)


def setup(method, rows: int = 4, steps: int = 1000, **settings):
    prior = GaussianDiffusion() if method is DPS else GaussianLatent(flow=method in FLOWS)
    problem = posterior(prior, rows, SIGMA)
    solver = method(problem, steps=steps, **settings)
    obs, z = observe(problem), state(problem)
    hand = None if method in FLOWS else Hand(problem, obs, z, prior.alphas_cumprod[-2])
    return solver, obs, z, hand


def test_dps() -> None:
    """Ho et al. (2020), eq. 7, from x̂_0, minus omega times the gradient of the unsquared norm.

    Mutant: a squared norm; DDIM's step for eta = 1; the gradient in x̂_0 in place of x_t; a norm
    over the batch; the variance β in place of β̃.
    """
    solver, obs, x, hand = setup(DPS, omega=OMEGA, clip=False)
    moved, image = solver.step(x, first(solver, obs))
    alpha, next_alpha = solver.prior.alphas_cumprod[-1], solver.prior.alphas_cumprod[-2]
    beta = 1 - alpha / next_alpha
    mean = next_alpha.sqrt() * beta / (1 - alpha) * hand.clean
    mean = mean + (1 - beta).sqrt() * (1 - next_alpha) / (1 - alpha) * x
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=x.dtype)
    mean = mean + (beta * (1 - next_alpha) / (1 - alpha)).sqrt() * noise
    torch.testing.assert_close(moved, mean - OMEGA * hand.pull(hand.r, hand.M))
    torch.testing.assert_close(image, hand.clean)


def test_dps_clamps_the_estimate() -> None:
    """The estimate is clamped in the ancestral mean too, and clamped pixels have no gradient.

    Mutant: a clamp of the image alone, whose step then goes to the unclamped estimate.
    """
    solver, obs, x, hand = setup(DPS, omega=OMEGA, eta=0.0)
    x = 8 * x
    hand = Hand(solver.posterior, obs, x, solver.prior.alphas_cumprod[-2])
    alpha, next_alpha = solver.prior.alphas_cumprod[-1], solver.prior.alphas_cumprod[-2]
    inside = hand.clean.abs() < 1
    assert inside.any()
    assert not inside.all()
    clean = hand.clean.clamp(-1, 1)
    noise = (x - alpha.sqrt() * clean) / (1 - alpha).sqrt()
    r = obs.y - clean @ hand.M.T
    pull = -(r / r.norm(dim=1, keepdim=True) @ hand.M * inside) @ hand.G
    expected = next_alpha.sqrt() * clean + (1 - next_alpha).sqrt() * noise - OMEGA * pull
    torch.testing.assert_close(solver.step(x, first(solver, obs))[0], expected)


def test_latent_dps() -> None:
    """Mutant: the decoder's Jacobian left out, a squared norm, no latents but pixels moved."""
    solver, obs, z, hand = setup(LatentDPS, omega=OMEGA)
    expected = hand.ddim - OMEGA * hand.pull(hand.r, hand.M @ solver.prior.D)
    moved, image = solver.step(z, first(solver, obs))
    torch.testing.assert_close(moved, expected)
    torch.testing.assert_close(image, hand.x)


def test_gml_dps() -> None:
    """Mutant: the fixed point's gradient through ẑ_0 alone, not through E(D(ẑ_0)); a sampled E."""
    solver, obs, z, hand = setup(GMLDPS, omega=OMEGA, gamma=GAMMA)
    prior = solver.prior
    u = hand.clean - hand.x @ prior.E.T - prior.e
    expected = hand.ddim - OMEGA * hand.pull(hand.r, hand.M @ prior.D)
    through = prior.E @ prior.D - torch.eye(3).double()
    expected = expected - GAMMA * hand.pull(u, through)
    torch.testing.assert_close(solver.step(z, first(solver, obs))[0], expected)


@pytest.mark.parametrize("rows", [4, 5])  # of as many as data, the identity would fit too
def test_psld_paper(rows: int) -> None:
    """Squared norms, true adjoint, encoder's mode.

    Mutant: unsquared norms, the identity for Aᵀ, y for Aᵀy, a sampled encoder, x⊕ detached.
    """
    solver, obs, z, hand = setup(PSLD, rows, variant="paper", omega=OMEGA, gamma=GAMMA)
    prior, M = solver.prior, hand.M
    glued = obs.y @ M + hand.x - hand.x @ M.T @ M
    u = hand.clean - glued @ prior.E.T - prior.e
    through = prior.E @ (torch.eye(5).double() - M.T @ M) @ prior.D - torch.eye(3).double()
    grad = -2 * OMEGA * hand.r @ M @ prior.D @ hand.G - 2 * GAMMA * u @ through @ hand.G
    torch.testing.assert_close(solver.step(z, first(solver, obs))[0], hand.ddim - grad)


def test_psld_official() -> None:
    """Unsquared norms, the identity for Aᵀ, fresh noise on A D(ẑ_0), a draw of the encoder.

    Mutant: the true adjoint; squared norms; no fresh noise, or noise in the gluing term too; the
    encoder's mode; a norm over the batch.
    """
    solver, obs, z, hand = setup(PSLD, rows=5, variant="official", omega=OMEGA, gamma=GAMMA)
    prior, M, at = solver.prior, hand.M, first(solver, obs)
    generator = torch.Generator().manual_seed(4)
    fresh = torch.randn(obs.y.shape, generator=generator, dtype=z.dtype)
    draw = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
    spread = prior.spread * torch.randn(z.shape, generator=draw, dtype=z.dtype)
    glued = obs.y + hand.x - hand.x @ M.T
    u = hand.clean - glued @ prior.E.T - prior.e - spread
    through = prior.E @ (torch.eye(5).double() - M) @ prior.D - torch.eye(3).double()
    expected = hand.ddim - OMEGA * hand.pull(hand.r - SIGMA * fresh, M @ prior.D)
    expected = expected - GAMMA * hand.pull(u, through)
    torch.testing.assert_close(solver.step(z, at)[0], expected)


def test_resample() -> None:
    """Guided by omega ᾱ in the first third; then the product of two Gaussians, through the fit.

    Mutant: guidance without ᾱ; fits in the first third; the product's weights exchanged; its
    deviation in place of its variance; latents fitted where it is pixels.
    """
    solver, obs, z, hand = setup(ReSample, omega=OMEGA, every=1)
    alpha = solver.prior.alphas_cumprod
    guided = hand.ddim - OMEGA * alpha[-1] * hand.pull(hand.r, hand.M @ solver.prior.D)
    moved, _ = solver.step(z, first(solver, obs))
    torch.testing.assert_close(moved, guided)
    at = first(solver, obs, 700)
    clean, start = state(solver.posterior, 40000, 1), state(solver.posterior, 1, 2)
    drawn = solver.resample(clean[:1].expand_as(clean), start.expand_as(clean), at)
    now, after = alpha[299], alpha[298]
    variance = solver.gamma * (1 - after) / (1 - now) * (1 - now / after)
    precision = 1 / variance + 1 / (1 - after)
    mean = (start / variance + after.sqrt() * clean[:1] / (1 - after)) / precision
    error = 5 / math.sqrt(40000 * precision)
    torch.testing.assert_close(drawn.mean(0, keepdim=True), mean, rtol=0, atol=error)
    torch.testing.assert_close(drawn.var(0), (1 / precision).expand(3), rtol=0.05, atol=0)


@pytest.mark.parametrize(("index", "pixels"), [(500, True), (800, False)])
def test_resample_fits_to_sigma(index: int, pixels: bool, monkeypatch) -> None:
    """Each sample ends at a residual of sigma, whatever the others need: no lower, no higher.

    Mutant: fits to the end, or until the batch's mean is there; both stages in one space.
    """
    solver, obs, z, _ = setup(ReSample, rows=2, every=1, iterations=3000)
    found = []
    monkeypatch.setattr(
        solver, "resample", lambda clean, moved, at: found.append(clean) or moved, raising=True
    )
    fits = []
    fit = solver.fit
    monkeypatch.setattr(solver, "fit", lambda *args: fits.append(fit(*args)) or fits[-1])
    obs.y[1] += 1.0
    solver.step(z, first(solver, obs, index))
    (value,), (clean,) = fits, found
    x = value if pixels else solver.prior.decode(value)
    residual = solver.residual(x, obs)
    assert (residual <= 1).all()
    assert (residual > 0.7).all()  # steps of Adam are of a finite size
    expected = solver.prior.encode(value) if pixels else value
    torch.testing.assert_close(clean, expected)


def test_daps_langevin_has_the_right_law() -> None:
    """Of N(anchor, r² I) times a Gaussian likelihood to the power beta, known in closed form.

    Mutant: sigma or beta forgotten, r for r², noise sqrt(size) for sqrt(2 size), the anchor's pull
    left out, or a step size that ignores the level.
    """
    problem = posterior(GaussianLatent(), sigma=0.3)
    problem.beta = 2.0
    solver = DAPS(problem, steps=1000, langevin_steps=400, rate=0.05)
    obs, at = observe(problem, 1), first(solver, observe(problem, 1), 850)
    count = 4000
    anchor = state(problem, 1).expand(count, -1)
    many = first(solver, obs[torch.zeros(count, dtype=torch.long)], 850)
    drawn = solver.langevin(anchor, many)
    J = problem.task.matrix @ problem.prior.D
    precision = (at.now.signal / at.now.noise) ** 2 * torch.eye(3).double()
    precision = precision + 2.0 / 0.3**2 * J.T @ J
    gap = obs.y - (anchor[:1] @ problem.prior.D.T + problem.prior.c) @ problem.task.matrix.T
    covariance = torch.linalg.inv(precision)
    mean = anchor[:1] + 2.0 / 0.3**2 * gap @ J @ covariance
    std = covariance.diagonal().sqrt()
    assert ((mean - anchor[:1]).abs() > std).any()
    assert ((drawn.mean(0) - mean[0]).abs() < 5 * std / math.sqrt(count)).all()
    ratio = torch.linalg.solve(covariance, drawn.T.cov())
    assert ((torch.linalg.eigvals(ratio).real - 1).abs() < 0.15).all()


def test_daps_noises_to_the_next_level(monkeypatch) -> None:
    """ẑ_0 of a DDIM run of `ode_steps` calls; then signal' h + noise' ε.

    Mutant: Tweedie's estimate in place of the run, a run that starts at the noisiest level, or
    noise of the present level.
    """
    solver, obs, z, _ = setup(DAPS, steps=100, ode_steps=4, langevin_steps=1)
    monkeypatch.setattr(solver, "langevin", lambda anchor, at: anchor)
    at = first(solver, obs, 49)
    moved, image = solver.step(z, at)
    alpha = solver.prior.alphas_cumprod
    start, following = round(999 * 50 / 99), round(999 * 49 / 99)
    times = [round(start * k / 3) for k in (3, 2, 1, 0)]
    h = z
    for t, s in zip(times, [*times[1:], None], strict=True):
        epsilon = solver.prior.predict_noise(h, t)
        clean = (h - (1 - alpha[t]).sqrt() * epsilon) / alpha[t].sqrt()
        h = clean if s is None else alpha[s].sqrt() * clean + (1 - alpha[s]).sqrt() * epsilon
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(4), dtype=z.dtype)
    expected = alpha[following].sqrt() * h + (1 - alpha[following]).sqrt() * noise
    torch.testing.assert_close(moved, expected)
    torch.testing.assert_close(image, solver.prior.decode(h))


def test_flow_dps() -> None:
    """At s = 0.75 of four steps: the blend with weight s, the noise with sqrt(s').

    Mutant: the velocity's sign, weights exchanged, noise weighted by s' for sqrt(s'), one gradient
    step for two.
    """
    solver, obs, z, _ = setup(FlowDPS, steps=4, omega=0.05, iterations=2)
    prior, M = solver.prior, solver.task.matrix
    s, after = 0.75, 0.5
    clean, noise = prior.parts(z, torch.tensor(1 - s), torch.tensor(s))
    pulled = clean
    for _ in range(2):
        r = obs.y - prior.decode(pulled) @ M.T
        pulled = pulled + 0.05 * (r / r.norm(dim=1, keepdim=True)) @ M @ prior.D
    blend = (1 - s) * clean + s * pulled
    fresh = torch.randn(z.shape, generator=torch.Generator().manual_seed(4), dtype=z.dtype)
    mixed = math.sqrt(after) * noise + math.sqrt(1 - after) * fresh
    moved, image = solver.step(z, first(solver, obs, 1))
    torch.testing.assert_close(moved, (1 - after) * blend + after * mixed)
    torch.testing.assert_close(image, prior.decode(blend))


def test_flow_chef() -> None:
    """Euler's step of the velocity, and one of descent in ẑ_0; the last step is Euler's alone.

    Mutant: the gradient through the network, an unsquared norm, a sum for the mean, a steered last
    step, the gradient scaled by the level.
    """
    solver, obs, z, _ = setup(FlowChef, rows=4, steps=4, omega=0.7)
    prior, M = solver.prior, solver.task.matrix
    s, after = 0.75, 0.5
    clean, noise = prior.parts(z, torch.tensor(1 - s), torch.tensor(s))
    r = obs.y - prior.decode(clean) @ M.T
    expected = z + (after - s) * (noise - clean) + 0.7 * 2 / 4 * r @ M @ prior.D
    moved, image = solver.step(z, first(solver, obs, 1))
    torch.testing.assert_close(moved, expected)
    torch.testing.assert_close(image, prior.decode(clean))
    last, _ = solver.step(z, first(solver, obs, 3))
    clean = prior.parts(z, torch.tensor(0.75), torch.tensor(0.25))[0]
    torch.testing.assert_close(last, clean)
