"""Image files in and out: [-1, 1] tensors of the size that a prior generates."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from outsourced.run import replacing

if TYPE_CHECKING:
    from PIL import Image


def read_image(path: str | Path, shape: tuple[int, ...]) -> Tensor:
    """Read a picture as (C, H, W) in [-1, 1], cropped to the aspect ratio and resized if need be.

    Args:
        path: Any file that Pillow reads.
        shape: (C, H, W) with C = 1 (grey) or 3 (RGB).

    Raises:
        FileNotFoundError, ValueError: Missing or unreadable file, or a shape that is no picture.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"a picture has shape (1 or 3, H, W), but the prior generates {shape}")
    picture = _open(path).convert("L" if shape[0] == 1 else "RGB")
    values = torch.from_numpy(np.array(_fit(picture, shape[1], shape[2]), dtype=np.float32))
    return (values / 127.5 - 1).reshape(shape[1], shape[2], shape[0]).permute(2, 0, 1)


def read_mask(path: str | Path, shape: tuple[int, ...]) -> Tensor:
    """Read a mask as (1, H, W) of 0 (black, hidden) and 1 (white, observed).

    Raises:
        FileNotFoundError, ValueError: Missing or unreadable file, other size, or nothing observed.
    """
    picture = _open(path).convert("L")
    height, width = shape[-2:]
    if picture.size != (width, height):
        raise ValueError(
            f"mask {path} must be {width} x {height} pixels like the prior's images, got "
            f"{picture.size[0]} x {picture.size[1]}"
        )
    mask = torch.from_numpy((np.array(picture) >= 128).astype(np.float32))[None]
    if not mask.any():
        raise ValueError(f"mask {path} observes no pixel; white means observed")
    return mask


def write_image(path: Path, x: Tensor) -> None:
    """Write one image (1 or 3, H, W) in [-1, 1] as PNG."""
    from PIL import Image

    values = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().permute(1, 2, 0).numpy()
    with replacing(path) as partial:
        Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values).save(partial, "PNG")


def _open(path: str | Path) -> "Image.Image":
    from PIL import Image, UnidentifiedImageError

    if not Path(path).is_file():
        raise FileNotFoundError(f"image file {path} does not exist")
    try:
        picture = Image.open(path)
        picture.load()
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(
            f"image file {path} cannot be read ({error}); save it as PNG or JPEG"
        ) from error
    return picture


def _fit(picture: "Image.Image", height: int, width: int) -> "Image.Image":
    from PIL import Image, ImageOps

    if picture.size == (width, height):
        return picture
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
