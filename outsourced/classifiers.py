"""Two independent Fashion-MNIST classifiers: one for rewards, one that only evaluates."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from outsourced.weights import Embedded

GROUP = 8  # channels that share a normalisation


class Classifier(Embedded):
    """A frozen image classifier, differentiable with respect to the image.

    A subclass implements `features` and has a last layer `head`. Nothing is normalised over a
    batch: an image has the same logits alone and among others.

    Args:
        classes: number of classes.
        image_shape: (C, H, W) of the images.
    """

    def __init__(self, classes: int, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.classes = int(classes)
        self.image_shape = tuple(int(size) for size in image_shape)

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features of images.

        Args:
            x: images in [-1, 1], (B, C, H, W).

        Returns:
            features, (B, D).

        Raises:
            ValueError: the images have another shape.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement features(x)")

    def forward(self, x: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the classes.

        Args:
            x: images in [-1, 1], (B, C, H, W).

        Returns:
            logits, (B, classes).

        Raises:
            ValueError: the images have another shape.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement forward(x)")

    def log_probs(self, x: Tensor) -> Tensor:
        """Log-probabilities of the classes, in nats.

        Args:
            x: images in [-1, 1], (B, C, H, W).

        Returns:
            log p(class|x), (B, classes).

        Raises:
            ValueError: the images have another shape.
        """
        return self(x).log_softmax(-1)

    def freeze(self) -> None:
        """Switch to eval mode and stop all gradients to the weights, not those to the image."""
        self.requires_grad_(False)
        self.eval()

    def check(self, x: Tensor) -> None:
        """Refuse images of another shape."""
        if x.dim() != 4 or tuple(x.shape[1:]) != self.image_shape:
            expected = ", ".join(map(str, ("B", *self.image_shape)))
            raise ValueError(
                f"{self.embedded} expects images in [-1, 1] of shape ({expected}), got "
                f"{tuple(x.shape)}; resize or crop them first"
            )


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))) (He et al., 2016, arXiv 1603.05027), per-sample."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(channels // GROUP, channels) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.convs[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(F.silu(norm(h)))
        return x + h


class FashionClassifier(Classifier):
    """A residual network for rewards, smooth in the image: log p(garment|x).

    Args:
        width: channels of the first of three stages; each further one doubles them.
        blocks: residual blocks of each stage.
        classes: number of classes.
        image_shape: (C, H, W), H and W divisible by 8.

    Raises:
        ValueError: a size does not fit.
    """

    embedded = "fashion_classifier"

    def __init__(
        self,
        width: int = 32,
        blocks: int = 1,
        classes: int = 10,
        image_shape: tuple[int, ...] = (1, 32, 32),
    ) -> None:
        _check_sizes("FashionClassifier", width, image_shape, blocks=blocks, classes=classes)
        super().__init__(classes, image_shape)
        self.config = {
            "width": width,
            "blocks": blocks,
            "classes": classes,
            "image_shape": list(image_shape),
        }
        layers: list[nn.Module] = []
        channels = image_shape[0]
        for stage in range(3):
            last, channels = channels, width * 2**stage
            layers.append(nn.Conv2d(last, channels, 3 if stage else 5, 2, 1 if stage else 2))
            layers += [ResidualBlock(channels) for _ in range(blocks)]
        self.body = nn.Sequential(*layers)
        self.norm = nn.GroupNorm(channels // GROUP, channels)
        self.head = nn.Linear(channels, classes)
        self.freeze()

    def features(self, x: Tensor) -> Tensor:
        """Mean over the image of the last stage's channels, (B, 4 width)."""
        self.check(x)
        return F.silu(self.norm(self.body(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (B, classes)."""
        return self.head(self.features(x))


class FashionFeatures(Classifier):
    """A plain convolutional network whose features judge samples; never used as a reward.

    The features are those before the last nonlinearity: closer to Gaussian, as the Fréchet
    distance assumes.

    Args:
        width: channels of the first of two stages; the second doubles them.
        size: number of features.
        classes: number of classes.
        image_shape: (C, H, W), H and W divisible by 8.

    Raises:
        ValueError: a size does not fit.
    """

    embedded = "fashion_features"

    def __init__(
        self,
        width: int = 48,
        size: int = 96,
        classes: int = 10,
        image_shape: tuple[int, ...] = (1, 32, 32),
    ) -> None:
        _check_sizes("FashionFeatures", width, image_shape, size=size, classes=classes)
        super().__init__(classes, image_shape)
        self.config = {
            "width": width,
            "size": size,
            "classes": classes,
            "image_shape": list(image_shape),
        }
        colours, height, columns = image_shape
        pixels = (height // 8) * (columns // 8)
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),
            *_plain(4 * colours, width),
            *_plain(width, width),
            nn.MaxPool2d(2),
            *_plain(width, 2 * width),
            *_plain(2 * width, 2 * width),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * pixels, size),
        )
        self.head = nn.Linear(size, classes)
        self.freeze()

    def features(self, x: Tensor) -> Tensor:
        """The `size` features before the last nonlinearity, (B, size)."""
        self.check(x)
        return self.body(x)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Outputs of the four convolutions after their nonlinearities, (B, C_i, H_i, W_i) each."""
        self.check(x)
        found = []
        for layer in self.body:
            x = layer(x)
            if isinstance(layer, nn.GELU):
                found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (B, classes)."""
        return self.logits(self.features(x))

    def logits(self, features: Tensor) -> Tensor:
        """Logits of features that were computed before: (B, size) -> (B, classes)."""
        return self.head(F.gelu(features))


def _plain(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    return conv, nn.GroupNorm(outputs // GROUP, outputs), nn.GELU()


def _check_sizes(name: str, width: int, image_shape: tuple[int, ...], **sizes: int) -> None:
    if width <= 0 or width % GROUP:
        raise ValueError(f"{name}.width must be a positive multiple of {GROUP}, got {width}")
    for argument, size in sizes.items():
        if size <= 0:
            raise ValueError(f"{name}.{argument} must be > 0, got {size}")
    if len(image_shape) != 3 or image_shape[1] % 8 or image_shape[2] % 8:
        raise ValueError(
            f"{name}.image_shape must be (C, H, W) with H and W divisible by 8, got "
            f"{tuple(image_shape)}"
        )
