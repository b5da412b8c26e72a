"""Tasks: what an observation says about the data, as a log-likelihood."""

from .base import Observation, Task
from .blur_kernels import GaussianKernel
from .deblur import Deblur
from .denoise import Denoise
from .inpaint import Inpaint
from .masks import FixedMask, RandomBox, RandomPixels
from .measurement import Measurement
from .superres import SuperResolution
from .vectors import LinearMeasurement, NonlinearMeasurement

__all__ = [
    "Deblur",
    "Denoise",
    "FixedMask",
    "GaussianKernel",
    "Inpaint",
    "LinearMeasurement",
    "Measurement",
    "NonlinearMeasurement",
    "Observation",
    "RandomBox",
    "RandomPixels",
    "SuperResolution",
    "Task",
]
