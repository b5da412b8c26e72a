import pytest
import torch

from outsourced.tasks import Observation, Task


def make(n: int = 3) -> Observation:
    return Observation(
        torch.arange(n * 2.0).view(n, 2),
        {"mask": torch.arange(n * 3.0).view(n, 1, 3)},
        torch.arange(1.0, n + 1),
    )


def equal(a: Observation, b: Observation) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_indexing_takes_y_params_and_sigma_of_the_same_items():
    """Mutant: index y and sigma but pass params through, or drop the batch dimension on an int."""
    obs = make()
    assert equal(obs[-1], obs[2:])
    assert equal(obs[torch.tensor([2, 0])], Observation.cat([obs[2], obs[0]]))
    assert obs[1].params["mask"].tolist() == [[[3.0, 4.0, 5.0]]]
    with pytest.raises(IndexError, match="3 is outside a batch of 3"):
        obs[3]


def test_repeat_keeps_copies_together():
    """Mutant: Tensor.repeat, which interleaves as y_0 y_1 y_0 y_1, on y or on one of the params."""
    assert equal(make(2).repeat(2), Observation.cat([make(2)[i] for i in (0, 0, 1, 1)]))


def test_state_dict_round_trip():
    """Mutant: forget sigma or the params in the flat dictionary."""
    obs = make()
    assert set(obs.state_dict()) == {"y", "sigma", "params.mask"}
    assert equal(Observation.from_state_dict(obs.state_dict()), obs)
    with pytest.raises(ValueError, match="got keys"):
        Observation.from_state_dict({"y": obs.y})


def test_inconsistent_batches_are_refused():
    """Mutant: no check, so a mask of another batch size broadcasts silently."""
    with pytest.raises(ValueError, match="sigma must have shape"):
        Observation(torch.zeros(2, 3), {}, torch.ones(1))
    with pytest.raises(ValueError, match=r"'mask'.*batch size 2"):
        Observation(torch.zeros(2, 3), {"mask": torch.ones(1, 3)}, torch.ones(2))
    with pytest.raises(ValueError, match="same operator parameters"):
        Observation.cat([make(), Observation(torch.zeros(1, 2), {}, torch.ones(1))])


def test_a_task_without_likelihood_says_so():
    """Mutant: a default log_reward of zero, which would make every posterior the prior."""
    with pytest.raises(NotImplementedError, match="log_reward"):
        Task().log_reward(torch.zeros(1), make())
