"""Exact samplers against two-dimensional posteriors summed on a grid (slow)."""

import math

import pytest
import torch

from benchmarks.problems import GridTruth
from outsourced.metrics import c2st
from outsourced.posterior import Posterior
from outsourced.priors import GaussianMixture, Rings, SwissRoll, TwoMoons
from outsourced.solvers import Hmc, Importance, Mala, Pcn, Rejection, Smc
from outsourced.tasks import NonlinearMeasurement

PRIORS = {
    "moons": TwoMoons,
    "roll": SwissRoll,
    "rings": Rings,
    "mixture": lambda: GaussianMixture.ring(modes=8, radius=1.0, std=0.1),
}
DRAWS = 2000
CHAINS = {"steps": 400, "burn_in": 300, "chains": 500, "thin": 100}
SOLVERS = {
    "rejection": lambda p: Rejection(p),
    "importance": lambda p: Importance(p, 200_000),
    "smc": lambda p: Smc(p, 8000, "mala", moves=8, ess=0.7, precondition=False),
    "smc, pcn": lambda p: Smc(p, 8000, "pcn", moves=8, ess=0.7),
    "pcn": lambda p: Pcn(p, **{**CHAINS, "steps": 2000, "thin": 500}),
    "mala": lambda p: Mala(p, **{**CHAINS, "steps": 1200, "thin": 300}),
    "hmc": lambda p: Hmc(p, **CHAINS),
}


def problem(name: str) -> Posterior:
    task = NonlinearMeasurement("outsourced.tasks.functions.absolute_first", [2], 0.5)
    return Posterior(PRIORS[name](), task, chunk=16_384)


@pytest.mark.slow
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_grid_posterior(prior: str, solver: str) -> None:
    """A classifier cannot tell the samples from draws of the grid: C2ST <= 0.53.

    Mutant: chains that stay in the modes they started in with the prior's weights; an approximate
    kernel without Metropolis test; resampling noise that leaves copies.
    """
    posterior = problem(prior)
    _, _, obs = posterior.simulate(1, torch.Generator().manual_seed(3))
    grid = GridTruth(posterior)
    exact = grid.sample(obs, DRAWS, torch.Generator().manual_seed(4))[:, 0]
    samples = SOLVERS[solver](posterior)(obs, DRAWS, torch.Generator().manual_seed(5))
    assert c2st(samples.z[:, 0], exact) <= 0.53
    if "log_z" in samples.diagnostics:
        error = samples.diagnostics["log_z"] - grid.log_z(obs)
        assert abs(float(error)) < max(0.05, 5 * float(samples.diagnostics["log_z_std"]))
    if samples.proposal_log_weight is not None:
        weight = samples.proposal_log_weight.double()
        log_z = weight.logsumexp(0) - math.log(len(weight))
        assert abs(float(log_z - grid.log_z(obs))) < 0.05
