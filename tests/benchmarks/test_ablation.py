"""The ablation: curves against costs, the reference, and the command."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from benchmarks import ablation, published
from benchmarks.ablation import PUBLISHED, chosen, curve_of, logged, summarise
from benchmarks.budget import composed
from benchmarks.tables import read_csv, write_csv
from benchmarks.variants import variants_of
from outsourced.bank import PairBank
from outsourced.build import build, resolve
from outsourced.paths import PathMixture
from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian
from outsourced.replay import ReplayBuffer
from outsourced.tasks import LinearMeasurement
from outsourced.training import SamplerTraining


def test_a_curve_pairs_figures_with_the_costs_of_their_step():
    """Mutant: the costs of the next log, the seconds of the evaluation itself."""
    rows = [
        {"step": "10", "seconds": "1.5", "prior_calls": "100", "eval/simulated/elbo": ""},
        {"step": "10", "eval/simulated/elbo": "-5", "eval/simulated/seconds": "0.2", "seconds": ""},
        {"step": "20", "seconds": "3.0", "prior_calls": "200", "eval/simulated/elbo": "-4"},
    ]
    assert curve_of(rows) == [
        {"step": 10.0, "elbo": -5.0, "seconds": 1.5, "prior_calls": 100.0},
        {"step": 20.0, "elbo": -4.0, "seconds": 3.0, "prior_calls": 200.0},
    ]


def test_the_log_of_a_resumed_run_is_one(tmp_path):
    """Mutants: the first log alone; steps that were done twice told twice; no order of ten logs."""
    steps = [(1, 2, 3, 4), (), (3, 4, 5), *[(5 + i,) for i in range(1, 10)]]
    for i, each in enumerate(steps):
        rows = [{"step": step, "seconds": 100 * i + step} for step in each]
        write_csv(tmp_path / ("csv" if i == 0 else f"csv-{i}") / "metrics.csv", rows)
    found = [(int(row["step"]), int(row["seconds"])) for row in logged(tmp_path)]
    assert found[:5] == [(1, 1), (2, 2), (3, 203), (4, 204), (5, 205)]
    assert found[5:] == [(5 + i, 100 * (i + 2) + 5 + i) for i in range(1, 10)]


def point(calls: float, elbo: float) -> dict[str, float]:
    return {"step": calls / 10, "seconds": calls, "prior_calls": calls, "elbo": elbo}


def test_equal_calls_are_half_of_the_median_variants():
    """Mutants: the reference's calls, which are of one y; the median itself; the first evaluation
    beyond the calls; the last evaluation above the goal for the first."""
    curves = {
        "default": [point(100, -9.0), point(200, -5.0), point(300, -4.0)],
        "late": [point(260, -8.0), point(500, -6.0)],
        "short": [point(50, -7.5), point(250, -7.0)],
        "thrifty": [point(20, -9.5), point(30, -7.7), point(40, -8.0)],
        PUBLISHED: [point(10, -20.0), point(20, -6.5)],
    }
    found = summarise(curves)
    assert found["default"]["at_calls"] == -9.0  # half of 275
    assert found["short"]["at_calls"] == -7.5
    assert found["thrifty"]["at_calls"] == -8.0
    assert found[PUBLISHED]["at_calls"] == -6.5
    assert "at_calls" not in found["late"]
    assert found["default"]["to_reference"] == 200
    assert found["late"]["to_reference"] == 500
    assert "to_reference" not in found["short"]
    assert found["default"]["elbo"] == -4.0


@pytest.mark.parametrize("prior", ["fashion_vae", "fashion_hvae", "fashion_gan"])
def test_variants_differ_from_the_default_in_what_they_say(prior):
    """Each has a sampler and an objective that go together, of other settings than all others.

    Mutants: an override that is the default's own; an objective without the flow that it learns, or
    with a guidance that it refuses.
    """
    seen = set()
    for variant in variants_of(prior):
        config = composed([f"prior={prior}", "task=superres", "run=r", *variant.changes])
        values = OmegaConf.to_container(config, resolve=True)
        problem = build(values)
        sampler = resolve(values, problem.posterior)
        told = repr([sampler, *(values[name] for name in ("objective", "paths", "trainer"))])
        assert told not in seen, variant.name
        seen.add(told)
        paths = {name: value for name, value in values["paths"].items() if name != "buffer"}
        buffer = ReplayBuffer(**values["paths"]["buffer"])
        mixture = PathMixture(problem.sampler, problem.posterior, buffer, **paths)
        objective, settings = instantiate(values["objective"]), instantiate(values["trainer"])
        SamplerTraining(problem.sampler, problem.posterior, objective, mixture, settings)
    assert len({variant.folder for variant in variants_of(prior)}) == len(seen)


def test_variants_change_what_they_are_called_after():
    """Mutants: the number of steps as another setting; a removed source that forgets its recipe, or
    another source; sources that are removed where nothing reads them.
    """
    known = {v.name: v.changes for v in variants_of("fashion_hvae")}
    config = {k: composed(["prior=fashion_hvae", "task=superres", *v]) for k, v in known.items()}
    assert config["default"].sampler.steps == 24
    assert config["K=16"].sampler.steps == 16
    for source in ("on_policy", "simulated", "replay", "refined"):
        found = config[f"log_variance alone, no {source} paths"]
        assert found.objective == config["log_variance alone"].objective
        assert found.trainer == config["log_variance alone"].trainer
        assert [k for k, v in found.paths.weights.items() if v == 0] == sorted(
            {"reference", source}, key=list(found.paths.weights).index
        )
    assert not any(name.startswith("no ") and name.endswith(" paths") for name in known)


def test_unknown_variants_are_named_before_training():
    """Mutant: a name that another prior has, found when the first one has been trained."""
    with pytest.raises(ValueError, match=r"fashion_hvae are published.*got 'gradient informed'"):
        chosen("fashion_hvae", ["gradient informed"])
    assert chosen("fashion_vae", ["gradient informed"]) == ["gradient informed"]
    with pytest.raises(ValueError, match="fashion_sd has a sampler without log-weights"):
        chosen("fashion_sd", None)


def test_the_published_recipe_learns_one_posterior(tmp_path):
    """With a hundred times its learning rate; its bound rises, and stays below log Z.

    Mutant: observations of other data, paths of another posterior, calls of the evaluations.
    """
    matrix = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    posterior = Posterior(LinearGaussian(2), LinearMeasurement(matrix, sigma=0.5))
    _, _, obs = posterior.simulate(1, torch.Generator().manual_seed(3))
    bank = PairBank.build(posterior, str(tmp_path), 64, 0, 64)
    settings = published.settings_of
    with pytest.MonkeyPatch.context() as patch:

        def faster(*args, **kwargs):
            return replace(settings(*args, **kwargs), balance_lr=3e-3)

        patch.setattr(published, "settings_of", faster)
        curve = published.train_published(posterior, obs, bank, 160, 512, 0, points=5)
    assert [point["step"] for point in curve] == [32, 64, 96, 128, 160]
    covariance = matrix @ matrix.T + 0.25 * torch.eye(2)
    law = torch.distributions.MultivariateNormal(torch.zeros(2), covariance)
    assert curve[0]["elbo"] < curve[-1]["elbo"] < float(law.log_prob(obs.y)) + 0.02
    assert float(law.log_prob(obs.y)) - curve[-1]["elbo"] < 0.5
    assert all(math.isfinite(p["seconds"]) and p["seconds"] > 0 for p in curve)
    assert curve[-1]["prior_calls"] == 160 * published.PATHS


@pytest.mark.slow
def test_the_command_fills_its_table(tmp_path, monkeypatch):
    """A second call trains nothing, and without the table it is written again from the folders.

    Mutants: a variant that is accepted and left out, a reference that is trained again, a bank that
    costs nothing.
    """
    monkeypatch.chdir(tmp_path)
    names = ["default", "no replay paths", PUBLISHED]
    with pytest.raises(SystemExit, match="must be 0 or >= --points = 4, got 3"):
        ablation.main(["--reference-steps", "3", "--points", "4"])
    small = ["--quick", "--reference-steps", "8", "--priors", "fashion_vae", "--tasks", "inpaint"]
    arguments = [*small, "--variants", *names]
    where = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "a.csv")]
    ablation.main([*arguments, *where, "--readme", str(tmp_path / "README.md")])
    rows = read_csv(tmp_path / "a.csv")
    assert {row["variant"] for row in rows} == set(names)
    assert all(float(row["prior_calls"]) > 0 and row["elbo"] for row in rows)
    run = tmp_path / "runs" / "0.02min-2x8" / "fashion_vae-inpaint-default"
    own = json.loads((run / "metrics.json").read_text())["train_prior_calls"]
    default = next(row for row in rows if row["variant"] == "default")
    assert float(default["prior_calls"]) == own + 256  # pairs of the bank
    assert float(rows[-1]["prior_calls"]) == 8 * published.PATHS
    with monkeypatch.context() as patch:
        patch.setattr(ablation, "cell", None)
        ablation.main([*arguments, *where, "--readme", str(tmp_path / "README.md")])
    assert read_csv(tmp_path / "a.csv") == rows
    (tmp_path / "a.csv").unlink()
    monkeypatch.setattr(ablation, "train_reference", None)
    ablation.main([*arguments, *where, "--readme", str(tmp_path / "README.md")])
    assert read_csv(tmp_path / "a.csv") == rows
