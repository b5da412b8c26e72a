"""The contract of Prior: frozen, and identified by everything that changes its output."""

import copy

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from outsourced.priors import VAE, LinearGaussian, Rings
from outsourced.priors.base import Prior


class Normed(Prior):
    """A prior with a dropout and a batch norm: what an eval mode is for."""

    def __init__(self) -> None:
        super().__init__((3,), (3,))
        self.body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.freeze()

    def forward(self, z):
        return self.body(z)


def test_training_a_parent_leaves_the_prior_frozen():
    """Mutant: freezing only at construction, so that a parent's train() wakes the batch norm."""
    prior = Normed()
    parent = nn.ModuleList([prior]).train()
    z = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    first = prior(z)
    assert parent.training
    assert not any(module.training for module in prior.modules())
    assert torch.equal(first, prior(z))
    assert torch.equal(prior(z)[:1], prior(z[:1]))
    assert not any(p.requires_grad for p in prior.parameters())


def test_gradients_reach_the_noise_but_not_the_weights():
    """Mutant: freezing by no_grad in forward, which would cut ∂x/∂z as well."""
    prior = VAE(latent=4, width=8, hidden=8, channels=2, image_shape=(1, 8, 8))
    z = torch.randn(2, 4, requires_grad=True)
    prior(z).sum().backward()
    assert z.grad is not None
    assert z.grad.abs().min() > 0
    assert all(p.grad is None for p in prior.parameters())


def test_fingerprint_follows_every_weight_buffer_and_setting():
    """Mutant: hashing only the first tensor, only parameters, or only names and shapes."""
    prior = Normed()
    seen = {prior.fingerprint()}
    assert copy.deepcopy(prior).fingerprint() in seen
    for name in ("body.0.weight", "body.0.bias", "body.1.running_var"):
        changed = copy.deepcopy(prior)
        state = changed.state_dict()
        state[name].view(-1)[-1] += 1e-6
        seen.add(changed.fingerprint())
    assert len(seen) == 4
    settings = [Rings(2, 0.1), Rings(3, 0.1), Rings(2, 0.2)]
    assert len({rings.fingerprint() for rings in settings}) == 3


def test_fingerprint_is_the_same_in_every_process():
    """Mutant: Python's salted hash(), or an id in the header, instead of a digest."""
    prior = LinearGaussian(matrix=[[1.0, 2.0], [0.0, 1.0]])
    assert prior.fingerprint() == (
        "a14b92454be98e90f507696ae89a7917b8fa1f4aa4081e2f5724b5878d91c3b6"
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"_target_": "LinearGaussian", "matrix": [[2.0, 0.0], [0.0, 3.0]]}, [[2.0, -3.0]]),
        (
            {"_target_": "GaussianMixture", "means": [[1.0, 1.0]], "std": [[1.0, 2.0]]},
            [[2.0, -1.0]],
        ),
        (
            {"_target_": "GaussianMixture.ring", "modes": 1, "radius": 2.0, "std": 1.0},
            [[3.0, -1.0]],
        ),
        ({"_target_": "CallablePrior", "function": "torch.neg", "noise_shape": [2]}, [[-1.0, 1.0]]),
    ],
)
def test_priors_build_from_a_hydra_config(config, expected):
    """Mutant: accepting tensors and lists only, while Hydra hands over its own list type."""
    target = f"outsourced.priors.{config['_target_']}"
    prior = instantiate(OmegaConf.create({**config, "_target_": target}))
    torch.testing.assert_close(prior(torch.tensor([[1.0, -1.0]])), torch.tensor(expected))


def test_the_embedded_vae_builds_from_a_hydra_config():
    """Mutant: a class method that Hydra cannot name."""
    vae = instantiate(
        {"_target_": "outsourced.priors.VAE.from_weights", "path_or_name": "fashion_vae"}
    )
    assert vae.fingerprint() == VAE.from_weights().fingerprint()
