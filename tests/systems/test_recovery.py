"""Interrupted, damaged and hopeless trainings."""

import contextlib
import errno
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import outsourced.run
from outsourced.run import CHECKPOINT, WEIGHTS, Run, write_tensors, write_text

ROOT = Path(__file__).resolve().parents[2]
# The three phases whose state could be lost: warm start, buffer and moves, annealed beta.
PHASES = {
    "warm": ("trainer.warm_steps=16",),
    "balance": (
        *("paths.weights.replay=0.3", "paths.weights.refined=0.3", "trainer.warm_steps=0"),
        *("trainer.likelihood_weight=0.1", "objective=trajectory_balance"),
    ),
    "annealing": ("trainer.warm_steps=0", "trainer.beta_start=0.001", "paths.kernel=pcn"),
    "anchored": (
        *("sampler.informed=anchor", "sampler.lookup=32", "sampler.climb=2", "sampler.rank=2"),
        *("trainer.warm_steps=1", "trainer.anchor_steps=0", "objective=reverse_kl"),
    ),
}


def weights(folder: str = "r") -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / WEIGHTS)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("step", [5, 13])
def test_resumed_run_is_bit_identical(train, interrupt_at, phase, step) -> None:
    """Stopped after step 5 or 13 (SIGINT), then resumed: the weights of an uninterrupted run.

    Mutants: a generator that lives through the run, a checkpoint taken before the step count or the
    average moved (Lightning calls callbacks before the module), a buffer, a step size of its moves,
    a beta or Adam moments that start anew.
    """
    answer = train(*PHASES[phase], "run=whole")
    assert answer.code == 0, answer.error
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, step)
        answer = train(*PHASES[phase])
    assert answer.code == 0, answer.error
    assert f"stopped at step {step}; the same command resumes r" in answer.out
    assert Path("r", CHECKPOINT).is_file()
    assert not Path("r", WEIGHTS).exists()
    answer = train(*PHASES[phase])
    assert answer.code == 0, answer.error
    assert f"resuming r at step {step} of 16" in answer.out
    assert not Path("r", CHECKPOINT).exists()
    assert same(weights("whole"), weights("r"))


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_killed_process_resumes(start, train, tiny, tmp_path, sent) -> None:
    """A process killed at a random moment of its training resumes bit-identically.

    Mutant: a checkpoint written in place, of which SIGKILL leaves a part.
    """
    options = ("trainer.max_steps=80", "trainer.warm_steps=50", "trainer.save_every=3")
    child = start(str(ROOT / "train.py"), *tiny, *options)
    wait_for(tmp_path / "r" / CHECKPOINT, child)
    time.sleep(0.3 * torch.rand(()).item())
    child.send_signal(sent)
    out, error = child.communicate(timeout=60)
    assert child.returncode == (0 if sent == signal.SIGINT else -signal.SIGKILL), error
    assert ("the same command resumes" in out) == (sent == signal.SIGINT)
    assert not (tmp_path / "r" / WEIGHTS).exists()
    load_file(tmp_path / "r" / CHECKPOINT)
    answer = train(*options)
    assert answer.code == 0, answer.error
    assert "resuming r at step" in answer.out
    assert train(*options, "run=whole").code == 0
    assert same(weights("whole"), weights("r"))


def wait_for(path: Path, child: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_finished_changed_and_foreign_runs(train, sample) -> None:
    """What is in a run folder is never overwritten unasked, and never taken for something else.

    Mutant: no comparison of fingerprints, or a pickle error for a damaged file.
    """
    assert train("trainer.max_steps=2", "trainer.warm_steps=1").code == 0
    answer = train("trainer.max_steps=2", "trainer.warm_steps=1")
    assert answer.code == 1
    assert "r holds a finished run" in answer.line
    first = weights()
    assert train("trainer.max_steps=3", "trainer.warm_steps=1", "overwrite=true").code == 0
    assert not same(first, weights())
    foreign(sample)


def foreign(sample) -> None:
    tensors = weights()
    write_tensors(Path("r", WEIGHTS), tensors, {"prior": "0" * 64})
    answer = sample("run=r")
    assert answer.code == 1
    assert "was trained for a prior with fingerprint 0000000000000000" in answer.line
    data = Path("r", WEIGHTS).read_bytes()
    Path("r", WEIGHTS).write_bytes(data[: len(data) // 2])
    answer = sample("run=r")
    assert answer.code == 1
    assert "r/sampler.safetensors is truncated or damaged" in answer.line
    assert not Path("r/samples").exists()


def test_unfinished_run_of_other_settings(train, interrupt_at) -> None:
    """A checkpoint is resumed by its own settings and its own prior only.

    Mutants: a comparison of configurations that compares nothing, no fingerprint in a checkpoint,
    an `overwrite=true` that throws the checkpoint of its own interrupted run away.
    """
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 4)
        assert "stopped at step 4" in train("overwrite=true").out
        train("run=s")
    answer = train("trainer.lr=0.5")
    assert answer.code == 1
    assert "trainer.lr: 0.001 -> 0.5" in answer.line
    assert "resuming r at step 4" in train("overwrite=true").out
    tensors = load_file(f"s/{CHECKPOINT}")
    write_tensors(Path("s", CHECKPOINT), tensors, {"prior": "f" * 64})
    answer = train("run=s")
    assert answer.code == 1
    assert "fingerprint ffffffffffffffff" in answer.line


@pytest.mark.parametrize("writer", ["text", "tensors"])
def test_full_disk_leaves_the_previous_file(tmp_path, monkeypatch, writer) -> None:
    """A write that fails half-way: one error, the old file, and no partial one.

    Mutant: writing in place, or a temporary file that stays.
    """
    path = tmp_path / "file"

    def write(value: float) -> None:
        if writer == "text":
            write_text(path, str(value))
        else:
            write_tensors(path, {"value": torch.full((100,), value)}, {})

    write(1.0)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(outsourced.run.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*what was there is untouched"):
        write(2.0)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # weights are still mapped


def test_full_disk_for_real(train, small_disk) -> None:
    """A run on a full tmpfs: one line, the checkpoint before it is whole, nothing partial.

    With space again the same command resumes to the weights of an uninterrupted run.

    Mutant: see above, and a resumed run that misses the step of the failed checkpoint.
    """
    options = (f"run={small_disk}/r", "sampler.width=8", "paths.buffer.capacity=16")
    filler = small_disk / "filler"
    from outsourced.fit import Recovery

    original = Recovery.on_train_batch_end

    def fill(self, trainer, module, *rest):  # type: ignore[no-untyped-def]
        if module.steps_done == 7:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1024))
        return original(self, trainer, module, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recovery, "on_train_batch_end", fill)
        answer = train(*options)
    assert answer.code == 1
    assert "No space left on device" in answer.line
    names = {path.name for path in (small_disk / "r").iterdir()}
    assert names >= {"config.json", CHECKPOINT}
    assert not any("partial" in name for name in names)
    filler.unlink()
    answer = train(*options)
    assert "at step 5 of 16" in answer.out, answer.error
    assert train(*options[1:], "run=whole").code == 0
    assert same(weights("whole"), weights(f"{small_disk}/r"))


def test_reward_that_is_not_a_number(train, monkeypatch) -> None:
    """A reward of NaN is skipped and counted; many end in one error that names log_reward.

    Mutant: an update with NaN gradients (all weights are NaN from then on), a skip without a word.
    """
    from outsourced.tasks.measurement import Measurement

    original, calls = Measurement.log_reward, [0]

    def sometimes(self, x, obs):  # type: ignore[no-untyped-def]
        calls[0] += 1
        return original(self, x, obs) * (torch.nan if calls[0] in (40, 41) else 1.0)

    options = ("trainer.warm_steps=0", "sampler.informed=none", "evaluate.n=2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Measurement, "log_reward", sometimes)
        answer = train(*options)
    assert answer.code == 0, answer.error
    assert "skipped" in answer.out
    assert float(answer.out.split("skipped")[1].split()[0]) >= 1
    assert all(torch.isfinite(value).all() for value in weights().values())
    monkeypatch.setattr(Measurement, "log_reward", lambda *a: original(*a) * torch.nan)
    answer = train(*options, "run=bad", "trainer.max_skipped=3")
    assert answer.code == 1
    assert "3 steps in a row" in answer.line
    assert "log_reward is not finite" in answer.line
    assert not Path("bad", WEIGHTS).exists()


def test_resume_without_checkpoint_names_the_file(tmp_path) -> None:
    """Mutant: a KeyError of safetensors, or a silent start from scratch."""
    from outsourced.fit import resume

    with pytest.raises(FileNotFoundError, match=r"checkpoint\.safetensors does not exist"):
        resume(Run(tmp_path), None, "")  # type: ignore[arg-type]
