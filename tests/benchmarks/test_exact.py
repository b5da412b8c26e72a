"""The exactness table: its figures, its training, and the files that it writes."""

import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from benchmarks import exact
from benchmarks.cells import Effort, evaluate, fit, mode_error, observe, schedule, settings_of
from benchmarks.problems import GridTruth, Problem, mixture
from benchmarks.rows import GROUPS
from benchmarks.tables import Column, markdown, read_csv, write_csv, write_section
from outsourced.bank import PairBank
from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian, TwoMoons
from outsourced.sampler import NoiseSampler
from outsourced.tasks import LinearMeasurement

TINY = Effort(0.2, observations=3, paths=64, upper_paths=8, tests=1, draws=20, bank=512)
CONFIGS = Path(__file__).parents[2] / "configs" / "prior"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- figures


def untrained(problem: Problem) -> NoiseSampler:
    shape = problem.posterior.task.feature_shape
    return NoiseSampler(
        problem.posterior.prior.noise_shape, shape, problem.posterior, steps=3, width=16
    )


def test_figures_of_the_untrained_sampler_are_those_of_the_prior() -> None:
    """Mutant: draws paired with the reward of another y, gaps of the wrong sign, z for x."""
    prior, task = LinearGaussian(dim=2), LinearMeasurement([[1.0, 0.5]], sigma=1.0)
    posterior = Posterior(prior, task)
    problem = Problem("small", posterior, GridTruth(posterior, (60, 50)))
    effort = Effort(1.0, observations=3, paths=20_000, upper_paths=4000, tests=2, draws=300)
    obs = observe(problem, effort)
    figures = evaluate(problem, untrained(problem), effort)
    y, matrix = obs.y.double(), task.matrix.double()
    mean, covariance, log_z = prior.noise_posterior(task.matrix, y, 1.0)

    def expected(center: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        square = (y - center @ matrix.mT).square().sum(-1) + (matrix @ spread @ matrix.mT).trace()
        return -0.5 * square - 0.5 * math.log(2 * math.pi)

    below = log_z - expected(torch.zeros(2).double(), torch.eye(2).double())
    above = expected(mean, covariance) - log_z
    assert figures["elbo_gap"] == pytest.approx(float(below.mean()), abs=0.02)
    assert figures["eubo_gap"] == pytest.approx(float(above.mean()), abs=0.02)
    assert figures["log_z_bias"] == pytest.approx(0.0, abs=0.01)
    assert figures["c2st"] > 0.53  # the prior is not the posterior


def test_mode_error_sees_weights_and_not_counting_noise() -> None:
    """Mutant: no correction for n draws, an absolute error, or the best mode for the worst."""
    weights = torch.tensor([[0.1, 0.3, 0.6], [0.3, 0.6, 0.1]]).double().repeat(40, 1)
    drawn = torch.multinomial(weights, 200, replacement=True, generator=seeded()).T
    assert mode_error(drawn, weights) < 0.1  # 0.21 without the correction
    skewed = torch.tensor([[0.05, 0.3, 0.65], [0.3, 0.65, 0.05]]).double().repeat(40, 1)
    drawn = torch.multinomial(skewed, 2000, replacement=True, generator=seeded()).T
    assert mode_error(drawn, weights) == pytest.approx(0.5 / math.sqrt(2), abs=0.03)
    assert mode_error(torch.zeros_like(drawn), weights) > 0.99


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> PairBank:
    folder = tmp_path_factory.mktemp("bank")
    return PairBank.build(mixture().posterior, folder, 512, progress=False)


@pytest.mark.parametrize(
    "row", [row for rows in GROUPS.values() for row in rows], ids=lambda r: r.name
)
def test_every_row_trains(row: exact.Row, bank: PairBank) -> None:
    """Mutant: a row without what its objective needs (a flow, groups), or one that never steps."""
    module, _ = fit(mixture(), row, bank, settings_of(row, 0, 2, 1 if row.warm else 0))
    assert module.steps_done == 2
    assert module.skips.total == 0
    assert any(bool(p.any()) for p in module.sampler.control.network.head.parameters())


@pytest.fixture
def short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.cells.START_STEPS", 1)
    monkeypatch.setattr("benchmarks.cells.PROBE_STEPS", 3)


@pytest.mark.usefixtures("short_probe")
def test_schedule_splits_the_time(bank: PairBank) -> None:
    """Mutant: shares of steps instead of time, or a warm start for an objective that has none."""
    row = GROUPS["default"][1]
    settings = schedule(mixture(), row, bank, TINY)
    balance = settings.max_steps - settings.warm_steps
    assert settings.warm_steps > row.warm / (1 - row.warm) * balance  # a balance step costs more
    assert balance >= 1
    alone = schedule(mixture(), GROUPS["objectives"][0], bank, TINY)
    assert alone.warm_steps == 0


# ---------------------------------------------------------------- files


def run(folder: Path, *extra: str) -> None:
    out = str(folder / "exact.csv")
    arguments = ["--quick", "--seconds", "0.2", "--problems", "mixture", "--rows", "default"]
    exact.main([*arguments, "--out", out, "--readme", str(folder / "README.md"), *extra])


@pytest.mark.usefixtures("short_probe")
def test_command_writes_its_table_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: finished cells run again, or cells of another effort land in the same file."""
    readme = tmp_path / "README.md"
    readme.write_text("head\n<!-- exact:start -->\nold\n<!-- exact:end -->\ntail\n")
    run(tmp_path)
    records = read_csv(tmp_path / "exact.csv")
    assert [r["row"] for r in records] == ["exact draws", *[row.name for row in GROUPS["default"]]]
    assert all(float(r["ess"]) > 1 / 64 for r in records[1:])
    text = readme.read_text()
    assert text.startswith("head\n")
    assert text.endswith("tail\n")
    assert "old" not in text
    assert f"{float(records[1]['elbo_gap']):.3f}" in text
    assert text.count("| mixture |") == 3

    def refuse(*_: object) -> None:
        raise AssertionError("a finished cell ran again")

    monkeypatch.setattr(exact, "run_cell", refuse)
    run(tmp_path)
    with pytest.raises(SystemExit, match="holds rows with seed = 0, this call has 1"):
        run(tmp_path, "--seed", "1")


@pytest.mark.usefixtures("short_probe")
def test_readme_has_the_default_rows_only(tmp_path: Path) -> None:
    """Where there are any; the file beside the CSV has all. Mutant: the long table, or none."""
    readme = tmp_path / "README.md"
    readme.write_text("<!-- exact:start -->\n<!-- exact:end -->\n")
    run(tmp_path)
    records = read_csv(tmp_path / "exact.csv")
    write_csv(tmp_path / "exact.csv", [*records, {**records[1], "row": "TB"}])
    run(tmp_path)
    assert "| mixture | TB |" not in readme.read_text()
    assert "| mixture | default" in readme.read_text()
    assert "| mixture | TB |" in (tmp_path / "exact.md").read_text()


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    """Mutant: a misspelt group is an empty table."""
    with pytest.raises(SystemExit, match="--rows must be among default, objectives, got defualt"):
        run(tmp_path, "--rows", "defualt")


def test_tables_keep_what_is_not_theirs(tmp_path: Path) -> None:
    """Mutant: a figure that a record lacks shifts the columns; missing markers lose the file."""
    records = [{"name": "a", "x": 1.25}, {"name": "b", "y": 2}]
    write_csv(tmp_path / "t.csv", records)
    back = read_csv(tmp_path / "t.csv")
    assert back == [{"name": "a", "x": "1.25", "y": ""}, {"name": "b", "x": "", "y": "2"}]
    columns = (Column("name", "n"), Column("x", "x", ".1f"), Column("y", "y", ".0f"))
    lines = markdown(back, columns).splitlines()
    assert lines[2:] == ["| a | 1.2 | – |", "| b | – | 2 |"]
    page = tmp_path / "page.md"
    page.write_text("mine")
    with pytest.raises(ValueError, match=r"must hold one <!-- t:start -->"):
        write_section(page, "t", "table")
    assert page.read_text() == "mine"


# ---------------------------------------------------------------- prior configurations


def prior_of(name: str, **extra: object) -> torch.nn.Module:
    return instantiate(OmegaConf.merge(OmegaConf.load(CONFIGS / f"{name}.yaml"), extra))


def test_prior_configurations_build_what_they_say() -> None:
    """Mutant: a wrong `_target_` or argument: checked on values of f, not on types."""
    z = torch.randn(2000, 2, generator=seeded())
    ring = prior_of("gaussian_mixture")(z)
    assert float((ring.norm(dim=-1) - 1).abs().mean()) < 0.1
    torch.testing.assert_close(prior_of("two_moons")(z), TwoMoons(0.1)(z))
    assert 2.7 < float(prior_of("swiss_roll")(z).norm(dim=-1).max()) < 3.5
    radius = prior_of("rings")(z).norm(dim=-1)
    assert float((radius - radius.round().clamp(1, 2)).abs().mean()) == pytest.approx(
        0.08, abs=0.01
    )
    wide = torch.randn(3, 16, generator=seeded())
    torch.testing.assert_close(prior_of("linear_gaussian")(wide), wide)
    mine = prior_of("callable", function="torch.sin", noise_shape=[2])
    torch.testing.assert_close(mine(z), z.sin())
    assert mine.differentiable is True
