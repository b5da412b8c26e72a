"""Fashion-MNIST: the IDX reader, the embedded part, and its recipe."""

import gzip
import struct

import numpy as np
import pytest
import torch

from outsourced import data
from outsourced.data import fashion_mnist_subset, load_fashion_mnist, to_model_range
from outsourced.zoo import subset


def write_idx(path, array: np.ndarray) -> None:
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def folder(tmp_path):
    """A data set of the same form with 40 training and 20 test images."""
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28))
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return tmp_path


def test_reader_returns_the_bytes_of_each_split(folder, monkeypatch):
    """Mutant: a header read little-endian or skipped by the wrong length, or test = train."""
    rng = np.random.default_rng(0)
    images, labels = load_fashion_mnist("train", folder)
    assert np.array_equal(images.numpy(), rng.integers(0, 256, (40, 28, 28)))
    assert torch.equal(labels, torch.arange(40) % 10)
    monkeypatch.setenv("OUTSOURCED_DATA", str(folder))
    test_images, test_labels = load_fashion_mnist("test")
    assert np.array_equal(test_images.numpy(), rng.integers(0, 256, (20, 28, 28)))
    assert len(test_labels) == 20


def test_padding_is_black_and_centred():
    """Mutant: padding with 0, which is grey here, or scaling to [0, 1]."""
    images = torch.full((2, 28, 28), 255, dtype=torch.uint8)
    images[1] = 0
    x = to_model_range(images)
    assert x.shape == (2, 1, 32, 32)
    assert x.dtype == torch.float32
    assert torch.equal(x[0, 0, 2:30, 2:30], torch.ones(28, 28))
    assert x[0].sum() == 28 * 28 - (32 * 32 - 28 * 28)
    assert torch.equal(x[1], torch.full((1, 32, 32), -1.0))


def test_embedded_part_is_fashion_mnist():
    """Mutant: pixels and labels cut at the wrong byte, shuffled labels, or train = test.

    The sums and the labels of the first images are facts of the public data set.
    """
    x, labels = fashion_mnist_subset("train")
    test, test_labels = fashion_mnist_subset("test")
    assert x.shape == (8192, 1, 32, 32)
    assert test.shape == (1024, 1, 32, 32)
    assert labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert test_labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert ((x[0] + 1) * 127.5).sum().round() == 76247
    assert x.min() == -1
    assert x.max() == 1
    # Labels belong to their images: trousers (1) are far narrower than pullovers (2).
    ink = (test[:, 0] > -0.5).float().mean((1, 2))
    assert ink[test_labels == 1].mean() < 0.6 * ink[test_labels == 2].mean()


def test_recipe_writes_what_the_reader_reads(folder, tmp_path, monkeypatch):
    """Mutant: an encoder and a decoder that disagree on the order of pixels and labels."""
    monkeypatch.setattr(data, "SUBSET_FOLDER", tmp_path / "out")
    monkeypatch.setitem(data.SUBSET_SIZES, "train", 16)
    path = subset.write_subset("train", folder)
    images, labels = load_fashion_mnist("train", folder)
    x, read_labels = fashion_mnist_subset("train")
    assert torch.equal(x, to_model_range(images[:16]))
    assert torch.equal(read_labels, labels[:16])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_missing_and_damaged_files_name_the_way_out(folder, tmp_path, monkeypatch):
    """Mutant: a bare error of gzip, lzma or numpy, or a truncated file that is read in part."""
    with pytest.raises(FileNotFoundError, match=r"dataset-fashion-mnist.*OUTSOURCED_DATA"):
        load_fashion_mnist("train", tmp_path / "nowhere")
    labels = folder / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(labels.read_bytes()[:-12])
    with pytest.raises(ValueError, match=r"train-labels.*not a complete gzip file"):
        load_fashion_mnist("train", folder)
    write_idx(labels, np.arange(39))
    with pytest.raises(ValueError, match="40 train images but 39 labels"):
        load_fashion_mnist("train", folder)
    labels.write_bytes(gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, 40) + bytes(39)))
    with pytest.raises(ValueError, match=r"announces .* but holds 39"):
        load_fashion_mnist("train", folder)
    write_idx(labels, np.zeros((5, 8)))
    with pytest.raises(ValueError, match="not an IDX file of 1-d unsigned bytes"):
        load_fashion_mnist("train", folder)
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'valid'"):
        fashion_mnist_subset("valid")
    whole = data.subset_path("test").read_bytes()
    monkeypatch.setattr(data, "SUBSET_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"git checkout.*outsourced\.zoo\.subset"):
        fashion_mnist_subset("test")
    data.subset_path("test").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"is damaged .*outsourced\.zoo\.subset"):
        fashion_mnist_subset("test")
