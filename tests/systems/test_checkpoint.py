"""Optimiser state as tensors."""

import torch

from outsourced.checkpoint import optimizer_tensors, restore_optimizer
from outsourced.run import read_tensors, write_tensors


def advance(weight: torch.Tensor, unused: torch.Tensor, optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        ((weight - step).square().sum() * (1 + step)).backward()
        optimizer.step()


def test_restored_optimizer_takes_the_same_steps(tmp_path) -> None:
    """Through a file and into a new Adam, with a parameter that never had a gradient.

    Mutants: moments that are lost (the next step differs), a step count of 0 (bias correction),
    state that is attached to the wrong parameter, learning rates of the old groups.
    """

    def fresh():
        weight = torch.linspace(-1, 1, 5).requires_grad_()
        unused = torch.zeros(2, requires_grad=True)
        groups = [{"params": [unused], "lr": 0.1}, {"params": [weight], "lr": 0.3}]
        return weight, unused, torch.optim.Adam(groups)

    weight, unused, optimizer = fresh()
    advance(weight, unused, optimizer, 4)
    write_tensors(tmp_path / "state", optimizer_tensors(optimizer), {})
    copy, idle, other = fresh()
    with torch.no_grad():
        copy.copy_(weight)
    restore_optimizer(other, read_tensors(tmp_path / "state")[0])
    assert [group["lr"] for group in other.param_groups] == [0.1, 0.3]
    start = weight.detach().clone()
    advance(weight, unused, optimizer, 3)
    advance(copy, idle, other, 3)
    assert torch.equal(weight, copy)
    naive = start.clone().requires_grad_()
    advance(naive, idle, torch.optim.Adam([naive], lr=0.3), 3)
    assert not torch.equal(naive, weight)
