"""The loop: gradients, independence of samples, residuals, counts, previews, errors."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from outsourced.posterior import Posterior
from outsourced.priors import CNF, LinearGaussian
from outsourced.solvers.daps import DAPS
from outsourced.solvers.diffusion_sampler import Diverged
from outsourced.solvers.dps import DPS
from outsourced.solvers.flow_chef import FlowChef
from outsourced.solvers.flow_dps import FlowDPS
from outsourced.solvers.gml_dps import GMLDPS
from outsourced.solvers.latent_dps import LatentDPS
from outsourced.solvers.levels import levels
from outsourced.solvers.moment import Moment
from outsourced.solvers.psld import PSLD
from outsourced.solvers.resample import ReSample
from outsourced.solvers.step_sizes import step_sizes
from outsourced.tasks import (
    Deblur,
    Denoise,
    Inpaint,
    MotionKernel,
    NonlinearMeasurement,
    Observation,
    RandomPixels,
    SuperResolution,
    Task,
)
from tests.solvers.diffusion.gaussian import (
    GaussianDiffusion,
    GaussianLatent,
    first,
    observe,
    posterior,
    state,
)

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "solver"
PAPER = {"variant": "paper", "omega": 0.1, "gamma": 0.05}
WEIGHTS = {"omega": 0.5, "gamma": 0.2}
METHODS = {
    "dps": (DPS, {"omega": 0.5, "eta": 0.0}),
    "latent_dps": (LatentDPS, {"omega": 0.5}),
    "gml_dps": (GMLDPS, WEIGHTS),
    "psld": (PSLD, PAPER),
    "resample": (ReSample, {"every": 2, "iterations": 20}),
    "daps": (DAPS, {"ode_steps": 2, "langevin_steps": 3}),
    "flow_dps": (FlowDPS, {"omega": 0.05}),
    "flow_chef": (FlowChef, {"omega": 0.1}),
}


def build(name: str, steps: int, sigma: float = 0.05, dtype=torch.float64, **settings):
    method, defaults = METHODS[name]
    flow = name in ("flow_dps", "flow_chef")
    prior = GaussianDiffusion() if name == "dps" else GaussianLatent(flow)
    problem = posterior(prior, sigma=sigma, dtype=dtype)
    return method(problem, steps=steps, **{**defaults, **settings})


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


def problem_of(task: Task, path: str = "") -> Posterior:
    prior = GaussianLatent()
    prior.data_shape, prior.path = task.data_shape, path
    return Posterior(prior, task)


def test_published_step_sizes() -> None:
    """By the task's operator and masks; the user's win.

    Mutant: box values for random pixels, values of another method, a given 0 that is replaced.
    """
    shape = (1, 8, 8)
    box, pixels = Inpaint(shape, sigma=0.1, mask=_box), Inpaint(shape, RandomPixels(0.5, 0.5))
    box, pixels, small = map(problem_of, (box, pixels, SuperResolution(shape, 2, 0.1)))
    asked = {"omega": None, "gamma": None}
    assert step_sizes("psld", box, 1000, **asked) == (0.1, 0.01)
    assert step_sizes("psld", pixels, 1000, **asked) == (1.0, 0.1)
    assert step_sizes("gml_dps", small, 1000, **asked) == (1.0, 0.1)
    assert step_sizes("latent_dps", small, 1000, omega=None) == (1.0,)
    assert step_sizes("dps", small, 1000, omega=None) == (0.3,)
    assert step_sizes("dps", pixels, 1000, omega=None) == (0.5,)
    assert step_sizes("daps", box, 200, rate=None) == (0.02,)
    assert step_sizes("resample", box, 500, gamma=7.0, omega=None) == (7.0, 0.5)
    assert step_sizes("psld", box, 1000, omega=0.0, gamma=None) == (0.0, 0.01)
    none = problem_of(Denoise(shape, 0.1))
    with pytest.raises(ValueError, match=r"solver\.omega of psld has no published value for Denoi"):
        step_sizes("psld", none, 1000, **asked)
    with pytest.raises(ValueError, match=r"solver\.gamma must be >= 0, got -1"):
        step_sizes("psld", box, 1000, omega=None, gamma=-1.0)


def test_tuned_step_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the embedded prior at the nearest number of steps, before the published ones; over
    the ratio at a larger number, times its root at a smaller one, but for a rate.

    Mutant: the first number of steps, the nearest difference (400 is nearer to 100 by it), sizes
    of another prior or task, published sizes of motions for a blur's, tuned sizes that win over
    given ones, a ratio upside down.
    """
    sizes = {"100": {"omega": 3.0, "gamma": 0.4}, "1000": {"omega": 0.5, "gamma": 0.06}}
    rate = {"daps": {"inpaint_box": {"100": {"rate": 0.3}}}}
    blur = {"100": {"omega": 0.7, "gamma": 0.2}}
    table = {"fashion_sd": {"psld": {"inpaint_box": sizes, "blur": blur}, **rate}}
    monkeypatch.setattr("outsourced.solvers.step_sizes._table", lambda: table)
    box, asked = Inpaint((1, 8, 8), sigma=0.1, mask=_box), {"omega": None, "gamma": None}
    ours, other = problem_of(box, "fashion_sd"), problem_of(box, "sd15")
    assert step_sizes("psld", ours, 100, **asked) == (3.0, 0.4)
    assert step_sizes("psld", ours, 4000, **asked) == pytest.approx((0.125, 0.015))
    assert step_sizes("psld", ours, 400, **asked) == pytest.approx((0.79057, 0.094868), rel=1e-4)
    assert step_sizes("psld", ours, 200, **asked) == pytest.approx((1.5, 0.2))
    assert step_sizes("psld", ours, 1000, omega=2.0, gamma=None) == (2.0, 0.06)
    assert step_sizes("daps", ours, 1000, rate=None) == (0.3,)
    assert step_sizes("psld", other, 100, **asked) == (0.1, 0.01)
    assert step_sizes("gml_dps", ours, 100, **asked) == (0.1, 0.01)
    motion = problem_of(Deblur((1, 8, 8), MotionKernel(5), 0.1), "fashion_sd")
    assert step_sizes("psld", motion, 100, **asked) == (0.7, 0.2)  # in want of its own
    small = problem_of(SuperResolution((1, 8, 8), 2, 0.1), "fashion_sd")
    assert step_sizes("psld", small, 100, **asked) == (1.0, 0.1)


def test_tuned_sizes_are_those_of_known_methods() -> None:
    """The shipped table names priors, methods, tasks and sizes that are asked for.

    Mutant: a table under a task's configuration name, or sizes of another method.
    """
    from outsourced.solvers.step_sizes import PUBLISHED, TUNED

    known = {**PUBLISHED, "psld_paper": PUBLISHED["psld"]}
    tasks = {*PUBLISHED["psld"], "Denoising", "compressed_sensing"}  # the last two: searched only
    for of_prior in json.loads(TUNED.read_text()).values():
        for method, of_task in of_prior.items():
            names = set(next(iter(known[method].values())))
            for task, of_steps in of_task.items():
                assert task in tasks
                for steps, sizes in of_steps.items():
                    assert int(steps) > 0
                    assert set(sizes) == names
                    assert min(sizes.values()) > 0


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


def _box(n: int, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    mask = torch.ones(n, 1, *shape[1:])
    mask[..., 2:4, 2:4] = 0
    return mask


@pytest.mark.parametrize("name", METHODS)
def test_configurations_name_every_setting(name: str) -> None:
    """Each YAML builds its solver with the defaults of the class.

    Mutant: a setting that the class does not know, that is left out, or with another default.
    """
    from inspect import signature

    from hydra.utils import get_class

    config = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    method = METHODS[name][0]
    assert get_class(config.pop("_target_")) is method
    own, base = (
        {n: p.default for n, p in signature(c).parameters.items()}
        for c in (method, method.__mro__[1])
    )
    for left_out in ("posterior", "loop", "steps"):
        base.pop(left_out, None)
    for left_out in ("posterior", "loop"):
        own.pop(left_out)
    assert config == base | own


class Label(Task):
    """No measurement at all."""


def test_unfit_problems() -> None:
    """Refused before any work, with the way out.

    Mutant: pixels that pass for latents, a beta that has no effect, a grid that is cut silently.
    """
    latent, pixel = posterior(GaussianLatent(), rows=5), posterior(GaussianDiffusion(), rows=5)
    flow = posterior(GaussianLatent(flow=True))
    with pytest.raises(ValueError, match=r"solver psld needs a prior on latents.* use dps"):
        PSLD(pixel, **WEIGHTS)
    with pytest.raises(ValueError, match=r"solver dps needs a prior on pixels.* use psld"):
        DPS(latent, omega=1.0)
    with pytest.raises(ValueError, match="flow_dps needs a flow-matching prior, got GaussianLat"):
        FlowDPS(latent)
    with pytest.raises(ValueError, match="needs a diffusion or flow-matching prior, got LinearG"):
        DAPS(Posterior(LinearGaussian(dim=5), latent.task))
    with pytest.raises(ValueError, match="needs a measurement y = A"):
        LatentDPS(Posterior(latent.prior, Label()), omega=1.0)
    nonlinear = NonlinearMeasurement(torch.abs, (5,), sigma=0.1)
    assert LatentDPS(Posterior(latent.prior, nonlinear), omega=1.0).omega == 1
    with pytest.raises(ValueError, match="psld needs a linear operator"):
        PSLD(Posterior(latent.prior, nonlinear), **WEIGHTS)
    with pytest.raises(ValueError, match=r"posterior\.beta must be 1, got 2"):
        LatentDPS(Posterior(latent.prior, latent.task, beta=2.0), omega=1.0)
    for steps, text in ((0, ">= 1, got 0"), (1001, "<= 1000, .* got 1001")):
        with pytest.raises(ValueError, match=rf"solver\.steps must be {text}"):
            LatentDPS(latent, omega=1.0, steps=steps)
    assert DAPS(flow, steps=2000).steps == 2000
    dark = GaussianLatent()
    dark.alphas_cumprod[-1] = 0
    with pytest.raises(ValueError, match="zero terminal SNR"):
        LatentDPS(posterior(dark), omega=1.0)


def test_bad_settings() -> None:
    """Mutant: settings that are taken silently."""
    latent, flow = posterior(GaussianLatent(), rows=4), posterior(GaussianLatent(flow=True))
    for method, settings, text in (
        (PSLD, {"variant": "both"}, r"variant must be one of .*got 'both'"),
        (PSLD, {"variant": "paper"}, r"omega of psld_paper has no published value"),
        (PSLD, WEIGHTS, r"no transpose from measurements \(4,\) to data \(5,\)"),
        (LatentDPS, {"omega": 1.0, "eta": 1.5}, r"solver\.eta must be in \[0, 1\]"),
        (LatentDPS, {"omega": 1.0, "preview_every": 0}, r"preview_every must be >= 1, got 0"),
        (ReSample, {"every": 0}, r"every must be >= 1"),
        (ReSample, {"gamma": 0.0}, r"gamma must be > 0, got 0"),
        (DAPS, {"langevin_steps": 0}, r"langevin_steps must be >= 1"),
        (DAPS, {"rate": 0.0}, r"rate must be > 0"),
    ):
        with pytest.raises(ValueError, match=text):
            method(latent, **settings)
    with pytest.raises(ValueError, match=r"solver\.omega must be >= 0, got -1"):
        FlowDPS(flow, omega=-1.0)
    with pytest.raises(TypeError, match="eta"):
        DAPS(latent, eta=0.5)
    solver = LatentDPS(latent, omega=1.0, steps=3)
    with pytest.raises(ValueError, match="n >= 1"):
        solver(observe(latent), 0)
    with pytest.raises(ValueError, match=r"task\.y must be"):
        solver(Observation(torch.zeros(1, 9), {}, torch.ones(1)), 1)


def test_divergence_is_told() -> None:
    """With the step and the count. Mutant: samples of NaN that are returned."""
    solver = build("psld", steps=50, omega=1e200)
    obs, z = observe(solver.posterior), state(solver.posterior)
    with pytest.raises(Diverged, match=r"psld diverged at step \d+ of 50, in 2 of 2 samples"):
        solver.solve(z, obs)
