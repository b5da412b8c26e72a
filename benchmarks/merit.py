"""What an amortised sampler is worth on many observations, a few of them in memory at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from outsourced.evaluation import against_truth, residuals, upper_bound
from outsourced.metrics import evidence
from outsourced.metrics.calibration import rank_chi2, ranks
from outsourced.posterior import Posterior
from outsourced.sampler import NoiseSampler
from outsourced.solvers.amortized import Amortized
from outsourced.solvers.base import Samples
from outsourced.solvers.resampling import resample
from outsourced.tasks.base import Observation

ROWS = 4096  # samples in memory at once
FEWEST = 20  # effective samples, below which an importance-corrected figure is left out
MOST_RANKED = 127  # samples that a truth is ranked among
CORRECTED_RANKED = 7  # corrected ones: few against FEWEST, so that they seldom repeat
MOST_BINS = 16


@dataclass(frozen=True)
class Effort:
    """How finely to measure.

    Attributes:
        observations: of each kind.
        n: samples for each.
        upper_paths: posterior paths for each, behind the EUBO.
        chain: observations that MALA chains run on.
        moves, burn_in: of each chain.
        seed: of observations and samples.

    Raises:
        ValueError: numbers out of range.
    """

    observations: int = 512
    n: int = 256
    upper_paths: int = 8
    chain: int = 64
    moves: int = 3000
    burn_in: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"observations": 1, "n": CORRECTED_RANKED, "upper_paths": 1, "chain": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"--{name} must be >= {value}, got {getattr(self, name)}")
        if self.chain > self.observations:
            raise ValueError(
                f"--chain must be <= --observations = {self.observations}, got {self.chain}"
            )

    @property
    def ranked(self) -> int:
        """Samples behind a rank: 2^k - 1, so that bins of equal size divide the ranks."""
        return min(MOST_RANKED, 2 ** int(math.log2(self.n + 1)) - 1)


@dataclass
class Cases:
    """Observations of one kind.

    Attributes:
        kind: `simulated` or `real`.
        obs: B observations.
        x: data behind them, (B, *data_shape).
        z: noise behind x, an exact posterior draw, (B, *noise_shape); None for real data.
    """

    kind: str
    obs: Observation
    x: Tensor
    z: Tensor | None = None

    def __getitem__(self, piece: slice) -> Cases:
        z = None if self.z is None else self.z[piece]
        return Cases(self.kind, self.obs[piece], self.x[piece], z)


@dataclass
class Findings:
    """What was measured.

    Attributes:
        figures: of each observation, (B,) each; NaN where a figure does not apply.
        ranks: of z among samples as drawn and as corrected, (B', d) each; {} for real data.
        seconds: of sampling.
    """

    figures: dict[str, Tensor]
    ranks: dict[str, Tensor]
    seconds: float


def simulated(posterior: Posterior, effort: Effort) -> Cases:
    """Observations of the prior's own data.

    Raises:
        ValueError: beta is not 1, where the z behind y is no posterior draw.
    """
    if posterior.beta != 1:
        raise ValueError(
            f"posterior.beta must be 1 to compare with the truth, got {posterior.beta}"
        )
    generator = torch.Generator().manual_seed(effort.seed + 101)
    z, x, obs = posterior.simulate(effort.observations, generator)
    return Cases("simulated", obs, x, z)


def real(posterior: Posterior, images: Tensor, effort: Effort) -> Cases:
    """Observations of held-out images (N, C, H, W).

    Raises:
        ValueError: there are fewer images than observations.
    """
    if len(images) < effort.observations:
        raise ValueError(
            f"--observations must be <= {len(images)}, the number of held-out images, got "
            f"{effort.observations}"
        )
    generator, x = torch.Generator().manual_seed(effort.seed + 102), images[: effort.observations]
    return Cases("real", posterior.task.sample(x, generator=generator), x)  # type: ignore[operator]


@torch.no_grad()
def assess(
    sampler: NoiseSampler, posterior: Posterior, cases: Cases, effort: Effort, progress: bool = True
) -> Findings:
    """Figures of merit of a sampler on observations of one kind.

    Args:
        sampler, posterior: the pair under test.
        cases: B observations.
        effort: see `Effort`.
        progress: show a progress bar over observations.
    """
    generator = torch.Generator().manual_seed(effort.seed)
    width, parts, seconds = max(1, ROWS // effort.n), [], 0.0
    with tqdm(total=len(cases.obs), disable=not progress, desc=cases.kind, leave=False) as bar:
        for first in range(0, len(cases.obs), width):
            piece = cases[first : first + width]
            samples = Amortized(sampler, posterior)(piece.obs, effort.n, generator)
            parts.append(_figures(posterior, samples, piece))
            if piece.z is not None:
                parts[-1] |= _against_noise(sampler, posterior, samples, piece, effort, generator)
            seconds += samples.seconds
            bar.update(len(piece.obs))
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    found = {k.removeprefix("rank/"): joined.pop(k) for k in list(joined) if "rank/" in k}
    if "corrected" in found:
        found["corrected"] = found["corrected"][~joined["residual_corrected"].isnan()]
    return Findings(joined, found, seconds)


def _figures(posterior: Posterior, samples: Samples, cases: Cases) -> dict[str, Tensor]:
    """Figures that need no noise behind y, (B,) each."""
    weight, each = samples.proposal_log_weight, residuals(posterior, samples, cases.obs)
    assert weight is not None
    ess = evidence.ess(weight)
    corrected = (weight.double().softmax(0) * each).sum(0)
    figures = {
        "elbo": evidence.elbo(weight),
        "log_z": evidence.log_z(weight),
        "ess": ess,
        "residual": each.double().mean(0),
        "residual_corrected": corrected.where(ess * len(weight) >= FEWEST, math.nan),
    }
    if cases.x.ndim == 4:
        figures |= against_truth(samples, cases.x)
    if "mask" in cases.obs.params:
        figures |= spread(samples.x, cases.obs.params["mask"])
    return figures


def spread(x: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Standard deviation of hidden and of observed pixels, root mean square over them, (B,) each.

    Args:
        x: samples (n, B, C, H, W).
        mask: 1 where a pixel was observed, (B, 1, H, W).
    """
    variance = x.double().var(0)
    hidden = (1 - mask.double()).expand_as(variance)
    inside = (variance * hidden).flatten(1).sum(1) / hidden.flatten(1).sum(1)
    outside = (variance * (1 - hidden)).flatten(1).sum(1) / (1 - hidden).flatten(1).sum(1)
    return {"std_hidden": inside.sqrt(), "std_observed": outside.sqrt()}


def _against_noise(
    sampler: NoiseSampler,
    posterior: Posterior,
    samples: Samples,
    cases: Cases,
    effort: Effort,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Figures that compare with the noise behind y, (B,) each, and its ranks, (B, d) each.

    Samples are corrected by resampling: ranks among them are meant for observations with enough
    effective samples, which `assess` picks. The choice hangs on y, not on the truth.
    """
    z, weight = cases.z, samples.proposal_log_weight
    assert z is not None
    assert weight is not None
    assert samples.z is not None
    truth = Samples(cases.x[None], z[None], None, 0, 0.0)
    index = resample(weight, CORRECTED_RANKED, generator)
    noise, flat = samples.z.flatten(2), z.flatten(1)
    chosen = noise[index, torch.arange(len(z))]
    return {
        "residual_truth": residuals(posterior, truth, cases.obs)[0].double(),
        "eubo": upper_bound(sampler, posterior, cases.obs, z, effort.upper_paths, generator),
        "rank/drawn": ranks(noise[: effort.ranked], flat, generator),
        "rank/corrected": ranks(chosen, flat, generator),
    }


def calibration(rank: Tensor, n: int) -> dict[str, float]:
    """Smallest chi-square p-value of d coordinates, and how many are below 0.05.

    Nothing where there are too few ranks for two bins.

    Args:
        rank: (B, d) in 0..n.
        n: samples behind each rank, 2^k - 1.
    """
    bins = MOST_BINS
    while bins > n + 1 or len(rank) < 5 * bins:
        bins //= 2
    if bins < 2:
        return {}
    p = rank_chi2(rank, n, bins)
    return {"p_min": float(p.min()), "p_below": float((p < 0.05).sum()), "p_of": len(p)}


def averages(findings: Findings, effort: Effort) -> dict[str, float]:
    """Means over observations, the median of ESS, residuals over yardsticks, and p-values.

    Yardsticks that exist for some of the observations are compared on those; `excess` is relative.
    """
    figures = findings.figures
    values = {name: float(value.double().nanmean()) for name, value in figures.items()}
    values["ess_median"] = float(figures["ess"].median())
    for name in ("truth", "corrected", "chain"):
        if (key := f"residual_{name}") in figures:
            values |= excess(figures["residual"], figures[key], name)
    if "eubo" in figures:
        values["gap"] = values["eubo"] - values["elbo"]
    if "eubo_chain" in figures:
        values["gap_chain"] = float((figures["eubo_chain"] - figures["elbo"]).nanmean())
    for name, rank in findings.ranks.items():
        count = effort.ranked if name == "drawn" else CORRECTED_RANKED
        values |= {f"{name}_{k}": v for k, v in calibration(rank, count).items()}
    values["seconds_per_sample"] = findings.seconds / (effort.n * len(figures["ess"]))
    return {name: value for name, value in values.items() if not math.isnan(value)}


def excess(residual: Tensor, yardstick: Tensor, name: str) -> dict[str, float]:
    """Mean residual over that of a yardstick (B,) where it is not NaN, minus 1; and the share."""
    there = ~yardstick.isnan()
    share = {f"share_{name}": float(there.double().mean())}
    if not there.any():
        return share
    return share | {f"excess_{name}": float(residual[there].mean() / yardstick[there].mean()) - 1}
