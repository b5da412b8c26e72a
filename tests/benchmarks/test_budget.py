"""Trainings of equal time: the pace of each phase, and the steps that fill the time."""

import pytest

from benchmarks import budget
from benchmarks.budget import Plan, pace, plan, quickly, read_pace, recipe


def test_pace_is_that_of_the_later_half_of_each_phase(tmp_path):
    """The first steps of a phase are slow. Mutant: means over whole phases, or over the run."""
    lines, clock = ["step,loss,seconds"], 0.0
    for step in range(1, 3 * 40 + 1):
        phase, age = (step - 1) // 40, (step - 1) % 40
        clock += (1, 2, 5)[phase] * (10 if age < 20 else 1)
        lines.append(f"{step},0.5,{clock if step % 20 == 0 else ''}")
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    assert read_pace(tmp_path / "metrics.csv", 40) == pytest.approx((1, 2, 5))


@pytest.mark.parametrize(("seconds", "probes"), [(1.0, [8, 40]), (3.0, [8])])
def test_slow_steps_are_probed_shortly(monkeypatch, seconds, probes):
    """Mutant: the pace of the short probe, which starts things up, for fast steps too."""
    asked = []

    def fake(overrides, probe, probed):
        asked.append(probe)
        return (0.0, 0.0, seconds if probe == 8 else seconds / 2)

    monkeypatch.setattr(budget, "probe_pace", fake)
    assert pace([], Plan(0, 1, 100))[2] == (seconds / 2 if len(probes) == 2 else seconds)
    assert asked == probes


def test_phases_of_one_step_are_not_timed(tmp_path):
    """Mutant: ends counted as if all phases had been probed."""
    lines = ["step,loss,seconds", "20,0.5,100", "40,0.5,140"]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    assert read_pace(tmp_path / "metrics.csv", 40, (False, False, True)) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("anchored", [True, False])
def test_a_plan_fills_the_time(anchored):
    """Mutant: the anchors' steps lost where there are none, or only the last phase stretched."""
    paces = (0.01, 0.2, 0.5)
    found = plan(600, paces, Plan(100, 200, 50), anchored)
    steps = found.anchors, found.warm, found.balance
    spent = sum(count * each for count, each in zip(steps, paces, strict=True))
    assert spent == pytest.approx(600, rel=0.002)
    assert (found.anchors > 0) == anchored
    assert found.warm / found.balance == pytest.approx(4 if anchored else 6, rel=0.01)


def test_the_recipe_is_that_of_the_configuration():
    """Mutant: the trainer's own defaults where the prior has settings; anchors counted twice."""
    assert recipe(["prior=fashion_vae", "task=inpaint"]) == Plan(1500, 3300, 350)
    cut = ["trainer.anchor_steps=0", "trainer.warm_steps=5", "trainer.max_steps=4"]
    assert recipe(["prior=fashion_gan", "task=inpaint", *cut]) == Plan(0, 4, 0)
    assert recipe(["prior=fashion_sd"]) == Plan(400, 2600, 0)  # of likelihood alone
    assert recipe(["prior=fashion_gan"]).balance > 100 * recipe(["prior=fashion_gan"]).warm


def test_overrides_count_phases_from_the_start():
    """Mutant: `warm_steps` without the anchors, of which the trainer takes them off."""
    assert Plan(10, 20, 5).overrides() == [
        "trainer.anchor_steps=10",
        "trainer.warm_steps=30",
        "trainer.max_steps=35",
    ]


def test_a_quick_training_has_keys_of_its_sampler_alone():
    """Mutant: a lookup for samplers that have none, which Hydra refuses."""
    assert quickly(["prior=fashion_gan"]) == ["data.bank_size=256", "sampler.lookup=128"]
    assert quickly(["prior=fashion_sd"]) == ["data.bank_size=256", "sampler.axes=64"]
