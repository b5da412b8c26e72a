"""A run folder: resolved configuration, weights, checkpoint, metrics, figures. Nothing pickled."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WEIGHTS = "sampler.safetensors"
WARM = "warm.safetensors"
CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.json"
FIGURES = "figures"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a failed write to `path` into one error that says what is still good."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # described already
            raise
        raise OSError(
            f"cannot write {path} ({os.strerror(error.errno)}); what was there is untouched: "
            "free some space or choose another folder, then start the same command again"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to; it replaces `path` once all is on disk, or is removed."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    with disk_errors(path):
        try:
            yield partial
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    with replacing(path) as partial:
        partial.write_text(text)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """`write_text` for a safetensors file."""
    from safetensors.torch import save

    data = save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, metadata)
    with replacing(path) as partial:
        partial.write_bytes(data)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        FileNotFoundError, ValueError: Missing, truncated or damaged file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; train first, e.g. `python train.py run={path.parent}`"
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or damaged ({error}); restore it from a copy, or train again "
            f"with `python train.py run={path.parent} overwrite=true`"
        ) from error


class Run:
    """A run folder and its files.

    Args:
        folder: Its path.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration.

        Raises:
            FileNotFoundError: Not a run folder.
        """
        path = self.folder / "config.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.folder} is not a run folder (no config.json); "
                f"`python train.py run={self.folder}` makes one"
            )
        return json.loads(path.read_text())

    @property
    def finished(self) -> bool:
        """Whether training has ended and the weights are written."""
        return (self.folder / WEIGHTS).is_file()

    def create(self, config: dict[str, Any], overwrite: bool = False) -> bool:
        """Start or continue the run; returns whether there is a checkpoint to resume from.

        Raises:
            ValueError: The folder holds a finished run, or an unfinished one of other settings.
        """
        known = (self.folder / "config.json").is_file()
        changed = _differences(self.config, config) if known else []
        # An unfinished run of the same settings is resumed even so: the command may be repeated.
        if overwrite and (self.finished or changed):
            self._clear()
        elif self.finished:
            raise ValueError(
                f"{self.folder} holds a finished run; choose another folder with run=..., or "
                "replace it with overwrite=true"
            )
        elif changed and (self.folder / CHECKPOINT).is_file():
            raise ValueError(
                f"{self.folder} holds an unfinished run with another configuration "
                f"({'; '.join(changed[:5])}); repeat its settings to resume it, or use run=... or "
                "overwrite=true"
            )
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "config.json", json.dumps(config, indent=2))
        return (self.folder / CHECKPOINT).is_file()

    def _clear(self) -> None:
        for name in (WEIGHTS, WARM, CHECKPOINT, METRICS, "config.json", "wandb-id"):
            (self.folder / name).unlink(missing_ok=True)
        for folder in (*self.folder.glob("csv*"), self.folder / FIGURES):
            shutil.rmtree(folder, ignore_errors=True)

    def load_weights(
        self, sampler: torch.nn.Module, fingerprint: str, name: str = WEIGHTS
    ) -> dict[str, str]:
        """Load the weights into a sampler of the same architecture; returns their metadata.

        Args:
            sampler: Built from this run's configuration.
            fingerprint: Of the prior at hand; weights are for one prior only.
            name: `WEIGHTS`, or `WARM` for those at the end of the warm start.

        Raises:
            FileNotFoundError, ValueError: Weights missing, damaged or of another prior or network.
        """
        path = self.folder / name
        weights, metadata = read_tensors(path)
        check_prior(path, metadata, fingerprint)
        try:
            sampler.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"{path} does not fit the network of {self.folder / 'config.json'}: {error}"
            ) from error
        return metadata

    def finish(
        self, weights: dict[str, Tensor], metadata: dict[str, str], metrics: dict[str, Any]
    ) -> None:
        """Write figures of merit and weights; the checkpoint goes last.

        Args:
            weights: Of the sampler.
            metadata: What identifies their prior and code; it is stored in both files.
            metrics: Figures of merit.
        """
        write_text(self.folder / METRICS, json.dumps({**metrics, **metadata}, indent=2))
        write_tensors(self.folder / WEIGHTS, weights, metadata)
        (self.folder / CHECKPOINT).unlink(missing_ok=True)

    def figure(self, step: int) -> Path:
        """Where the picture of an evaluation lies."""
        return self.folder / FIGURES / f"step_{step:06d}.png"


def check_prior(path: Path, metadata: dict[str, str], fingerprint: str) -> None:
    """Refuse weights that were trained for another prior.

    Raises:
        ValueError: The fingerprints differ.
    """
    stored = metadata.get("prior", "unknown")
    if stored != fingerprint:
        raise ValueError(
            f"{path} was trained for a prior with fingerprint {stored[:16]}, but the prior at hand "
            f"has {fingerprint[:16]}; restore the prior's weights, or train again for this one"
        )


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        parts = (_differences(old.get(k), new.get(k), f"{name}.{k}" if name else k) for k in keys)
        return [change for part in parts for change in part]
    return [] if old == new else [f"{name}: {old} -> {new}"]
