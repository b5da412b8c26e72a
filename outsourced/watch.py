"""What happens between two steps of a training: figures, evaluations, and what they lead to."""

from typing import Any

import lightning

from outsourced.checkpoint import restore_optimizer
from outsourced.collapse import BETTER, COLLAPSED


class Watch(lightning.Callback):
    """Logs a `SamplerTraining`, evaluates it from time to time, and takes it back where it has
    collapsed.

    It stands before what saves checkpoints, so that a run that is resumed knows what an evaluation
    of the last step has said.
    """

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        module = pl_module
        module.log("loss", module.figures["loss"], prog_bar=True, logger=False)
        if module.skips.total:
            module.log("skipped", float(module.skips.total), prog_bar=True, logger=False)
        if module.skips.stuck:  # in every process, whose gradients are the same
            restore_optimizer(trainer.optimizers[0], module.go_back())
        if module.steps_done % module.settings.log_every == 0:
            module.report(module.figures | module.state())
        if module.evaluate and _due(module):
            _recover(trainer, module, _evaluate(module) if trainer.is_global_zero else None)
            module.start_clock()


def _due(module: Any) -> bool:
    """Whether an evaluation is: every so many steps, and at the end of the warm start."""
    every, warm = module.settings.evaluate_every, module.phases()[1][1]
    if not every:
        return False
    done, last = module.steps_done, module.settings.max_steps
    return done % every == 0 or done == warm < last


def _evaluate(module: Any) -> dict[str, float]:
    with module.averaged():
        figures: dict[str, float] = module.guard.evaluate(module.evaluate, module.steps_done)
    module.report({f"eval/{name}": value for name, value in figures.items()})
    return figures


def _recover(trainer: lightning.Trainer, module: Any, figures: dict[str, float] | None) -> None:
    """Keep this state if it is the best so far, or go back if it has collapsed.

    Args:
        trainer: Of this process.
        module: In training.
        figures: Of an evaluation, in the first process, which decides for all of them.
    """
    verdict = None if figures is None else module.judge(figures)
    verdict = trainer.strategy.broadcast(verdict)
    if verdict == BETTER:
        module.guard.keep(module.learned())
    elif verdict == COLLAPSED:
        restore_optimizer(trainer.optimizers[0], module.go_back())
