"""Pixel diffusion priors: bytes a sample, budgets of memory, bfloat16, compiled networks."""

import pytest
import torch
from torch import nn

from outsourced.priors import DiffusionPrior
from outsourced.priors.diffusion_memory import bytes_per_sample


def prior(folder, **settings) -> DiffusionPrior:
    return DiffusionPrior(str(folder), **{"steps": 3, **settings})


def noise(model: DiffusionPrior, count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *model.noise_shape, generator=torch.Generator().manual_seed(seed))


def test_live_bytes_of_a_known_function():
    """Five tanh of 1000 floats: x and two of them at once, or all of them with a gradient.

    Mutant: counting every allocation, or views, or only the largest tensor; forgetting what
    the gradient keeps.
    """

    def chain(x):
        for _ in range(5):
            x = x.view(-1, 10, 100).tanh().flatten(1)
        return x

    like = torch.empty(1, 1000)
    assert bytes_per_sample(chain, like, grad=False) == 3 * 4000
    assert 6 * 4000 <= bytes_per_sample(chain, like, grad=True) <= 9 * 4000
    assert bytes_per_sample(chain, like.double(), grad=False) == 6 * 4000


def test_memory_budget_splits_the_batch(ddpm_folder):
    """Mutant: an ignored budget, one that counts weights, or chunks that change the result."""
    whole = prior(ddpm_folder)
    like = torch.empty(1, *whole.noise_shape)
    cost = bytes_per_sample(lambda x: whole._predict(x, whole.timesteps[0]), like, grad=False)
    parts = prior(ddpm_folder, memory_gb=2.5 * cost / 2**30)
    sizes: list[int] = []
    assert parts.chunk_size(like.device, grad=False) == 2
    parts.network.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    z = noise(whole, 5)
    torch.testing.assert_close(parts(z), whole(z), rtol=1e-4, atol=1e-5)
    assert sizes == [2, 2, 2, 2, 2, 2, 1, 1, 1]
    sizes.clear()
    torch.testing.assert_close(parts.denoise(z), whole.denoise(z), rtol=1e-4, atol=1e-5)
    assert sizes == [2, 2, 2, 2, 2, 2, 1, 1, 1]
    cpu = torch.device("cpu")
    assert parts.chunk_size(cpu, grad=True) == 1
    assert prior(ddpm_folder, memory_gb=1e-9).chunk_size(cpu, grad=False) == 1
    kept = [
        prior(ddpm_folder, memory_gb=1.0, steps=10, checkpointing=flag).chunk_size(cpu, grad=True)
        for flag in (True, False)
    ]
    assert kept[0] == pytest.approx(10 * kept[1], rel=0.05)


def test_bfloat16_and_channels_last(ddpm_folder):
    """Mutant: an ignored dtype or order; an output in the network's type."""
    model, last = prior(ddpm_folder), prior(ddpm_folder, channels_last=True)
    half = prior(ddpm_folder, dtype="bfloat16")
    z = noise(model)
    assert {t.dtype for t in half.parameters()} == {torch.bfloat16}
    assert half(z).dtype == torch.float32
    assert 1e-4 < (half(z) - model(z)).abs().max() < 0.2
    weight = last.network.down_blocks[0].resnets[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last(z), model(z), rtol=1e-4, atol=1e-5)


def test_compile_is_asked_of_the_network(ddpm_folder, monkeypatch):
    """Mutant: an ignored option, or a wrapper that renames the weights and thus the prior."""
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    model = prior(ddpm_folder, compile=True)
    assert compiled == [model.network]
    assert model.fingerprint() == prior(ddpm_folder).fingerprint()
    assert len(compiled) == 1


@pytest.mark.slow
def test_compiled_network_agrees(ddpm_folder):
    """Mutant: a compiled network that breaks checkpointing or the memory budget."""
    model = prior(ddpm_folder)
    compiled = prior(ddpm_folder, compile=True, memory_gb=1e-9)
    z = noise(model).requires_grad_()
    torch.testing.assert_close(compiled(z), model(z), rtol=1e-3, atol=1e-4)
    gradients = [torch.autograd.grad(each(z).sum(), z)[0] for each in (model, compiled)]
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-3)
