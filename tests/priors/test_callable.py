"""CallablePrior: what it accepts, what it refuses, and what it does with black boxes."""

import numpy as np
import pytest
import torch
from torch import nn

from outsourced.priors import CallablePrior


def affine(z, scale=2.0):
    return scale * z.reshape(len(z), -1) + 1


def black_box(z):
    return np.sign(z.numpy()) * np.abs(z.numpy()) ** 0.5


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, z):
        return self.factor * z


def test_shape_differentiability_and_values_are_probed():
    """Mutant: data_shape assumed equal to noise_shape, or kwargs that do not reach the call."""
    prior = CallablePrior(affine, (2, 3), kwargs={"scale": 3.0})
    z = torch.randn(4, 2, 3, requires_grad=True)
    assert prior.data_shape == (6,)
    assert prior.differentiable
    x = prior(z)
    assert torch.equal(x, 3 * z.reshape(4, 6) + 1)
    (gradient,) = torch.autograd.grad(x.sum(), z)
    assert torch.equal(gradient, torch.full_like(z, 3.0))


def test_dotted_paths_of_functions_and_classes_resolve():
    """Mutant: a class called with z, or constructor arguments passed to every call."""
    z = torch.randn(3, 4)
    assert torch.equal(CallablePrior("torch.tanh", [4])(z), z.tanh())
    module = CallablePrior("torch.nn.LeakyReLU", [4], kwargs={"negative_slope": 0.5})
    assert torch.equal(module(z), nn.functional.leaky_relu(z, 0.5))


def test_modules_are_frozen_and_fingerprinted():
    """Mutant: a module kept only inside a partial: neither frozen, moved nor hashed."""
    prior = CallablePrior(Scaled(2.0), (3,))
    assert not any(p.requires_grad for p in prior.parameters())
    assert prior.fingerprint() == CallablePrior(Scaled(2.0), (3,)).fingerprint()
    assert prior.fingerprint() != CallablePrior(Scaled(2.5), (3,)).fingerprint()
    assert prior.double()(torch.ones(1, 3).double()).dtype == torch.float64
    one, two = (CallablePrior(affine, (3,), kwargs={"scale": s}) for s in (1.0, 2.0))
    assert one.fingerprint() != two.fingerprint()


def test_a_black_box_gives_values_and_refuses_gradients():
    """Mutant: returning a detached tensor, so that a gradient method would train on zeros."""
    prior = CallablePrior(black_box, (3,))
    assert not prior.differentiable
    z = torch.tensor([[4.0, -9.0, 0.25]], requires_grad=True)
    x = prior(z)
    assert torch.equal(x, torch.tensor([[2.0, -3.0, 0.5]]))
    with pytest.raises(RuntimeError, match=r"black_box was requested, but it is not differentiab"):
        x.sum().backward()


def test_differentiable_false_runs_without_a_graph():
    """Mutant: differentiable=False that only sets the flag, and still builds the graph."""
    modes = []

    def recorded(z):
        modes.append((torch.is_grad_enabled(), z.requires_grad))
        return z * 2

    prior = CallablePrior(recorded, (2,), differentiable=False)
    x = prior(torch.randn(2, 2, requires_grad=True))
    assert modes[-1] == (False, False)
    with pytest.raises(RuntimeError, match="not differentiable"):
        x.sum().backward()


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (lambda z: z + torch.randn_like(z), {}, "must be deterministic"),
        (lambda z: z - z.mean(0), {}, "must treat each sample alone"),
        (lambda z: (z > 0).long(), {}, "must return a floating-point tensor or array, got torch.i"),
        (lambda z: "image", {}, "floating-point tensor or array, got str"),
        (lambda z: z.log(), {}, "not finite"),
        (lambda z: z.sum(), {}, r"must map \(B, 3\) to \(B, ...\)"),
        (lambda z: z, {"data_shape": (4,)}, r"data_shape is \(4,\), but .* returned \(3,\)"),
        (black_box, {"differentiable": True}, "differentiable is True, but .*black_box cannot be"),
        (lambda z: z.round().detach(), {"differentiable": True}, "its output has no gradient"),
        ("no_such_package.f", {}, "'no_such_package.f' cannot be imported"),
        ("torch.no_such_name", {}, "cannot be imported"),
        ("tanh", {}, "must be a dotted path"),
        (3.0, {}, "must be callable, got float"),
    ],
)
def test_unusable_functions_are_refused_at_once(function, arguments, message):
    """Mutant: a check that is missing; the function would fail, or mislead, hours later."""
    with pytest.raises(ValueError, match=message):
        CallablePrior(function, (3,), **arguments)
    with pytest.raises(ValueError, match=r"noise_shape must be positive sizes, got \(0,\)"):
        CallablePrior(torch.tanh, (0,))


def test_a_function_that_changes_its_shape_later_is_caught():
    """Mutant: trusting the probe for ever, and broadcasting a wrong shape downstream."""
    prior = CallablePrior(lambda z: z if len(z) <= 2 else z[:2], (3,))
    with pytest.raises(ValueError, match=r"returned shape \(2, 3\) for 5 noises"):
        prior(torch.zeros(5, 3))
