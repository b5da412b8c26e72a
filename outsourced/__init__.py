"""Fast posterior sampling under frozen generative models, by diffusion in their noise space."""

from outsourced.posterior import Posterior
from outsourced.sampler import NoiseSampler, Path
from outsourced.tasks.base import Observation, Task
from outsourced.transport import NoiseTransport

__version__ = "0.1.0"
__all__ = [
    "NoiseSampler",
    "NoiseTransport",
    "Observation",
    "Path",
    "Posterior",
    "Task",
    "__version__",
]
