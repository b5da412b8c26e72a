"""Generators of faces that others trained and published as packages, as priors.

`FacesGAN` is the 64×64 network of `gan-face-generate` (a DCGAN on DigiFace-1M, MIT licence);
`Faces1024` the 1024×1024 one of `random-face` (MobileStyleGAN, Belousov, 2021, arXiv 2104.04767,
Apache-2.0 licence), which is an OpenVINO graph and has no gradient.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outsourced.priors.base import Prior
from outsourced.priors.callable import CallablePrior

GAN_INSTALL = "pip install --no-deps gan-face-generate==1.1.1"
STYLE_INSTALL = "pip install --no-deps random-face==2021.7.21.1 && pip install 'openvino>=2023.1'"
SIDE = 1024
STYLE = 512
MEAN_DRAWS = 4096  # as many styles as random-face itself averages


def package_folder(package: str, files: tuple[str, ...], install: str) -> Path:
    """Where the files of an installed package lie, found without importing it.

    Args:
        package: importable name of the package.
        files: the files that are needed, relative to its folder.
        install: the command that installs it, for the message.

    Raises:
        FileNotFoundError: the package is not installed, or lacks one of the files.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the package {package} is not installed; run: {install}")
    folder = Path(next(iter(spec.submodule_search_locations)))
    for name in files:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"the package {package} holds no {name}; restore it with: {install} "
                "--force-reinstall"
            )
    return folder


class FacesGAN(Prior):
    """64×64 colour faces from z in R¹⁰⁰: the generator and weights of `gan-face-generate` 1.1.1.

    A deep convolutional generator (Radford et al., 2016, arXiv 1511.06434). Its batch
    normalisations use the statistics stored in training, so that each sample stands alone.

    Raises:
        FileNotFoundError: the package is not installed.
    """

    def __init__(self) -> None:
        weights = package_folder("gan_face_generate", ("weights.tar",), GAN_INSTALL) / "weights.tar"
        from gan_face_generate.models import Generator

        super().__init__((100,), (3, 64, 64))
        self.generator: nn.Module = Generator(0, 3, 100, 64)
        stored = torch.load(weights, map_location="cpu", weights_only=True)
        self.generator.load_state_dict(stored["netG_state_dict"])
        self.freeze()

    def forward(self, z: Tensor) -> Tensor:
        """Generate faces.

        Args:
            z: noise, (B, 100).

        Returns:
            RGB images in (-1, 1), (B, 3, 64, 64).
        """
        return self.generator(z[:, :, None, None])


class StyleFaces:
    """The two OpenVINO graphs of `random-face`, run one image at a time in single precision.

    Args:
        downsample: side of the squares of pixels that are averaged.
        truncation: distance of a style to the mean style, as a share of what it was drawn as.

    Raises:
        FileNotFoundError: `random-face` or `openvino` is not installed.
    """

    def __init__(self, downsample: int, truncation: float) -> None:
        names = ("MappingNetwork", "SynthesisNetwork")
        files = tuple(f"data/{name}.{kind}" for name in names for kind in ("xml", "bin"))
        folder = package_folder("random_face", files, STYLE_INSTALL)
        if importlib.util.find_spec("openvino") is None:
            raise FileNotFoundError(
                "the package openvino is not installed; run: pip install 'openvino>=2023.1'"
            )
        self.downsample, self.truncation = downsample, truncation
        self.digest = hashlib.sha256(b"".join((folder / f).read_bytes() for f in files)).hexdigest()
        self._mapping, self._synthesis = (_compiled(folder / f"data/{name}.xml") for name in names)
        self._mean = np.zeros(STYLE, np.float32)
        if truncation < 1:
            draws = torch.randn(MEAN_DRAWS, STYLE, generator=torch.Generator().manual_seed(0))
            many = _compiled(folder / "data/MappingNetwork.xml", MEAN_DRAWS)
            self._mean = many(draws.numpy())[0].mean(axis=0)

    def _styles(self, noise: np.ndarray) -> np.ndarray:
        return np.concatenate([self._mapping(row[None])[0] for row in noise])

    def __call__(self, z: Tensor) -> Tensor:
        """Noise (B, 512) to RGB images in [-1, 1], (B, 3, 1024 / downsample, ...)."""
        styles = self._styles(z.detach().cpu().float().numpy())
        styles = self._mean + self.truncation * (styles - self._mean)
        images = [self._shrunk(self._synthesis(style[None])[0]) for style in styles]
        return torch.cat(images).to(z.device)

    def _shrunk(self, image: np.ndarray) -> Tensor:
        # The graph's images leave [-1, 1] by a little where they are brightest and darkest.
        return F.avg_pool2d(torch.from_numpy(image).clamp(-1, 1), self.downsample)


def _compiled(path: Path, batch: int = 1) -> Any:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([batch, STYLE])
    # Some CPUs would run in bfloat16, and then equal noise gives unequal images elsewhere.
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    return core.compile_model(model, "CPU", settings)


class Faces1024(CallablePrior):
    """1024×1024 colour faces from z in R⁵¹², a black box: MobileStyleGAN of `random-face`.

    Args:
        downsample: area factor: squares of downsample × downsample pixels are averaged, which
            gives 1024 / downsample pixels a side; a power of two.
        truncation: in (0, 1]; below 1, styles are drawn towards their mean (Karras et al., 2019,
            arXiv 1812.04948, appendix B), for cleaner and less diverse faces.

    Raises:
        ValueError: downsample is not a power of two up to 1024, or truncation is not in (0, 1].
        FileNotFoundError: `random-face` or `openvino` is not installed.
    """

    def __init__(self, downsample: int = 1, truncation: float = 1.0) -> None:
        if downsample not in (2**k for k in range(11)):
            raise ValueError(
                f"prior.downsample must be a power of two from 1 to {SIDE}, got {downsample}"
            )
        if not 0 < truncation <= 1:
            raise ValueError(f"prior.truncation must lie in (0, 1], got {truncation}")
        super().__init__(StyleFaces(downsample, truncation), (STYLE,), differentiable=False)

    def extra_repr(self) -> str:
        faces = cast(StyleFaces, self._function.func)
        return f"downsample={faces.downsample}, truncation={faces.truncation}, files={faces.digest}"
