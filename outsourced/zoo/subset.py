"""Write the embedded part of Fashion-MNIST: `python -m outsourced.zoo.subset`.

The first 8192 training and the first 1024 test images, pixels then labels, as raw bytes under xz:
smaller than PNG, WebP and npz for these images (0.47 bytes a pixel).
"""

from __future__ import annotations

import argparse
import lzma
import os
from pathlib import Path

from torch import Tensor

from outsourced.data import SUBSET_SIZES, load_fashion_mnist, subset_path


def encode_subset(images: Tensor, labels: Tensor) -> bytes:
    """Compress images and labels into one xz stream.

    Args:
        images: uint8 (N, 28, 28).
        labels: integers in 0..9, (N,).

    Returns:
        the bytes that `outsourced.data.fashion_mnist_subset` reads back.
    """
    raw = images.numpy().tobytes() + labels.byte().numpy().tobytes()
    return lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)


def write_subset(split: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Cut the embedded part of a split out of the full data set and store it in the package.

    Args:
        split: "train" or "test".
        folder: where the full data set lies, see `outsourced.data.load_fashion_mnist`.

    Returns:
        the file written; an existing one is replaced at once, never half-written.
    """
    images, labels = load_fashion_mnist(split, folder)
    count, path = SUBSET_SIZES[split], subset_path(split)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(encode_subset(images[:count], labels[:count]))
    partial.replace(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default=None, help="where the full data set lies")
    args = parser.parse_args()
    for split in SUBSET_SIZES:
        path = write_subset(split, args.folder)
        print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
