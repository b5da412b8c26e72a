"""The diffusion samplers that tests run, each with settings of its own."""

import torch

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
    posterior,
)

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
