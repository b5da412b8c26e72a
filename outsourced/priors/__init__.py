"""Frozen generators x = f(z), z ~ N(0, I)."""

from outsourced.priors.analytic import (
    GaussianMixture,
    LinearGaussian,
    MixturePosterior,
    condition_gaussian,
)
from outsourced.priors.base import Prior
from outsourced.priors.callable import CallablePrior
from outsourced.priors.planar import Rings, SwissRoll, TwoMoons
from outsourced.priors.vae import VAE

__all__ = [
    "VAE",
    "CallablePrior",
    "GaussianMixture",
    "LinearGaussian",
    "MixturePosterior",
    "Prior",
    "Rings",
    "SwissRoll",
    "TwoMoons",
    "condition_gaussian",
]
