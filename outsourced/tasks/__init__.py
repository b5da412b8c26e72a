"""Tasks: what an observation says about the data, as a log-likelihood."""

from .base import Observation, Task
from .denoise import Denoise
from .inpaint import Inpaint
from .masks import FixedMask, RandomBox, RandomPixels
from .measurement import Measurement
from .superres import SuperResolution
from .vectors import LinearMeasurement, NonlinearMeasurement

__all__ = [
    "Denoise",
    "FixedMask",
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
