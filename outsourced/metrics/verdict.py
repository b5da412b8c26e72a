"""From diagnostics to advice: may the samples be trusted, and if not, what helps?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GOOD_ESS = 0.5  # uncorrected: the chi-square distance to the posterior is 1 / ess - 1 <= 1
GOOD_DRAWS = 20.0  # corrected by resampling: this many effective candidates
GOOD_RHAT = 1.05
# Many short chains from proposals, of which the last states count. R-hat = sqrt(1 + 1 / (k - 1))
# where a quarter of the run is worth k draws: at 1.5 the run is 7 autocorrelation times long.
GOOD_MOVES = 1.5
GOOD_LOG_Z_STD = 0.5  # particle methods: estimated error of log Z in nats
GOOD_SHARE = 0.9  # of the observations must be good
MOST_CANDIDATES = 4096  # beyond it, moves are cheaper than proposals
SEEN = 2.0  # effective draws below which ess says nothing
ENOUGH = 64  # draws, of which a useful sampler has more than SEEN effective ones
EXCESS = 1.1  # residual above that of noise alone


def verdict(
    figures: dict[str, Tensor], candidates: int, corrected: bool, differentiable: bool
) -> str:
    """One sentence that begins with `trust`, `correct`, `continue`, `retrain` or `unknown`.

    An observation is good, by the first of these that is known, where its chains agree (R-hat <=
    1.05; if they started from proposals, R-hat <= 1.5 or proposals that were good themselves), its
    log Z is known to 0.5 nats, its draws are independent by construction, or its weights say so: an
    effective sample size of half of the uncorrected draws, or of 20 resampled candidates. With 9
    of 10 good the samples are to be trusted. Else the cheapest correction that can mend them is
    named: resampling, where 20 effective candidates take at most 4096; moves, where they take more;
    training, where a single candidate has all of the weight.

    Args:
        figures: of each observation, (B,) each, as far as known: `ess` of the proposals as a share
            of them, `rhat` (worst coordinate), `log_z_std`, `ess_bulk`, `residual` (sigma).
        candidates: number of proposals behind `ess`.
        corrected: whether samples were resampled or moved.
        differentiable: whether prior and task are.
    """
    good = _good(figures, candidates, corrected)
    if good is None:
        return (
            "unknown: this solver gives no weights and no chains that could say how far its "
            "samples are from the posterior; compare with solver=smc"
        )
    count = f"{int(good.sum())} of {len(good)} observations"
    if good.double().mean() >= GOOD_SHARE:
        return f"trust: {count} pass ({_reason(figures, corrected)}){_excess(figures)}"
    return f"{_advice(figures, candidates, corrected, differentiable)} ({count} pass)"


def _good(figures: dict[str, Tensor], candidates: int, corrected: bool) -> Tensor | None:
    proposal = figures["ess"] >= GOOD_ESS if "ess" in figures else None
    if "rhat" in figures:
        if proposal is None:
            return figures["rhat"] <= GOOD_RHAT
        return (figures["rhat"] <= GOOD_MOVES) | proposal
    if "log_z_std" in figures and "ess_bulk" not in figures:
        return figures["log_z_std"] <= GOOD_LOG_Z_STD
    if "ess_bulk" in figures:
        return torch.ones_like(figures["ess_bulk"], dtype=torch.bool)
    if proposal is None or not corrected:
        return proposal
    return figures["ess"] * candidates >= GOOD_DRAWS


def _reason(figures: dict[str, Tensor], corrected: bool) -> str:
    if "rhat" in figures:
        moved = f"R-hat <= {GOOD_MOVES}, or a good proposal"
        return moved if "ess" in figures else f"R-hat <= {GOOD_RHAT}"
    if "log_z_std" in figures and "ess_bulk" not in figures:
        return f"log Z known to {GOOD_LOG_Z_STD} nats"
    if "ess_bulk" in figures:
        return "independent exact draws"
    if corrected:
        return f"{GOOD_DRAWS:.0f} effective candidates or more"
    return f"effective sample size {GOOD_ESS:.0%} or more"


def _excess(figures: dict[str, Tensor]) -> str:
    """Why good samples may not fit y: the residual is the prior's."""
    if "residual" not in figures or float(figures["residual"].median()) <= EXCESS:
        return ""
    value = float(figures["residual"].median())
    return f"; their residual of {value:.2f} sigma is the prior's: it cannot fit these observations"


def _advice(
    figures: dict[str, Tensor], candidates: int, corrected: bool, differentiable: bool
) -> str:
    moves = "mala" if differentiable else "pcn"
    if "ess" not in figures:
        if "rhat" in figures:
            return "continue: the chains disagree; raise solver.steps, or use solver=smc"
        return "continue: log Z is uncertain; raise solver.particles or solver.moves"
    low = float(figures["ess"].double().quantile(1 - GOOD_SHARE, interpolation="lower"))
    needed = math.ceil(GOOD_DRAWS / max(low, 1e-12))
    # Where a single draw has all the weight, ess is 1 / candidates whatever the truth is.
    resampling = low * candidates >= SEEN and needed <= MOST_CANDIDATES
    if not corrected and resampling:
        return f"correct: use correct=importance candidates={needed}"
    if "rhat" in figures:
        return "continue: the chains disagree; raise moves, or train longer"
    if float(figures["ess"].double().median()) * candidates < SEEN and candidates >= ENOUGH:
        return "retrain: one proposal has all the weight; train longer, or use solver=smc"
    if corrected and resampling:
        return f"correct: raise candidates to {needed}"
    return f"correct: use correct={moves} moves=200"
