"""Products with the Jacobian of the whitened residual, against the dense matrix of a real task."""

import math

import pytest
import torch
from torch import Tensor

from outsourced.posterior import Posterior
from outsourced.priors.base import Prior
from outsourced.tasks.base import Observation, Task
from outsourced.tasks.inpaint import Inpaint
from outsourced.tasks.masks import RandomBox
from outsourced.tasks.mixture import Mixture
from outsourced.tasks.superres import SuperResolution

SHAPE = (1, 8, 8)
BOX = RandomBox(2, 5)
TASKS = {
    "gaussian": lambda: Inpaint(SHAPE, BOX, sigma=(0.2, 0.6)),
    "poisson": lambda: Inpaint(SHAPE, BOX, sigma=0.3, noise="poisson"),
    "mixture": lambda: Mixture(
        SHAPE,
        {"inpaint": Inpaint(SHAPE, BOX), "superres": SuperResolution(SHAPE, 2, sigma=0.3)},
        sigma=(0.2, 0.6),
    ),
}


class Curved(Prior):
    """An image of six noises on a grid."""

    def __init__(self):
        super().__init__((1, 2, 3), SHAPE, True)
        source = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(64, 6, generator=source) / 3)
        self.freeze()

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z.flatten(1) @ self.weight.T).reshape(-1, *SHAPE)


def dense(posterior: Posterior, z: Tensor, obs: Observation) -> Tensor:
    """sqrt(beta) J by one tangent after the other, (B, m, d)."""
    basis = torch.eye(6).reshape(6, 1, 2, 3)
    x, columns = zip(
        *(torch.func.jvp(posterior.prior, (z,), (one.expand_as(z),)) for one in basis), strict=True
    )
    jacobian = posterior.task.whitened_jacobian(torch.stack(columns), x[0], obs)
    return math.sqrt(posterior.beta) * jacobian.permute(1, 2, 0)


@pytest.fixture(params=TASKS)
def case(request) -> tuple[Posterior, Tensor, Observation]:
    posterior = Posterior(Curved(), TASKS[request.param](), beta=0.4, chunk=7)
    z, _, obs = posterior.simulate(3, torch.Generator().manual_seed(1))
    return posterior, 0.5 * z, obs


def test_random_products_are_those_of_the_jacobian(case):
    """J^T w of one set of draws w for all observations, whatever the chunks.

    Mutant: beta for its root, draws of each chunk's own, rows ordered by observation, the slope of
    Poisson noise that is differentiated too.
    """
    posterior, z, obs = case
    jacobian = dense(posterior, z, obs)
    found = posterior.random_vjp(z, obs, 5)
    draws = torch.randn(5, jacobian.shape[1], generator=torch.Generator().manual_seed(0))
    expected = torch.einsum("km,bmd->kbd", draws, jacobian).reshape(5, 3, 1, 2, 3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    alone = posterior.random_vjp(z[1:2], obs[1], 5)
    torch.testing.assert_close(alone[:, 0], found[:, 1], rtol=1e-4, atol=1e-4)


def test_differences_are_products_with_the_jacobian(case):
    """Within what the curvature of f leaves of a difference of 0.01.

    Mutant: a difference that is not divided by its length, tangents of another observation, a
    slope of Poisson noise that moves with x.
    """
    posterior, z, obs = case
    source = torch.Generator().manual_seed(2)
    tangents = torch.nn.functional.normalize(torch.randn(4, 3, 6, generator=source), dim=-1)
    found = posterior.jvp(z, obs, tangents.reshape(4, 3, 1, 2, 3))
    expected = torch.einsum("bmd,kbd->kbm", dense(posterior, z, obs), tangents)
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_tasks_without_residual_are_refused():
    """Mutant: an attribute error from within."""

    class Reward(Task):
        def log_reward(self, x, obs):
            return x.flatten(1).sum(1)

    posterior = Posterior(Curved(), Reward())
    obs = Observation(torch.zeros(1, 1), {}, torch.ones(1))
    with pytest.raises(ValueError, match=r"a measurement with a residual, got the task Reward"):
        posterior.random_vjp(torch.zeros(1, 1, 2, 3), obs, 2)
