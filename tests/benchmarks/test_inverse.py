"""The benchmark of inverse problems: calibration, equal times, break-even, targets, and a run."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import inverse, side_by_side
from benchmarks.calibrating import against_draws, blocks
from benchmarks.contenders import (
    ALL,
    AMORTISED,
    COOLED,
    DISTILLED,
    GENERAL,
    INVERSE,
    MEDOID,
    REFINED,
    TEMPERED,
    TUNED,
)
from benchmarks.limits import lengthened, moves_within
from benchmarks.means import Mean
from benchmarks.merit import Cases
from benchmarks.setting import Setting, Trained
from benchmarks.side_by_side import Table, amortised_seconds
from benchmarks.solver_cells import begin, calibrated
from benchmarks.solver_report import REAL
from benchmarks.tables import read_csv
from outsourced.build import Problem
from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian
from outsourced.solvers import Pcn
from outsourced.solvers.base import Samples
from outsourced.tasks import Denoise, LinearMeasurement, Mixture, SuperResolution

BY_NAME = {contender.name: contender for contender in INVERSE}


def linear() -> Posterior:
    return Posterior(LinearGaussian(dim=2), LinearMeasurement([[1.0, 0.0]], sigma=0.5))


def images(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_calibration_tells_exact_draws_from_narrow_and_shifted_ones(generator) -> None:
    """Exact draws are covered as often as their intervals claim, at few samples too.

    Mutant: intervals between sample quantiles (0.33 of 50 % at n = 2), ranks of an image that are
    averaged over observations, a p-value that is not corrected for the number of blocks.
    """
    truth = images(160, seed=1)
    for n in (2, 15):
        exact = against_draws(images(n, 160, seed=2), truth, generator)
        assert exact["cover_50"] == pytest.approx(0.5, abs=0.02)
        assert exact["cover_90"] == pytest.approx(0.9, abs=0.02)
        assert exact["rank_p"] > 0.05
        assert exact["rank_below"] <= 0.25
    narrow = against_draws(0.5 * images(15, 160, seed=2), truth, generator)
    assert narrow["cover_90"] < 0.75  # about 0.68
    assert narrow["rank_p"] < 1e-4
    shifted = against_draws(images(15, 160, seed=2) + 0.5, truth, generator)
    assert shifted["rank_below"] == 1
    assert shifted["rank_p"] < 1e-8
    assert "rank_p" not in against_draws(images(15, 5, seed=2), truth[:5], generator)


def test_blocks_are_means_of_neighbouring_pixels() -> None:
    """Mutant: pixels that are gathered from all over the image, or the mean of the whole of it."""
    x = torch.zeros(2, 3, 1, 8, 8)
    x[1, 2, 0, 2:4, 6:] = 1
    found = blocks(x)
    assert found.shape == (2, 3, 16)
    assert found[1, 2].nonzero().tolist() == [[1 * 4 + 3]]
    assert found.sum() == 1


def test_mean_is_that_of_one_observation(generator) -> None:
    """Mutant: a mean over observations, or of samples of two means."""

    def solver(obs, n, generator=None, progress=False) -> Samples:
        x = torch.arange(n * 2.0).reshape(n, 2, 1)
        return Samples(x, x, None, n * 2, 1.0)

    samples = Mean(solver, 2)(None, 2)
    assert samples.x[:, :, 0].tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert (samples.prior_calls, samples.seconds) == (8, 1.0)
    assert samples.z.isnan().all()
    assert samples.z.shape == samples.x.shape

    def blind(*how) -> Samples:  # a transport's samples, whose noise is not known
        return replace(solver(*how), z=None)

    assert Mean(blind, 2)(None, 2).z is None


def test_limited_chains_take_the_time_that_is_left(generator, monkeypatch) -> None:
    """The pace is that of the moves; start and samples are paid for too, half is burn-in.

    Mutant: moves for the time of one chain each, no burn-in, the seconds of a move taken for those
    of the whole probe.
    """
    assert moves_within(seconds=10.0, probe=0.6, calls=6, n=2) == (48, 49)
    assert moves_within(seconds=0.1, probe=0.6, calls=6, n=2) == (0, 4)
    assert moves_within(seconds=0.1, probe=0.6, calls=6, n=9) == (0, 9)
    posterior = linear()
    obs = posterior.simulate(3, generator)[2]
    probe = Pcn(posterior, steps=4, burn_in=0, chains=1, thin=1)
    call = Pcn.__call__

    def slow(self, *given) -> Samples:
        samples = call(self, *given)
        samples.seconds = 0.6
        return samples

    monkeypatch.setattr(Pcn, "__call__", slow)
    chain = lengthened(probe, obs, 2, 10.0, generator)
    assert (type(chain), chain.burn_in, chain.steps, chain.chains) == (Pcn, 48, 49, 1)
    monkeypatch.undo()
    # 1 start, 97 moves and 2 samples are the 100 evaluations that fit into 10 s.
    assert chain(obs, 2, generator).prior_calls == 100 * 3


def test_fits_of_simulated_images_are_to_their_own_observations() -> None:
    """Samples that are sigma off y have a residual of one.

    Mutants: the residual to the observations of real images, or in other units than sigma.
    """
    task = Denoise((1, 8, 8), sigma=0.5)
    truth = images(6, seed=3)
    simulated, real = (task.sample(x, torch.Generator().manual_seed(1)) for x in (truth, truth + 9))
    posterior = Posterior(LinearGaussian(dim=2), task)

    def solver(obs, n, generator, progress) -> Samples:
        return Samples((obs.y + 0.5).expand(n, -1, -1, -1, -1), None, None, 0, 0.0)

    setting = Setting({}, posterior, real, None, simulated=Cases("simulated", simulated, truth))  # type: ignore[arg-type]
    args = Namespace(device=torch.device("cpu"), seed=0, progress=False)
    found = calibrated(BY_NAME["pcn"], solver, 3, setting, args)
    assert found["residual_simulated"] == pytest.approx(1.0, rel=1e-4)
    assert found["cover_50"] <= 0.5


def test_cells_know_their_run_and_the_time_of_the_amortised_one(tmp_path: Path) -> None:
    """Chains in the same time wait for that time; students have a run of their own.

    Mutant: the teacher's sampler for the student's row, seconds of a sample for those of all.
    """
    posterior, other = linear(), linear()
    teacher, student_problem = Problem(posterior, "teacher"), Problem(other, "student")  # type: ignore[arg-type]
    obs = posterior.simulate(3, torch.Generator().manual_seed(0))[2]
    setting = Setting({"prior": "p", "task": "t"}, posterior, obs, None)  # type: ignore[arg-type]
    table = Table(tmp_path / "t.csv", {})
    limited, student = BY_NAME["pcn, same time"], BY_NAME[DISTILLED]
    assert amortised_seconds(table, setting) is None
    assert begin(limited, setting) is None
    row = {**setting.name, "solver": AMORTISED, "settings": "", "draws": 16, "seconds": 0.5}
    table.put(row)
    setting.seconds = amortised_seconds(table, setting)
    assert setting.seconds == 16 * 3 * 0.5
    setting.trained[""] = Trained(teacher, 3.0, "trained 9 steps")
    begun = begin(limited, setting)
    assert begun is not None
    assert begun[1]["settings"] == "trained 9 steps 1 chain"
    assert begin(student, setting) is None
    setting.trained[DISTILLED] = Trained(student_problem, 4.0, "K = 4")
    begun = begin(student, setting)
    assert begun is not None
    assert (begun[0].sampler, begun[1]["settings"]) == ("student", "K = 4")
    assert begun[0].posterior is setting.problem(student)[0] is other  # the one that guides it
    mean = begin(BY_NAME[f"{AMORTISED}, mean of 16"], setting)
    assert mean is not None
    assert (mean[0].count, mean[0].solver.sampler) == (16, "teacher")


def test_one_sampler_of_all_operators_sees_each_as_its_own() -> None:
    """Its own task, sampler and parameters, on the same images, real and simulated.

    Mutants: observations of the single task, the mixture's first operator, the specialist's
    posterior.
    """
    mixture = Mixture(
        (1, 8, 8),
        {"sharp": Denoise((1, 8, 8), 0.5), "superres_x4": SuperResolution((1, 8, 8), 2, 0.5)},
    )
    task, general = SuperResolution((1, 8, 8), 2, 0.5), BY_NAME[GENERAL]
    prior = LinearGaussian(dim=2)
    x = images(3, seed=7)
    obs = task.sample(x, torch.Generator().manual_seed(0))
    setting = Setting({"prior": "p", "task": "superres"}, Posterior(prior, task), obs, None)  # type: ignore[arg-type]
    assert begin(general, setting) is None
    problem = Problem(Posterior(prior, mixture), "general")  # type: ignore[arg-type]
    setting.trained[ALL] = Trained(problem, 9.0, "K = 2", "superres_x4")
    found = setting.seen(general, obs)
    assert found.params["kind"].tolist() == [1, 1, 1]
    other = images(3, seed=8)
    torch.testing.assert_close(mixture.log_reward(other, found), task.log_reward(other, obs))
    assert setting.problem(general) == (problem.posterior, "general")
    assert setting.seen(BY_NAME["pcn"], obs) is obs
    setting.simulated = Cases("simulated", obs, x)
    kinds = []

    def solver(obs, n, generator, progress) -> Samples:
        kinds.append(obs.params["kind"])
        return Samples(x.expand(n, -1, -1, -1, -1), None, None, 0, 0.0)

    args = Namespace(device=torch.device("cpu"), seed=0, progress=False)
    assert calibrated(general, solver, 3, setting, args)["residual_simulated"] < 1.5
    assert kinds[0].tolist() == [1, 1, 1]


def test_solvers_have_the_samples_that_they_are_worth() -> None:
    """Mutants: sixteen samples of what pays for each, one of chains; estimates calibrated; medoids
    timed in other numbers than the rest."""
    args = Namespace(solvers=None, quick=False, n=16, others=2, calibrate="all")
    found = {c.name: c for c in inverse.chosen(args)}
    assert {name: c.samples for name, c in found.items() if c.samples != 2} == {
        **{
            AMORTISED: 16,
            f"{AMORTISED}, mean of 16": 1,
            REFINED: 16,
            TEMPERED: 16,
            COOLED: 1,
            GENERAL: 16,
            TUNED: 4,
        },
        **{DISTILLED: 16, "pcn": 16, "hmc": 16},
        **{f"{AMORTISED} + {kind}": 16 for kind in ("importance", "pcn", "mala")},
    }
    assert found[AMORTISED].timing == found[MEDOID].timing == 2
    assert found[COOLED].timing == 1
    fewer = {c.name: c for c in inverse.chosen(Namespace(**{**vars(args), "others": 1}))}
    assert (fewer[MEDOID].samples, fewer[MEDOID].timing) == (2, 1)
    estimates = [name for name, c in found.items() if not c.calibrated]
    assert estimates == [f"{AMORTISED}, mean of 16", TEMPERED, COOLED, MEDOID, TUNED]
    args.calibrate = AMORTISED
    kept = [c.name for c in inverse.chosen(args) if c.calibrated]
    assert all(name.startswith((AMORTISED, DISTILLED)) for name in kept)
    assert len(kept) == 7
    args.others = 0
    with pytest.raises(ValueError, match="--others must be >= 1, got 0"):
        inverse.chosen(args)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_command_trains_measures_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task in small: rows with calibration, a table, a figure; the second call runs nothing.

    Mutant: cells run again, chains in the same time that run before that time is known.
    """
    monkeypatch.chdir(tmp_path)
    call = ["--quick", "--minutes", "1", "--priors", "fashion_vae", "--tasks", "destripe"]
    call += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "docs" / "i.csv")]
    call += ["--readme", str(tmp_path / "README.md"), "--train", f"data.bank_folder={tmp_path}"]
    inverse.main(call)
    found = {row["solver"]: row for row in read_csv(tmp_path / "docs" / "i.csv")}
    refined = [REFINED, TEMPERED, COOLED, MEDOID, TUNED]  # which only transports are
    missing = {*refined, GENERAL, DISTILLED}
    expected = [c.name for c in INVERSE if c.name.split(",")[0] in ("pcn", "hmc") or c.amortised]
    assert list(found) == [REAL, *(name for name in expected if name not in missing)]
    assert 0 < float(found[AMORTISED]["cover_90"]) <= 1
    assert float(found["pcn, same time"]["draws"]) == 2
    assert f"untrained: {'; '.join([*refined, GENERAL, DISTILLED])}" in capsys.readouterr().out
    text = (tmp_path / "docs" / "i.md").read_text()
    assert "Targets" not in text  # they are of fashion_sd
    assert "### fashion_vae, destripe" in text
    assert (tmp_path / "docs" / "figures" / "i.png").stat().st_size > 5_000
    monkeypatch.setattr(side_by_side, "measure", None)
    inverse.main(call)
