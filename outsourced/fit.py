"""Run a training to its end, or to an interruption that the next call resumes from."""

import logging
import signal
import threading
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import Logger

from outsourced.checkpoint import restore_optimizer
from outsourced.run import CHECKPOINT, WARM, Run, check_prior, read_tensors, write_tensors
from outsourced.stepdata import PairData
from outsourced.training import SamplerTraining
from outsourced.watch import Watch


class Recovery(lightning.Callback):
    """Saves the weights at the end of the warm start, and a checkpoint every `save_every` steps and
    on SIGINT; restores the optimiser.

    Args:
        run: Where the checkpoint lies.
        metadata: Stored in it: fingerprint of the prior, version of the code.
    """

    def __init__(self, run: Run, metadata: dict[str, str]):
        self.run, self.metadata, self.stopped = run, metadata, False
        self._previous: Any = None

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        assert isinstance(pl_module, SamplerTraining)
        if pl_module.waiting_optimizer:
            restore_optimizer(trainer.optimizers[0], pl_module.waiting_optimizer)
            pl_module.waiting_optimizer = {}
        if threading.current_thread() is threading.main_thread():  # nobody else may listen
            self._previous = signal.signal(signal.SIGINT, self._stop)

    def _stop(self, *_: Any) -> None:
        if self.stopped:  # the second Ctrl-C does not wait
            raise KeyboardInterrupt
        self.stopped = True

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        _, (_, warm, _), (_, end, _) = pl_module.phases()
        if pl_module.steps_done == warm < end and trainer.is_global_zero:
            costs = {name: str(value) for name, value in pl_module.costs().items()}
            write_tensors(self.run.folder / WARM, pl_module.average, self.metadata | costs)
        if self.stopped or pl_module.steps_done % pl_module.settings.save_every == 0:
            if trainer.is_global_zero:
                write_tensors(self.run.folder / CHECKPOINT, pl_module.checkpoint(), self.metadata)
            trainer.should_stop = trainer.should_stop or self.stopped

    def _restore_handler(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self._restore_handler()

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        self._restore_handler()


def training_device(options: dict[str, Any]) -> torch.device:
    """The device that `lightning.Trainer` would train on in this process.

    Args:
        options: Arguments of `lightning.Trainer`.
    """
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # hardware and adverts
    return lightning.Trainer(**{**options, **quiet}).strategy.root_device


def resume(run: Run, module: SamplerTraining, fingerprint: str) -> int:
    """Load the checkpoint of a run; returns the number of steps done.

    Raises:
        FileNotFoundError, ValueError: A checkpoint missing, damaged or of another prior or network.
    """
    path = run.folder / CHECKPOINT
    tensors, metadata = read_tensors(path)
    check_prior(path, metadata, fingerprint)
    try:
        module.restore(tensors)
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"{path} does not fit this version of the code or this network ({error}); train again "
            "with overwrite=true"
        ) from error
    return module.steps_done


def fit(
    run: Run,
    module: SamplerTraining,
    data: PairData,
    metadata: dict[str, str],
    resumed: bool = False,
    loggers: list[Logger] | None = None,
    **lightning_options: Any,
) -> bool:
    """Train until `max_steps` or SIGINT.

    Args:
        run: Folder of the checkpoints.
        module: What is trained.
        data: Its batches.
        metadata: Stored with the checkpoints; `prior` is the prior's fingerprint.
        resumed: Continue from the run's checkpoint.
        loggers: Of Lightning.
        lightning_options: Further arguments of `lightning.Trainer`.

    Returns:
        Whether all steps are done.

    Raises:
        FileNotFoundError, ValueError: See `resume`.
        OSError: A checkpoint could not be written; the previous one is intact.
    """
    limit = module.settings.max_steps
    if resumed:
        data.start = resume(run, module, metadata["prior"])
        print(f"resuming {run.folder} at step {data.start} of {limit}")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # hardware and adverts
    trainer = lightning.Trainer(
        max_steps=limit - data.start,
        max_epochs=1,
        logger=loggers or False,
        callbacks=[Watch(), Recovery(run, metadata)],
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # an item is a step; processes differ by their seeds
        log_every_n_steps=1,  # the module decides what is logged when
        **lightning_options,
    )
    trainer.fit(module, data)
    if module.steps_done < limit:
        print(f"stopped at step {module.steps_done}; the same command resumes {run.folder}")
    return module.steps_done >= limit
