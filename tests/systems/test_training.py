"""The training module: rates, averages, clipping, skips, annealing, logged figures."""

from itertools import pairwise
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.loggers import Logger

from outsourced.annealing import conditional_ess
from outsourced.fit import fit
from outsourced.objectives import PathLikelihood, TrajectoryBalance
from outsourced.paths import SOURCES
from outsourced.run import Run
from outsourced.stepdata import PairData
from outsourced.training import SamplerTraining

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


class Recorder(Logger):
    """Keeps what is logged."""

    name, version = "recorder", 0

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics, step=None) -> None:
        self.rows.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs) -> None:
        raise AssertionError("the entry point logs the configuration")


def run(p, module, folder: Path, loggers=None) -> bool:
    lightning.seed_everything(0, verbose=False)
    target = Run(folder / "r")
    target.create({})
    data = PairData(p.bank(folder), None, module.settings)
    return fit(target, module, data, {"prior": "p"}, False, loggers, **QUIET)


def test_rates_of_the_two_groups(module_of, problem, tmp_path) -> None:
    """log Z learns `head_gain` times as fast as the rest, and every parameter learns.

    Mutant: a group that keeps the rate it was made with.
    """
    p = problem()
    module = module_of(p, TrajectoryBalance(), warm_steps=0, head_gain=7.0, max_steps=5, ramp=1)
    run(p, module, tmp_path)
    body, heads = module.optimizers().param_groups
    assert body["lr"] == pytest.approx(module.rate(4))
    assert heads["lr"] == pytest.approx(7 * module.rate(4))
    names = {id(value): name for name, value in p.sampler.named_parameters()}
    assert {names[id(value)].split(".")[0] for value in heads["params"]} == {"log_z_head"}
    assert len(body["params"]) + len(heads["params"]) == len(names)


def test_average_of_the_weights(module_of, problem, tmp_path) -> None:
    """The averaged weights obey a_n = d a_{n-1} + (1 - d) w_n with d = min(ema, (1+n)/(10+n)).

    Mutants: weights of the step before, the bare decay (whose average would stay at the start).
    """
    p = problem()
    module = module_of(p, ema=0.3)
    expected = {k: v.clone() for k, v in p.sampler.state_dict().items()}
    original = SamplerTraining.optimizer_step
    seen = []

    def optimizer_step(self, *args, **kwargs):
        original(self, *args, **kwargs)
        n = len(seen) + 1
        decay = min(0.3, (1 + n) / (10 + n))
        for name, value in p.sampler.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
        seen.append(self.steps_done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SamplerTraining, "optimizer_step", optimizer_step)
        assert run(p, module, tmp_path)
    assert seen == list(range(1, 13))
    for name, value in module.average.items():
        assert torch.allclose(value, expected[name], atol=1e-6)
    differs = [not torch.equal(module.average[k], v) for k, v in p.sampler.state_dict().items()]
    assert sum(differs) > len(differs) / 2


def test_gradient_is_clipped_by_its_norm(module_of, problem, tmp_path) -> None:
    """What the optimiser sees has at most norm `clip`, in the direction of the gradient.

    Mutants: clipping by value, by parameter, or the logged norm after clipping.
    """
    p = problem(sigma=0.02)
    module = module_of(p, warm_steps=0, clip=0.5, log_every=1)
    norms, recorder = [], Recorder()
    original = torch.optim.Adam.step

    def step(self, closure=None):
        loss = closure()
        squares = [
            v.grad.square().sum()
            for g in self.param_groups
            for v in g["params"]
            if v.grad is not None
        ]
        norms.append(float(torch.stack(squares).sum().sqrt()))
        return original(self) or loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", step)
        run(p, module, tmp_path, [recorder])
    raw = [row["gradient_norm"] for _, row in recorder.rows]
    assert min(raw) > 5
    assert norms == pytest.approx([0.5] * 12, rel=1e-4)


def test_non_finite_steps_are_skipped(module_of, problem, tmp_path) -> None:
    """A NaN loss changes no weight, is counted and reported; a run of them ends training.

    Mutants: an update by NaN, a count that a good step does not reset.
    """
    p = problem()
    module = module_of(p, warm_steps=12, max_skipped=3)
    original, states = module.losses.likelihood, []

    def likelihood(batch, count, cpu, device):
        states.append({k: v.clone() for k, v in p.sampler.state_dict().items()})
        loss, figures = original(batch, count, cpu, device)
        return (loss * torch.nan if len(states) in (3, 4, 7) else loss), figures

    module.losses.likelihood = likelihood
    with pytest.warns(UserWarning, match="skipped an optimiser step .step 2: log_reward is finite"):
        assert run(p, module, tmp_path)
    assert module.skips.total == 3
    assert module.skips.in_row == 0
    moved = [any(not torch.equal(a[k], b[k]) for k in a) for a, b in pairwise(states)]
    assert moved == [True, True, False, False, True, True, False, True, True, True, True]
    again = module_of(problem(), warm_steps=12, max_skipped=3)
    its_own = again.losses.likelihood
    again.losses.likelihood = lambda *a: (its_own(*a)[0] * torch.nan, {"loss": 0.0})
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ValueError, match="3 steps in a row gave a non-finite loss or gradient"),
    ):
        run(p, again, tmp_path / "again")


def test_beta_is_annealed(module_of, problem, tmp_path, monkeypatch) -> None:
    """From 0.001 beta rises to 1, no increment below the conditional ESS asked for; then it stays.

    Mutants: rewards that already hold beta, increments by backward paths instead of fresh ones, a
    target that is overshot.
    """
    import outsourced.training

    p = problem(sigma=0.1)
    options = {"warm_steps": 0, "max_steps": 60, "lr": 3e-3, "balance_lr": 3e-3, "groups": 32}
    few = {"on_policy": 5, "simulated": 1}
    module = module_of(p, None, few, beta_start=0.001, anneal_ess=0.8, batch=32, **options)
    original, steps = outsourced.training.next_beta, []

    def next_beta(beta, target, weight, reward, minimum):
        value = original(beta, target, weight, reward, minimum)
        ess = float(conditional_ess(weight, (value - beta) * reward.double()).mean())
        assert weight.shape == reward.shape == (5, 32)  # the fresh ones of 6
        steps.append((beta, value, ess))
        return value

    monkeypatch.setattr(outsourced.training, "next_beta", next_beta)
    assert p.posterior.beta == 0.001
    run(p, module, tmp_path)
    assert p.posterior.beta == 1.0
    assert 5 < len(steps) < 60
    assert all(low < high <= 1.0 and ess >= 0.8 - 1e-6 for low, high, ess in steps)
    assert [a[1] for a in steps[:-1]] == [b[0] for b in steps[1:]]
    assert steps[0][0] == 0.001


def test_logged_figures(module_of, problem, tmp_path) -> None:
    """Each phase logs its losses by source and the state of training, at its own step numbers;
    every fifth step is evaluated, and the end of the warm start.

    Mutant: figures of the first phase under the steps of the second, a buffer not looked at.
    """
    p, recorder, evaluated = problem(), Recorder(), []

    def evaluate(step: int) -> dict[str, float]:
        current = p.sampler.state_dict()
        assert all(torch.equal(current[k], v) for k, v in module.average.items())
        evaluated.append(step)
        return {"simulated/elbo": -1.5}

    module = module_of(p, evaluate=evaluate, evaluate_every=5)
    run(p, module, tmp_path, [recorder])
    rows = dict((step, row) for step, row in recorder.rows if "lr" in row)
    assert sorted(rows) == [3, 6, 9, 12]
    assert "loss/simulated" in rows[6]
    assert "loss/on_policy" not in rows[6]
    sources = {f"loss/{name}" for name in SOURCES}
    state = {"gradient_norm", "lr", "beta", "skipped", "steps_per_second", "prior_calls", "seconds"}
    buffer = {"buffer/observations", "buffer/best_log_reward", "buffer/move_step"}
    assert sources | state | buffer | {"log_weight/spread"} <= rows[12].keys()
    assert rows[12]["buffer/observations"] > rows[9]["buffer/observations"] > 0
    assert rows[12]["prior_calls"] == p.posterior.prior_calls
    assert evaluated == [5, 6, 10]
    assert [step for step, row in recorder.rows if "eval/simulated/elbo" in row] == [5, 6, 10]


def test_anchor_phase(module_of, problem, tmp_path) -> None:
    """The first steps train the anchor alone, on observations of their own number; the loss falls.

    Mutants: an anchor phase of samplers without anchor, a rate that does not start anew after it.
    """
    p, recorder = problem(informed="gauss_newton"), Recorder()
    options = {"anchor_steps": 150, "anchor_batch": 256, "warm_steps": 155, "max_steps": 160}
    module = module_of(p, ramp=1, final_lr=0.0, lr=1e-2, log_every=1, **options)
    run(p, module, tmp_path, [recorder])
    rows = [row for _, row in recorder.rows]
    assert all(row["loss"] == row["loss/anchor"] for row in rows[:150])
    assert all("loss/simulated" in row for row in rows[150:155])
    assert rows[150]["lr"] == pytest.approx(1e-2)
    # The entropy of the exact posterior is the optimum, without the constants that are left out.
    best = 0.5 * p.dim + 0.5 * float(torch.logdet(p.exact(p.posterior.simulate(1)[2])[1]))
    first, last = (sum(row["loss"] for row in part) / 10 for part in (rows[:10], rows[140:150]))
    assert best - 0.2 < last < best + 0.2
    assert first > last + 0.1
    plain = module_of(problem(), warm_steps=70, anchor_steps=60)
    assert plain.phases()[0][:2] == (0, 0)


def test_stored_draws_are_the_first_of_the_bank(module_of, problem, tmp_path) -> None:
    """They are in the weights that are kept, and stay as they are in training.

    Mutants: random rows, which are training pairs too; an average that still holds zeros.
    """
    p = problem(informed="anchor", lookup=16)
    module = module_of(p, PathLikelihood(), max_steps=4, ramp=1)
    assert module.store(p.bank(tmp_path)) == 16
    z, x = p.bank(tmp_path).rows(torch.arange(16))
    run(p, module, tmp_path)
    for name, value in (("anchoring.lookup.z", z), ("anchoring.lookup.x", x)):
        torch.testing.assert_close(module.average[name].float(), value, rtol=1e-3, atol=1e-3)
        assert torch.equal(module.average[name], module.sampler.state_dict()[name])
    assert problem().sampler.anchoring is None
    assert module_of(problem(), PathLikelihood(), max_steps=4).store(p.bank(tmp_path)) == 0
