"""Trainings of equal time: the pace of each phase, and the steps that fill the time."""

import pytest

from benchmarks.budget import LOG_EVERY, PROBE, Plan, plan, read_pace


def test_pace_is_that_of_the_later_half_of_each_phase(tmp_path):
    """The first steps of a phase are slow. Mutant: means over whole phases, or over the run."""
    lines, clock = ["step,loss,seconds"], 0.0
    for step in range(1, 3 * PROBE + 1):
        phase, age = (step - 1) // PROBE, (step - 1) % PROBE
        clock += (1, 2, 5)[phase] * (10 if age < LOG_EVERY else 1)
        lines.append(f"{step},0.5,{clock if step % LOG_EVERY == 0 else ''}")
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    assert read_pace(tmp_path / "metrics.csv") == pytest.approx((1, 2, 5))


@pytest.mark.parametrize("anchored", [True, False])
def test_a_plan_fills_the_time(anchored):
    """Mutant: shares of steps instead of time; the anchors' time lost where there are none."""
    paces = (0.01, 0.2, 0.5)
    found = plan(600, paces, anchored)
    steps = found.anchors, found.warm, found.balance
    spent = sum(count * each for count, each in zip(steps, paces, strict=True))
    assert spent == pytest.approx(600, rel=0.002)
    assert (found.anchors > 0) == anchored
    assert found.balance * 0.5 == pytest.approx(150, rel=0.01)


def test_overrides_count_phases_from_the_start():
    """Mutant: `warm_steps` without the anchors, of which the trainer takes them off."""
    assert Plan(10, 20, 5).overrides() == [
        "trainer.anchor_steps=10",
        "trainer.warm_steps=30",
        "trainer.max_steps=35",
    ]
