"""Noise levels: what a network's output stands for, and the exact output of a Gaussian."""

import pytest
import torch

from outsourced.levels import KINDS, Levels


def levels(kind: str, count: int = 5) -> Levels:
    """Some of 10 times of a diffusion of 100 training steps, or of a rectified flow."""
    times = torch.arange(90, -1, -10) + 1
    if kind == "flow_prediction":
        return Levels.some(10 * times, None, kind, count)
    return Levels.some(times, torch.linspace(0.99, 0.02, 100), kind, count)


def test_levels_are_spread_over_the_times_of_the_sampler():
    """Mutants: times without the last one, ascending times, signal for its square."""
    found = levels("epsilon", 4)
    assert found.timesteps.tolist() == [91, 61, 31, 1]
    assert len(found) == 4
    torch.testing.assert_close(found.signal**2 + found.spread**2, torch.ones(4))
    assert float(found.signal[0] ** 2) == pytest.approx(0.99 - 0.97 * 91 / 99)
    flow = levels("flow_prediction", 2)
    torch.testing.assert_close(flow.signal + flow.spread, torch.ones(2))
    assert flow.spread.tolist() == pytest.approx([0.91, 0.01])
    assert levels("epsilon", 1).timesteps.tolist() == [91]
    with pytest.raises(ValueError, match=r"predicts one of epsilon, sample, v_pred.*got 'score'"):
        levels("score")


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_say_what_states_were_made_of(kind: str):
    """Mutants: signal for spread in any conversion, another sign of the velocity."""
    at = levels(kind)
    h, noise = torch.randn(2, 5, 3, 2, generator=torch.Generator().manual_seed(0))
    level = torch.arange(5)
    state = at.noised(h, noise, level)
    clean, rest = at.read(at.output(h, noise, level), state, level)
    torch.testing.assert_close(clean, h, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(rest, noise, rtol=1e-3, atol=1e-3)


def test_outputs_are_those_of_their_parametrisation():
    """By their definitions. Mutant: two kinds that are swapped in both directions."""
    h, noise, level = torch.tensor([[2.0]]), torch.tensor([[3.0]]), torch.tensor([2])
    for kind in ("epsilon", "sample", "v_prediction"):
        at = levels(kind)
        a, s = float(at.signal[2]), float(at.spread[2])
        wanted = {"epsilon": 3.0, "sample": 2.0, "v_prediction": 3 * a - 2 * s}[kind]
        assert float(at.output(h, noise, level)) == pytest.approx(wanted)
    assert float(levels("flow_prediction").output(h, noise, level)) == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_gaussian_output_is_the_regression_on_the_state(kind: str):
    """Of joint draws, by least squares. Mutants: a mean that the signal does not scale, a variance
    for its root, the output of another kind."""
    at, generator = levels(kind), torch.Generator().manual_seed(1)
    mean, variance = torch.tensor([0.7]), torch.tensor([0.3])
    for step in (0, 2, 4):
        h = mean + variance.sqrt() * torch.randn(400_000, 1, generator=generator)
        noise = torch.randn(h.shape, generator=generator)
        level = torch.full((len(h),), step)
        state = at.noised(h, noise, level)
        design = torch.cat([torch.ones_like(state), state], 1).double()
        wanted = at.output(h, noise, level).double()
        bias, slope = torch.linalg.lstsq(design, wanted).solution.flatten().tolist()
        probe = torch.tensor([[-1.0], [0.5], [2.0]])
        found = at.gaussian(mean.expand(3, 1), variance.expand(3, 1), probe, level[:3])
        torch.testing.assert_close(found, bias + slope * probe, rtol=0.03, atol=0.03)


def test_coarser_levels_start_at_the_first_and_are_some_of_them():
    """Mutants: the last one among them, whose step would be the shortest; other signals."""
    fine = levels("v_prediction", 6)
    for count, index in ((1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (6, range(6))):
        found = fine.coarser(count)
        assert torch.equal(found.timesteps, fine.timesteps[list(index)])
        assert torch.equal(found.signal, fine.signal[list(index)])
        assert torch.equal(found.spread, fine.spread[list(index)])
        assert found.kind == fine.kind
