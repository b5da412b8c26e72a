"""Logs of a run: Weights & Biases without a network, across interruptions, and CSV without it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_without_network(start, tiny, tmp_path, monkeypatch) -> None:
    """W&B, the default logger, works offline without a key where no host can be reached.

    Mutant: an online default, which asks for a key or waits for the network.
    """
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    environment = {**nowhere, "WANDB_API_KEY": "", "HOME": str(tmp_path)}
    monkeypatch.delenv("WANDB_MODE")  # of the test suite
    child = start(
        *(str(ROOT / "train.py"), *tiny, "logger=wandb"),
        *("trainer.max_steps=4", "trainer.warm_steps=2"),
        **environment,
    )
    _, error = child.communicate(timeout=120)
    assert child.returncode == 0, error
    assert list((tmp_path / "r" / "wandb").glob("offline-run-*/*.wandb"))


def test_csv_logger_needs_no_wandb(start, tiny, tmp_path) -> None:
    """`logger=csv` where `import wandb` fails; the columns of the log are there.

    Mutant: a module-level import of wandb.
    """
    (tmp_path / "wandb.py").write_text("raise ImportError('no wandb here')")
    code = (
        "import sys; sys.path.insert(0, ''); import train; from outsourced.commands import launch; "
        "launch(train.main, train.CONFIGS)"
    )
    child = start("-c", code, *tiny, "logger=csv")
    _, error = child.communicate(timeout=120)
    assert child.returncode == 0, error
    header = (tmp_path / "r/csv/metrics.csv").read_text().splitlines()[0]
    for column in ("loss/simulated", "loss/on_policy", "loss/refined", "gradient_norm", "beta"):
        assert column in header.split(",")
    child = start("-c", code, *tiny, "logger=wandb", "run=w")
    _, error = child.communicate(timeout=120)
    assert child.returncode == 1
    assert "use logger=csv" in error


def test_resumed_run_keeps_its_wandb_run(train, interrupt_at) -> None:
    """The id of the W&B run lives in the run folder, until the run is overwritten.

    Mutants: an id that is never read, or one that an overwritten run inherits.
    """

    def ids() -> list[str]:
        logs = sorted(
            Path("r/wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime
        )
        return [path.stem.removeprefix("run-") for path in logs]

    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 4)
        assert "stopped at step 4" in train("logger=wandb").out
    answer = train("logger=wandb")
    assert "resuming r at step 4" in answer.out, answer.error
    assert train("logger=wandb", "overwrite=true").code == 0
    first, resumed, other = ids()
    assert first == resumed != other
