"""What sampling leaves behind."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from outsourced.evaluation import figure
from outsourced.pictures import read_image
from outsourced.report import figures_of_merit, table, write_samples
from outsourced.solvers.amortized import Amortized
from outsourced.solvers.base import Samples
from outsourced.tasks.base import Observation
from outsourced.tasks.superres import SuperResolution


def pictures(n=3, batch=2):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, batch, 1, 8, 8, generator=generator) * 2 - 1
    return Samples(x, x[:, :, 0, 0], torch.zeros(n, batch), 11, 1.5)


def test_figures_of_merit(problem, generator) -> None:
    """Costs are those of the samples; averages are the means of the listed values.

    Mutant: seconds of one observation, a list of another figure.
    """
    p = problem()
    _, x, obs = p.posterior.simulate(4, generator)
    samples = Amortized(p.sampler, p.posterior)(obs, 6, generator)
    values = figures_of_merit(p.posterior, samples, obs, x)
    assert values["prior_calls"] == samples.prior_calls == 24
    assert values["seconds_per_sample"] == pytest.approx(samples.seconds / 24)
    assert (values["samples"], values["observations"]) == (6, 4)
    for name in ("elbo", "log_z", "ess", "residual"):
        listed = values["per_observation"][name]
        assert len(listed) == 4
        assert sum(listed) / 4 == pytest.approx(values[name], rel=1e-6)
    assert json.loads(json.dumps(values)) == values
    lines = table(values).splitlines()
    assert "per_observation" not in table(values)
    assert len(lines) == len(values) - 1


def test_estimates_are_told_from_draws(problem, generator) -> None:
    """Mutants: medoids taken for corrected draws; draws taken for estimates."""
    p = problem()
    _, x, obs = p.posterior.simulate(2, generator)
    for medoid, told in ((3, True), (1, False)):
        samples = Amortized(p.sampler, p.posterior, medoid=medoid)(obs, 70, generator)
        values = figures_of_merit(p.posterior, samples, obs, x)
        assert values["verdict"].startswith("unknown: estimates are no draws") == told
        assert ("ess" in values) != told


def test_written_samples(tmp_path) -> None:
    """Tensors and pictures are those of the samples; pictures of an earlier call are gone.

    Mutants: sample and observation exchanged in the names, stale pictures beside new ones.
    """
    samples = pictures()
    obs = Observation(torch.zeros(2, 1, 8, 8), {"mask": torch.ones(2, 1, 8, 8)}, torch.ones(2))
    posterior = SimpleNamespace(task=None)
    write_samples(tmp_path / "o", posterior, samples, obs, samples.x[0], {"elbo": 1.0})
    singles = tmp_path / "o" / "images"
    assert len(list(singles.iterdir())) == 6
    shown = read_image(singles / "observation001-sample002.png", (1, 8, 8))
    assert torch.allclose(shown, samples.x[2, 1], atol=1 / 255)
    stored = load_file(tmp_path / "o/samples.safetensors")
    assert torch.equal(stored["x"], samples.x)
    assert torch.equal(stored["truth"], samples.x[0])
    assert torch.equal(stored["observation.params.mask"], obs.params["mask"])
    assert json.loads((tmp_path / "o/metrics.json").read_text()) == {"elbo": 1.0}
    assert (tmp_path / "o/figure.png").stat().st_size > 1000
    few = pictures(1, 2)
    write_samples(tmp_path / "o", posterior, few, obs, None, {}, tmp_path / "p.png")
    assert len(list(singles.iterdir())) == 2
    assert not (tmp_path / "p.png").exists()  # one sample has no spread to show


def test_figure_of_what_can_be_shown(tmp_path) -> None:
    """Other measurements are shown as A^T y, vectors not at all, and masks of any channels.

    Mutant: an error of the figure at the end of a training whose measurements are no pictures.
    """
    task = SuperResolution((1, 8, 8), factor=2, sigma=0.1)
    samples, path = pictures(), tmp_path / "f.png"
    small = task.sample(samples.x[0], generator=torch.Generator().manual_seed(0))
    assert figure(SimpleNamespace(task=task), samples, small, None, path)
    nothing = SimpleNamespace(task=None)
    vectors = Observation(torch.zeros(2, 9), {}, torch.ones(2))
    assert not figure(nothing, samples, vectors, None, tmp_path / "g.png")
    flat = Samples(samples.z, samples.z, None, 0, 0.0)
    assert not figure(nothing, flat, vectors, None, tmp_path / "g.png")
    deep = Samples(samples.x.expand(-1, -1, 4, -1, -1), samples.z, None, 0, 0.0)
    assert not figure(nothing, deep, small, None, tmp_path / "g.png")
    mask = torch.ones(2, 3, 8, 8)
    mask[:, 0, :4] = 0
    three = Observation(samples.x[0].expand(-1, 3, -1, -1), {"mask": mask}, torch.ones(2))
    colour = Samples(samples.x.expand(-1, -1, 3, -1, -1), samples.z, None, 0, 0.0)
    assert figure(nothing, colour, three, None, tmp_path / "h.png")
    assert not (tmp_path / "g.png").exists()
