"""Compressed sensing with rows drawn per sample."""

import pytest
import torch

from outsourced.tasks import CompressedSensing, Task
from outsourced.tasks.compressed import cosine_matrix

SHAPE = (2, 8, 12)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rows_are_orthonormal_and_drawn_for_each_sample():
    """A A^T = I under every observation's own rows, and A^T A is a projection of that rank.

    Mutants: rows drawn with replacement, one draw for the batch, a transform that is not
    orthonormal, signs of the wrong side in the adjoint.
    """
    task = CompressedSensing(SHAPE, 0.25, 0.1)
    obs = task.sample(torch.randn(5, *SHAPE, generator=generator()), generator(1))
    assert obs.y.shape == (5, 2, 24)
    rows = obs.params["rows"]
    assert all(len(set(r.tolist())) == 24 for r in rows)
    assert len(rows.unique(dim=0)) == 5
    v = torch.randn(5, 2, 24, generator=generator(2))
    torch.testing.assert_close(task.apply(task.adjoint(v, obs.params), obs.params), v)
    often = task.sample_operator(4000, generator())["rows"].flatten().bincount(minlength=96)
    assert (often / 1000 - 1).abs().max() < 0.16  # 5 standard deviations


def test_every_coefficient_mixes_the_whole_image():
    """Constants and points alike spread over all coefficients, so that any rows see a part.

    Mutant: no signs, where a constant is one coefficient that most draws miss.
    """
    task = CompressedSensing((1, 32, 32), 1.0, 0.1)
    rows = {"rows": torch.arange(1024)[None]}
    for x in (torch.ones(1, 1, 32, 32), torch.eye(32)[None, None] * 5):
        power = task.apply(x, rows).square().flatten()
        torch.testing.assert_close(power.sum(), x.square().sum())
        assert power.max() < 0.02 * power.sum()
    matrix = cosine_matrix(7)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(7))
    assert matrix[3].diff().sign().diff().count_nonzero() == 2  # three half waves


def test_pairwise_rewards_are_those_of_single_pairs():
    """Mutants: the rows of another observation, coefficients that were not seen counted."""
    task = CompressedSensing(SHAPE, 0.4, (0.1, 0.5))
    x = torch.rand(6, *SHAPE, generator=generator()) * 2 - 1
    obs = task.sample(torch.rand(3, *SHAPE, generator=generator(1)), generator(2))
    fast, slow = task.pairwise_log_reward(x, obs), Task.pairwise_log_reward(task, x, obs)
    torch.testing.assert_close(fast - fast[:1], slow - slow[:1], rtol=1e-4, atol=0.02)
    assert slow.std(0).min() > 5


def test_encoders_see_the_back_projection():
    """A^T y on the image's grid, whatever rows were drawn. Mutant: the coefficients themselves, or
    the numbers of their rows."""
    task = CompressedSensing(SHAPE, 0.4, 0.1)
    obs = task.sample(torch.rand(3, *SHAPE, generator=generator(1)), generator(2))
    assert task.feature_shape == SHAPE
    ratio = task.features(obs) / task.adjoint(obs.y, obs.params)
    torch.testing.assert_close(ratio, torch.full_like(ratio, task.adjoint_gain))


def test_errors_name_the_ratio():
    """Mutant: no checks; an empty measurement has the likelihood 1 everywhere."""
    with pytest.raises(ValueError, match=r"ratio must lie in \(0, 1\] .*, got 2"):
        CompressedSensing(SHAPE, 2, 0.1)
    with pytest.raises(ValueError, match=r"got 0\.001"):
        CompressedSensing(SHAPE, 0.001, 0.1)
    with pytest.raises(ValueError, match=r"\(C, H, W\), got \(12,\)"):
        CompressedSensing((12,), 0.5, 0.1)
