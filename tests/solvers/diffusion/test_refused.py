"""What the diffusion samplers refuse, and what their configurations name."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian
from outsourced.solvers.daps import DAPS
from outsourced.solvers.diffusion_sampler import Diverged
from outsourced.solvers.dps import DPS
from outsourced.solvers.flow_dps import FlowDPS
from outsourced.solvers.latent_dps import LatentDPS
from outsourced.solvers.psld import PSLD
from outsourced.solvers.resample import ReSample
from outsourced.tasks import (
    NonlinearMeasurement,
    Observation,
    Task,
)
from tests.solvers.diffusion.gaussian import (
    GaussianDiffusion,
    GaussianLatent,
    observe,
    posterior,
    state,
)
from tests.solvers.diffusion.methods import METHODS, WEIGHTS, build

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "solver"


class Label(Task):
    """No measurement at all."""


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
