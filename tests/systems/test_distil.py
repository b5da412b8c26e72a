"""`train.py distill=RUN`: what a student learns, from whom, and what is left of its teacher."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from outsourced.build import load_run
from outsourced.distilling import inherit
from outsourced.losses import Losses
from outsourced.objectives import PathLikelihood
from outsourced.run import CHECKPOINT, METRICS

STUDENT = [
    *("distill=r", "sampler.steps=2", "logger=none", "trainer.max_steps=8", "trainer.batch=6"),
    *("trainer.evaluate_every=0", "trainer.teacher_draws=2", "trainer.save_every=100"),
    *("evaluate.observations=4", "evaluate.n=8"),
    *("lightning.accelerator=cpu", "+lightning.enable_progress_bar=false"),
]


class Biased:
    """A teacher that draws from the exact posterior, moved by half a unit and half as wide."""

    def __init__(self, p):
        self.problem, self.asked = p, []

    def moments(self, obs):
        mean, covariance, _ = self.problem.exact(obs)
        return mean + 0.5, covariance / 4

    def __call__(self, obs, n, generator):
        self.asked.append((n, len(obs)))
        mean, covariance = self.moments(obs)
        noise = torch.randn((n, *mean.shape), generator=generator)
        return mean + noise @ torch.linalg.cholesky(covariance).mT


@pytest.mark.parametrize("steps", [1, 2])
def test_student_learns_the_law_of_its_teacher(problem, steps) -> None:
    """Moments of the student's draws are those of a teacher that is wrong in place and width.

    Mutants: simulated pairs in the place of the teacher's draws (their law is the posterior), prior
    draws, one draw for all observations, or draws of other observations than the student sees.
    """
    p = problem(dim=2, measurements=2, sigma=0.6, steps=steps, covariance="full", width=48)
    teacher = Biased(p)
    losses = Losses(p.sampler, p.posterior, PathLikelihood(), p.mixture(2), 4, teacher, 4)
    optimizer = torch.optim.Adam(p.sampler.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    generator = torch.Generator().manual_seed(7)
    for step in range(300):
        z, x, _ = p.posterior.simulate(48, generator)
        cpu = torch.Generator().manual_seed(step)
        loss, figures = losses.distil({"z": z, "x": x}, 48, cpu, cpu)
        assert set(figures) == {"loss", "loss/teacher"}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert set(teacher.asked) == {(4, 48)}
    _, _, obs = p.posterior.simulate(8, generator)
    with torch.no_grad():
        drawn = p.sampler(obs, 4000, generator)
    mean, covariance = teacher.moments(obs)
    width = covariance.diagonal().sqrt()
    assert ((drawn.mean(0) - mean) / width).abs().max() < 0.5  # the posterior's is 1.4 away
    found = torch.stack([torch.cov(drawn[:, i].T) for i in range(8)]).mean(0)
    assert (found / width / width[:, None] - covariance / width / width[:, None]).abs().max() < 0.2


def test_observations_of_a_lesson_are_mixed(problem) -> None:
    """Half of the observations are of real images, and the teacher is asked about all of them.

    Mutant: simulated observations only, whose posteriors simulated pairs would teach as well.
    """
    p, generator = problem(), torch.Generator().manual_seed(0)
    seen = []

    def teacher(obs, n, generator):
        seen.append(obs.y)
        return torch.zeros(n, len(obs), 2)

    losses = Losses(p.sampler, p.posterior, PathLikelihood(), p.mixture(2), 4, teacher, 3)
    z, x, _ = p.posterior.simulate(6, generator)
    batch = {"z": z, "x": x, "images": torch.full((6, 2), 1000.0)}
    for kind, count in (("simulated", 0), ("mixed", 3), ("images", 6)):
        losses.observations = kind
        losses.distil(batch, 6, generator, generator)
        far = seen[-1].abs().amax(1) > 100
        assert far.tolist() == [False] * (6 - count) + [True] * count


def test_the_control_of_a_student_is_trained(train) -> None:
    """From the weights that it inherits; the encoder, whose anchors are the teacher's, too.

    Mutant: a student whose control is frozen, or whose weights are the inherited ones.
    """
    assert train().code == 0
    assert train(*STUDENT, tiny=False).code == 0
    teacher, student = load_run("r").sampler, load_run("r-2").sampler
    trained = {name: value.clone() for name, value in student.named_parameters()}
    inherit(student, teacher)
    moved = {k for k, v in student.named_parameters() if (v - trained[k]).abs().max() > 1e-5}
    control = {name for name in trained if name.startswith("control.")}
    assert len(control & moved) > 0.8 * len(control)
    assert any(name.startswith("encoder.") for name in moved)


def test_student_run_needs_no_teacher(train, sample, tmp_path) -> None:
    """Its folder lies beside the teacher's, holds figures of both, and samples without it.

    Mutant: weights or figures of the teacher under the student's name, a sampler built with the
    defaults, a folder that reads the teacher's.
    """
    assert train().code == 0
    answer = train(*STUDENT, "sampler.components=2", tiny=False)
    assert answer.code == 0, answer.error
    assert "of its" in answer.out
    figures = json.loads(Path("r-2x2", METRICS).read_text())
    own = json.loads(Path("r", METRICS).read_text())
    assert figures["teacher/simulated/elbo"] == pytest.approx(own["simulated/elbo"], rel=1e-5)
    assert figures["simulated/elbo"] != pytest.approx(own["simulated/elbo"], rel=1e-3)
    assert "teacher/simulated/gap" in answer.out
    teacher = 8 * 6 * 2 * 5  # steps, observations, draws, gradients of its kernels
    assert figures["train_prior_calls"] > teacher
    shutil.rmtree("r")
    sampler = load_run("r-2x2").sampler
    assert (sampler.steps, sampler.reference.grid, sampler.control.components) == (2, 5, 2)
    assert sampler.encoder.size == 8 + 2
    answer = sample("run=r-2x2", "n=6", "observations=3", "correct=importance", "candidates=9")
    assert answer.code == 0, answer.error
    assert load_file("r-2x2/samples/samples.safetensors")["x"].shape == (6, 3, 3)


def test_student_resumes_bit_identically(train, interrupt_at) -> None:
    """Mutant: draws of the teacher from a generator that lives through the run, or weights that are
    handed down once more on top of the checkpoint."""
    assert train().code == 0
    assert train(*STUDENT, "run=whole", tiny=False).code == 0
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 4)
        answer = train(*STUDENT, tiny=False)
    assert "stopped at step 4" in answer.out, answer.error
    assert Path("r-2", CHECKPOINT).is_file()
    assert train(*STUDENT, tiny=False).code == 0
    whole, parts = (load_file(Path(f) / "sampler.safetensors") for f in ("whole", "r-2"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_mistakes_are_one_line(train, tmp_path) -> None:
    """Mutant: a traceback, or a prior that is accepted and ignored."""
    options = ("sampler.components=2", "sampler.informed=none", "objective=reverse_kl")
    assert "ReverseKL needs sampler.components=1, got 2" in train(*options).line
    assert "is not a run folder" in train(*STUDENT, tiny=False).line
    assert train().code == 0
    assert "leave task=... out" in train(*STUDENT, "task=denoise", tiny=False).line
    assert "sampler.steps=4" in train("distill=r", "logger=none", tiny=False).line
    assert not (tmp_path / "r-2").exists()


def test_any_beta_can_be_distilled(train) -> None:
    """Draws of a tempered teacher are posterior draws, though simulated pairs are not.

    Mutant: the refusal of likelihood training at beta != 1 for students too, or a student at 1.
    """
    options = ("posterior.beta=0.5", "trainer.warm_steps=0")
    assert train(*options).code == 0
    answer = train(*STUDENT, tiny=False)
    assert answer.code == 0, answer.error
    assert load_run("r-2").posterior.beta == 0.5
