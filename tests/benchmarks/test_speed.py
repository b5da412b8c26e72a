"""The speed table: what is timed, what is compared, and the command."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import speed
from benchmarks.speed import Effort, clocked, inpainting, network_passes, sampling
from benchmarks.tables import read_csv
from benchmarks.training_step import BATCH, Step
from outsourced.solvers import Amortized


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Step:
    return Step(tmp_path_factory.mktemp("bank"), steps=3)


def test_clock_takes_the_median_of_calls_after_the_first() -> None:
    """Mutant: a mean, which one slow call moves, or set-up in the measurement."""
    waits = iter([0.2, 0.2, 0.01, 0.15, 0.01])
    assert 0.005 < clocked(lambda: time.sleep(next(waits)), 3) < 0.1


def test_training_is_that_of_the_claim(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a warm start in the place of balance steps, fewer paths, or seconds of all steps."""
    sizes: list[tuple[int, ...]] = []
    forward = step.sampler.forward_path

    def seen(obs: Any, n: int, *rest: Any) -> Any:
        path = forward(obs, n, *rest)
        sizes.append(tuple(path.z.shape))
        return path

    monkeypatch.setattr(step.sampler, "forward_path", seen)
    before = step.sampler.control.network.head.weight.clone()
    trained: list[float] = []
    train = step.train

    def recorded(steps: int) -> Any:
        module = train(steps)
        trained.append(module.seconds)
        return module

    monkeypatch.setattr(step, "train", recorded)
    start = time.perf_counter()
    each = step.trained_seconds(2, 1)
    assert 0 < sum(trained) < time.perf_counter() - start
    assert each == trained[1] / 2
    assert sizes == [(4, 1, BATCH, 64)] * 4
    assert not torch.equal(step.sampler.control.network.head.weight, before)
    assert bool((step.sampler.log_z_head[-1].weight != 0).any())  # trajectory balance learns it


def test_parts_do_what_they_are_called(step: Step) -> None:
    """Mutant: a part that draws and scores, an update that never steps."""
    parts = step.parts()
    drawn, scored = parts["drawing the paths"](), parts["scoring them"]()
    assert not drawn.z.requires_grad
    assert scored.requires_grad
    assert scored.shape == (1, BATCH)
    before = step.sampler.encoder.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    parts["Losses.balance, backward pass, Adam"]()
    after = step.sampler.encoder.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("informed", speed.INFORMED)
def test_network_passes_are_those_of_sampling(informed: str) -> None:
    """Mutant: passes of another size, of fewer steps, or without the guess behind the gradient."""
    sampler, posterior = inpainting(informed)
    networks = [sampler.control.network]
    if informed == "gradient":
        networks.append(sampler.control.guidance.network)  # type: ignore[union-attr]
    calls: list[tuple[tuple[int, ...], ...]] = []
    for network in networks:
        network.register_forward_hook(
            lambda _, inputs, out: calls.append((*(tuple(v.shape) for v in inputs[:3]), out.shape))
        )
    network_passes(sampler, posterior)()
    alone = sorted(calls)
    calls.clear()
    _, _, obs = posterior.simulate(speed.IMAGES)
    Amortized(sampler, posterior)(obs, 1)
    assert len(alone) == 25 * len(networks)
    assert alone == sorted(calls)


def test_ratio_compares_with_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the whole among its own parts, or a ratio upside down; a target met at any ratio."""
    times = iter([0.9, 0.1, 0.2, 0.25, 0.05])  # all, decode, passes, encoding, gradients
    monkeypatch.setattr(speed, "clocked", lambda *_: next(times))
    found = {str(r["what"]): r for r in sampling("gradient", Effort())}
    first = found["64 samples, informed=gradient: all / (decode + passes)"]
    assert first["value"] == pytest.approx(3.0)
    second = "64 samples, informed=gradient: all / (decode + passes + encoding + gradients)"
    assert found[second]["value"] == pytest.approx(1.5)
    times = iter([0.91, 0.1, 0.2])
    assert sampling("none", Effort())[-1]["met"] == "no"


def test_memory_of_a_step_is_judged_by_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the ratio upside down, or judged with the fragments of the heap."""
    peaks = {(25, True): 100.0, (200, True): 119.0, (25, False): 150.0, (200, False): 300.0}
    monkeypatch.setattr(speed, "_measured", lambda steps, exact: peaks[steps, exact])
    held, resident = (speed.memory()[i] for i in (2, 5))
    assert (held["value"], held["met"]) == (1.19, "yes")
    assert (resident["value"], resident["met"]) == (2.0, "")
    peaks[200, True] = 121.0
    assert speed.memory()[2]["met"] == "no"


def test_command_measures_memory_and_writes_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: memory of this process with all that it has imported, or a step that was not run."""
    measured = speed._measured
    monkeypatch.setattr(speed, "training", lambda _: [speed.row("training", 15.0, "steps/s")])
    monkeypatch.setattr(speed, "sampling", lambda name, _: [speed.row(name, 1.0, "")])
    monkeypatch.setattr(
        speed, "_measured", lambda k, exact: measured(2, True) if exact and k == 25 else 1.0
    )
    out = tmp_path / "speed.csv"
    speed.main(["--threads", "1", "--out", str(out), "--readme", str(tmp_path / "README.md")])
    records = {r["what"]: r for r in read_csv(out)}
    # The weights, their gradients and Adam's moments, and the activations of 2 x 256 kernels.
    assert 5 < float(records["peak memory held by a training step, K=25"]["value"]) < 100
    assert {r["threads"] for r in records.values()} == {"1"}
    assert "| training | 15 | steps/s |" in (tmp_path / "speed.md").read_text()
