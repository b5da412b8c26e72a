"""How to train: numbers only."""

import math
from dataclasses import dataclass

OBSERVATIONS = ("simulated", "images", "mixed")
AT_LEAST_1 = (
    *("max_steps", "batch", "anchor_batch", "denoising_steps", "groups"),
    *("log_every", "save_every", "max_skipped", "teacher_draws"),
)
AT_LEAST_0 = (
    "anchor_steps",
    "warm_steps",
    "ramp",
    "evaluate_every",
    "seed",
    "likelihood_weight",
    "final_lr",
)


@dataclass
class Settings:
    """How to train.

    Attributes:
        max_steps: Optimiser steps in all; the first `warm_steps` are the `PathLikelihood` warm
            start, of which the first `anchor_steps` train the encoder alone, to predict z (samplers
            with Gauss-Newton guidance) or latents (transports); the others start with paths.
        anchor_batch: Observations an anchor step.
        batch, denoising_steps: Observations a warm step, and kernels scored for each.
        teacher_draws: Of the teacher for each observation of a step, when distilling.
        groups: Observations a balance step; the mixture sets the paths of each.
        observations: Whose y balance steps, students and transports see: `simulated`, real
            `images`, or `mixed`.
        lr, balance_lr: Peak learning rates, the latter of the balance phase; `head_gain` multiplies
            that of log Z and the flow. Each phase (anchors, warm start, balance) warms up for
            `ramp` steps and decays by a cosine to `final_lr` times it.
        clip: Largest norm of the gradient.
        likelihood_weight: Weight of the likelihood of simulated pairs beside a balance loss.
        ema: Decay of the averaged weights, which are the ones kept.
        beta_start: First inverse temperature; it rises to the posterior's as fast as the
            conditional ESS stays >= `anneal_ess`. None keeps beta fixed.
        max_skipped: Consecutive non-finite steps after which training goes back to the state of the
            best evaluation, or stops where it has none or has been there for that.
        collapse: Nats that an evaluation along the way may be worse than the best one before
            training goes back to that one's state, with half of the learning rate; None for any.
        seed: Of everything.
        log_every, save_every, evaluate_every: In steps; 0 turns evaluation off.

    Raises:
        ValueError: Numbers out of range.
    """

    max_steps: int = 5_150
    anchor_steps: int = 1_500
    warm_steps: int = 4_800
    anchor_batch: int = 128
    batch: int = 32
    denoising_steps: int = 12
    teacher_draws: int = 4
    groups: int = 16
    observations: str = "mixed"
    lr: float = 1e-3
    balance_lr: float = 3e-4
    head_gain: float = 10.0
    ramp: int = 100
    final_lr: float = 0.02
    clip: float = 10.0
    likelihood_weight: float = 0.0
    ema: float = 0.999
    beta_start: float | None = None
    anneal_ess: float = 0.5
    max_skipped: int = 20
    collapse: float | None = 20.0
    seed: int = 0
    log_every: int = 20
    save_every: int = 400
    evaluate_every: int = 1600

    def __post_init__(self) -> None:
        for names, minimum in ((AT_LEAST_1, 1), (AT_LEAST_0, 0)):
            for name in names:
                if not getattr(self, name) >= minimum:
                    raise ValueError(
                        f"trainer.{name} must be >= {minimum}, got {getattr(self, name)}"
                    )
        for name in ("lr", "balance_lr", "head_gain", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"trainer.{name} must be > 0, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"trainer.ema must lie in [0, 1), got {self.ema}")
        if not 0 < self.anneal_ess < 1:
            raise ValueError(f"trainer.anneal_ess must lie in (0, 1), got {self.anneal_ess}")
        if self.collapse is not None and not self.collapse > 0:
            raise ValueError(f"trainer.collapse must be > 0 or null, got {self.collapse}")
        if self.observations not in OBSERVATIONS:
            raise ValueError(
                f"data.observations must be one of {', '.join(OBSERVATIONS)}, "
                f"got {self.observations!r}"
            )

    def phases(self, anchored: bool, likelihood: bool) -> list[tuple[int, int, float]]:
        """First step, end and peak learning rate of the phases: anchors, warm start, balance.

        Args:
            anchored: Whether the sampler has a phase of anchors.
            likelihood: Whether the objective is the likelihood of simulated pairs.
        """
        warm = self.max_steps if likelihood else min(self.warm_steps, self.max_steps)
        anchors = min(self.anchor_steps, warm) if anchored else 0
        return [
            (0, anchors, self.lr),
            (anchors, warm, self.lr),
            (warm, self.max_steps, self.balance_lr),
        ]

    def rate(self, step: int, phases: list[tuple[int, int, float]]) -> float:
        """Learning rate of a step: linear warm-up and cosine decay in each phase."""
        first, end, peak = next(phase for phase in phases if step < phase[1])
        ramp = min(1.0, (step - first + 1) / max(self.ramp, 1))
        fall = 0.5 * (1 + math.cos(math.pi * (step - first) / (end - first)))
        return peak * ramp * (self.final_lr + (1 - self.final_lr) * fall)

    def check_beta(self, beta: float, likelihood: bool) -> None:
        """Refuse likelihood training off beta = 1, where simulated pairs are no posterior draws.

        Args:
            beta: The posterior's inverse temperature, which annealing ends at.
            likelihood: Whether the objective is the likelihood of simulated pairs.

        Raises:
            ValueError: The settings contradict beta.
        """
        if self.beta_start is not None and not 0 < self.beta_start < beta:
            raise ValueError(
                f"trainer.beta_start must lie in (0, {beta}), below posterior.beta, "
                f"got {self.beta_start}"
            )
        if beta == 1 and self.beta_start is None:
            return
        if likelihood:
            raise ValueError(
                "objective=path_likelihood needs posterior.beta=1 and trainer.beta_start=null: "
                "simulated pairs are posterior draws at beta = 1 only; choose another objective"
            )
        for name in ("warm_steps", "likelihood_weight"):
            if getattr(self, name):
                raise ValueError(
                    f"trainer.{name} must be 0 where beta is not 1, since simulated pairs are "
                    f"posterior draws at beta = 1 only, got {getattr(self, name)}"
                )
