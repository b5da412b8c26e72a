"""The side-by-side table: figures, rows that are kept, speed, pictures, and the command."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import side_by_side, solvers
from benchmarks.contenders import AMORTISED, CONTENDERS, QUICK, described
from benchmarks.pictures import cases, store
from benchmarks.setting import Setting
from benchmarks.side_by_side import Table
from benchmarks.solver_cells import begin, measure
from benchmarks.solver_report import REAL, report
from benchmarks.tables import read_csv
from benchmarks.worth import Judge
from outsourced.classifiers import FashionFeatures
from outsourced.metrics import frechet
from outsourced.posterior import Posterior
from outsourced.priors import VAE, LatentDiffusionPrior
from outsourced.solvers.base import Samples
from outsourced.tasks import Denoise, Inpaint

BY_NAME = {contender.name: contender for contender in CONTENDERS}


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(images(6), images(40, 1), FashionFeatures.from_weights())


@pytest.fixture(scope="module")
def vae() -> Posterior:
    prior = VAE.from_weights("fashion_vae")
    return Posterior(prior, Denoise(prior.data_shape, sigma=0.05))


def test_judge_averages_over_samples(judge: Judge, vae: Posterior) -> None:
    """Each set of one sample an image is compared on its own; the spread is that of an observation.

    Mutant: the Fréchet distance of all samples at once or to the truth, a spread over images,
    features of the samples beside the truth of another image.
    """
    obs = vae.task.sample(judge.x, torch.Generator().manual_seed(2))
    noise = torch.randn(3, 6, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    samples = Samples(judge.x + 0.1 * noise, noise, None, 0, 0.0)
    found = judge(vae, samples, obs)
    reference = judge.network.features(images(40, 1))
    sets = [frechet(judge.network.features(x), reference) for x in samples.x]
    assert found["frechet"] == pytest.approx(sum(sets) / 3)
    assert found["std"] == pytest.approx(0.1, rel=0.03)
    assert found["residual"] == pytest.approx((1 + 0.1**2 / 0.05**2) ** 0.5, rel=0.02)
    assert found["psnr"] == pytest.approx(26.2, abs=0.4)  # 0.05 on [0, 1], but for what is clamped
    flipped = Samples(samples.x.flip(1), noise, None, 0, 0.0)
    assert judge(vae, flipped, obs)["perceptual"] > 3 * found["perceptual"] > 0
    truth = judge.truth(vae, obs)
    assert truth["residual"] == pytest.approx(1, rel=0.02)
    assert truth["frechet"] == frechet(judge.network.features(judge.x), reference)


def test_cell_counts_a_sample(judge: Judge, vae: Posterior) -> None:
    """Seconds and calls are divided by all samples; what gives up has a note and no figures.

    Mutant: costs of all samples, or of an observation; a failure that ends the table.
    """
    obs = vae.task.sample(judge.x, torch.Generator().manual_seed(2))
    setting = Setting({"prior": "p", "task": "t"}, vae, obs, judge)
    args = Namespace(n=2, seed=0, device=torch.device("cpu"), progress=False, runs=None)
    pcn = replace(BY_NAME["pcn"], settings={"steps": 10, "burn_in": 5, "chains": 2, "thin": 1})
    stored = []
    args.runs = Path("unused")
    monkey = pytest.MonkeyPatch()
    monkey.setattr("benchmarks.solver_cells.store", lambda *given: stored.append(given))
    row = measure(pcn, *begin(pcn, setting), setting, args)
    # Two chains of 1 + 5 + 10 states, and the two samples that are decoded, are two samples.
    assert row["f_calls"] == row["f_forward"] == 17
    assert row["settings"] == "burn_in=5 chains=2 steps=10 thin=1"
    assert 0 < row["seconds"] < 0.1
    assert row["rhat"] > 1
    assert stored[0][3].shape == (1, 2, 1, 32, 32)
    smc = replace(BY_NAME["smc"], settings={"particles": 4, "moves": 1, "stages": 1})
    row = measure(smc, *begin(smc, setting), setting, args)
    assert "did not reach the posterior within solver.stages = 1" in row["note"]
    assert "psnr" not in row
    monkey.undo()


def test_contenders_apply_where_they_say(judge: Judge, vae: Posterior) -> None:
    """Diffusion samplers on a latent diffusion alone, chains in small there, no sampler untrained.

    Mutant: settings of cheap priors on dear ones; step sizes that the row does not tell; quick
    settings that a solver does not know.
    """
    prior = LatentDiffusionPrior("fashion_sd", steps=2, guidance=1.0)
    dear = Posterior(prior, Inpaint(prior.data_shape, sigma=0.05))

    def applying(posterior: Posterior) -> set[str]:
        setting = Setting({}, posterior, None, judge)  # type: ignore[arg-type]
        return {c.name for c in CONTENDERS if begin(c.quick(), setting) is not None}

    assert applying(vae) == {"pcn", "mala", "hmc", "smc"}
    expected = {"psld", "gml_dps", "latent_dps"}
    found = {name.split(",")[0] for name in applying(dear)} - {"psld paper"}
    assert found == expected | {"resample", "daps", "pcn", "mala", "hmc", "smc"}
    psld = BY_NAME["psld, 100"]
    solver = psld.build(dear, None)
    assert solver.steps == 100
    told = described(psld, solver, dear)
    assert told == f"gamma={solver.gamma} omega={solver.omega} steps=100"
    assert BY_NAME["hmc"].build(dear, None).steps == 24
    assert BY_NAME["hmc"].build(vae, None).steps == 500
    assert set(QUICK) == {c.file for c in CONTENDERS}


def test_long_solvers_have_samples_of_their_own() -> None:
    """Only the 1000 steps that the authors take, DAPS and ReSample are so dear; --quick takes their
    steps, not that.

    Mutant: told by the steps that --quick sets, or the numbers swapped.
    """
    for quick in (False, True):
        args = Namespace(solvers=None, n=3, n_slow=1, quick=quick)
        sizes = {contender.name: contender.samples for contender in solvers.chosen(args)}
        assert {name for name, n in sizes.items() if n == 1} == {
            name for name in sizes if name.endswith(", 1000") or name in ("resample", "daps")
        }
        assert set(sizes.values()) == {1, 3}
        assert sizes[AMORTISED] == 3
    with pytest.raises(ValueError, match="--n-slow must be >= 1, got 0"):
        solvers.chosen(Namespace(solvers=None, n=3, n_slow=0, quick=False))


def test_table_runs_other_settings_again(tmp_path: Path) -> None:
    """Mutant: a row of other settings taken for known, or kept beside the new one."""
    about = {"prior": "p", "task": "t", "solver": "s", "settings": "steps=1"}
    table = Table(tmp_path / "t.csv", {"n": 2})
    table.put({**about, "psnr": 20.0})
    table.put({**about, "solver": "other"})
    again = Table(tmp_path / "t.csv", {"n": 2})
    assert again.has(about)
    changed = {**about, "settings": "steps=2"}
    assert not again.has(changed)
    again.put({**changed, "psnr": 21.0})
    rows = read_csv(tmp_path / "t.csv")
    assert [(r["solver"], r["settings"], r["psnr"]) for r in rows] == [
        ("s", "steps=2", "21.0"),
        ("other", "steps=1", ""),
    ]
    with pytest.raises(ValueError, match="holds rows with n = 2, this call has 3"):
        Table(tmp_path / "t.csv", {"n": 3})


def test_report_tells_the_speed() -> None:
    """Ratios the right way round, and the sampler's own share of f(z).

    Mutant: f(z) counted as the sampler's own, a ratio upside down, rows of another task.
    """
    around = {"machine": "m", "threads": "1", "torch": "2", "device": "H100", "images": "64"}
    around |= {"n": "2", "sigma": "0.05", "seed": "0", "prior": "fashion_sd"}
    rows = [
        {**around, "task": "inpaint", "solver": REAL, "frechet": "7"},
        {**around, "task": "inpaint", "solver": AMORTISED, "seconds": "0.012", "seconds_f": "0.01"},
        {**around, "task": "inpaint", "solver": "psld, 1000", "seconds": "3.6"},
        {**around, "task": "superres", "solver": "psld, 1000", "seconds": "9.6"},
    ]
    text = report(rows)
    first, second = text.split("### ")[1:]
    assert "takes 1/300 of the time of psld, 1000" in first
    assert "It takes 120% of the time of f(z), 10 ms a sample" in first
    assert "1/" not in second.split("PSNR, SSIM")[0]
    rows[1]["seconds_f"] = "0.0001"
    assert "It takes 120 times the time of f(z), 0.1 ms a sample" in report(rows)
    assert "H100, m, 1 thread(s), torch 2" in text


def test_pictures_are_found_again(tmp_path: Path, judge: Judge) -> None:
    """Mutants: samples of another task or of other observations of it, which lie beside them,
    spreads of another solver, rows that are swapped, a substitute for a solver that is there."""
    task = Inpaint((1, 32, 32), sigma=0.05)
    obs = task.sample(judge.x, torch.Generator().manual_seed(0))
    name, x = {"prior": "p", "task": "t"}, images(2, 5)
    draws = torch.stack([x.flip(0) + shift for shift in (0.0, 0.1, 0.2, 0.3)])
    store(tmp_path, {**name, "solver": "psld, 1000"}, obs, x[None])
    other = task.sample(judge.x, torch.Generator().manual_seed(1))
    store(tmp_path, {**name, "solver": "psld, 1000"}, other, 0 * x[None])
    store(tmp_path, {**name, "solver": "daps"}, other, x[None])
    store(tmp_path, {**name, "solver": AMORTISED}, obs, draws)
    store(tmp_path, {"prior": "p", "task": "u", "solver": "daps"}, obs, x[None])
    rows = cases(tmp_path, name, task, obs, judge.x)
    assert [list(row.samples) for row in rows] == [[AMORTISED, "psld, 1000"]] * 2
    torch.testing.assert_close(rows[1].samples["psld, 1000"], x[1])
    torch.testing.assert_close(rows[1].samples[AMORTISED], x[0])
    torch.testing.assert_close(rows[0].spread, torch.full((32, 32), 0.1291), atol=1e-4, rtol=0)
    columns = [("gml_dps, 1000", 1), ("psld, 1000", 1)]
    filled = cases(tmp_path, name, task, obs, judge.x, columns, 1, {"gml_dps, 1000": AMORTISED})
    torch.testing.assert_close(filled[0].samples["gml_dps, 1000"], x[1])
    kept = cases(tmp_path, name, task, obs, judge.x, columns, 1, {"psld, 1000": AMORTISED})
    torch.testing.assert_close(kept[0].samples["psld, 1000"], x[0])
    several = cases(tmp_path, name, task, obs, judge.x, [("psld, 1000", 1), (AMORTISED, 3)], 1)
    assert [list(row.samples) for row in several] == [
        ["psld, 1000", *(f"{AMORTISED}, {i}" for i in (1, 2, 3))]
    ]
    torch.testing.assert_close(several[0].samples[f"{AMORTISED}, 3"], x[1] + 0.2)
    torch.testing.assert_close(rows[1].truth, judge.x[1])
    assert torch.equal(rows[1].mask, obs.params["mask"][1])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_command_trains_measures_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One task in small: every solver that applies has a row, the second call runs nothing.

    Mutant: a sampler trained again, cells run again, a run of another task taken for this one's.
    """
    monkeypatch.chdir(tmp_path)
    call = ["--quick", "--minutes", "1", "--priors", "fashion_vae", "--tasks", "superres"]
    call += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "docs" / "s.csv")]
    call += ["--readme", str(tmp_path / "README.md"), "--train", f"data.bank_folder={tmp_path}"]
    solvers.main(call)
    rows = {row["solver"]: row for row in read_csv(tmp_path / "docs" / "s.csv")}
    expected = [
        c.name for c in CONTENDERS if c.amortised or c.name in ("pcn", "mala", "hmc", "smc")
    ]
    assert list(rows) == [REAL, *expected]
    assert float(rows[AMORTISED]["seconds_f"]) < float(rows[AMORTISED]["seconds"])
    assert rows[AMORTISED]["settings"].startswith("trained 4 steps")
    assert "stages = 2" in rows["smc"]["note"]
    figure = tmp_path / "docs" / "figures" / "solvers.png"
    assert figure.stat().st_size > 10_000
    monkeypatch.setattr(side_by_side, "measure", None)
    solvers.main(call)
    assert "dps, 1000" in capsys.readouterr().out
    with pytest.raises(
        SystemExit, match=r"was trained with task\.sigma = 0\.05, this call has 0.1"
    ):
        solvers.main([*call, "--sigma", "0.1", "--out", str(tmp_path / "t.csv")])
    with pytest.raises(SystemExit, match=r"--solvers knows amortised; .* got 'x'"):
        solvers.main([*call, "--solvers", "x"])
