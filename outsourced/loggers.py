"""Where figures of merit go: a CSV file, Weights & Biases, or nowhere."""

import netrc
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

WANDB_ID = "wandb-id"  # file of the run folder; an overwritten run loses it


def csv_logger(run: str) -> Logger:
    """Figures of merit in RUN/csv/metrics.csv; a resumed run writes on in RUN/csv-1, RUN/csv-2, ...

    Args:
        run: Run folder.
    """
    version = next(folder.name for folder in csv_folders(run) if not folder.exists())
    return CSVLogger(run, name="", version=version, flush_logs_every_n_steps=1)


def csv_folders(run: str | Path) -> Iterator[Path]:
    """Where the logs of the first, second, ... start of a run lie, or would."""
    return (Path(run) / ("csv" if i == 0 else f"csv-{i}") for i in count())


def wandb_logger(
    run: str, project: str = "outsourced", offline: bool | None = None, **extra: Any
) -> Logger:
    """Weights & Biases; offline by default where no API key is configured.

    A resumed run writes on in its W&B run, whose id lies in the run folder. W&B keeps what was
    logged offline in a folder for each start, all of the same id.

    Args:
        run: Run folder; its name is the run's name.
        project: W&B project.
        offline: Force it; None looks for a key.
        extra: Further arguments of `wandb.init`.

    Raises:
        ValueError: W&B is not installed.
    """
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"logger=wandb needs the package wandb ({error}); install it, or use logger=csv"
        ) from error
    if offline is None:
        offline = not _has_key()
    known = Path(run) / WANDB_ID
    options = {"id": known.read_text() if known.is_file() else None, "resume": "allow", **extra}
    return WandbLogger(
        name=Path(run).name, save_dir=run, project=project, offline=offline, **options
    )


def _has_key() -> bool:
    """Whether W&B would find an API key without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def begin(loggers: list[Logger], config: dict[str, Any]) -> None:
    """Open the logs with the configuration of the run.

    Raises:
        OSError: W&B is online, but cannot be reached.
    """
    for logger in loggers:
        try:
            logger.log_hyperparams(config)
        except Exception as error:
            if not type(error).__module__.startswith("wandb"):
                raise
            raise OSError(
                f"W&B could not be started ({error}); use logger.offline=true or logger=csv, or "
                "mend the network or the key"
            ) from error
        if isinstance(logger, WandbLogger):
            _keep_id(logger)


@rank_zero_only
def _keep_id(logger: WandbLogger) -> None:
    assert logger.save_dir is not None
    (Path(logger.save_dir) / WANDB_ID).write_text(str(logger.experiment.id))


def log_image(loggers: list[Logger], name: str, path: Path, step: int) -> None:
    """Send a picture to the loggers that take pictures."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)], step=step)


def close(loggers: list[Logger]) -> None:
    """Complete the logs; W&B would write the next run of this process into the same one."""
    for logger in loggers:
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
