"""The search for step sizes: its grids, its memory, and the command."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import tune_solvers
from benchmarks.posteriors import CONFIGS
from benchmarks.search import score, search
from benchmarks.tables import read_csv
from benchmarks.tune_solvers import build
from outsourced.metrics import psnr
from outsourced.posterior import Posterior
from outsourced.priors import CNF
from outsourced.solvers.moment import Moment
from outsourced.tasks import Denoise, Inpaint, RandomPixels
from tests.solvers.diffusion.gaussian import GaussianLatent


def ridge(sizes: dict[str, float]) -> float:
    """A smooth function of two sizes on a slant; its peak is decades away from the start."""
    if sizes["omega"] > 0.9:
        return -math.inf
    a, b = math.log(sizes["omega"] / 0.0042), math.log(sizes["gamma"] / 31.0)
    return -(a**2) - b**2 - 0.8 * a * b


def test_search_finds_the_peak_within_its_grid() -> None:
    """Grids move until their best is inside, then shrink; points meet the old ones.

    Mutant: a first grid that does not move, a fall that is taken, diverged settings taken for good
    ones, a grid that drifts off its own points.
    """
    seen: list[dict[str, float]] = []

    def values(settings):
        seen.extend(settings)
        assert len(seen) < 1000, "the search goes round in circles"
        return [ridge(sizes) for sizes in settings]

    found = search(values, {"omega": 0.3, "gamma": 0.03}, 4, 0.0)
    best = max(seen, key=ridge)
    assert found == best
    for name, size in {"omega": 0.0042, "gamma": 31.0}.items():
        assert abs(math.log10(found[name] / size)) < 0.13
    quarters = [4 * math.log10(sizes["gamma"] / 0.03) for sizes in seen]
    assert max(abs(q - round(q)) for q in quarters) < 0.02
    assert len(seen) < 81 * 3 + 9 * 4


def test_one_factor_for_all_sizes_is_a_line() -> None:
    """To the best factor within a quarter of a decade, by three settings at a time.

    Mutant: a grid, sizes that part, a line that does not move on.
    """
    seen: list[dict[str, float]] = []

    def values(settings):
        assert len(settings) == 3
        seen.extend(settings)
        return [-((math.log10(sizes["omega"] / 0.1)) ** 2) for sizes in settings]

    found = search(values, {"omega": 10.0, "gamma": 2.0}, 1, 0.0, together=True)
    assert found == pytest.approx({"omega": 0.1, "gamma": 0.02}, rel=0.01)
    assert max(abs(sizes["omega"] / sizes["gamma"] - 5) for sizes in seen) < 0.05


def test_what_is_installed_is_of_the_nearest_number_of_steps(tmp_path, monkeypatch) -> None:
    """Mutant: sizes of another task, of the first number of steps, or as they are."""
    sizes = {"100": {"omega": 2.0}, "500": {"omega": 0.6}}
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({"p": {"psld": {"blur": sizes, "superres": {"9": {"omega": 1}}}}}))
    monkeypatch.setattr(tune_solvers, "TUNED", path)
    assert tune_solvers.installed("p", "psld", "blur", 1000) == pytest.approx({"omega": 0.3})
    assert tune_solvers.installed("p", "psld", "blur", 100) == {"omega": 2.0}
    with pytest.raises(ValueError, match=r"--near inpaint: tuned.json holds nothing for psld on p"):
        tune_solvers.installed("p", "psld", "inpaint", 1000)


def test_sizes_that_do_not_matter_stay() -> None:
    """Mutant: any gain is followed, down a slope of a millionth of a decibel without end."""
    found = search(lambda many: [1e-6 / s["gamma"] for s in many], {"gamma": 0.1}, 2, 0.01)
    assert found == {"gamma": 0.1}
    assert search(lambda many: [-math.inf for _ in many], {"rate": 2.0}, 1, 0.01) == {"rate": 2.0}


def test_score() -> None:
    """Mutant: residuals below sigma taken for better than sigma; diverged rows that win."""
    rows = [
        {"psnr": "20", "residual": "0.5"},
        {"psnr": "19", "residual": "1.1"},
        {"psnr": "", "diverged": "1.0"},
    ]
    assert max(rows, key=lambda r: score(r, "psnr")) is rows[0]
    assert max(rows, key=lambda r: score(r, "residual")) is rows[1]
    assert score(rows[2], "residual") == -math.inf


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


@pytest.mark.parametrize("name", ["latent_dps", "psld_paper", "gml_dps", "resample", "daps"])
def test_settings_of_one_run_are_those_of_runs_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each setting's figures are those of a solver that was built with it, all from one noise.

    Mutant: sizes that belong to another row, sizes of the first setting for all, noise of its own
    for each setting, a lost sample that is averaged over.
    """
    monkeypatch.setattr(Moment, "normal", lambda self, like: torch.zeros_like(like))
    prior = GaussianLatent()
    prior.data_shape = (1, 1, 5)
    monkeypatch.setattr(prior, "decode", _reshaped(prior.decode, (1, 1, 5)))
    encode = prior.encode
    monkeypatch.setattr(prior, "encode", lambda x, draw=None: encode(x.flatten(1), draw))
    target = Posterior(prior, Denoise(prior.data_shape, sigma=0.3))
    x = torch.randn(3, 1, 1, 5, generator=torch.Generator().manual_seed(0)) / 3
    obs = target.task.sample(x, torch.Generator().manual_seed(1))
    start = tune_solvers.SEARCHES[name][2]
    settings = [{k: v * f for k, v in start.items()} for f in (0.2, 1.0, math.inf)]
    together = tune_solvers.measure(build(name, 9, settings[0], target), settings, x, obs, 5)
    for sizes, row in zip(settings[:2], together, strict=False):
        solver = build(name, 9, sizes, target)
        z = target.draw_noise(3, torch.Generator().manual_seed(5))
        alone = solver.solve(z, obs)
        assert row["psnr"] == pytest.approx(psnr(alone, x).mean().item(), rel=1e-4)
        expected = solver.residual(alone, obs).mean().item()
        assert row["residual"] == pytest.approx(expected, rel=1e-3)
    assert together[0]["psnr"] != pytest.approx(together[1]["psnr"], rel=1e-3)
    assert together[2] == {"diverged": 1}


def _reshaped(decode, shape):
    return lambda h: decode(h).unflatten(1, shape)


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

    def counted(solver, settings, *rest):
        ran.extend(sizes["omega"] for sizes in settings)
        rows = measured(solver, settings, *rest)
        return [
            {"diverged": 1} if sizes["omega"] > 50 else row
            for sizes, row in zip(settings, rows, strict=True)
        ]

    monkeypatch.setattr(tune_solvers, "measure", counted)
    out = tmp_path / "tune.csv"
    call = ["--prior", "p", "--solvers", "flow_dps", "--steps", "12", "6", "--images", "4"]
    call += ["--out", str(out), "--readme", str(tmp_path / "README.md"), "--rows", "8"]
    tune_solvers.main(call)
    rows = read_csv(out)
    assert [float(row["omega"]) for row in rows] == ran
    assert len({(row["steps"], row["omega"]) for row in rows}) == len(rows)
    assert {row["psnr"] for row in rows if float(row["omega"]) > 50} == {""}
    table = out.with_suffix(".md").read_text().splitlines()
    bests = {}
    for steps in ("12", "6"):
        those = [row for row in rows if row["steps"] == steps]
        best = bests[steps] = max(those, key=lambda row: score(row, "psnr"))
        (line,) = [x for x in table if f"| flow_dps | {steps} |" in x]
        assert f"| {float(best['psnr']):.2f} |" in line
    assert float(bests["12"]["psnr"]) > float(rows[0]["psnr"]) + 1
    assert 0.05 < float(bests["12"]["residual"]) < 8
    first = next(float(row["omega"]) for row in rows if row["steps"] == "6")
    assert first == pytest.approx(math.sqrt(2) * float(bests["12"]["omega"]), rel=0.02)
    tune_solvers.main(call)
    assert len(ran) == len(rows)
    with pytest.raises(SystemExit, match="holds rows with images = 4, this call has 5"):
        tune_solvers.main([*call, "--images", "5"])
    with pytest.raises(SystemExit, match=r"--solvers knows dps, .* got 'dsp'"):
        tune_solvers.main(["--prior", "p", "--solvers", "dsp"])
    with pytest.raises(SystemExit, match="--prior and --solvers are required"):
        tune_solvers.main([])
    assert "flow_dps" in capsys.readouterr().out
    _installed(out, bests, tmp_path / "tuned.json", monkeypatch)


def _installed(
    out: Path, bests: dict[str, dict[str, str]], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best of each number of steps, beside what the table holds of other methods."""
    path.write_text(json.dumps({"p": {"daps": {"blur": {"200": {"rate": 0.1}}}}}))
    monkeypatch.setattr(tune_solvers, "TUNED", path)
    tune_solvers.main(["--install", str(out)])
    table = json.loads(path.read_text())["p"]
    assert table.pop("daps") == {"blur": {"200": {"rate": 0.1}}}
    sizes = {steps: {"omega": float(best["omega"])} for steps, best in bests.items()}
    assert table == {"flow_dps": {"inpaint_pixels": sizes}}


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
        config = OmegaConf.load(CONFIGS / "solver" / f"{file}.yaml")
        assert set(changes) | set(start) <= set(config)
        unset = {name for name in ("omega", "gamma") if name in config and config[name] is None}
        assert unset <= set(start)
