"""Image files in and out."""

import numpy as np
import pytest
import torch
from PIL import Image

from outsourced.pictures import read_image, read_mask, write_image


@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip(tmp_path, generator, channels) -> None:
    """All 256 levels survive, channels and axes included.

    Mutants: truncation instead of rounding (one level lost), H and W exchanged, BGR.
    """
    levels = torch.randint(0, 256, (channels, 5, 7), generator=generator)
    x = levels / 127.5 - 1
    write_image(tmp_path / "a.png", x)
    assert torch.allclose(read_image(tmp_path / "a.png", (channels, 5, 7)), x, atol=1e-6)
    pixels = np.array(Image.open(tmp_path / "a.png")).reshape(5, 7, channels)
    assert (pixels[2, 6] == levels[:, 2, 6].numpy()).all()
    write_image(tmp_path / "a.png", 3 * x)
    outside = read_image(tmp_path / "a.png", (channels, 5, 7))
    assert torch.allclose(outside, (3 * x).clamp(-1, 1), atol=1 / 255 + 1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_other_sizes_and_modes(tmp_path) -> None:
    """A wide colour photo becomes a grey square of its centre; transparency does no harm.

    Mutants: a photo that is squeezed (its black margins would stay), a grey value of one channel.
    """
    wide = np.zeros((40, 80, 3), dtype=np.uint8)
    wide[:, 20:60] = (255, 0, 0)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    grey = read_image(tmp_path / "wide.png", (1, 8, 8))
    assert torch.allclose(grey, torch.full((1, 8, 8), 76 / 127.5 - 1), atol=0.06)
    red = read_image(tmp_path / "wide.png", (3, 8, 8))
    assert torch.allclose(red[:, 4, 4], torch.tensor([1.0, -1.0, -1.0]), atol=0.02)
    Image.fromarray(np.full((6, 6, 4), 255, np.uint8), "RGBA").save(tmp_path / "clear.png")
    assert torch.equal(read_image(tmp_path / "clear.png", (1, 6, 6)), torch.ones(1, 6, 6))


def test_masks(tmp_path) -> None:
    """White is observed; grey is cut at one half.

    Mutant: an inverted mask, or one between 0 and 1.
    """
    pixels = np.array([[0, 127, 128, 255]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", (3, 1, 4)).tolist() == [[[0.0, 0.0, 1.0, 1.0]]]
    with pytest.raises(ValueError, match=r"must be 5 x 1 pixels .* got 4 x 1"):
        read_mask(tmp_path / "m.png", (1, 1, 5))
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "black.png")
    with pytest.raises(ValueError, match="observes no pixel; white means observed"):
        read_mask(tmp_path / "black.png", (1, 2, 2))


def test_files_that_are_no_pictures(tmp_path) -> None:
    """Mutant: an error of the image library, without a way out."""
    write_image(tmp_path / "good.png", torch.zeros(1, 64, 64))
    data = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("cut.png", "text.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            read_image(tmp_path / name, (1, 64, 64))
    with pytest.raises(FileNotFoundError, match=r"none.png does not exist"):
        read_image(tmp_path / "none.png", (1, 64, 64))
    for shape in ((3,), (4, 8, 8)):
        with pytest.raises(ValueError, match="a picture has shape"):
            read_image(tmp_path / "good.png", shape)
