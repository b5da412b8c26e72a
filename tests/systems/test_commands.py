"""`python train.py` and `python sample.py`: what they write, and what they answer to mistakes."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from outsourced.build import code_version
from outsourced.commands import launch

FIELDS = {"elbo", "log_z", "ess", "ess_median", "residual", "seconds", "prior_calls"}


def written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_unknown_group_option_lists_the_options(train, tmp_path) -> None:
    """Mutant: `optional experiment`, which Hydra ignores where the file is missing."""
    for group, there in (("task", "superres"), ("objective", "trajectory_balance")):
        answer = train(f"{group}=nonsense")
        assert answer.code == 1
        assert there in answer.error
        assert "nonsense" in answer.error
    answer = train("experiment=nonsense")
    assert answer.code == 1
    assert "nonsense" in answer.error
    assert "objective, paths, trainer" in train("teask=linear").error
    assert written(tmp_path) == set()


def test_unknown_key_lists_the_keys(train, tmp_path) -> None:
    """Mutant: Hydra's own message, which names the bad key only."""
    answer = train("sampler.stepz=50")
    assert answer.code == 1
    assert "stepz" in answer.error
    assert "log_snr_min" in answer.error
    answer = train("nonsense=50")
    assert "overwrite" in answer.error
    assert "bank_size" in train("data.size=3").error
    assert written(tmp_path) == set()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.sigma=-0.1", "task.sigma must be > 0, got -0.1"),
        ("trainer.lr=0", "trainer.lr must be > 0, got 0"),
        ("trainer.ema=1", "trainer.ema"),
        ("evaluate.n=0", "evaluate.n must be >= 1"),
        ("paths.weights.replay=-1", "paths.weights"),
        ("paths.kernel=hmc", "auto, pcn, mala"),
        ("paths.buffer.priority=best", "uniform, reward, rank"),
        ("task.dim=4", "the task is for data of shape (4,)"),
        ("objective=detailed_balance", "sampler.flow=true"),
        ("sampler.informed=psychic", "sampler.informed must be one of"),
        ("posterior.beta=0.5", "trainer.warm_steps must be 0"),
        ("data.observations=images", "needs data.images"),
    ],
)
def test_bad_value_is_one_line(train, override, message) -> None:
    """A value out of range ends the command with one line that names it, and no run folder weights.

    Mutant: a check in the middle of training, or a traceback.
    """
    answer = train(override)
    assert answer.code == 1
    assert message in answer.line
    assert not Path("r/sampler.safetensors").exists()


def test_train_then_sample(train, sample, tmp_path) -> None:
    """Overrides reach the run; `sample.py` needs its folder only; metrics are those of the samples.

    Mutant: a sampler built with the defaults, samples that ignore the seed, missing fields,
    resampling that keeps the wrong noise, or costs that include a bank only where it was missing.
    """
    answer = train("sampler.steps=7", "trainer.evaluate_every=8")
    assert answer.code == 0, answer.error
    config = json.loads(Path("r/config.json").read_text())
    assert config["sampler"]["steps"] == 7
    assert "overwrite" not in config
    metrics = json.loads(Path("r/metrics.json").read_text())
    assert metrics["train_prior_calls"] > 0
    assert metrics["bank_pairs"] == 128
    assert train("sampler.steps=7", "trainer.evaluate_every=8", "run=r2").code == 0
    again = json.loads(Path("r2/metrics.json").read_text())
    assert again["train_prior_calls"] == metrics["train_prior_calls"]
    assert metrics["prior"]
    assert metrics["code"] == code_version()
    assert not list(tmp_path.rglob("*.log"))
    assert not list(tmp_path.rglob("*partial*"))
    answer = sample("run=r", "n=5", "observations=3", "seed=4")
    assert answer.code == 0, answer.error
    drawn = load_file("r/samples/samples.safetensors")
    assert drawn["x"].shape == (5, 3, 3)
    assert torch.equal(drawn["x"], drawn["z"])  # the identity prior of the test
    values = json.loads(Path("r/samples/metrics.json").read_text())
    assert values.keys() > FIELDS
    assert values["elbo"] == pytest.approx(float(drawn["log_weight"].double().mean()), rel=1e-5)
    assert values["elbo"] <= values["log_z"]
    residual = (drawn["observation.y"] - drawn["x"] @ matrix().T) / 0.3
    expected = residual.square().mean(-1).sqrt().mean()
    assert values["residual"] == pytest.approx(float(expected), rel=1e-4)
    sample("run=r", "n=5", "observations=3", "seed=4", "out=again")
    assert torch.equal(load_file("again/samples.safetensors")["x"], drawn["x"])
    sample("run=r", "n=5", "observations=3", "seed=5", "out=other")
    assert not torch.equal(load_file("other/samples.safetensors")["x"], drawn["x"])
    corrected = sample("run=r", "n=50", "observations=3", "correct=importance", "candidates=200")
    assert corrected.code == 0, corrected.error
    better = json.loads(Path("r/samples/metrics.json").read_text())
    assert better["residual"] < values["residual"] - 0.5  # of a sampler that hardly was trained
    assert "log_weight" not in load_file("r/samples/samples.safetensors")


def test_corrections_of_a_run(train, sample, tmp_path) -> None:
    """Every correction, and another solver on the run's problem, beside the run's own samples.

    Mutant: `correct` that reaches the figures of merit only; a solver that overwrites the folder of
    the samples it is compared with; a verdict that is not written.
    """
    build_run(train, tmp_path)
    seen = {}
    for correct in ("null", "smc", "imh", "hmc"):
        moves = ("moves=9",) if correct in ("imh", "hmc") else ()
        answer = sample("run=r", "n=4", "observations=2", f"correct={correct}", *moves)
        assert answer.code == 0, answer.error
        values = json.loads(Path("r/samples/metrics.json").read_text())
        assert values["verdict"] in answer.out
        seen[correct] = load_file("r/samples/samples.safetensors")["x"]
    assert not any(torch.equal(seen["null"], x) for name, x in seen.items() if name != "null")
    assert {"acceptance", "rhat", "log_z", "ess"} <= values.keys()
    answer = sample("run=r", "solver=smc", "solver.particles=1000", "n=500", "observations=2")
    assert answer.code == 0, answer.error
    assert torch.equal(load_file("r/samples/samples.safetensors")["x"], seen["hmc"])
    exact = load_file("r/samples-smc/samples.safetensors")
    y, m = exact["observation.y"].double(), matrix().double()
    precision = torch.eye(3).double() + m.T @ m / 0.3**2
    mean = torch.linalg.solve(precision, m.T @ y.T).T / 0.3**2
    std = torch.linalg.inv(precision).diagonal().sqrt()
    assert ((exact["x"].mean(0) - mean).abs() < 5 * std / 500**0.5).all()


@pytest.mark.parametrize("solver", ["rejection", "importance", "pcn", "mala", "hmc", "smc"])
def test_solvers_need_no_training(sample, solver: str) -> None:
    """Prior and task of the command, the solver's own arguments, and its verdict.

    Mutant: a solver's argument that is ignored; the default solver whatever was asked for.
    """
    few = {
        "rejection": ("solver.budget=4000", "solver.batch=100"),
        "importance": ("solver.candidates=77",),
        "smc": ("solver.particles=64", "solver.moves=1"),
    }.get(solver, ("solver.steps=20", "solver.burn_in=5", "solver.thin=2", "solver.chains=3"))
    answer = sample(f"solver={solver}", *PLANE, *few, "n=3", "observations=2")
    assert answer.code == 0, answer.error
    folder = Path(f"samples/two_moons-nonlinear-{solver}")
    drawn = load_file(folder / "samples.safetensors")
    assert drawn["x"].shape == (3, 2, 2)
    values = json.loads((folder / "metrics.json").read_text())
    words = {"rejection": "trust", "smc": ("trust", "continue"), "importance": ("trust", "correct")}
    assert values["verdict"].startswith(words.get(solver, ("trust", "continue")))
    calls = {"importance": 77, "pcn": 2 * (3 * 26 + 3), "mala": 2 * (3 * 26 + 3)}
    assert values["prior_calls"] == calls.get(solver, values["prior_calls"])


def matrix() -> torch.Tensor:
    from outsourced.tasks.vectors import LinearMeasurement

    return LinearMeasurement(measurements=2, dim=3, seed=0, sigma=0.3).matrix


PLANE = ("prior=two_moons", "task=nonlinear")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "run is required"),
        (("run=nothing",), "nothing is not a run folder"),
        (("run=r", "source=web"), "source must be one of test, simulated"),
        (("run=r", "source=test"), "source=test needs held-out images"),
        (("run=r", "observations=0"), "observations must be >= 1"),
        (("run=r", "n=0"), "n >= 1"),
        (("run=r", "correct=magic"), "magic"),
        (("run=r", "mask=m.png"), "mask=... goes with image"),
        (("run=r", "image=missing.png"), "a picture has shape"),
        (("run=r", "correct=mala", "solver.step=-1"), "solver.step must be > 0, got -1"),
        (("run=r", "moves=3"), "solver.moves needs solver.correct=imh|pcn|mala|hmc"),
        (("run=r", "solver=smc", "correct=imh"), "correct=... is for solver=amortized"),
        (("run=r", "solver=smc", "prior=two_moons"), "leave prior out"),
        (("solver=smc", "prior=two_moons"), "both prior=... and task=... are required"),
        (("solver=hmc", *PLANE, "solver.leapfrog=0"), "solver.leapfrog must be >= 1, got 0"),
        (("solver=smc", *PLANE, "source=test"), "source=test needs held-out images"),
        (("solver=rejection", *PLANE, "solver.bound=-9"), "is above the bound of -9"),
    ],
)
def test_sampling_mistakes(train, sample, tmp_path, arguments, message) -> None:
    """One line, exit status 1, nothing written.

    Mutant: a folder or a file made before the request was checked.
    """
    build_run(train, tmp_path)
    before = written(tmp_path)
    answer = sample(*arguments)
    assert answer.code == 1
    assert message in answer.line
    assert written(tmp_path) == before


def build_run(train, folder: Path) -> None:
    answer = train("trainer.max_steps=1", "trainer.warm_steps=1", "evaluate.n=2")
    assert answer.code == 0, answer.error


def test_sweep_makes_a_run_for_each_job(train, tmp_path) -> None:
    """`-m sampler.steps=3,4` leaves two runs below the run folder.

    Mutant: both jobs in one folder, where the second finds a finished run.
    """
    answer = train("-m", "sampler.steps=3,4", "trainer.max_steps=2", "trainer.warm_steps=1")
    assert answer.code == 0, answer.error
    steps = [
        json.loads((tmp_path / f"r/{i}/config.json").read_text())["sampler"]["steps"]
        for i in (0, 1)
    ]
    assert steps == [3, 4]
    assert all((tmp_path / f"r/{i}/sampler.safetensors").is_file() for i in (0, 1))
    assert {path.name for path in tmp_path.iterdir()} == {"r", "banks"}


def test_notice_of_torch_is_hidden_and_no_other() -> None:
    """Mutant: a filter of all FutureWarnings, or one whose pattern misses PyTorch's message."""

    def job() -> None:
        torch.jit.script(doubled)
        warnings.warn("`torch.jit.script` is deprecated", FutureWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.jit.script(doubled)
        launch(job, "")
    future = [w for w in seen if w.category is FutureWarning]
    assert [Path(w.filename).name for w in future] == ["_script.py", "test_commands.py"]


def doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x
