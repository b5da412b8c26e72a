"""The replay buffer: what it keeps, how it chooses, what it saves."""

import pytest
import torch
from scipy.stats import chisquare

from outsourced.replay import ReplayBuffer
from outsourced.tasks.base import Observation


def observations(start: int, count: int) -> Observation:
    y = torch.arange(start, start + count).float()[:, None]
    return Observation(y, {"mask": y[:, :, None] + 0.5}, 1 + y[:, 0])


def filled(priority: str = "rank", **options) -> ReplayBuffer:
    """One observation with log-rewards 0, -1, -2, -3 in the order 2, 0, 3, 1 of its draws."""
    buffer = ReplayBuffer(4, 4, priority, **options)
    value = torch.tensor([-2.0, 0.0, -3.0, -1.0])
    buffer.add(observations(0, 1), value[:, None, None] * 10, value[:, None])
    return buffer


def test_keeps_the_best_draws_of_each_observation() -> None:
    """Of 5 draws the 2 best by reward stay, with their own z; NaN and -inf come last.

    Mutants: the first draws, the worst draws, one order for all observations, NaN that sorts first.
    """
    buffer = ReplayBuffer(8, 2)
    reward = torch.tensor([[1.0, 9.0], [4.0, float("nan")], [2.0, 7.0], [3.0, 8.0], [0.0, 1.0]])
    z = torch.arange(10.0).reshape(5, 2, 1)
    buffer.add(observations(0, 2), z, reward)
    rows = torch.tensor([0, 1])
    best, value = buffer.read(rows, torch.tensor([[0, 0], [1, 1]]))
    assert value.tolist() == [[4.0, 9.0], [3.0, 8.0]]
    assert best[..., 0].tolist() == [[2.0, 1.0], [6.0, 7.0]]
    with pytest.raises(ValueError, match="keeps 2 draws per observation, got 1"):
        buffer.add(observations(0, 2), z[:1], reward[:1])


def test_oldest_observation_is_replaced() -> None:
    """With capacity 4 the observations 2 .. 5 remain of 0 .. 5, each with its own parameters.

    Mutants: a buffer that stops when it is full, or parameters that stay with the row.
    """
    buffer = ReplayBuffer(4, 1)
    for start in (0, 3):
        z = torch.arange(start, start + 3).float().reshape(1, 3, 1)
        buffer.add(observations(start, 3), z, z[..., 0])
    assert len(buffer) == 4
    rows = torch.arange(4)
    kept = buffer.observations(rows)
    assert sorted(kept.y[:, 0].tolist()) == [2.0, 3.0, 4.0, 5.0]
    assert torch.equal(kept.params["mask"][:, 0, 0], kept.y[:, 0] + 0.5)
    assert torch.equal(kept.sigma, 1 + kept.y[:, 0])
    z, _ = buffer.read(rows, torch.zeros(1, 4, dtype=torch.long))
    assert torch.equal(z[0, :, 0], kept.y[:, 0])


SOFTMAX = torch.softmax(torch.tensor([0.0, -1.0, -2.0, -3.0]) / 0.7, 0)
HARMONIC = torch.tensor([1.0, 1 / 2, 1 / 3, 1 / 4])


@pytest.mark.parametrize(
    ("priority", "expected"),
    [("uniform", torch.ones(4)), ("reward", SOFTMAX), ("rank", HARMONIC)],
)
def test_frequencies_of_priorities(priority, expected, generator) -> None:
    """Draws of one observation are chosen with the stated probabilities (chi-square, p > 1e-3).

    Mutants: ascending ranks, a temperature that multiplies, a softmax over observations.
    """
    buffer = filled(priority, temperature=0.7)
    slots = buffer.draw_slots(torch.tensor([0]), 8000, generator)
    _, value = buffer.read(torch.tensor([0]), slots)
    counts = [int((value == v).sum()) for v in (0.0, -1.0, -2.0, -3.0)]
    assert (
        chisquare(counts, (8000 * expected.double() / expected.double().sum()).numpy()).pvalue
        > 1e-3
    )


def test_rows_are_distinct_and_uniform(generator) -> None:
    """Mutant: rows drawn with replacement, or beyond what was written."""
    buffer = ReplayBuffer(10, 1)
    z = torch.zeros(1, 5, 1)
    buffer.add(observations(0, 5), z, z[..., 0])
    assert sorted(buffer.draw_rows(9, generator).tolist()) == [0, 1, 2, 3, 4]
    counts = torch.zeros(5)
    for _ in range(2000):
        counts[buffer.draw_rows(2, generator)] += 1
    assert counts.sum() == 4000
    assert chisquare(counts.numpy()).pvalue > 1e-3


def test_rewards_of_zero_only(generator) -> None:
    """All draws impossible: any of them is drawn.

    Mutant: softmax of -inf, which is NaN and ends in an error of `multinomial`.
    """
    for priority in ("uniform", "reward", "rank"):
        buffer = ReplayBuffer(2, 2, priority)
        z = torch.zeros(2, 1, 1)
        buffer.add(observations(0, 1), z, torch.full((2, 1), float("nan")))
        slots = buffer.draw_slots(torch.tensor([0]), 200, generator)
        assert set(slots.flatten().tolist()) == {0, 1}


def test_write_replaces_the_draws_that_were_read() -> None:
    """Mutant: rows and slots exchanged; of equal slots z and reward of different draws."""
    buffer = ReplayBuffer(3, 2)
    z = torch.arange(6.0).reshape(2, 3, 1)
    buffer.add(observations(0, 3), z, -z[..., 0])
    rows, slots = torch.tensor([2, 0]), torch.tensor([[1, 0], [1, 0], [1, 0]])
    new = torch.tensor([[[10.0], [20.0]], [[11.0], [21.0]], [[12.0], [22.0]]])
    buffer.write(rows, slots, new, new[..., 0] + 0.5)
    both = torch.tensor([[0, 0, 0], [1, 1, 1]])
    kept, value = buffer.read(torch.arange(3), both)
    assert kept[..., 0].tolist() == [[22.0, 1.0, 2.0], [3.0, 4.0, 12.0]]
    assert value[0, 0] == 22.5
    assert value[1, 2] == 12.5


def test_state_round_trip() -> None:
    """A restored buffer gives the same draws and goes on replacing at the same place.

    Mutant: a count that starts anew, or contents that are shared with the saved state.
    """
    buffer = filled()
    copy = ReplayBuffer(4, 4)
    copy.load_state_dict(buffer.state_dict())
    for one in (buffer, copy):
        one.add(observations(7, 2), torch.ones(4, 2, 1), torch.zeros(4, 2))
    for name, value in buffer.state_dict().items():
        assert torch.equal(value, copy.state_dict()[name])
    assert buffer.count == copy.count == 3
    with pytest.raises(ValueError, match=r"\(4, 4\), expected capacity and slots \(2, 4\)"):
        ReplayBuffer(2, 4).load_state_dict(buffer.state_dict())
    empty = ReplayBuffer(2, 1)
    empty.load_state_dict(ReplayBuffer(2, 1).state_dict())
    assert len(empty) == 0
    assert empty.statistics() == {"observations": 0.0}


def test_statistics() -> None:
    """Mutant: the mean over unwritten rows too."""
    assert filled().statistics() == {
        "observations": 1.0,
        "best_log_reward": 0.0,
        "log_reward": -1.5,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "paths.buffer.capacity must be > 0, got 0"),
        ({"slots": -1}, "paths.buffer.slots must be > 0, got -1"),
        ({"temperature": 0.0}, "paths.buffer.temperature must be > 0"),
        ({"priority": "best"}, "uniform, reward, rank, got 'best'"),
    ],
)
def test_bad_arguments(options, message) -> None:
    """Mutant: no check."""
    with pytest.raises(ValueError, match=message):
        ReplayBuffer(**options)
