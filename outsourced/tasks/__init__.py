"""Tasks: what an observation says about the data, as a log-likelihood."""

from .base import Observation, Task
from .blur_kernels import FixedKernel, GaussianKernel, MotionKernel
from .codecs import JPEG, Dequantize
from .compressed import CompressedSensing
from .deblur import Deblur
from .denoise import Denoise
from .free_masks import BrushStrokes, MixedMasks
from .inpaint import Inpaint
from .masks import FixedMask, RandomBox, RandomPixels
from .measurement import Measurement
from .mixture import Mixture
from .phase import PhaseRetrieval
from .region_masks import Outpaint, RandomHalf, RandomStripes
from .superres import SuperResolution
from .vectors import LinearMeasurement, NonlinearMeasurement

__all__ = [
    "JPEG",
    "BrushStrokes",
    "CompressedSensing",
    "Deblur",
    "Denoise",
    "Dequantize",
    "FixedKernel",
    "FixedMask",
    "GaussianKernel",
    "Inpaint",
    "LinearMeasurement",
    "Measurement",
    "MixedMasks",
    "Mixture",
    "MotionKernel",
    "NonlinearMeasurement",
    "Observation",
    "Outpaint",
    "PhaseRetrieval",
    "RandomBox",
    "RandomHalf",
    "RandomPixels",
    "RandomStripes",
    "SuperResolution",
    "Task",
]
