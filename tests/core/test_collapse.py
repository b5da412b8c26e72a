"""Which evaluation is a collapse."""

import math

import pytest
import torch

from outsourced.collapse import BETTER, COLLAPSED, WORSE, CollapseGuard


def told(guard: CollapseGuard, *bounds: tuple[float, float]) -> list[str | None]:
    return [guard.judge({"simulated/elbo": elbo, "simulated/gap": gap}) for elbo, gap in bounds]


def test_objectives_that_cover_are_judged_by_the_gap() -> None:
    """A lost mode costs little ELBO, and much of the gap, which noise may take below 0.

    Mutants: the ELBO of all objectives, the last evaluation in the place of the best, a gap that
    may not even double, a NaN that is no collapse.
    """
    found = told(
        CollapseGuard(3.0, covering=True),
        *((-9.0, 5.0), (-9.0, 4.0), (-2.0, 10.9), (-2.0, 11.1), (-99.0, 3.9), (0.0, math.nan)),
    )
    assert found == [BETTER, BETTER, WORSE, COLLAPSED, BETTER, COLLAPSED]
    rounding = CollapseGuard(3.0, covering=True)
    assert told(rounding, (0.0, -0.1), (0.0, 2.85), (0.0, 3.1)) == [BETTER, WORSE, COLLAPSED]


def test_objectives_that_seek_are_judged_by_the_elbo() -> None:
    """Their gap grows while they learn. So are bounds of another beta than 1, which have no gap.

    Mutants: the gap, an ELBO of the wrong sign, an allowance that grows with the ELBO.
    """
    bounds = (-200.0, 1.0), (-100.0, 900.0), (-102.9, 0.1), (-103.1, 0.1), (-99.0, 9.0)
    expected = [BETTER, BETTER, WORSE, COLLAPSED, BETTER]
    assert told(CollapseGuard(3.0, covering=False), *bounds) == expected
    guard = CollapseGuard(3.0, covering=True)
    assert [guard.judge({"simulated/elbo": elbo}) for elbo, _ in bounds] == expected


def test_nothing_to_judge() -> None:
    """Mutants: samplers without log-weights or a switched-off guard that go back, a first
    evaluation without a number that is a collapse though there is nothing to go back to."""
    assert CollapseGuard(3.0, True).judge({"simulated/residual": 1.0}) is None
    assert told(CollapseGuard(None, True), (0.0, 0.0), (-1e9, 1e9)) == [None, None]
    assert told(CollapseGuard(3.0, True), (math.nan, math.nan), (0.0, 1.0)) == [WORSE, BETTER]


def test_evaluations_that_a_ruined_sampler_makes_fail() -> None:
    """Are collapses, if there is a state to go back to.

    Mutants: an error that ends the training, one of the user's reward that is taken for a collapse.
    """

    def fail(step: int) -> dict[str, float]:
        raise ValueError(f"log_weight must be finite at {step}")

    guard = CollapseGuard(3.0, covering=True)
    with pytest.raises(ValueError, match="finite at 4"):
        guard.evaluate(fail, 4)
    assert guard.evaluate(lambda step: {"simulated/elbo": 1.0 * step}, 5) == {"simulated/elbo": 5}
    told(guard, (0.0, 1.0))
    guard.keep({"sampler/a": torch.ones(1)})
    assert guard.judge(guard.evaluate(fail, 6)) == COLLAPSED


def test_state_is_kept_and_restored() -> None:
    """Mutants: tensors that training goes on to change, a count that starts anew."""
    guard = CollapseGuard(3.0, covering=True)
    weight = torch.ones(2, requires_grad=True)
    told(guard, (0.0, 2.0))
    guard.keep({"sampler/a": weight})
    with torch.no_grad():
        weight.zero_()
    guard.restarts = 2
    other = CollapseGuard(3.0, covering=True)
    other.load_state_dict(guard.state_dict())
    assert (other.best, other.restarts, other.slowdown) == (2.0, 2, 0.25)
    assert other.good["sampler/a"].tolist() == [1, 1]
    assert CollapseGuard(1.0, True).slowdown == 1
    with pytest.raises(KeyError):
        other.load_state_dict({})


def test_return_for_steps_that_are_not_finite() -> None:
    """Once for each best state, and not before there is one; a resumed training knows.

    Mutants: no state is needed, for ever, never again, a state that who takes it changes.
    """
    guard = CollapseGuard(3.0, covering=True)
    assert not guard.may_return
    guard.keep({"sampler/a": torch.ones(1)})
    assert guard.may_return
    guard.back()["sampler/a"].zero_()
    assert guard.back()["sampler/a"].item() == 1
    assert guard.restarts == 2
    guard.returned = True
    other = CollapseGuard(3.0, covering=True)
    other.load_state_dict(guard.state_dict())
    assert not guard.may_return
    assert not other.may_return
    other.keep({"sampler/a": torch.zeros(1)})
    assert other.may_return
