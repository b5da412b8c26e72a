"""Fashion-MNIST (Xiao, Rasul & Vollgraf, 2017, arXiv 1708.07747): all of it, or the embedded part.

The images are MIT-licensed, copyright Zalando SE; the licence text lies beside the embedded files.
"""

from __future__ import annotations

import gzip
import lzma
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
SUBSET_FOLDER = Path(__file__).resolve().parent / "zoo" / "data"
SUBSET_SIZES = {"train": 8192, "test": 1024}
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
IDX_PREFIX = {"train": "train", "test": "t10k"}


def load_fashion_mnist(
    split: str, folder: str | os.PathLike[str] | None = None
) -> tuple[Tensor, Tensor]:
    """Read a split of the full Fashion-MNIST from its gzipped IDX files.

    Args:
        split: "train" (60 000 images) or "test" (10 000).
        folder: where the four `*-ubyte.gz` files lie; by default the environment variable
            OUTSOURCED_DATA, then the folder of the Debian package.

    Returns:
        images, uint8 (N, 28, 28), and labels, int64 (N,).

    Raises:
        ValueError: an unknown split, or a file that is not gzipped IDX.
        FileNotFoundError: the folder or a file in it does not exist.
    """
    _check_split(split)
    root = Path(folder or os.environ.get("OUTSOURCED_DATA") or DEBIAN_FOLDER)
    prefix = IDX_PREFIX[split]
    images = _read_idx(root / f"{prefix}-images-idx3-ubyte.gz", dimensions=3)
    labels = _read_idx(root / f"{prefix}-labels-idx1-ubyte.gz", dimensions=1)
    if len(images) != len(labels):
        raise ValueError(f"{root}: {len(images)} {split} images but {len(labels)} labels")
    return torch.from_numpy(images), torch.from_numpy(labels).long()


def fashion_mnist_subset(split: str) -> tuple[Tensor, Tensor]:
    """The embedded part of Fashion-MNIST: the first 8192 training or 1024 test images.

    Args:
        split: "train" or "test".

    Returns:
        images in [-1, 1], float32 (N, 1, 32, 32), and labels, int64 (N,).

    Raises:
        ValueError: an unknown split, or a damaged file.
        FileNotFoundError: the embedded file is missing.
    """
    _check_split(split)
    path = subset_path(split)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: run `git checkout -- {path.name}` in its folder, or rebuild it "
            "with `python -m outsourced.zoo.subset`"
        )
    count = SUBSET_SIZES[split]
    try:
        raw = np.frombuffer(lzma.decompress(path.read_bytes()), dtype=np.uint8)
        pixels, labels = raw[: count * 784].reshape(count, 28, 28), raw[count * 784 :]
        if len(labels) != count:
            raise ValueError(f"{len(raw)} bytes instead of {count * 785}")
    except (lzma.LZMAError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): run `git checkout -- {path.name}` in its folder, or "
            "rebuild it with `python -m outsourced.zoo.subset`"
        ) from error
    return to_model_range(torch.from_numpy(pixels.copy())), torch.from_numpy(labels.copy()).long()


def subset_path(split: str) -> Path:
    """The embedded file of a split."""
    return SUBSET_FOLDER / f"fashion_mnist_{split}.xz"


def to_model_range(images: Tensor) -> Tensor:
    """Pad 28×28 bytes with black to 32×32 and scale to [-1, 1].

    Args:
        images: uint8 (N, 28, 28).

    Returns:
        float32 (N, 1, 32, 32) in [-1, 1].
    """
    return F.pad(images.float().div(127.5).sub(1.0), (2, 2, 2, 2), value=-1.0).unsqueeze(1)


def _check_split(split: str) -> None:
    if split not in IDX_PREFIX:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: `apt-get install dataset-fashion-mnist`, or put the four "
            "Fashion-MNIST *-ubyte.gz files in a folder and name it in the environment variable "
            "OUTSOURCED_DATA"
        )
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is not a complete gzip file ({error}); fetch it again") from error
    # IDX: two zero bytes, type 0x08 (unsigned byte), number of dimensions, big-endian sizes.
    if content[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(f"{path} is not an IDX file of {dimensions}-d unsigned bytes")
    header = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(content, dtype=">u4", count=dimensions, offset=4).astype(int))
    pixels = np.frombuffer(content, dtype=np.uint8, offset=header)
    if pixels.size != int(np.prod(shape)):
        raise ValueError(f"{path} announces {shape} values but holds {pixels.size}")
    return pixels.reshape(shape).copy()


def fashion_images(split: str) -> Tensor:
    """The images of `fashion_mnist_subset` without their labels, for a configuration.

    Args:
        split: "train" or "test".
    """
    return fashion_mnist_subset(split)[0]
