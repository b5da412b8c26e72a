"""Frozen generators x = f(z), z ~ N(0, I)."""

from outsourced.priors.analytic import (
    GaussianMixture,
    LinearGaussian,
    MixturePosterior,
    condition_gaussian,
)
from outsourced.priors.base import Prior
from outsourced.priors.callable import CallablePrior
from outsourced.priors.cnf import CNF
from outsourced.priors.diffusion import DiffusionPrior
from outsourced.priors.diffusion_latent import LatentDiffusionPrior
from outsourced.priors.diffusion_unconditional import UnconditionalLatentPrior
from outsourced.priors.faces import Faces1024, FacesGAN
from outsourced.priors.flow import ImageFlow
from outsourced.priors.gan import GAN
from outsourced.priors.hvae import HVAE
from outsourced.priors.planar import Rings, SwissRoll, TwoMoons
from outsourced.priors.vae import VAE

__all__ = [
    "CNF",
    "GAN",
    "HVAE",
    "VAE",
    "CallablePrior",
    "DiffusionPrior",
    "Faces1024",
    "FacesGAN",
    "GaussianMixture",
    "ImageFlow",
    "LatentDiffusionPrior",
    "LinearGaussian",
    "MixturePosterior",
    "Prior",
    "Rings",
    "SwissRoll",
    "TwoMoons",
    "UnconditionalLatentPrior",
    "condition_gaussian",
]
