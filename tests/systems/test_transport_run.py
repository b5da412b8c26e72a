"""`train.py` and `sample.py` with a transport, on the embedded latent diffusion."""

import json
from pathlib import Path

import pytest
import torch

from outsourced.bank import PairBank
from outsourced.build import load_run
from outsourced.data import fashion_images
from outsourced.distilling import inherit
from outsourced.matching import MatchingLosses
from outsourced.objectives import PathLikelihood
from outsourced.paths import PathMixture
from outsourced.posterior import Posterior
from outsourced.priors import LatentDiffusionPrior
from outsourced.replay import ReplayBuffer
from outsourced.run import METRICS, WEIGHTS, read_tensors
from outsourced.settings import Settings
from outsourced.stepdata import StepData
from outsourced.tasks import Denoise, SuperResolution
from outsourced.transport import NoiseTransport

TRANSPORT = (
    *("prior=fashion_sd", "prior.steps=2", "sampler=transport", "objective=path_likelihood"),
    *("trainer=transport", "trainer.batch=2", "trainer.evaluate_every=0", "trainer.max_steps=4"),
    *("data.bank_size=8", "evaluate.observations=2", "evaluate.n=2", "sampler.width=8"),
    *("sampler.steps=2", "sampler.axes=4", "trainer.anchor_steps=1"),
    *("logger=none", "lightning.accelerator=cpu", "+lightning.enable_progress_bar=false"),
)


@pytest.fixture
def transport(train):
    """`train.py` with few steps of everything."""
    return lambda *more: train(*TRANSPORT, *more, tiny=False)


def test_trains_resumes_and_samples(transport, train, sample, interrupt_at) -> None:
    """A run that was stopped ends with the weights of one that was not, and they have moved.

    Mutants: weights that are not stored, a resumed run that starts anew, evidence of samples
    without weights, a refinement that the command line cannot change.
    """
    whole = transport("run=whole")
    assert whole.code == 0, whole.error
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 2)
        half = transport("run=r")
    assert half.code == 0, half.error
    assert "stopped at step 2" in half.out
    assert not Path("r", METRICS).exists()
    rest = transport("run=r")
    assert rest.code == 0, rest.error
    weights, _ = read_tensors(Path("r", WEIGHTS))
    other, _ = read_tensors(Path("whole", WEIGHTS))
    assert all(torch.equal(weights[name], other[name]) for name in other)
    assert other["network.conv_in.weight"][:, 4:].abs().max() > 0
    figures = json.loads(Path("whole", METRICS).read_text())
    assert figures["simulated/residual"] > 0
    assert "simulated/elbo" not in figures
    answer = sample("run=whole", "n=2", "observations=1")
    assert answer.code == 0, answer.error
    assert json.loads(Path("whole", "samples", METRICS).read_text())["verdict"]
    files = Path("whole", "samples", "samples.safetensors")
    before = read_tensors(files)[0]
    answer = sample("run=whole", "n=2", "observations=1", "solver.refine=[3,1]")
    assert answer.code == 0, answer.error
    changed = (read_tensors(files)[0]["x"] - before["x"]).abs().amax()
    assert 1e-4 < changed < 1  # the same draws, fitted better
    answer = sample("run=whole", "n=2", "observations=1", "correct=importance")
    assert "needs samples with weights" in answer.error


def test_students_carry_noise_where_their_teacher_does(transport, train, sample) -> None:
    """In fewer steps, from its weights, for observations of real images, too.

    Mutants: a student that starts anew, or learns nothing; other noise than the teacher's.
    """
    assert transport("run=whole", "sampler.between=[2.0,0.125]").code == 0
    few = ("data.bank_size=8", "trainer.batch=4", "evaluate.observations=2", "evaluate.n=2")
    few += ("logger=none", "lightning.accelerator=cpu", "+lightning.enable_progress_bar=false")
    few += ("trainer=transport_student", "trainer.max_steps=30", "trainer.evaluate_every=0")
    student = ("distill=whole", "sampler.steps=1")
    learn = (*student, "sampler=transport", "sampler.refine=1")
    answer = train(*learn, *few, tiny=False)
    assert answer.code == 0, answer.error
    own, its = load_run("whole-1").sampler, load_run("whole").sampler
    assert (own.steps, own.refine, its.steps, its.refine) == (1, (1,), 2, (2, 1))
    assert own.encoder.head.in_channels == 8  # the teacher's width, not the group's
    apart = {}
    teacher, learned = load_run("whole"), load_run("whole-1")
    _, _, obs = teacher.posterior.simulate(16, torch.Generator().manual_seed(0))
    noise = torch.randn(16, *teacher.sampler.noise_shape)
    with torch.no_grad():
        wanted = teacher.sampler.latents(noise, teacher.sampler.encode(obs))
        for name in ("inherited", "learned"):
            own = learned.sampler
            if name == "inherited":
                own = NoiseTransport(
                    own.noise_shape, teacher.posterior.task.feature_shape, teacher.posterior,
                    steps=1, between=(2.0, 0.125), width=8,
                )  # fmt: skip
                assert inherit(own, teacher.sampler)[0] == sum(p.numel() for p in own.parameters())
            apart[name] = (own.latents(noise, own.encode(obs)) - wanted).square().mean()
    assert apart["learned"] < 0.8 * apart["inherited"]
    assert sample("run=whole-1", "n=2", "observations=1").code == 0
    answer = train(*student, "sampler=default", *few, tiny=False)
    assert "is a NoiseTransport, and so is its student, got a NoiseSampler" in answer.error


def test_lessons_of_a_transport_are_of_real_images_too(tmp_path) -> None:
    """Teacher and student carry the same noise for the same observations, several for each.

    Mutants: observations of simulated images alone, noise of the student's own, a sign.
    """
    prior = LatentDiffusionPrior("fashion_sd", guidance=1.0, steps=2)
    posterior = Posterior(prior, Denoise(prior.data_shape, sigma=0.1))
    shapes = prior.noise_shape, posterior.task.feature_shape
    own, teacher = (NoiseTransport(*shapes, posterior, width=8) for _ in range(2))
    mixture = PathMixture(own, posterior, ReplayBuffer(8, 1), {"on_policy": 1.0}, 2)
    parts = own, posterior, PathLikelihood(), mixture
    losses = MatchingLosses(*parts, 1, teacher, draws=3, observations="mixed")
    asked = []

    def latents(noise, context):
        asked.append((noise, context.obs.y))
        return noise.clone().requires_grad_() + 2.0 * (len(asked) % 2)  # the teacher is asked first

    own.latents = teacher.latents = latents
    z, x, _ = posterior.simulate(4, torch.Generator().manual_seed(0))
    batch = {"z": z, "x": x, "images": torch.full_like(x, 50.0)}
    generator = torch.Generator().manual_seed(1)
    loss, figures = losses.distil(batch, 4, generator, generator)
    assert float(loss.detach()) == pytest.approx(4.0)
    assert figures["loss/teacher"] == pytest.approx(4.0)
    (noise, y), (same, seen) = asked
    assert torch.equal(noise, same)
    assert torch.equal(y, seen)
    assert noise.shape == (12, *prior.noise_shape)
    assert (y.flatten(1).abs().amax(1) > 10).tolist() == 3 * [False, False, True, True]
    assert len(torch.unique(noise, dim=0)) == 12


def test_learns_by_simulated_pairs_only(transport) -> None:
    """Mutant: an objective that is accepted and never computed."""
    answer = transport("objective=log_variance", "run=r")
    assert (
        "sampler=transport learns pairs of latents and y; use objective=path_likelihood"
        in answer.error
    )


def test_losses_see_the_latents_of_their_pairs(tmp_path) -> None:
    """Of each row of a step's batch. Mutants: latents of the first rows of the bank, or of rows in
    another order; rows that are not those of the pairs."""
    prior = LatentDiffusionPrior("fashion_sd", guidance=1.0, steps=2)
    posterior = Posterior(prior, Denoise(prior.data_shape, sigma=0.1))
    sampler = NoiseTransport(prior.noise_shape, posterior.task.feature_shape, posterior, width=8)
    bank = PairBank.build(posterior, tmp_path, 8, progress=False)
    mixture = PathMixture(sampler, posterior, ReplayBuffer(8, 1), {"on_policy": 1.0}, 2)
    settings = Settings(max_steps=2, anchor_steps=0, warm_steps=2, batch=4, groups=4)
    losses = MatchingLosses(sampler, posterior, PathLikelihood(), mixture, 1)
    losses.latents = bank.column("latents", prior.denoise, progress=False)
    batch = StepData(bank, None, settings, 0)[1]
    seen = []

    def matching_loss(h, obs, steps, generator):
        seen.append((h, obs.y))
        return torch.zeros(len(h), requires_grad=True)

    sampler.matching_loss = matching_loss
    losses.likelihood(batch, 3, torch.Generator().manual_seed(0), torch.Generator())
    (h, y) = seen[0]
    torch.testing.assert_close(prior.decode(h).clamp(-1, 1), batch["x"][:3], rtol=1e-4, atol=1e-4)
    assert (y - batch["x"][:3]).std() < 0.12  # its observations, too


def test_losses_see_latents_that_the_encoder_finds_in_real_images(tmp_path) -> None:
    """Half of the batch, each beside the observation of its image.

    Mutants: simulated pairs alone, images beside other latents or observations, latents with a
    gradient, an encoder's loss that never sees an image.
    """
    prior = LatentDiffusionPrior("fashion_sd", guidance=1.0, steps=2)
    posterior = Posterior(prior, Denoise(prior.data_shape, sigma=0.01))
    sampler = NoiseTransport(prior.noise_shape, posterior.task.feature_shape, posterior, width=8)
    bank = PairBank.build(posterior, tmp_path, 8, progress=False)
    mixture = PathMixture(sampler, posterior, ReplayBuffer(8, 1), {"on_policy": 1.0}, 2)
    losses = MatchingLosses(
        *(sampler, posterior, PathLikelihood(), mixture, 1), observations="mixed"
    )
    losses.latents = bank.column("latents", prior.denoise, progress=False)
    settings = Settings(max_steps=2, anchor_steps=1, anchor_batch=6, batch=4, groups=1)
    data = StepData(bank, fashion_images("train")[:32], settings, 0)
    seen = []

    def keep(h, obs, *_):
        seen.append((h, obs.y))
        return torch.zeros(len(h), requires_grad=True)

    sampler.matching_loss = sampler.regression_loss = keep
    losses.anchor(data[0], 6, torch.Generator().manual_seed(0))
    losses.likelihood(data[1], 4, torch.Generator().manual_seed(0), torch.Generator())
    for (h, y), batch, half in zip(seen, (data[0], data[1]), (3, 2), strict=True):
        assert len(h) == 2 * half
        assert not h.requires_grad
        real = batch["images"][:half]
        torch.testing.assert_close(h[half:], prior.encode(real))
        assert (y[half:] - real).std() < 0.02
        assert (y[:half] - batch["x"][:half]).std() < 0.02
        assert (prior.decode(h[half:]) - real).square().mean().sqrt() < 0.3  # it knows its decoder


def test_losses_may_see_real_images_alone(tmp_path) -> None:
    """Under a blur, too. Mutants: a batch of no simulated images that a convolution refuses, a
    simulated pair among the real ones."""
    prior = LatentDiffusionPrior("fashion_sd", guidance=1.0, steps=2)
    posterior = Posterior(prior, SuperResolution(prior.data_shape, 4, 0.05))
    sampler = NoiseTransport(prior.noise_shape, posterior.task.feature_shape, posterior, width=8)
    mixture = PathMixture(sampler, posterior, ReplayBuffer(8, 1), {"on_policy": 1.0}, 2)
    losses = MatchingLosses(
        *(sampler, posterior, PathLikelihood(), mixture, 1), observations="images"
    )
    losses.latents = torch.zeros(1, *prior.noise_shape)
    images = fashion_images("train")[:3]
    z = torch.zeros(3, *prior.noise_shape)
    batch = {"z": z, "x": torch.zeros_like(images), "rows": torch.zeros(3).long()}
    seen = []

    def keep(h, obs, *_):
        seen.append(h)
        return torch.zeros(len(h), requires_grad=True)

    sampler.matching_loss = keep
    generator = torch.Generator().manual_seed(0)
    losses.likelihood({**batch, "images": images}, 3, generator, generator)
    torch.testing.assert_close(seen[0], prior.encode(images))


def test_the_first_estimate_has_the_moments_of_the_bank(transport) -> None:
    """Those of its data, in the weights that are kept and whatever the training averages.

    Mutants: a Gaussian that is never filled, that averaging draws back to the one before, or of z.
    """
    assert transport("run=r", "trainer.max_steps=2").code == 0
    problem = load_run("r")
    (folder,) = [place for place in Path("banks").iterdir() if place.is_dir()]
    _, x = PairBank(folder).rows(torch.arange(8))
    about = problem.sampler.about
    torch.testing.assert_close(about.mean, x.mean(0))
    assert about.axes.shape == (4, x[0].numel())
    total = (x - x.mean(0)).square().sum() / 8
    found = about.variances.sum() + about.rest * (x[0].numel() - 4)
    torch.testing.assert_close(found, total, rtol=1e-4, atol=0)
    answer = transport("run=s", "sampler.axes=8")
    assert "data.bank_size must be > sampler.axes = 8, got 8" in answer.error


def test_run_holds_the_copy_of_the_network(transport) -> None:
    """The frozen prior is not among the weights. Mutant: it is, or the copy is not."""
    answer = transport("trainer.max_steps=1", "run=r")
    assert answer.code == 0, answer.error
    names = set(load_run("r").sampler.state_dict())
    assert all(name.startswith(("network.", "encoder.", "about.")) for name in names)
    assert "network.conv_out.weight" in names
