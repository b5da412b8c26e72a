"""The advice that diagnostics lead to."""

import pytest
import torch

from outsourced.metrics import verdict


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).double()


def of(candidates: int = 0, corrected: bool = True, smooth: bool = True, **figures: list) -> str:
    values = {name: column(*value) for name, value in figures.items()}
    return verdict(values, candidates, corrected, smooth)


CASES = {
    "uncorrected, good": (
        {"ess": [0.6] * 9 + [0.1], "candidates": 64, "corrected": False},
        "trust: 9 of 10 observations pass (effective sample size 50% or more)",
    ),
    "uncorrected, one too many": (
        {"ess": [0.6] * 8 + [0.1] * 2, "candidates": 64, "corrected": False},
        "correct: use correct=importance candidates=200 (8 of 10 observations pass)",
    ),
    "uncorrected, needs more than proposals": (
        {"ess": [0.003] * 4, "candidates": 1000, "corrected": False},
        "correct: use correct=mala moves=200",
    ),
    "black box": (
        {"ess": [0.003] * 4, "candidates": 1000, "corrected": False, "smooth": False},
        "correct: use correct=pcn moves=200",
    ),
    "one draw has all": ({"ess": [0.0011] * 4, "candidates": 1000, "corrected": False}, "retrain"),
    "too few to say": (
        {"ess": [0.07] * 4, "candidates": 16, "corrected": False},
        "use correct=mala",
    ),
    "resampled": ({"ess": [0.1] * 4, "candidates": 256}, "trust: 4 of 4"),
    "resampled from few": (
        {"ess": [0.1] * 4, "candidates": 64},
        "correct: raise candidates to 200",
    ),
    "resampled, one of them from few": (
        {"ess": [0.9, 0.9, 0.9, 0.3], "candidates": 64},
        "correct: raise candidates to 67",
    ),
    "chains": ({"rhat": [1.01, 1.04]}, "trust: 2 of 2 observations pass (R-hat <= 1.05)"),
    "chains apart": ({"rhat": [1.01, 1.06]}, "continue: the chains disagree"),
    "moved": ({"rhat": [1.15, 1.49], "ess": [0.1, 0.1], "candidates": 16}, "trust"),
    "moved from a good proposal": ({"rhat": [1.8], "ess": [0.7], "candidates": 16}, "trust"),
    "hardly moved": ({"rhat": [1.51], "ess": [0.1], "candidates": 64}, "continue: the chains"),
    "particles": ({"log_z_std": [0.2]}, "trust: 1 of 1 observations pass (log Z known"),
    "few particles": ({"log_z_std": [0.9]}, "continue: log Z is uncertain"),
    "independent": ({"ess_bulk": [4.0], "log_z_std": [0.9]}, "independent exact draws"),
    "nothing known": ({"residual": [1.0]}, "unknown: this solver gives no weights"),
    "another prior": (
        {"rhat": [1.0], "residual": [1.3]},
        "residual of 1.30 sigma is the prior's",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_advice(name: str) -> None:
    """What a user reads for what the figures say.

    Mutant: thresholds on the mean, which one good observation pays for; the ESS of 16 draws taken
    at its word where one of them has all the weight; the bound of long chains for short ones;
    advice of a gradient for a black box.
    """
    arguments, expected = CASES[name]
    assert expected in of(**arguments)


def test_one_plain_sentence() -> None:
    """Each begins with its word and holds one line. Mutant: a list, or an empty verdict."""
    for arguments, _ in CASES.values():
        text = of(**arguments)
        assert text.split(":")[0] in {"trust", "correct", "continue", "retrain", "unknown"}
        assert "\n" not in text
