"""Collapse of a training: which evaluation shows it, and the best state to go back to."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

BETTER, WORSE, COLLAPSED = "better", "worse", "collapsed"
SLOWER = 0.5  # learning rate after a collapse, in units of that before


class CollapseGuard:
    """Judges the evaluations of a training, and keeps its best state.

    The state is kept by the caller, who also goes back to it. Evaluations are of the same
    observations and the same random numbers, so that they compare.

    Args:
        tolerance: Nats that an evaluation may be worse than the best one; None for any.
        covering: Whether the objective is to cover the whole posterior. Then the gap EUBO - ELBO is
            judged, which a lost mode widens, and it may double besides; else the ELBO, since
            path-wise gradients pay no attention to the EUBO.

    Attributes:
        best: Lowest gap, or negative ELBO, so far, nats.
        restarts: Number of collapses.
        good: Tensors of the best state; empty before there is one.
        returned: Whether training went back to that state for steps that were not finite.
    """

    def __init__(self, tolerance: float | None, covering: bool):
        self.tolerance, self.covering = tolerance, covering
        self.best, self.restarts = math.inf, 0
        self.good: dict[str, Tensor] = {}
        self.returned = False

    @property
    def may_return(self) -> bool:
        """Whether steps that are not finite lead back to the best state: once for each state, for
        where half of the learning rate does not help the next half will not."""
        return bool(self.good) and not self.returned

    @property
    def reason(self) -> str:
        """Why an evaluation sends training back."""
        much = f"trainer.collapse = {self.tolerance} nats"
        return f"an evaluation was more than {much} worse than the best one"

    @property
    def slowdown(self) -> float:
        """Factor of the learning rate."""
        return SLOWER**self.restarts

    def evaluate(self, call: Callable[[int], dict[str, float]], step: int) -> dict[str, float]:
        """Figures of an evaluation; a bound that is no number where a ruined sampler makes it fail.

        Args:
            call: The evaluation.
            step: Steps done.

        Raises:
            ValueError: It fails, and has never succeeded.
        """
        try:
            return call(step)
        except ValueError:
            if not self.good:  # so it is not the sampler's fault
                raise
            return {"simulated/elbo": math.nan}

    def judge(self, figures: Mapping[str, float]) -> str | None:
        """`BETTER` than any before, `WORSE`, or `COLLAPSED`; None where nothing can be said.

        Args:
            figures: Of an evaluation, with `simulated/elbo` and perhaps `simulated/gap`.
        """
        elbo, gap = figures.get("simulated/elbo"), figures.get("simulated/gap")
        if elbo is None or self.tolerance is None:
            return None
        covering = self.covering and gap is not None
        score = float(gap) if covering and gap is not None else -float(elbo)
        if score < self.best:
            self.best = score
            return BETTER
        allowed = self.tolerance + (max(self.best, 0.0) if covering else 0.0)
        if math.isinf(self.best) or score <= self.best + allowed:
            return WORSE
        return COLLAPSED

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep copies of a state's tensors as those of the best one."""
        self.good = {name: value.detach().clone() for name, value in tensors.items()}
        self.returned = False

    def back(self) -> dict[str, Tensor]:
        """Count a collapse; copies of the best state, since who takes them writes into them."""
        self.restarts += 1
        return {name: value.clone() for name, value in self.good.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as tensors."""
        return {
            "best": torch.tensor(self.best, dtype=torch.float64),
            "restarts": torch.tensor(self.restarts),
            "returned": torch.tensor(self.returned),
            **{f"good/{name}": value for name, value in self.good.items()},
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo `state_dict`."""
        self.best, self.restarts = float(tensors["best"]), int(tensors["restarts"])
        self.returned = bool(tensors["returned"])
        good = {k.removeprefix("good/"): v for k, v in tensors.items() if k.startswith("good/")}
        self.good = good
