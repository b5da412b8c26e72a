"""The exactness table: its truths, its floor, its figures, and the files that it writes."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.distributions import MultivariateNormal, kl_divergence

from benchmarks import exact
from benchmarks.cells import Effort, evaluate, fit, mode_error, observe, schedule, settings_of
from benchmarks.floor import diagonal_floor, optimal_covariances
from benchmarks.problems import PROBLEMS, GridTruth, Problem, linear_gaussian, mixture, moon
from benchmarks.rows import GROUPS
from benchmarks.tables import Column, markdown, read_csv, write_csv, write_section
from outsourced.bank import PairBank
from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian, TwoMoons
from outsourced.reference import Reference
from outsourced.sampler import NoiseSampler
from outsourced.tasks import LinearMeasurement

TINY = Effort(0.2, observations=3, paths=64, upper_paths=8, tests=1, draws=20, bank=512)
CONFIGS = Path(__file__).parents[2] / "configs" / "prior"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- floor


@pytest.mark.parametrize("diagonal", [[1.7], [0.3, 2.0, 5.0]])
def test_floor_is_zero_where_diagonal_kernels_are_optimal(diagonal: list[float]) -> None:
    """Mutant: a KL of the kernels to the reference instead of the optimal kernels."""
    floor = diagonal_floor(torch.diag(torch.tensor(diagonal)), 0.3, Reference(20))
    assert floor == pytest.approx((0.0, 0.0), abs=1e-12)


def test_optimal_covariances_are_the_conditionals_of_the_joint_gaussian() -> None:
    """Mutant: spread_k for spread_k^2 in C_k; a factor sigma instead of sigma^2."""
    matrix, sigma, reference = torch.randn(2, 3, generator=seeded()).double(), 0.4, Reference(7)
    eye, found = torch.eye(3).double(), optimal_covariances(matrix, sigma, reference)
    for k in range(7):
        rho, later, a = reference.rho[k], reference.rho[k + 1], reference.a[k]
        # Joint covariance of (z_{k+1}, z_k, y) with z_K ~ N(0, I) and y = W z_K + n.
        y = matrix @ matrix.mT + sigma**2 * torch.eye(2)
        given = torch.cat(
            [torch.cat([eye, rho * matrix.mT], 1), torch.cat([rho * matrix, y], 1)], 0
        )
        cross = torch.cat([a * eye, later * matrix.mT], 1)
        covariance = eye - cross @ torch.linalg.solve(given, cross.mT)
        torch.testing.assert_close(found[k], covariance / reference.scale[k] ** 2)


def best_diagonal(covariance: torch.Tensor, reverse: bool) -> float:
    """The smallest KL to or from a diagonal Gaussian, by Newton-like descent on log-variances."""
    target = MultivariateNormal(torch.zeros(3).double(), covariance)
    log_variance = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_variance], max_iter=100, line_search_fn="strong_wolfe")

    def divergence() -> torch.Tensor:
        diagonal = MultivariateNormal(target.loc, log_variance.exp().diag())
        pair = (diagonal, target) if reverse else (target, diagonal)
        return kl_divergence(*pair)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = divergence()
        value.backward()
        return value

    optimizer.step(closure)
    return float(divergence().detach())


def test_floors_match_a_brute_force_search() -> None:
    """Mutant: the two floors swapped, or marginal variances used for the reverse one."""
    matrix, reference = torch.randn(2, 3, generator=seeded(1)), Reference(6)
    covariances = optimal_covariances(matrix, 0.3, reference)
    for index, reverse in enumerate((True, False)):
        brute = sum(best_diagonal(c, reverse) for c in covariances)
        assert diagonal_floor(matrix, 0.3, reference)[index] == pytest.approx(brute, rel=1e-6)
    reverse_floor, forward_floor = diagonal_floor(matrix, 0.3, reference)
    assert abs(reverse_floor - forward_floor) > 1e-3  # or the swap would pass


def test_floor_halves_with_twice_the_steps() -> None:
    """Mutant: a floor of one kernel, which falls as 1 / K^2, or one that does not see the grid."""
    problem = linear_gaussian()
    assert problem.matrix is not None
    values = [
        diagonal_floor(problem.matrix, 0.3, Reference(k, log_snr_min=-5.0, log_snr_max=7.0))
        for k in (100, 200, 400)
    ]
    for before, after in itertools.pairwise(values):
        for index in range(2):
            assert 0.45 < after[index] / before[index] < 0.6


# ---------------------------------------------------------------- truths


def small(sigma: float) -> tuple[Posterior, LinearGaussian, LinearMeasurement]:
    prior, task = LinearGaussian(dim=2), LinearMeasurement([[1.0, 0.5]], sigma=sigma)
    return Posterior(prior, task), prior, task


def test_grid_agrees_with_the_closed_form() -> None:
    """Mutant: cells of unequal prior mass, axes exchanged in a draw, or a forgotten 1 / cells."""
    posterior, prior, task = small(0.5)
    truth = GridTruth(posterior, (400, 300))
    _, _, obs = posterior.simulate(3, seeded())
    mean, covariance, log_z = prior.noise_posterior(task.matrix, obs.y.double(), 0.5)
    torch.testing.assert_close(truth.log_z(obs), log_z, atol=1e-3, rtol=0)
    z = truth.sample(obs, 40_000, seeded(1)).double()
    torch.testing.assert_close(z.mean(0), mean, atol=0.02, rtol=0)
    for i in range(3):
        torch.testing.assert_close(torch.cov(z[:, i].T), covariance, atol=0.02, rtol=0)


def test_grid_draws_fill_their_cells() -> None:
    """Mutant: draws at midpoints or corners of cells: under a flat reward they are the prior."""
    posterior, _, _ = small(100.0)
    _, _, obs = posterior.simulate(1, seeded())
    z = GridTruth(posterior, (2, 1)).sample(obs, 40_000, seeded(1))[:, 0]
    torch.testing.assert_close(torch.cov(z.T), torch.eye(2), atol=0.03, rtol=0)
    assert float(z.abs().max()) > 3.5


def test_grid_refuses_a_cell_across_the_jump() -> None:
    """Mutant: an odd axis, whose middle cell straddles the gap between the moons."""
    with pytest.raises(ValueError, match="even size, got 3"):
        GridTruth(PROBLEMS["moons"]().posterior, (3, 2))


def test_linear_gaussian_draws_have_the_posterior_moments() -> None:
    """Mutant: the transposed Cholesky factor, or observations and draws transposed."""
    problem = linear_gaussian()
    _, _, obs = problem.posterior.simulate(2, seeded())
    z = problem.truth.sample(obs, 20_000, seeded(1)).double()
    assert problem.matrix is not None
    matrix = problem.matrix.double()
    precision = torch.eye(16) + matrix.mT @ matrix / problem.sigma**2
    covariance = torch.linalg.inv(precision)
    mean = obs.y.double() @ matrix @ covariance / problem.sigma**2
    torch.testing.assert_close(z.mean(0), mean, atol=0.04, rtol=0)
    torch.testing.assert_close(torch.cov(z[:, 1].T), covariance, atol=0.05, rtol=0)


def test_mixture_truth_weighs_the_modes() -> None:
    """Mutant: prior weights in the place of the posterior's; z of one y given to another."""
    problem = mixture()
    _, _, obs = problem.posterior.simulate(3, seeded())
    z = problem.truth.sample(obs, 4000, seeded(1))
    assert problem.modes is not None
    assert problem.mode_weights is not None
    x = problem.posterior.decode(z.flatten(0, 1))
    label = problem.modes(x).unflatten(0, z.shape[:2])
    weights = problem.mode_weights(obs)
    assert float(weights.amax() / weights.amin()) > 2  # unequal, or the first mutant would pass
    found = torch.stack([(label == m).double().mean(0) for m in range(8)], -1)
    torch.testing.assert_close(found, weights, atol=0.03, rtol=0)


def test_moon_labels_follow_the_noise() -> None:
    """Mutant: the lower moon not mirrored; left and right exchanged."""
    z = torch.randn(4000, 2, generator=seeded())
    x = TwoMoons(std=0.1)(z)
    label = moon(x)
    lower = z[:, 0] > 0
    assert float(((label == 2) == lower).float().mean()) > 0.995
    left = ~lower & (z[:, 0] > torch.special.ndtri(torch.tensor(0.25)))  # the far half of the arc
    assert float((label[left] == 0).float().mean()) > 0.98


# ---------------------------------------------------------------- figures


def untrained(problem: Problem) -> NoiseSampler:
    shape = problem.posterior.task.feature_shape
    return NoiseSampler(
        problem.posterior.prior.noise_shape, shape, problem.posterior, steps=3, width=16
    )


def test_figures_of_the_untrained_sampler_are_those_of_the_prior() -> None:
    """Mutant: draws paired with the reward of another y, gaps of the wrong sign, z for x."""
    posterior, prior, task = small(1.0)
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
    assert module.skipped == 0
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

    def refuse(*_: object) -> None:
        raise AssertionError("a finished cell ran again")

    monkeypatch.setattr(exact, "run_cell", refuse)
    run(tmp_path)
    with pytest.raises(SystemExit, match="holds cells with seed = 0, this run has 1"):
        run(tmp_path, "--seed", "1")


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
