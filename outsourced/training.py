"""The Lightning module: what one optimiser step does, and what a checkpoint holds.

All randomness of step i comes from (seed, i), so a run that was killed and resumed is bit-identical
to one that was not.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from torch import Tensor

from outsourced.annealing import next_beta
from outsourced.bank import PairBank
from outsourced.checkpoint import flat, optimizer_tensors, parts_of
from outsourced.collapse import CollapseGuard
from outsourced.losses import Losses, Result
from outsourced.matching import MatchingLosses
from outsourced.objectives import Objective, PathLikelihood
from outsourced.paths import PathMixture
from outsourced.posterior import Posterior
from outsourced.sampler import NoiseSampler
from outsourced.settings import Settings
from outsourced.skips import Skips
from outsourced.transport import NoiseTransport


class SamplerTraining(lightning.LightningModule):
    """Warm start by likelihood, then an off-policy objective on a mixture of paths.

    Args:
        sampler: Trained in place.
        posterior: Of the same prior and task.
        objective: Of the second phase.
        mixture: Draws its paths.
        settings: See `Settings`.
        evaluate: Called with the number of steps done, on the averaged weights; its figures are
            logged.
        teacher: A trained sampler of the same posterior, whose draws it learns from instead.

    Raises:
        ValueError: Settings that contradict the posterior or the objective.
    """

    def __init__(
        self,
        sampler: NoiseSampler,
        posterior: Posterior,
        objective: Objective,
        mixture: PathMixture,
        settings: Settings,
        evaluate: Callable[[int], dict[str, float]] | None = None,
        teacher: NoiseSampler | None = None,
    ):
        super().__init__()
        if teacher is None:  # whose draws are of any beta
            settings.check_beta(posterior.beta, isinstance(objective, PathLikelihood))
        self.sampler, self.settings, self.evaluate = sampler, settings, evaluate
        self.target_beta = posterior.beta
        steps, draws = settings.denoising_steps, settings.teacher_draws
        seen = settings.observations
        kind = MatchingLosses if isinstance(sampler, NoiseTransport) else Losses
        self.losses = kind(sampler, posterior, objective, mixture, steps, teacher, draws, seen)
        self.average = {k: v.detach().clone() for k, v in sampler.state_dict().items()}
        seeking = {"path_gradient", "reward_gradient"} & objective.needs
        self.guard = CollapseGuard(settings.collapse, covering=not seeking)
        self.skips = Skips(settings.max_skipped)
        self.steps_done, self.seconds = 0, 0.0
        self.waiting_optimizer: dict[str, Tensor] = {}
        self.figures: dict[str, float] = {}  # of the last step
        if settings.beta_start is not None:
            least = 1 / self.losses.scored_paths  # the ESS of a single path
            if settings.anneal_ess <= least:
                raise ValueError(
                    f"trainer.anneal_ess must be > {least:.3g}, which {self.losses.scored_paths} "
                    f"paths always have, got {settings.anneal_ess}; raise it or paths.n"
                )
            posterior.beta = settings.beta_start

    @property
    def _posterior(self) -> Posterior:
        return self.losses.posterior

    def store(self, bank: PairBank) -> int:
        """Give the sampler the first draws of the bank to look up; returns how many.

        A transport gets the latents of all of them instead, to learn from, and their moments.

        Raises:
            ValueError: The bank is too small for the transport's principal axes.
        """
        if isinstance(self.losses, MatchingLosses):
            self.losses.store(bank)
            self._average_anew()
        if self.sampler.anchoring is None:
            return 0
        lookup = self.sampler.anchoring.lookup
        lookup.fill(*bank.rows(torch.arange(min(len(lookup), len(bank)))))
        self.sampler.control.open()
        self._average_anew()
        return len(lookup)

    def _average_anew(self) -> None:
        self.average |= {k: v.clone() for k, v in self.sampler.state_dict().items()}

    def on_fit_start(self) -> None:
        self._posterior.to(self.device)
        if self.losses.teacher is not None:
            self.losses.teacher.to(self.device)
        self.average = {k: v.to(self.device) for k, v in self.average.items()}

    def on_train_start(self) -> None:
        self.start_clock()

    def start_clock(self) -> None:
        """Begin to count `seconds`; what was between two steps is left out."""
        self._clock = time.perf_counter()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam; the heads of log Z and the flow in a group of their own."""
        heads = [
            p for n, p in self.sampler.named_parameters() if n.startswith(("log_z_head", "flow"))
        ]
        known = {id(p) for p in heads}
        body = [p for p in self.sampler.parameters() if id(p) not in known]
        return torch.optim.Adam(
            [{"params": body, "gain": 1.0}, {"params": heads, "gain": self.settings.head_gain}],
            lr=self.settings.lr,
        )

    @property
    def _likelihood_only(self) -> bool:
        return isinstance(self.losses.objective, PathLikelihood)

    def phases(self) -> list[tuple[int, int, float]]:
        """First step, end and peak learning rate of the phases: anchors, warm start, balance."""
        return self.settings.phases(self.losses.anchored, self._likelihood_only)

    def rate(self, step: int) -> float:
        """Learning rate of a step, slower after every collapse."""
        return self.settings.rate(step, self.phases()) * self.guard.slowdown

    def training_step(self, batch: dict[str, Any], _: int) -> Tensor:
        """Loss of one step."""
        step, s = batch["step"], self.settings
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            group["lr"] = self.rate(step) * group["gain"]
        seed = (s.seed * 1_000_003 + 2 * step + 1) * 1009 + 2 * self.global_rank
        cpu = torch.Generator().manual_seed(seed)
        device = torch.Generator(self.device).manual_seed(seed + 1)
        anchors, warm = (phase[1] for phase in self.phases()[:2])
        if step < warm:
            if step < anchors:
                loss, self.figures = self.losses.anchor(batch, s.anchor_batch, cpu)
            else:
                loss, self.figures = self._likelihood(batch, cpu, device)
            return loss
        loss, self.figures = self.losses.balance(batch, s.groups, cpu, device)
        if s.likelihood_weight:
            extra, figures = self.losses.likelihood(batch, s.batch, cpu, device)
            loss = loss + s.likelihood_weight * extra
            self.figures["loss/likelihood"] = figures["loss"]
        self._anneal()
        return loss

    def _likelihood(
        self, batch: dict[str, Any], cpu: torch.Generator, device: torch.Generator
    ) -> Result:
        learn = self.losses.likelihood if self.losses.teacher is None else self.losses.distil
        return learn(batch, self.settings.batch, cpu, device)

    def _anneal(self) -> None:
        beta, scored = self._posterior.beta, self.losses.scored
        if beta < self.target_beta and scored is not None:
            weight, reward = scored
            self._posterior.beta = next_beta(
                beta, self.target_beta, weight, reward / beta, self.settings.anneal_ess
            )

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip by norm; a non-finite gradient skips the step, and is counted.

        Raises:
            ValueError: Too many in a row, and no good state to go back to, or already tried.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.sampler.parameters(), self.settings.clip)
        self.figures["gradient_norm"] = float(norm)
        if math.isfinite(float(norm)):
            self.skips.in_row = 0
            return
        optimizer.zero_grad(set_to_none=True)
        self.skips.add(f"step {self.steps_done}: {self.losses.blame()}")
        if self.skips.stuck and not self.guard.may_return:
            raise self.skips.error()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One update, then all that belongs to it: callbacks see a consistent state."""
        super().optimizer_step(*args, **kwargs)
        self.steps_done += 1
        decay = min(self.settings.ema, (1 + self.steps_done) / (10 + self.steps_done))
        for name, value in self.sampler.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now

    def judge(self, figures: dict[str, float]) -> str | None:
        """What an evaluation says of this state, see `CollapseGuard.judge`.

        None where beta still rises: bounds of another beta do not compare.
        """
        return self.guard.judge(figures) if self._posterior.beta == self.target_beta else None

    def go_back(self) -> dict[str, Tensor]:
        """Take the best state again, with half of the learning rate; returns the optimiser's."""
        why = self.skips.reason if self.skips.stuck else self.guard.reason
        warnings.warn(
            f"collapsed before step {self.steps_done}: {why}; training is back at the state of the "
            "best evaluation, with half of the learning rate",
            stacklevel=2,
        )
        self.guard.returned |= self.skips.stuck
        self.skips.in_row = 0
        return self._take(self.guard.back())

    def state(self) -> dict[str, float]:
        """How far the training is, and at what cost."""
        mixture = self.losses.mixture
        return {
            "lr": self.rate(self.steps_done - 1),
            "beta": self._posterior.beta,
            "skipped": float(self.skips.total),
            "restarts": float(self.guard.restarts),
            "prior_calls": float(self._posterior.prior_calls),
            "steps_per_second": self.steps_done / max(self.seconds, 1e-9),
            "seconds": self.seconds,
            "buffer/move_step": float(mixture.step),
        } | {f"buffer/{name}": value for name, value in mixture.buffer.statistics().items()}

    def costs(self) -> dict[str, float]:
        """What training took; calls for the bank and for evaluations are not among them."""
        return {
            "train_seconds": self.seconds,
            "train_prior_calls": float(self._posterior.prior_calls),
            "skipped": float(self.skips.total),
            "restarts": float(self.guard.restarts),
        }

    def report(self, figures: dict[str, float]) -> None:
        """Give figures of this step to the loggers."""
        for logger in self.loggers:
            logger.log_metrics(figures, step=self.steps_done)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The sampler with its averaged weights."""
        current = {k: v.clone() for k, v in self.sampler.state_dict().items()}
        self.sampler.load_state_dict(self.average)
        try:
            yield
        finally:
            self.sampler.load_state_dict(current)

    def learned(self) -> dict[str, Tensor]:
        """Weights, their averages, the optimiser's state and the buffer."""
        parts = {
            "sampler": self.sampler.state_dict(),
            "average": self.average,
            "optimizer": optimizer_tensors(self.optimizers()),
            "mixture": self.losses.mixture.state_dict(),
        }
        return flat(parts)

    def _take(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Undo `learned` but for the optimiser's part, which is returned."""
        parts = parts_of(tensors)
        self.sampler.load_state_dict(parts["sampler"])
        self.average = parts["average"]
        self.losses.mixture.load_state_dict(parts["mixture"])
        return parts.get("optimizer", {})

    def checkpoint(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, as tensors."""
        tensors = self.learned() | flat({"guard": self.guard.state_dict()})
        calls = self._posterior.prior_calls
        numbers = [self.steps_done, self.skips.total, self.skips.in_row, calls]
        tensors["numbers"] = torch.tensor(numbers, dtype=torch.int64)
        tensors["times"] = torch.tensor([self._posterior.beta, self.seconds], dtype=torch.float64)
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Undo `checkpoint`; the optimiser's part waits until there is one."""
        self.waiting_optimizer = self._take(tensors)
        self.guard.load_state_dict(parts_of(tensors)["guard"])
        self.steps_done, self.skips.total, self.skips.in_row, calls = tensors["numbers"].tolist()
        self._posterior.prior_calls = calls
        self._posterior.beta, self.seconds = tensors["times"].tolist()
