"""The posterior as seen from latents: Jacobian products, and estimates without a prior."""

import pytest
import torch
from torch import Tensor

from outsourced.latents import CACHED
from outsourced.posterior import Posterior
from outsourced.priors import LatentDiffusionPrior
from outsourced.priors.base import Prior
from outsourced.tasks import Dequantize, Inpaint, SuperResolution
from outsourced.tasks.linear_estimate import DataGaussian, linear_estimate
from outsourced.tasks.masks import RandomBox

LATENT, DATA = (2, 4, 4), (1, 8, 8)


class Decoder(Prior):
    """x = tanh(W h), with the pseudo-inverse of W for an encoder."""

    def __init__(self) -> None:
        super().__init__(LATENT, DATA)
        weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) / 6
        self.register_buffer("weight", weight)

    def decode(self, h: Tensor) -> Tensor:
        return torch.tanh(h.flatten(1) @ self.weight.T).unflatten(1, DATA)

    def encode(self, x: Tensor) -> Tensor:
        assert x.abs().max() <= 1
        return (x.flatten(1) @ torch.linalg.pinv(self.weight).T).unflatten(1, LATENT)

    forward = image = decode


def inpainting(beta: float = 1.0, **options) -> Posterior:
    task = Inpaint(DATA, sigma=0.1, mask=RandomBox(2, 4))
    return Posterior(Decoder(), task, beta=beta, **options)


def test_few_rows_are_linearised_at_once():
    """As many as a chunk, a CPU's cache and the prior's memory allow.

    Mutants: memory without the backward pass, the largest of the bounds.
    """
    posterior, cpu, other = inpainting(), torch.device("cpu"), torch.device("meta")
    assert (posterior.fitted_rows(cpu), posterior.fitted_rows(other)) == (CACHED, posterior.chunk)
    posterior.chunk = 5
    assert (posterior.fitted_rows(cpu), posterior.fitted_rows(other)) == (5, 5)
    posterior.prior.memory_gb = 1.0
    posterior.prior.chunk_size = lambda device, grad: 3 if grad else 4
    assert (posterior.fitted_rows(cpu), posterior.fitted_rows(other)) == (3, 3)


def test_products_are_those_of_the_residual():
    """J of (y - A decode(h)) / sigma times sqrt(beta), by finite differences and by the graph.

    Mutants: the other sign, a Jacobian at other points, a noise level or a beta that is left out,
    hidden pixels that have a residual.
    """
    posterior = inpainting(beta=0.5)
    _, _, obs = posterior.simulate(3, torch.Generator().manual_seed(1))
    h, d = torch.randn(2, 3, *LATENT, generator=torch.Generator().manual_seed(2))

    def residual(h: Tensor) -> Tensor:
        x = posterior.prior.decode(h)
        return 0.5**0.5 * ((obs.y - x) * obs.params["mask"] / 0.1).flatten(1)

    value, change = torch.autograd.functional.jvp(residual, h, d)
    at = posterior.linearise_latents(h, obs)
    torch.testing.assert_close(at.residual, value)
    assert not at.push(d)[(obs.params["mask"] == 0).flatten(1)].any()
    torch.testing.assert_close(at.push(d), change, rtol=0.02, atol=0.02 * float(change.abs().max()))
    torch.testing.assert_close(at.push(100 * d), 100 * at.push(d), rtol=1e-2, atol=1e-2)
    u = torch.randn(value.shape, generator=torch.Generator().manual_seed(3))
    (wanted,) = torch.autograd.functional.vjp(residual, h, u)[1:]
    for _ in range(2):  # the graph is kept
        torch.testing.assert_close(at.pull(u), wanted, rtol=1e-4, atol=1e-4)


def test_products_in_half_precision_are_about_those_in_full():
    """Of the embedded decoder. Mutant: a difference below what bfloat16 can tell."""
    found = []
    for dtype in ("float32", "bfloat16"):
        prior = LatentDiffusionPrior("fashion_sd", guidance=1.0, steps=2, dtype=dtype)
        posterior = Posterior(prior, Inpaint(prior.data_shape, sigma=0.1, mask=RandomBox(4, 8)))
        generator = torch.Generator().manual_seed(1)
        h, d = torch.randn(2, 2, *prior.noise_shape, generator=generator)
        x = prior.image(h).float()
        obs = posterior.task.sample(x, torch.Generator().manual_seed(3))
        found.append(posterior.linearise_latents(h, obs).push(d))
    full, half = found
    assert (half - full).norm() < 0.2 * full.norm()


def test_estimates_see_what_a_solver_sees():
    """The encoded ridge estimate of linear measurements, or the one under a Gaussian; y itself
    where it is an image.

    Mutants: A^T y (a quarter of the image under super-resolution), values off the encoder's range,
    a Gaussian that is not used, NaN where all variance lies along its axes.
    """
    posterior = inpainting()
    _z, x, obs = posterior.simulate(4, torch.Generator().manual_seed(1))
    assert posterior.estimates_latents
    estimate = posterior.latent_estimate(obs)
    assert estimate.shape == (4, *LATENT)
    wanted = posterior.prior.encode((0.25 / (0.25 + 0.01) * obs.y).clamp(-1, 1))
    torch.testing.assert_close(estimate, wanted, rtol=1e-3, atol=1e-3)
    coarse, seen = Posterior(Decoder(), SuperResolution(DATA, 2, 0.001)), []
    flat = coarse.task.sample(torch.full((1, *DATA), 0.6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coarse.prior, "encode", lambda x: seen.append(x) or x)
        coarse.latent_estimate(flat)
    assert float(seen[0][..., 2:6, 2:6].mean()) == pytest.approx(0.6, abs=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(Decoder, "encode")  # a diffusion of pixels is its own latents
        torch.testing.assert_close(coarse.latent_estimate(flat), seen[0])
    about = DataGaussian(DATA, 4)
    about.fill(x.repeat(3, 1, 1, 1) + 0.3)
    best = posterior.latent_estimate(obs, about)
    wanted = linear_estimate(posterior.task, obs, about).clamp(-1, 1)
    torch.testing.assert_close(best, posterior.prior.encode(wanted))
    assert (best - estimate).abs().max() > 0.1
    image = Posterior(Decoder(), Dequantize(DATA, bits=2, sigma=0.2))
    seen = image.task.sample(x)
    torch.testing.assert_close(image.latent_estimate(seen), image.prior.encode(seen.y.clamp(-1, 1)))


def test_decodes_in_chunks():
    """Mutant: pieces in another order, or the last one lost."""
    posterior = inpainting(chunk=2)
    h = torch.randn(5, *LATENT, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(posterior.decode_latents(h), posterior.prior.decode(h))


def test_black_boxes_have_no_products():
    """Mutant: a gradient of zero where there is none."""
    posterior = Posterior(Decoder(), Dequantize(DATA, bits=2, sigma=0.2))
    _, _, obs = posterior.simulate(1, torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="black box"):
        posterior.linearise_latents(torch.zeros(1, *LATENT), obs)
