"""The loop: gradients, independence of samples, residuals, counts, previews, errors."""

import pytest
import torch
from torch import Tensor, nn

from outsourced.posterior import Posterior
from outsourced.priors import CNF
from outsourced.solvers.diffusion_sampler import Diverged
from outsourced.solvers.dps import DPS
from outsourced.solvers.moment import Moment
from outsourced.solvers.psld import PSLD
from outsourced.solvers.schedule import levels
from outsourced.tasks import (
    Denoise,
    Inpaint,
    Observation,
    RandomPixels,
    SuperResolution,
)
from tests.solvers.diffusion.gaussian import (
    GaussianDiffusion,
    GaussianLatent,
    first,
    observe,
    posterior,
    state,
)
from tests.solvers.diffusion.methods import METHODS, PAPER, WEIGHTS, build


def sums(solver, z: Tensor, obs: Observation, at: Moment) -> Tensor:
    """The loss of PSLD's official variant as the paper writes it, without any autograd."""
    prior, M = solver.prior, solver.task.matrix
    clean = prior.parts(z, torch.tensor(at.now.signal), torch.tensor(at.now.noise))[0]
    x = prior.decode(clean)
    generator = torch.Generator().manual_seed(4)
    fresh = torch.randn(obs.y.shape, generator=generator, dtype=z.dtype)
    draw = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
    code = prior.encode(x + obs.y - x @ M.T, draw)
    misfit = (obs.y - x @ M.T - obs.sigma[:, None] * fresh).norm(dim=1)
    return solver.omega * misfit + solver.gamma * (clean - code).norm(dim=1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_against_differences(checkpointing: bool) -> None:
    """Of the official PSLD through nonlinear decoder and encoder, in float64.

    Mutant: the network's output, the decoder or the encoder's input detached; with checkpointing,
    an encoder that draws anew in the backward pass.
    """
    problem = posterior(GaussianLatent(bend=0.6), rows=5)
    solver = PSLD(problem, steps=20, checkpointing=checkpointing, **WEIGHTS)
    obs, z = observe(problem), state(problem)
    at = first(solver, obs, 3)
    clean, noise = solver.estimate(z, at.now)
    gradient = solver.advance(clean, noise, at) - solver.step(z, at)[0]
    step = 1e-5 * state(problem, seed=7)
    difference = (sums(solver, z + step, obs, at) - sums(solver, z - step, obs, at)) / 2
    torch.testing.assert_close((gradient * step).sum(1), difference, rtol=1e-6, atol=0)
    assert (difference.abs() > 1e-7).all()


@pytest.mark.parametrize("name", METHODS)
def test_together_as_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three samples at once, in chunks of two, and one by one, of the same noise.

    Mutant: a norm or a stopping rule over the batch, or rows of noise and observations swapped.
    """
    monkeypatch.setattr(Moment, "normal", lambda self, like: torch.zeros_like(like))
    solver = build(name, steps=12)
    obs, z = observe(solver.posterior, 3), state(solver.posterior, 3)
    obs.y[1] *= 3
    together = solver.solve(z, obs)
    solver.posterior.chunk = 2
    torch.testing.assert_close(solver.solve(z, obs), together)
    alone = torch.cat([solver.solve(z[i : i + 1], obs[i]) for i in range(3)])
    torch.testing.assert_close(alone, together)
    assert not torch.allclose(solver.solve(z, obs[[0, 0, 0]])[1], together[1])


# Steps and settings that a short search found for this prior.
FITS = {
    "dps": (200, {"omega": 0.05, "eta": 1.0, "clip": False}),
    "latent_dps": (200, {"omega": 0.04}),
    "gml_dps": (200, {"omega": 0.04, "gamma": 0.003}),
    "psld": (200, {"omega": 0.06, "gamma": 0.003}),
    "resample": (30, {"every": 3, "iterations": 150}),
    "daps": (30, {"ode_steps": 3, "langevin_steps": 40, "rate": 0.1}),
    "flow_dps": (60, {"omega": 0.5}),
    "flow_chef": (60, {"omega": 0.5}),
}


@pytest.mark.parametrize("name", METHODS)
def test_samples_explain_the_observation(name: str) -> None:
    """Residuals fall from above 4 sigma, those of f(z), to about sigma.

    Mutant: the gradient's sign, or guidance that is left out.
    """
    steps, settings = FITS[name]
    solver = build(name, steps, sigma=0.1, dtype=torch.float32, **settings)
    obs = observe(solver.posterior, 12)
    generator = torch.Generator().manual_seed(0)
    samples = solver(obs, 2, generator)
    rows = obs[torch.arange(12).repeat(2)]
    residual = solver.residual(samples.x.flatten(0, 1), rows)
    before = solver.residual(solver.prior(samples.z.flatten(0, 1)), rows)
    assert before.median() > 4
    assert 0.3 < residual.median() < 1.5
    assert residual.quantile(0.9) < 3


class Field(nn.Module):
    """A velocity that depends on time and is not linear."""

    image_shape = (1, 8, 8)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return (1 + 2 * t.reshape(-1, 1, 1, 1)) * x.sin() - 0.3 * x


def test_unguided_flow_is_the_prior() -> None:
    """With omega = 0 and as many steps, DPS is the Euler solver of the CNF.

    Mutant: a velocity of the other sign or at the other end's time, or a grid that stops short.
    """
    prior = CNF(Field(), "euler", steps=6)
    problem = Posterior(prior, Denoise(prior.data_shape, sigma=0.1))
    solver = DPS(problem, omega=0.0, steps=6, eta=0.0, clip=False)
    z = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = prior(z)
    obs = problem.task.sample(expected)
    torch.testing.assert_close(solver.solve(z, obs), expected, rtol=1e-4, atol=1e-5)


def test_levels() -> None:
    """Evenly from the last training step to 0 and the clean end; flows shifted as in training.

    Mutant: a grid that stops at 1 or starts at T; ᾱ for sqrt(ᾱ); the shift forgotten.
    """
    prior = GaussianDiffusion()
    grid = levels(prior, 4)
    assert [level.timestep for level in grid] == [999, 666, 333, 0, 0]
    assert (grid[-1].signal, grid[-1].noise) == (1, 0)
    for level in grid[:-1]:
        alpha = prior.alphas_cumprod[int(level.timestep)].item()
        assert level.signal**2 == pytest.approx(alpha)
        assert level.noise**2 == pytest.approx(1 - alpha)
    assert [level.timestep for level in levels(prior, 5, start=2)] == [2, 1, 0, 0]
    assert [level.timestep for level in levels(prior, 1000)[:-1]] == list(range(999, -1, -1))
    flow = GaussianDiffusion(flow=True)
    assert [level.noise for level in levels(flow, 4)] == [1, 0.75, 0.5, 0.25, 0]
    flow.shift = 3.0
    shifted = levels(flow, 4)
    assert [level.noise for level in shifted] == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert shifted[1].timestep == pytest.approx(900)
    assert [level.noise for level in levels(flow, 2, start=500)] == pytest.approx([0.5, 0.375, 0])


def test_counts_previews_and_repeats() -> None:
    """Network calls in units of f(z), previews of every k-th step and of the result, seeds.

    Mutant: one call per batch, DAPS's inner calls forgotten, a preview of noisy states, an own
    seed where a generator is given.
    """
    shown: list[tuple[int, Tensor]] = []
    solver = build("daps", steps=7, dtype=torch.float32, preview_every=3)
    solver.preview = lambda k, x: shown.append((k, x))
    obs = observe(solver.posterior, 3)
    samples = solver(obs, 2, torch.Generator().manual_seed(0))
    calls = 3 * 2 * (6 * 2 + 1)  # two calls at each level, but one at timestep 0
    assert solver.network_calls == calls
    assert samples.prior_calls == -(-calls // 10)
    assert samples.diagnostics["network_calls"].tolist() == [calls / 3] * 3
    assert [k for k, _ in shown] == [0, 3, 6, 7]
    torch.testing.assert_close(shown[-1][1].unflatten(0, (2, 3)), samples.x)
    generator = torch.Generator().manual_seed(0)
    z = solver.posterior.draw_noise(6, generator)
    assert torch.equal(samples.z, z.unflatten(0, (2, 3)))
    again = solver(obs, 2, torch.Generator().manual_seed(0))
    assert torch.equal(samples.x, again.x)
    assert samples.log_weight is None
    assert solver.network_calls == 2 * calls
    torch.manual_seed(5)
    first_draw = solver(obs, 1)
    torch.manual_seed(5)
    assert torch.equal(solver(obs, 1).x, first_draw.x)
    assert not torch.equal(solver(obs, 1).x, first_draw.x)


def test_progress_tells_the_residual(capsys: pytest.CaptureFixture[str]) -> None:
    """Mutant: a bar of other units than sigma, or none."""
    solver = build("latent_dps", steps=3)
    obs, z = observe(solver.posterior, 1), state(solver.posterior, 1)
    seen = []
    solver.preview, solver.preview_every = lambda k, x: seen.append(x), 1
    solver.solve(z, obs, progress=True)
    last = solver.residual(seen[2], obs).item()
    told = capsys.readouterr().err
    assert "latent_dps: 100%" in told
    assert f"residual={last:.3f}" in told


def test_official_transpose_of_super_resolution() -> None:
    """Nearest-neighbour upsampling: constant on blocks, and no adjoint; the paper's is one.

    Mutant: the adjoint or a smooth interpolation in the official variant, or the reverse.
    """
    prior = GaussianLatent()
    prior.data_shape = (1, 8, 8)
    task = SuperResolution((1, 8, 8), factor=2, sigma=0.1)
    problem = Posterior(prior, task)
    official, paper = (PSLD(problem, **PAPER | {"variant": v}) for v in ("official", "paper"))
    y = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    obs = Observation(y, {}, torch.tensor([0.1]))
    gap = y - task.apply(x)
    torch.testing.assert_close(
        official.glue(x, obs) - x, gap.repeat_interleave(2, 2).repeat_interleave(2, 3)
    )
    back = paper.glue(x, obs) - x
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    inner = (task.apply(other) * gap).sum()
    torch.testing.assert_close((other * back).sum(), inner, rtol=1e-5, atol=1e-5)
    far = (other * (official.glue(x, obs) - x)).sum() - inner
    assert far.abs() > 0.1


def test_fresh_noise_falls_on_observed_entries_only() -> None:
    """‖y - A x - sigma ε‖ over the mask. Mutant: ε on hidden pixels, which inflates the norm."""
    prior = GaussianLatent()
    prior.data_shape = (1, 8, 8)
    problem = Posterior(prior, Inpaint((1, 8, 8), mask=RandomPixels(0.5, 0.5), sigma=0.1))
    solver = PSLD(problem, steps=2, **WEIGHTS)
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 2, 1, 8, 8, generator=generator)
    obs = problem.task.sample(x, generator)
    mask, clean = obs.params["mask"], 0.5 * x
    expected = (mask * (obs.y - clean - 0.1 * noise)).flatten(1).norm(dim=1)
    torch.testing.assert_close(solver.distance(clean, obs, noise), expected)


def test_lenient_run_goes_on_without_the_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample of three becomes NaN; the others are what they are without it.

    Mutant: NaN that spreads through a norm or a stopping rule of the batch; a run that ends.
    """
    monkeypatch.setattr(Moment, "normal", lambda self, like: torch.zeros_like(like))
    for name in METHODS:
        solver = build(name, steps=6, strict=False)
        obs, z = observe(solver.posterior, 3), state(solver.posterior, 3)
        alone = solver.solve(z[:2], obs[:2])
        z[2] = torch.nan
        together = solver.solve(z, obs)
        torch.testing.assert_close(together[:2], alone)
        assert together[2].isnan().all()
        solver.strict = True
        with pytest.raises(Diverged, match="in 1 of 3 samples"):
            solver.solve(z, obs)
