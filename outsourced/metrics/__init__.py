"""Evidence, calibration, distances between sample sets, and image quality; torch and numpy only."""

from .calibration import coverage, rank_chi2, ranks
from .distance import c2st, frechet, mmd, sliced_wasserstein
from .evidence import elbo, ess, eubo, log_z
from .image import perceptual, psnr, residual, ssim
from .verdict import verdict

__all__ = [
    "c2st",
    "coverage",
    "elbo",
    "ess",
    "eubo",
    "frechet",
    "log_z",
    "mmd",
    "perceptual",
    "psnr",
    "rank_chi2",
    "ranks",
    "residual",
    "sliced_wasserstein",
    "ssim",
    "verdict",
]
