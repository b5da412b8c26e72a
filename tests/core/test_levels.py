"""Noise levels: what a network's output stands for, and the exact output of a Gaussian."""

import math

import pytest
import torch

from outsourced.levels import KINDS, Levels

TIMES = torch.arange(90, -1, -10)
ALPHAS = torch.sigmoid(torch.linspace(9, -4, 100))


def levels(kind: str, count: int = 5) -> Levels:
    """Of a diffusion of 100 training steps, or of a rectified flow."""
    if kind == "flow_prediction":
        return Levels.spaced(10 * TIMES + 5, None, kind, count)
    return Levels.spaced(TIMES, ALPHAS, kind, count)


def test_levels_are_the_times_or_spaced_between_them():
    """Mutants: times without the last one, signal for its square, even times for even ratios."""
    every = Levels.visited(TIMES, ALPHAS, "epsilon")
    assert every.timesteps.tolist() == TIMES.tolist()
    assert float(every.signal[0] ** 2) == pytest.approx(float(ALPHAS[90]))
    found = levels("epsilon", 4)
    assert len(found) == 4
    assert found.timesteps[0] == 90
    assert found.timesteps[-1] == 0
    torch.testing.assert_close(found.signal**2 + found.spread**2, torch.ones(4))
    ratio = (found.spread / found.signal).log()
    torch.testing.assert_close(ratio.diff(), ratio.diff().mean().expand(3), rtol=0.1, atol=0)
    flow = levels("flow_prediction", 3)
    torch.testing.assert_close(flow.signal + flow.spread, torch.ones(3))
    odds = math.sqrt(0.905 / 0.095 * 0.005 / 0.995)
    assert flow.spread.tolist() == pytest.approx([0.905, odds / (1 + odds), 0.005], rel=1e-4)
    start = Levels.spaced(torch.tensor([1000.0, 10.0]), None, "flow_prediction", 3)
    assert start.spread[0] == 1
    assert 0.1 < start.spread[1] < 0.9
    assert levels("epsilon", 1).timesteps.tolist() == [90]
    sparse = torch.linspace(0.9999, 0.02, 100)  # no time lies between the last two ratios
    many = Levels.spaced(TIMES, sparse, "epsilon", 30)
    assert (many.timesteps.diff() < 0).all()
    assert many.timesteps[0] == 90
    with pytest.raises(ValueError, match=r"predicts one of epsilon, sample, v_pred.*got 'score'"):
        levels("score")


@pytest.mark.parametrize("kind", ["epsilon", "flow_prediction"])
def test_steps_of_second_order_keep_the_spread_of_a_gaussian(kind: str):
    """The exact denoiser of N(0.5, std^2), whose exact flow maps N(0, 1) onto it but for the noise
    of the first level that is left out: DDIM loses half of the spread in six steps.

    Mutants: steps of first order, an extrapolation to the other side, lengths of other levels.
    """
    at = levels(kind, 6)
    noise = torch.linspace(-2, 2, 5)[:, None]
    for std in (0.1, 0.3):
        ends = {}
        for second in (False, True):
            state, before = noise, None
            for step in range(6):
                level = torch.full((5,), step)
                square = torch.full_like(state, std**2)
                output = at.gaussian(torch.full_like(state, 0.5), square, state, level)
                clean = at.read(output, state, level)[0]
                state = at.ahead(clean, state, step, before)
                before = clean if second else None
            ends[second] = (state[-1] - state[0]).item() / 4
        assert 0.8 * std < ends[True] < 1.2 * std
        assert ends[False] < 0.8 * std


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


@pytest.mark.parametrize("kind", ["epsilon", "flow_prediction"])
def test_the_flow_of_a_gaussian_is_carried_on_by_its_denoiser(kind: str):
    """Entered at one level, followed by steps with the exact denoiser, and left at another one, it
    maps N(0, 1) onto N(0.5, std^2).

    Mutants: levels of other noise than asked for, a variance for its root, no signal before mean or
    variance, another level of entry or exit.
    """
    times, alphas = (10 * TIMES + 5, None) if kind == "flow_prediction" else (TIMES, ALPHAS)
    at = Levels.spaced(times, alphas, kind, 9, (2.0, 0.25))
    ratio = at.spread / at.signal
    torch.testing.assert_close(ratio[[0, -1]], torch.tensor([2.0, 0.25]), rtol=0.08, atol=0)
    noise = torch.linspace(-2, 2, 5)[:, None]
    mean = torch.full_like(noise, 0.5)
    for std in (0.2, 1.0, 3.0):
        square = torch.full_like(noise, std**2)
        state, before = at.enter(mean, square, noise, 0), None
        for step in range(8):
            level = torch.full((5,), step)
            clean = at.read(at.gaussian(mean, square, state, level), state, level)[0]
            state = at.ahead(clean, state, step, before)
            before = clean
        found = at.leave(mean, square, state, 8)
        torch.testing.assert_close(found, mean + std * noise, rtol=0.03, atol=0.03 * std)
        for level in (0, 4):
            there = at.leave(mean, square, at.enter(mean, square, noise, level), level)
            torch.testing.assert_close(there, mean + std * noise)
