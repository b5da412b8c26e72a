"""The recipe of the embedded classifiers on a few small images."""

import importlib.util
import itertools

import pytest
import torch
from safetensors import safe_open

from outsourced.classifiers import Classifier, FashionClassifier, FashionFeatures
from outsourced.data import to_model_range
from outsourced.weights import ZOO_WEIGHTS
from outsourced.zoo import fashion_classifier as recipe


def test_augmented_images_are_shifted_and_mirrored_each_on_its_own():
    """Each result is one of the 3 x 3 shifts, mirrored or not, with black moved in; all occur.

    Mutant: one shift for the whole batch, a roll that wraps around, rows and columns coupled, a
    mirror of the batch or of the rows, or 0 (grey) moved in.
    """
    x = torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    padded = torch.full((2, 8, 8), -1.0)
    padded[:, 1:7, 1:7] = x[0]
    expected = []
    for down, right, mirror in itertools.product(range(3), range(3), (False, True)):
        shifted = padded[:, down : down + 6, right : right + 6]
        expected.append(shifted.flip(2) if mirror else shifted)
    generator = torch.Generator().manual_seed(1)
    found = recipe.augment(x.expand(2000, -1, -1, -1), 1, generator)
    equal = (found[:, None] == torch.stack(expected)).flatten(2).all(2)
    assert bool((equal.sum(1) == 1).all())
    counts = equal.sum(0)  # 2000 / 18 = 111 each, with a standard deviation of 10
    assert counts.min() > 60
    assert counts.max() < 170


def test_learning_rate_rises_and_falls():
    """Mutant: no warm-up, a cosine that does not end at 0, or a jump between the two."""
    assert recipe.rate_at(recipe.WARM / 2, 2.0) == pytest.approx(1.0)
    assert recipe.rate_at(recipe.WARM - 1e-9, 2.0) == pytest.approx(2.0)
    assert recipe.rate_at(recipe.WARM, 2.0) == pytest.approx(2.0)
    assert recipe.rate_at((1 + recipe.WARM) / 2, 2.0) == pytest.approx(1.0)
    assert recipe.rate_at(1.0, 2.0) == pytest.approx(0.0)


def halves(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose upper (label 0) or lower (label 1) half is bright."""
    labels = torch.arange(n) % 2
    rows = torch.arange(28)[None, :, None].expand(n, 28, 28)
    return torch.where((rows < 14) ^ (labels[:, None, None] > 0), 220, 20).byte(), labels


def test_training_learns_repeats_and_returns_a_frozen_average():
    """Mutant: labels in another order than the images, an average that is never updated, or
    randomness outside the seed."""
    images, labels = halves(64)

    def trained() -> tuple[Classifier, Classifier]:
        torch.manual_seed(0)
        live = FashionClassifier(width=8, classes=2)
        return live, recipe.train(live, images, labels, epochs=10, batch=16, rate=5e-3, seed=3)

    (live, average), (_, again) = trained(), trained()
    x = to_model_range(images)
    assert torch.equal(average(x), again(x))
    assert not any(p.requires_grad for network in (live, average) for p in network.parameters())
    assert bool((live(x).argmax(1) == labels).all())
    torch.manual_seed(0)
    fresh = FashionClassifier(width=8, classes=2)
    start, last, mean = (
        torch.cat([p.flatten() for p in network.parameters()]) for network in (fresh, live, average)
    )
    # 40 updates of 1 / 500 each: close to the start, on the way to the end.
    moved = ((mean - start) @ (last - start)) / (last - start).square().sum()
    assert 0.005 < moved < 0.2


class Known(Classifier):
    """Says class 0 with the probability that is painted on the image."""

    embedded = "known"

    def __init__(self) -> None:
        super().__init__(2, (1, 8, 8))
        self.config = {}

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, 0, :1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = self.features(x)
        return torch.cat([p, 1 - p], 1).log() + 3.0


def test_card_rows_of_known_probabilities():
    """Four images at 0.9 (three right), four at 0.4, so 0.6 for class 1 (all right).

    Mutant: calibration gaps averaged over bins instead of images, recall of predictions instead of
    labels, or cross-entropy of logits that are not normalised.
    """
    p = torch.tensor([0.9] * 4 + [0.4] * 4)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    rows = recipe.evaluate(Known(), p[:, None, None, None].expand(8, 1, 8, 8), labels)
    assert rows["test accuracy"] == "0.8750"
    # -(3 log 0.9 + log 0.1 + 4 log 0.6) / 8 and (4 |0.9 - 0.75| + 4 |0.6 - 1|) / 8
    assert rows["test cross-entropy, nats"] == "0.5827"
    assert rows["expected calibration error"] == "0.2750"
    assert rows["smallest recall of a class"] == "0.800 (trouser)"


@pytest.mark.parametrize(("which", "kind"), [(k, v[0]) for k, v in recipe.RECIPES.items()])
@pytest.mark.parametrize("seed", [None, 0])
def test_command_writes_the_network_that_was_asked_for(which, kind, seed, tmp_path, monkeypatch):
    """Mutant: `--which` ignored, or a given seed of 0 taken for none."""
    monkeypatch.setattr(recipe, "load_fashion_mnist", lambda split, folder: halves(16))
    out = tmp_path / f"{which}.safetensors"
    more = [] if seed is None else ["--seed", str(seed)]
    recipe.main(["--which", which, "--epochs", "1", "--batch", "8", "--out", str(out), *more])
    assert kind.from_weights(out).config["width"] == recipe.RECIPES[which][1]["width"]
    with safe_open(out, framework="pt") as file:
        told = file.metadata()
    assert told["seed"] == str(recipe.RECIPES[which][2] if seed is None else 0)
    assert told["epochs"] == "1"


def test_the_two_recipes_share_neither_architecture_nor_seed():
    """Mutant: one seed for both, so that both see the images in one order."""
    kinds, _, seeds = zip(*recipe.RECIPES.values(), strict=True)
    assert set(kinds) == {FashionClassifier, FashionFeatures}
    assert len(set(seeds)) == 2


def test_every_weights_file_names_its_recipe():
    """The error about a broken file says `python -m outsourced.zoo.NAME --out FILE`.

    Mutant: weights under a name that no module has.
    """
    for path in ZOO_WEIGHTS.glob("*.safetensors"):
        assert importlib.util.find_spec(f"outsourced.zoo.{path.stem}") is not None, path.stem
