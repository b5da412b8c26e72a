"""The measures of the zoo, on sets whose faults are known."""

import math
import time

import pytest
import torch
from torchvision.io import read_image

from outsourced.classifiers import FashionFeatures
from outsourced.data import fashion_mnist_subset
from outsourced.priors import Prior
from outsourced.zoo import quality
from outsourced.zoo.quality import Judge


class Shifted(Prior):
    """x = 2 z + 1, slow when told to be, which remembers the sizes of its calls."""

    def __init__(self, waits: tuple[float, ...] = ()) -> None:
        super().__init__((1, 3, 3), (1, 3, 3))
        self.waits, self.calls = iter(waits), []

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        time.sleep(next(self.waits, 0.0))
        self.calls.append(len(z))
        return 2 * z + 1


def pixels(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 8, 8, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def judge() -> Judge:
    """The shipped network and the embedded part of Fashion-MNIST."""
    (train, _), (test, _) = (fashion_mnist_subset(split) for split in ("train", "test"))
    return Judge(train, test, FashionFeatures.from_weights())


def tiny_judge(train: int, test: int) -> Judge:
    torch.manual_seed(0)
    network = FashionFeatures(width=8, size=4, image_shape=(1, 8, 8))
    return Judge(pixels(train, 0), pixels(test, 1), network)


def test_entropy_of_known_histograms():
    """Mutant: bits instead of nats, NaN of an empty class, or the wrong sign."""
    assert quality.entropy(torch.full((10,), 0.1)) == pytest.approx(math.log(10))
    assert quality.entropy(torch.tensor([0.5, 0.5, 0.0])) == pytest.approx(math.log(2))
    assert quality.entropy(torch.tensor([0.0, 1.0])) == 0


def test_damaged_sets_are_farther_than_real_ones(judge):
    """Real training images are nearest; blur, noise, missing garments and one garment are not.

    Mutant: features of the wrong layer or range (blind to blur), a distance of the means only, or
    one to the training images, for which real ones are at 0.
    """
    train, labels = fashion_mnist_subset("train")
    sets = {
        "real": train[:1000],
        "noisy": quality.noisy(train[:1000], 0),
        "blurred": quality.blurred(train[:1000]),
        "no bags": train[labels != 8][:1000],
        "boots": train[labels == 9][:700],
    }
    found = {name: judge.fidelity(x) for name, x in sets.items()}
    distance = {name: values["frechet"] for name, values in found.items()}
    for name in ("noisy", "blurred", "no bags"):
        assert distance[name] > 1.5 * distance["real"], name
    assert distance["boots"] > max(distance["noisy"], distance["blurred"], distance["no bags"])
    assert distance["real"] > 0


def test_histogram_is_that_of_the_garments(judge):
    """Mutant: shares of the true labels of other images, or a minimum over the classes present."""
    train, labels = fashion_mnist_subset("train")
    even = judge.fidelity(train[:2000])
    assert even["classes"] == pytest.approx(10, abs=0.2)
    assert even["smallest_share"] == pytest.approx(0.08, abs=0.03)
    two = judge.fidelity(torch.cat([train[labels == 1][:300], train[labels == 8][:300]]))
    assert two["classes"] == pytest.approx(2, abs=0.3)
    assert two["entropy"] == pytest.approx(math.log(two["classes"]))
    assert two["smallest_share"] < 0.01


def test_copies_are_found_and_independent_draws_are_not():
    """Copies with noise are all nearer to training; fresh draws are in proportion to the sets.

    Mutant: training and test exchanged, or the share of test images.
    """
    judge = tiny_judge(train=300, test=100)
    assert judge.unlearned == 0.75
    fresh = judge.copying(pixels(1000, 2))
    assert fresh["nearer_train"] == pytest.approx(0.75, abs=0.05)
    noise = torch.randn(judge.train.shape, generator=torch.Generator().manual_seed(4))
    copies = judge.copying(judge.train + 0.05 * noise)
    assert copies["nearer_train"] == 1
    assert copies["nearest_median"] == pytest.approx(0.05, rel=0.05)
    assert fresh["nearest_low"] > 5 * copies["nearest_median"]
    half = torch.cat([judge.train[:20], pixels(980, 3)])
    found = judge.copying(half)
    assert found["nearest_low"] < 1e-3  # 2 % are copies
    assert found["nearest_median"] == pytest.approx(fresh["nearest_median"], rel=0.02)
    assert "nearer_train" not in judge.copying(judge.test, independent=False)


def test_nearest_distance_is_the_smallest_rms(monkeypatch):
    """Mutant: the distance to the mean, a sum over pixels, the farthest image, or a lost chunk."""
    monkeypatch.setattr(quality, "CHUNK", 2)
    reference = pixels(50, 2)
    offset = torch.tensor([0.0, 0.1, 0.05]).reshape(3, 1, 1, 1)
    found = quality.nearest_distance(reference[[7, 31, 2]] + offset, reference)
    torch.testing.assert_close(found, offset.flatten(), atol=1e-3, rtol=0)


def test_damage_is_as_announced():
    """Mutant: a blur of 5 x 5 or one that darkens the border; noise that leaves the range."""
    x = torch.full((1, 1, 8, 8), -1.0)
    x[0, 0, 4, 4] = 0.8
    soft = quality.blurred(x)
    assert soft[0, 0, 3:6, 3:6].flatten().tolist() == pytest.approx([-0.8] * 9)
    assert soft.sum() == pytest.approx(x.sum().item(), abs=1e-4)
    grey = quality.noisy(torch.zeros(100, 1, 8, 8), seed=0)
    assert grey.std().item() == pytest.approx(quality.NOISE, rel=0.03)
    assert quality.noisy(torch.ones(9, 1, 8, 8), seed=0).max() == 1
    assert torch.equal(grey, quality.noisy(torch.zeros(100, 1, 8, 8), seed=0))


def test_samples_do_not_depend_on_the_chunk():
    """Mutant: noise drawn in each chunk anew, a lost last chunk, or the global generator."""
    prior = Shifted()
    whole, parts = quality.draw(prior, 10, seed=3, chunk=64), quality.draw(prior, 10, 3, chunk=4)
    assert torch.equal(whole, parts)
    assert prior.calls == [10, 4, 4, 2]
    z = torch.randn(10, 1, 3, 3, generator=torch.Generator().manual_seed(3))
    assert torch.equal(whole, 2 * z + 1)


def test_seconds_are_the_median_after_a_warm_up():
    """Mutant: a mean, which one slow call moves, the warm-up counted, or fewer samples."""
    prior = Shifted(waits=(0.3, 0.02, 0.3, 0.02))
    assert 0.015 < quality.sampling_seconds(prior, n=7, repeats=3) < 0.2
    assert prior.calls == [7] * 4


def test_sheet_shows_the_images(tmp_path):
    """Mutant: each image stretched to its own range, rows for columns, or values clipped at 0."""
    x = torch.linspace(-1, 1, 6).reshape(6, 1, 1, 1).expand(6, 1, 4, 4)
    quality.save_samples(x, tmp_path / "a" / "sheet.png", columns=3, scale=1)
    sheet = read_image(str(tmp_path / "a" / "sheet.png"))
    assert sheet.shape == (3, 2 * 6 + 2, 3 * 6 + 2)
    shown = [int(sheet[0, 4 + 6 * row, 4 + 6 * column]) for row in (0, 1) for column in range(3)]
    assert shown == pytest.approx([0, 51, 102, 153, 204, 255], abs=1)
