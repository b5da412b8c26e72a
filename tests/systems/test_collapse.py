"""Trainings that collapse go back to their best state."""

import json
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from safetensors.torch import load_file

from outsourced.collapse import BETTER, COLLAPSED, WORSE
from outsourced.fit import fit
from outsourced.run import CHECKPOINT, WEIGHTS, Run
from outsourced.stepdata import PairData
from outsourced.watch import Watch

GAPS = {2: 3.0, 4: 2.0, 6: 1.0, 8: 1.5, 10: 40.0, 12: 60.0}
# A rate of the balance phase that destroys what the warm start has learned.
RUIN = (
    "trainer.balance_lr=3.0",
    "trainer.warm_steps=8",
    "trainer.collapse=0.5",
    "trainer.clip=1e9",
)


def run(p, module, folder: Path) -> None:
    lightning.seed_everything(0, verbose=False)
    target = Run(folder / "r")
    target.create({})
    data = PairData(p.bank(folder), None, module.settings)
    options = {"enable_progress_bar": False, "accelerator": "cpu"}
    fit(target, module, data, {"prior": "p"}, False, None, **options)


@pytest.mark.parametrize("steps", [10, 12])
def test_collapse_takes_the_best_state_back(module_of, problem, tmp_path, steps) -> None:
    """Weights, averages, moments and buffer of step 6 stand again behind the collapse at step 10,
    and behind another one two steps later; the rate is halved by each.

    Mutants: weights without moments or buffer, the last evaluated state, moments that the first
    return has handed out and that training has changed since, a rate that stays.
    """
    p = problem()

    def evaluate(step: int) -> dict[str, float]:
        return {"simulated/elbo": 0.0, "simulated/gap": GAPS[step]}

    module = module_of(
        p, evaluate=evaluate, evaluate_every=2, max_steps=steps, anchor_steps=0, warm_steps=6
    )
    kept, keep = [], module.guard.keep

    def remember(tensors) -> None:
        kept.append({name: value.detach().clone() for name, value in tensors.items()})
        keep(tensors)

    module.guard.keep = remember
    with pytest.warns(
        UserWarning, match="collapsed before step 10: an evaluation was more than tr"
    ):
        run(p, module, tmp_path)
    assert len(kept) == 3
    assert module.steps_done == steps
    assert module.guard.restarts == (1 if steps == 10 else 2)
    now = module.learned()
    assert now.keys() == kept[-1].keys()
    assert {name.split("/")[0] for name in now} == {"sampler", "average", "optimizer", "mixture"}
    assert all(torch.equal(now[name], value) for name, value in kept[-1].items())
    assert any(not torch.equal(now[name], value) for name, value in kept[-2].items())
    assert any(name.startswith("optimizer/") for name in now)
    plain = module.settings.rate(8, module.phases())
    assert module.rate(8) == pytest.approx(plain / (2 if steps == 10 else 4))


def test_collapse_at_the_end_is_seen_too(train) -> None:
    """No evaluation falls into the balance phase: the finished run has the state of the end of the
    warm start. Mutants: the ruined weights, figures of the ruined weights, no way to switch it off.
    """
    few = ("trainer.evaluate_every=100", "evaluate.observations=16", "evaluate.n=64")
    assert train(*RUIN, *few, "run=guarded").code == 0
    assert train(*RUIN, *few, "run=free", "trainer.collapse=null").code == 0
    assert train(*RUIN, *few, "run=short", "trainer.max_steps=8").code == 0
    names = ("guarded", "free", "short")
    guarded, free, short = (json.loads(Path(n, "metrics.json").read_text()) for n in names)
    assert (guarded["restarts"], free["restarts"]) == (1, 0)
    assert free["simulated/gap"] > 2 * guarded["simulated/gap"] + 0.5
    assert guarded["simulated/gap"] == pytest.approx(short["simulated/gap"], rel=1e-6)
    warm = load_file(Path("guarded", "warm.safetensors"))
    final = load_file(Path("guarded", WEIGHTS))
    assert all(torch.equal(warm[name], value) for name, value in final.items())


def test_resumed_run_knows_the_best_state(train, interrupt_at) -> None:
    """Interrupted in the very step that is evaluated best; the collapse comes after the resumption.

    Mutants: a checkpoint that is written before the evaluation of its step, or without the best
    state, so that the resumed run stays ruined.
    """
    often = ("trainer.evaluate_every=8", "trainer.save_every=100")
    assert train(*RUIN, *often, "run=whole").code == 0
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 8)
        assert train(*RUIN, *often).code == 0
    assert load_file(Path("r", CHECKPOINT))["guard/best"].isfinite()
    assert train(*RUIN, *often).code == 0
    metrics = json.loads(Path("r", "metrics.json").read_text())
    assert metrics["restarts"] == 1
    whole, resumed = (load_file(Path(name, WEIGHTS)) for name in ("whole", "r"))
    assert all(torch.equal(whole[name], value) for name, value in resumed.items())


def stumbling(module_of, p, bad: range):
    """A training of ten warm steps, evaluated as equally good every four, not finite at `bad`."""
    module = module_of(
        p,
        evaluate=lambda step: {"simulated/elbo": 0.0, "simulated/gap": 1.0},
        **{"evaluate_every": 4, "max_skipped": 3, "warm_steps": 10, "max_steps": 10},
    )
    original, states = module.losses.likelihood, []

    def likelihood(batch, count, cpu, device):
        states.append({k: v.clone() for k, v in module.learned().items()})
        loss, figures = original(batch, count, cpu, device)
        return (loss * torch.nan if batch["step"] in bad else loss), figures

    module.losses.likelihood = likelihood
    return module, states


def test_steps_that_are_not_finite_lead_back_once(module_of, problem, tmp_path) -> None:
    """Steps 5, 6 and 7 end in the state of the evaluation after step 4, and training goes on, half
    as fast; steps 5 to 10 are given up at the sixth, the evaluation after step 8 being no
    better; so are steps 1 to 3, before there is any.

    Mutants: skipped steps that never lead back, moments that stay, a rate that stays, a count that
    goes on so that the next bad step leads back again, returning for ever, nothing to return to.
    """
    p = problem()
    module, states = stumbling(module_of, p, range(5, 8))
    with pytest.warns(UserWarning, match="collapsed before step 8: 3 steps in a row gave a non-"):
        run(p, module, tmp_path)
    assert (module.skips.total, module.skips.in_row, module.guard.restarts) == (3, 0, 1)
    assert all(torch.equal(states[8][name], value) for name, value in states[4].items())
    assert any(not torch.equal(states[7][name], value) for name, value in states[4].items())
    assert any(not torch.equal(states[9][name], value) for name, value in states[8].items())
    assert module.rate(9) == pytest.approx(module.settings.rate(9, module.phases()) / 2)
    for bad, done in ((range(4, 10), 10), (range(3), 3)):
        p = problem()
        module, states = stumbling(module_of, p, bad)
        with (
            pytest.warns(UserWarning, match="skipped an optimiser step"),
            pytest.raises(ValueError, match="3 steps in a row gave a non-finite loss or gradient"),
        ):
            run(p, module, tmp_path / str(done))
        assert len(states) == done


@pytest.mark.parametrize("verdict", [BETTER, WORSE, COLLAPSED])
def test_other_processes_follow_the_first(module_of, problem, verdict) -> None:
    """Without an evaluation of their own. Mutants: one that goes back alone, one that keeps no
    state to go back to, one that judges what it has not seen."""
    module = module_of(problem(), evaluate=lambda step: {"simulated/elbo": 0.0}, evaluate_every=1)
    done: list[str] = []
    module.guard.keep = lambda tensors: done.append(BETTER)
    module.go_back = lambda: done.append(COLLAPSED) or {}
    module.learned = dict
    module.figures, module.log, module.steps_done = {"loss": 0.0}, lambda *_, **__: None, 1
    optimizer = torch.optim.Adam(module.sampler.parameters())
    told: list[object] = []

    def broadcast(value: object) -> str:
        told.append(value)
        return verdict

    trainer = SimpleNamespace(
        is_global_zero=False, strategy=SimpleNamespace(broadcast=broadcast), optimizers=[optimizer]
    )
    Watch().on_train_batch_end(trainer, module)
    assert told == [None]
    assert done == [verdict] * (verdict != WORSE)
