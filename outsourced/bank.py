"""Bank of (z, f(z)) pairs on disk: made once per prior, resumable, memory-mapped, for any task."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outsourced.posterior import Posterior
from outsourced.run import disk_errors, write_text

KEYS = {"size", "done", "chunk", "noise_shape", "data_shape"}
LATENTS = "latents"  # a column that costs nothing beside the pairs of a diffusion prior


class PairBank:
    """Pairs of noise z ~ N(0, I) and data x = f(z), read from disk on demand.

    Use `PairBank.build`; the folder holds raw float32 in `z.bin` and `x.bin`, of diffusion priors
    the latents of z, too, and `bank.json`.

    Args:
        folder: Folder of a complete bank.

    Raises:
        ValueError: The bank is missing, incomplete or damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        meta = _read_meta(self.folder)
        if meta is None or meta["done"] < meta["size"]:
            raise ValueError(
                f"{self.folder} holds no complete pair bank; build it with PairBank.build"
            )
        self.size = int(meta["size"])
        self._z = self._map("z.bin", meta["noise_shape"])
        self._x = self._map("x.bin", meta["data_shape"])

    def _map(self, name: str, shape: list[int]) -> np.memmap:
        path, event = self.folder / name, tuple(shape)
        expected = self.size * int(np.prod(event)) * 4
        if not path.is_file() or path.stat().st_size != expected:
            raise ValueError(
                f"{path} is not {expected} bytes long; delete the folder to rebuild the bank"
            )
        # Copy-on-write, since torch warns of arrays that cannot be written.
        return np.memmap(path, np.float32, "c", shape=(self.size, *event))

    def __len__(self) -> int:
        return self.size

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs at indices (n,): z (n, *noise_shape) and x (n, *data_shape)."""
        order = index.numpy()
        return torch.from_numpy(self._z[order]), torch.from_numpy(self._x[order])

    def column(
        self,
        name: str,
        make: Callable[[Tensor], Tensor],
        chunk: int = 1024,
        progress: bool = True,
    ) -> Tensor:
        """A further column that is made from z, of its shape, and kept beside the pairs.

        An interrupted call goes on at the chunk where it was stopped.

        Args:
            name: Of its file.
            make: Maps z (n, *noise_shape) to values of the same shape.
            chunk: Rows made and written at once.
            progress: Show a progress bar with the remaining time.

        Returns:
            (N, *noise_shape), read from disk on demand.

        Raises:
            ValueError: Values that are not finite, or a damaged file.
            OSError: Not enough free space; what is complete stays.
        """
        shape, path = list(self._z.shape[1:]), self.folder / f"{name}.bin"
        if not path.is_file():
            with _sole_builder(self.folder), disk_errors(self.folder):
                if not path.is_file():
                    self._fill(path, make, chunk, progress)
        return torch.from_numpy(self._map(path.name, shape))

    def _fill(
        self, path: Path, make: Callable[[Tensor], Tensor], chunk: int, progress: bool
    ) -> None:
        from tqdm import tqdm

        width, partial = self._z[0].nbytes, path.with_suffix(".partial")
        with partial.open("ab") as file:
            done = file.tell() // width
            file.truncate(done * width)
            bar = tqdm(total=self.size, initial=done, desc=path.stem, disable=not progress)
            for first in range(done, self.size, chunk):
                z = torch.from_numpy(self._z[first : first + chunk])
                with torch.no_grad():
                    value = make(z).float().cpu()
                if value.shape != z.shape or not value.isfinite().all():
                    raise ValueError(
                        f"{path.stem} of stored draws must be finite, of shape {tuple(z.shape)}, "
                        f"got {tuple(value.shape)}"
                    )
                file.write(value.numpy().tobytes())
                bar.update(len(z))
            bar.close()
        os.replace(partial, path)

    @classmethod
    def build(
        cls,
        posterior: Posterior,
        folder: str | os.PathLike[str],
        size: int,
        seed: int = 0,
        chunk: int = 1024,
        progress: bool = True,
    ) -> "PairBank":
        """Open the bank of a prior, generating what is missing of it.

        Each chunk draws from its own seed, so an interrupted build continues to the same bytes.
        Banks of different priors, sizes or seeds lie in different sub-folders. Of processes that
        build the same bank at once, one does and the others wait for it.

        Args:
            posterior: Gives the prior, its precision and its device.
            folder: Parent folder of all banks.
            size: Number of pairs.
            seed: Seed of z.
            chunk: Pairs generated and committed at once.
            progress: Show a progress bar with the remaining time.

        Raises:
            ValueError: size or chunk < 1, a damaged bank, or a prior that returns non-finite data.
            OSError: Not enough free space; what is complete stays and is continued.
        """
        for name, value in (("size", size), ("chunk", chunk)):
            if value < 1:
                raise ValueError(f"data.bank_{name} must be >= 1, got {value}")
        prior = posterior.prior
        place = Path(folder) / f"{prior.fingerprint()[:16]}-{size}-{seed}"
        with disk_errors(place):
            place.mkdir(parents=True, exist_ok=True)
        fresh: dict[str, Any] = {
            "size": size,
            "done": 0,
            "chunk": chunk,  # part of the seeds: a bank is continued as it was begun
            "noise_shape": list(prior.noise_shape),
            "data_shape": list(prior.data_shape),
        }
        if (_read_meta(place) or fresh)["done"] < size:
            with _sole_builder(place):
                meta = _read_meta(place) or fresh  # another process may have gone on meanwhile
                if meta["done"] < size:
                    widths = _widths(posterior, place, meta)
                    _check_space(place, meta, widths)
                    with disk_errors(place):
                        _generate(posterior, place, meta, widths, seed, progress)
        return cls(place)


@contextmanager
def _sole_builder(folder: Path) -> Iterator[None]:
    """Wait until no other process builds the bank; one that dies lets go of its lock."""
    with disk_errors(folder):
        file = open(folder / "lock", "w")  # noqa: SIM115
    with file:
        if sys.platform != "win32":  # which has no such lock
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"another process builds the pair bank {folder}; waiting for it to end"
                print(message, file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_meta(folder: Path) -> dict | None:
    path = folder / "bank.json"
    if not path.is_file():
        return None
    try:
        meta = json.loads(path.read_text())
        if missing := sorted(KEYS - set(meta)):
            raise ValueError(f"without {', '.join(missing)}")
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete the folder to rebuild the bank"
        ) from error
    return meta


def _widths(posterior: Posterior, folder: Path, meta: dict) -> dict[str, int]:
    """Bytes of a row of each column; one that an older version began without latents goes on so."""
    widths = {"z": int(np.prod(meta["noise_shape"])) * 4, "x": int(np.prod(meta["data_shape"])) * 4}
    begun = not meta["done"] or (folder / f"{LATENTS}.bin").is_file()
    if begun and hasattr(posterior.prior, "denoise") and posterior.precision == "float32":
        widths[LATENTS] = widths["z"]
    return widths


def _check_space(folder: Path, meta: dict, widths: dict[str, int]) -> None:
    needed = (meta["size"] - meta["done"]) * sum(widths.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the pair bank needs {needed / 1e6:.0f} MB in {folder}, but {free / 1e6:.0f} MB are "
            "free; free some space, lower data.bank_size or move data.bank_folder"
        )


def _generate(
    posterior: Posterior,
    folder: Path,
    meta: dict,
    widths: dict[str, int],
    seed: int,
    progress: bool,
) -> None:
    from tqdm import tqdm

    files = {name: open(folder / f"{name}.bin", "ab") for name in widths}  # noqa: SIM115
    bar = tqdm(total=meta["size"], initial=meta["done"], desc="pair bank", disable=not progress)
    try:
        for name, file in files.items():
            if file.tell() < meta["done"] * widths[name]:
                raise ValueError(
                    f"{folder / name}.bin is shorter than what was completed; delete the folder to "
                    "rebuild the bank"
                )
            file.truncate(meta["done"] * widths[name])  # the rest belongs to no complete chunk
        while meta["done"] < meta["size"]:
            count = min(meta["chunk"], meta["size"] - meta["done"])
            for name, value in _pairs(
                posterior, count, seed, meta["done"], LATENTS in widths
            ).items():
                files[name].write(value.numpy().tobytes())
                files[name].flush()
                os.fsync(files[name].fileno())
            meta["done"] += count
            write_text(folder / "bank.json", json.dumps(meta))
            bar.update(count)
    finally:
        bar.close()
        for file in files.values():
            with suppress(OSError):  # bytes that did not fit belong to no chunk
                file.close()


@torch.no_grad()
def _pairs(
    posterior: Posterior, count: int, seed: int, done: int, latent: bool
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + done)
    z = posterior.draw_noise(count, generator)
    if latent:
        latents = posterior.denoise(z)
        found = {"z": z, LATENTS: latents, "x": posterior.decode_latents(latents)}
    else:
        found = {"z": z, "x": posterior.decode(z)}
    if not torch.isfinite(found["x"]).all():
        raise ValueError(
            f"{type(posterior.prior).__name__} returned non-finite data; no bank was built"
        )
    return {name: value.float().cpu() for name, value in found.items()}
