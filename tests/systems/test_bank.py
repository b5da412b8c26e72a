"""The pair bank on disk."""

import errno
import fcntl
import json
import os
import shutil
import time

import pytest
import torch

import outsourced.bank
import outsourced.run
from outsourced.bank import PairBank
from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian


def build(problem, folder, size=50, **options):
    return PairBank.build(problem.posterior, folder, size, chunk=16, progress=False, **options)


def test_pairs_are_noise_and_its_data(problem, tmp_path) -> None:
    """x is f of its own z, and z is standard normal and new in every chunk.

    Mutants: x of another row, one seed for all chunks, a seed that is ignored.
    """
    prior = LinearGaussian(matrix=[[1.0, 2.0], [0.0, -3.0], [4.0, 0.5]], bias=[1.0, 0.0, -2.0])
    bank = PairBank.build(Posterior(prior, None), tmp_path, 4000, chunk=500, progress=False)
    z, x = bank.rows(torch.tensor([0, 3999, 7, 1500]))
    assert torch.allclose(x, prior(z))
    every, _ = bank.rows(torch.arange(4000))
    assert len(torch.unique(every[:, 0])) == 4000
    assert abs(every.mean()) < 0.05
    assert torch.allclose(every.T.cov(), torch.eye(2), atol=0.08)
    other = PairBank.build(
        Posterior(prior, None), tmp_path, 4000, seed=1, chunk=500, progress=False
    )
    assert not torch.equal(other.rows(torch.arange(5))[0], every[:5])


@pytest.mark.parametrize("chunks", [1, 2])
def test_interrupted_build_continues_to_the_same_bytes(problem, tmp_path, monkeypatch, chunks):
    """Stopped within chunk 2 or 3, after z was written and before x was: the same files in the end.

    Mutants: bytes of the incomplete chunk that stay, a seed of the call instead of the chunk, the
    chunk length of the second call.
    """
    p = problem()
    whole = build(p, tmp_path / "whole")
    original, done = outsourced.bank.os.fsync, [0]

    def stop(descriptor: int) -> None:
        done[0] += 1
        if done[0] == 3 * chunks + 2:  # z.bin, x.bin and bank.json are synchronised for each chunk
            raise KeyboardInterrupt
        original(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outsourced.bank.os, "fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            build(p, tmp_path / "parts")
    (folder,) = (tmp_path / "parts").iterdir()
    assert json.loads((folder / "bank.json").read_text())["done"] == 16 * chunks
    assert (folder / "x.bin").stat().st_size > 16 * chunks * 2 * 4
    with pytest.raises(ValueError, match="no complete pair bank"):
        PairBank(folder)
    p.posterior.prior_calls = 0
    again = PairBank.build(p.posterior, tmp_path / "parts", 50, chunk=7, progress=False)
    assert p.posterior.prior_calls == 50 - 16 * chunks
    for name in ("z.bin", "x.bin", "bank.json"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_banks_of_priors_sizes_and_seeds_are_apart(problem, tmp_path) -> None:
    """Another prior never reads this one's pairs; the same one is not computed again.

    Mutant: a folder named by the class of the prior.
    """
    p, wide = problem(), Posterior(LinearGaussian(matrix=[[2.0, 0.0], [0.0, 1.0]]), None)
    bank = build(p, tmp_path)
    other = PairBank.build(wide, tmp_path, 50, chunk=16, progress=False)
    assert len({bank.folder, other.folder, build(p, tmp_path, seed=1).folder}) == 3
    z, x = other.rows(torch.arange(50))
    assert torch.equal(x[:, 0], 2 * z[:, 0])
    calls = p.posterior.prior_calls
    assert build(p, tmp_path).folder == bank.folder
    assert p.posterior.prior_calls == calls


@pytest.mark.parametrize("damage", ["short", "garbage", "keys", "missing"])
def test_damage_is_reported(problem, tmp_path, damage) -> None:
    """Mutant: a memory map of the wrong length, or a KeyError."""
    bank = build(problem(), tmp_path)
    if damage == "short":
        with (bank.folder / "x.bin").open("r+b") as file:
            file.truncate(40)
    elif damage == "missing":
        (bank.folder / "z.bin").unlink()
    else:
        text = '{"size":' if damage == "garbage" else '{"size": 50, "done": 50}'
        (bank.folder / "bank.json").write_text(text)
    with pytest.raises(ValueError, match="delete the folder to rebuild the bank"):
        build(problem(), tmp_path)


def test_bank_shorter_than_its_record(problem, tmp_path) -> None:
    """An unfinished bank whose completed part was lost is not continued.

    Mutant: `truncate`, which extends a short file with zeros.
    """
    bank = build(problem(), tmp_path)
    meta = json.loads((bank.folder / "bank.json").read_text())
    (bank.folder / "bank.json").write_text(json.dumps({**meta, "done": 32}))
    (bank.folder / "x.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="shorter than what was completed"):
        build(problem(), tmp_path)


def test_no_space(problem, tmp_path, monkeypatch) -> None:
    """Too little space is found before any work; a disk that fills up leaves complete chunks.

    Mutant: no estimate, or a temporary file that stays.
    """
    usage = shutil.disk_usage(tmp_path)._replace(free=50 * 4 * 4 - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outsourced.bank.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(OSError, match=r"lower data\.bank_size"):
            build(problem(), tmp_path)
        assert build(problem(), tmp_path, size=49)
    done = [0]

    def full(_: int) -> None:
        done[0] += 1
        if done[0] > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outsourced.bank.os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            build(problem(), tmp_path)
    assert not list(tmp_path.rglob("*partial*"))
    assert len(build(problem(), tmp_path)) == 50


def test_prior_that_fails(problem, tmp_path) -> None:
    """Mutant: a bank with NaN in it."""
    prior = LinearGaussian(matrix=[[float("nan")]])
    with pytest.raises(ValueError, match="LinearGaussian returned non-finite data"):
        PairBank.build(Posterior(prior, None), tmp_path, 8, progress=False)
    with pytest.raises(ValueError, match=r"data.bank_size must be >= 1, got 0"):
        build(problem(), tmp_path, size=0)


# Builds the bank of `Problem` in the working folder; after a chunk it waits to be told to go on.
SLOW_BUILD = """
import time
from pathlib import Path
import torch
torch.set_num_threads(1)
from outsourced.bank import PairBank
from outsourced.posterior import Posterior
from outsourced.priors import LinearGaussian
forward = LinearGaussian.forward
def slow(self, z):
    while list(Path().glob("*/bank.json")) and not Path("go").exists():
        time.sleep(0.01)
    return forward(self, z)
LinearGaussian.forward = slow
PairBank.build(Posterior(LinearGaussian(2), None), ".", 50, chunk=16, progress=False)
"""


@pytest.mark.parametrize("dies", [False, True])
def test_second_process_waits_for_the_first(
    problem, start, tmp_path, monkeypatch, capsys, dies
) -> None:
    """Two processes build one bank: the second has no work to do, or goes on where the first died.

    Mutants: no lock (both append to the same files), a lock that outlives its process, a record of
    the state from before the wait.
    """
    child = start("-c", SLOW_BUILD)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/bank.json")):
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    flock = fcntl.flock

    def about_to_wait(file, operation: int) -> None:
        if not operation & fcntl.LOCK_NB:
            if dies:
                child.kill()
            else:
                (tmp_path / "go").touch()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", about_to_wait)
    p = problem()
    bank = build(p, tmp_path)
    assert "another process builds the pair bank" in capsys.readouterr().err
    assert p.posterior.prior_calls == (50 - 16 if dies else 0)
    whole = build(p, tmp_path / "whole")
    for name in ("z.bin", "x.bin", "bank.json"):
        assert (bank.folder / name).read_bytes() == (whole.folder / name).read_bytes()
