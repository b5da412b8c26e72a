"""The solvers that need a diffusion, on pipelines of diffusers: beside the fixtures that make them.

What each step computes is tested on Gaussian priors, in tests/solvers/diffusion.
"""

import pytest
import torch

from outsourced.posterior import Posterior
from outsourced.priors import CNF, DiffusionPrior, LatentDiffusionPrior
from outsourced.solvers.daps import DAPS
from outsourced.solvers.dps import DPS
from outsourced.solvers.flow_dps import FlowDPS
from outsourced.solvers.latent_dps import LatentDPS
from outsourced.solvers.moment import Moment
from outsourced.solvers.psld import PSLD
from outsourced.solvers.schedule import levels
from outsourced.tasks import Denoise, Inpaint
from tests.solvers.diffusion.gaussian import GaussianLatent, observe, posterior, state

WITHOUT_T5 = {"text_encoder_3": None, "tokenizer_3": None}
PROMPTS = {"prompt": "a bag", "negative_prompt": "a shoe", "guidance": 3.0, "steps": 3}
WEIGHTS = {"omega": 0.2, "gamma": 0.05}


def problem(prior: DiffusionPrior, **settings) -> Posterior:
    return Posterior(prior, Inpaint(prior.data_shape, sigma=0.1), **settings)


def draws(problem: Posterior, count: int = 2):
    """Observations of f(z), and noise to start from."""
    _, _, obs = problem.simulate(count, torch.Generator().manual_seed(1))
    return obs, problem.draw_noise(count, torch.Generator().manual_seed(2))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_unguided_loop_is_the_scheduler(eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With omega = 0, 1000 steps are those of `DDIMScheduler`, with its noise or without.

    Mutant: variances of other levels, a last step to ᾱ_0 in place of 1, β for β̃.
    """
    from diffusers import DDIMScheduler

    target = posterior(GaussianLatent())
    alphas = target.prior.alphas_cumprod
    betas = 1 - alphas / torch.cat([torch.ones(1).double(), alphas[:-1]])
    scheduler = DDIMScheduler(trained_betas=betas.numpy(), clip_sample=False)
    scheduler.alphas_cumprod = alphas  # diffusers would round them to float32
    scheduler.set_timesteps(1000)
    kept: list[torch.Tensor] = []
    normal = Moment.normal
    monkeypatch.setattr(Moment, "normal", lambda *a: kept.append(normal(*a)) or kept[-1])
    obs, z = observe(target), state(target)
    x = LatentDPS(target, omega=0.0, eta=eta).solve(z, obs, torch.Generator().manual_seed(0))
    assert len(kept) == 999 * eta
    for index, t in enumerate(scheduler.timesteps):
        noise = kept[index] if eta and index < 999 else torch.zeros_like(z)
        predicted = target.prior.predict_noise(z, int(t))
        z = scheduler.step(predicted, int(t), z, eta=eta, variance_noise=noise).prev_sample
    torch.testing.assert_close(x, target.prior.decode(z), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("kind", ["sd_folder", "sd3_folder"])
def test_psld_on_stable_diffusion(kind: str, variant: str, request) -> None:
    """Guided through network, decoder and encoder; checkpointed all the same; the work is counted.

    Mutant: a decoder or an encoder without gradient, an encoder that draws anew in the backward
    pass, guided pairs counted twice, network calls for each observation and not each sample.
    """
    load = WITHOUT_T5 if kind == "sd3_folder" else None
    prior = LatentDiffusionPrior(str(request.getfixturevalue(kind)), load=load, **PROMPTS)
    target = problem(prior)
    obs, z = draws(target)
    seed = 5

    def run(checkpointing=False, **settings):
        solver = PSLD(target, variant, **settings, steps=4, checkpointing=checkpointing)
        return solver, solver.solve(z, obs, torch.Generator().manual_seed(seed))

    _, free = run(omega=0.0, gamma=0.0)
    _, pulled = run(omega=WEIGHTS["omega"], gamma=0.0)
    _, glued = run(omega=0.0, gamma=WEIGHTS["gamma"])
    _, both = run(**WEIGHTS)
    assert (free - pulled).abs().max() > 1e-3
    assert (free - glued).abs().max() > 1e-3
    rows: list[int] = []
    handle = prior.network.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    solver, again = run(checkpointing=True, **WEIGHTS)
    handle.remove()
    torch.testing.assert_close(again, both, rtol=1e-3, atol=1e-4)
    assert solver.network_calls == 4 * 2
    assert rows == [4] * 8  # four steps, each again in its backward pass
    assert both.abs().max() <= 1
    samples = solver(obs, 3, torch.Generator().manual_seed(0))
    assert samples.prior_calls == 4 * 6 / 3
    assert samples.x.shape == (3, 2, 1, 32, 32)


def test_alone_as_together_on_stable_diffusion(sd_folder) -> None:
    """Mutant: a network or a norm that mixes the batch."""
    target = problem(LatentDiffusionPrior(str(sd_folder), **PROMPTS))
    obs, z = draws(target, 3)
    solver = PSLD(target, "paper", steps=4, omega=0.002, gamma=0.002)
    together = solver.solve(z, obs)
    alone = torch.cat([solver.solve(z[i : i + 1], obs[i]) for i in range(3)])
    torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(solver.solve(z, obs[[1, 1, 1]])[0], together[0], atol=1e-3)


def test_half_precision(sd_folder) -> None:
    """Weights in bfloat16, or autocast by the posterior: states stay float32, results near.

    Mutant: states that are rounded at every step; a precision that is ignored.
    """
    target = problem(LatentDiffusionPrior(str(sd_folder), **PROMPTS))
    obs, z = draws(target)
    settings = {"steps": 4, **WEIGHTS}
    exact = LatentDPS(target, omega=0.2, steps=4).solve(z, obs)
    rough = problem(LatentDiffusionPrior(str(sd_folder), dtype="bfloat16", **PROMPTS))
    mixed = problem(target.prior, precision="bfloat16")
    for half in (rough, mixed):
        x = LatentDPS(half, omega=0.2, steps=4).solve(z, obs)
        assert x.dtype == torch.float32
        assert 0 < (x - exact).abs().mean() < 0.05
        assert torch.equal(x.clamp(-1, 1), x)
        assert PSLD(half, **settings).solve(z, obs).isfinite().all()


def test_pixels_and_flows(ddpm_folder, sd3_folder) -> None:
    """DPS and DAPS on a pixel diffusion, FlowDPS on Stable Diffusion 3 with its shifted times.

    Mutant: a prior without `decode`; x that leaves [-1, 1]; the shift of the wrong scheduler.
    """
    plain = DiffusionPrior(str(ddpm_folder), steps=3)
    pixels = Posterior(plain, Denoise(plain.data_shape, sigma=0.1))
    obs, z = draws(pixels)
    guided = [DPS(pixels, omega=2.0, steps=20, clip=False), DAPS(pixels, steps=5)]
    free = DPS(pixels, omega=0.0, steps=20, clip=False)
    far = free.residual(free.solve(z, obs, torch.Generator().manual_seed(0)), obs)
    for solver in guided:
        x = solver.solve(z, obs, torch.Generator().manual_seed(0))
        assert x.abs().max() <= 1
        assert (solver.residual(x, obs) < 0.7 * far).all()
    settings = {"load": WITHOUT_T5, **PROMPTS}
    for scheduler in (None, "dpm_solver++"):
        prior = LatentDiffusionPrior(str(sd3_folder), scheduler=scheduler, **settings)
        assert prior.shift == 3
        assert [level.noise for level in levels(prior, 2)] == pytest.approx([1, 0.75, 0])
        assert prior.calls == 3
    assert DiffusionPrior(str(ddpm_folder)).shift == CNF.shift == 1
    flow = problem(prior)
    obs, z = draws(flow)
    solver = FlowDPS(flow, omega=0.3, steps=6)
    x = solver.solve(z, obs, torch.Generator().manual_seed(0))
    free = FlowDPS(flow, omega=0.0, steps=6).solve(z, obs, torch.Generator().manual_seed(0))
    assert (solver.residual(x, obs) < solver.residual(free, obs)).all()
