"""The search for step sizes: its climb, its memory, and the command."""

import math
from pathlib import Path

import pytest
import torch

from benchmarks import tune_solvers
from benchmarks.tables import read_csv
from outsourced.posterior import Posterior
from outsourced.priors import CNF
from outsourced.solvers.diffusion_sampler import Diverged
from outsourced.tasks import Inpaint, RandomPixels


def test_climb_finds_the_peak_within_its_grid() -> None:
    """Of a smooth function of two sizes, decades away from the start and on a slant.

    Mutant: sizes searched once each in turn, a factor that does not shrink, or a fall that is
    taken; diverged settings taken for good ones.
    """
    peak = {"omega": 0.0042, "gamma": 31.0}
    seen = []

    def value(sizes):
        seen.append(sizes)
        if sizes["omega"] > 0.9:
            return -math.inf
        a, b = (math.log(sizes[k] / peak[k]) for k in ("omega", "gamma"))
        return -(a**2) - b**2 - 0.8 * a * b

    found = tune_solvers.climb(value, {"omega": 0.3, "gamma": 0.03})
    for name, size in found.items():
        assert abs(math.log(size / peak[name])) < math.log(1.8)
    assert len({tuple(s.values()) for s in seen}) < 45


def test_score() -> None:
    """Mutant: residuals below sigma taken for better than sigma; diverged rows that win."""
    rows = [
        {"psnr": "20", "residual": "0.5"},
        {"psnr": "19", "residual": "1.1"},
        {"psnr": "", "diverged": "1.0"},
    ]
    assert max(rows, key=lambda r: tune_solvers.score(r, "psnr")) is rows[0]
    assert max(rows, key=lambda r: tune_solvers.score(r, "residual")) is rows[1]
    assert tune_solvers.score(rows[2], "residual") == -math.inf


class Field(torch.nn.Module):
    """Towards a grey image: the flow of N(0.2, 0.5²) at every pixel."""

    image_shape = (1, 8, 8)

    def forward(self, x, t):
        t = t.reshape(-1, 1, 1, 1)
        slope = (0.25 * t - (1 - t)) / (0.25 * t**2 + (1 - t) ** 2)
        return 0.2 + slope * (x - 0.2 * t)


@pytest.fixture
def problem(monkeypatch: pytest.MonkeyPatch) -> Posterior:
    prior = CNF(Field(), "euler", 5)
    task = Inpaint(prior.data_shape, RandomPixels(0.3, 0.3), sigma=0.05)
    posterior = Posterior(prior, task)
    images = 0.2 + 0.5 * torch.randn(520, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(tune_solvers, "load", lambda prior, task, changes: (posterior, images))
    return posterior


def test_validation_images_are_not_those_of_the_tables(problem: Posterior) -> None:
    """Mutant: the first images, or as many as are asked for."""
    images = tune_solvers.load("", "", [])[1]
    x, obs = tune_solvers.validation(problem, images, 8, seed=3)
    assert torch.equal(x, images[-8:])
    expected = problem.task.sample(x, torch.Generator().manual_seed(3))
    assert torch.equal(obs.y, expected.y)
    with pytest.raises(ValueError, match=r"--images must be >= 1 and <= 8: .* got 9"):
        tune_solvers.validation(problem, images, 9, seed=3)


def test_command_tunes_and_goes_on(
    problem: Posterior,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The best row is the best of the file, better than the start, and nothing is run twice.

    Mutant: the last setting in place of the best, ignored sizes, a diverged setting that ends the
    search, rows of other conditions that are mixed.
    """
    monkeypatch.setitem(tune_solvers.SEARCHES, "flow_dps", ("flow_dps", {}, {"omega": 0.1}))
    measured, ran = tune_solvers.measure, []

    def counted(solver, *rest):
        ran.append(solver.omega)
        if solver.omega > 50:
            monkeypatch.setattr(solver, "solve", _diverge)
        return measured(solver, *rest)

    monkeypatch.setattr(tune_solvers, "measure", counted)
    out = tmp_path / "tune.csv"
    call = ["--prior", "p", "--solvers", "flow_dps", "--steps", "12", "--images", "4"]
    call += ["--out", str(out), "--readme", str(tmp_path / "README.md")]
    tune_solvers.main(call)
    rows = read_csv(out)
    assert [float(row["omega"]) for row in rows] == ran
    assert len(set(ran)) == len(ran)
    assert [row["psnr"] for row in rows if float(row["omega"]) > 50] == [""]
    best = max(rows, key=lambda row: tune_solvers.score(row, "psnr"))
    assert float(best["psnr"]) > float(rows[0]["psnr"]) + 1
    assert 0.05 < float(best["residual"]) < 8
    (line,) = [x for x in out.with_suffix(".md").read_text().splitlines() if "| flow_dps" in x]
    assert f"| {float(best['omega']):.3g} |" in line
    assert f"| {float(best['psnr']):.2f} |" in line
    tune_solvers.main(call)
    assert len(ran) == len(rows)
    with pytest.raises(SystemExit, match="holds rows with images = 4, this call has 5"):
        tune_solvers.main([*call, "--images", "5"])
    with pytest.raises(SystemExit, match=r"--solvers knows dps, .* got 'dsp'"):
        tune_solvers.main(["--prior", "p", "--solvers", "dsp"])
    assert "flow_dps" in capsys.readouterr().out


def _diverge(*args):
    raise Diverged("on purpose")


def test_load_is_what_training_gets() -> None:
    """Prior, task and overrides of the configuration, and its held-out images.

    Mutant: training images for held-out ones, or overrides that are dropped.
    """
    from outsourced.data import fashion_images
    from outsourced.priors import VAE

    posterior, images = tune_solvers.load("fashion_vae", "superres", ["task.sigma=0.07"])
    assert isinstance(posterior.prior, VAE)
    assert posterior.task.noise_level.lo == 0.07
    assert posterior.task.measurement_shape == (1, 8, 8)
    assert torch.equal(images, fashion_images("test"))
    with pytest.raises(ValueError, match="--prior two_moons has no held-out images"):
        tune_solvers.load("two_moons", "nonlinear", [])


def test_searches_fit_their_configurations() -> None:
    """Mutant: a start that misses a step size, or names one that the configuration has not."""
    from omegaconf import OmegaConf

    for file, changes, start in tune_solvers.SEARCHES.values():
        config = OmegaConf.load(tune_solvers.CONFIGS / "solver" / f"{file}.yaml")
        assert set(changes) | set(start) <= set(config)
        unset = {name for name in ("omega", "gamma") if name in config and config[name] is None}
        assert unset <= set(start)
