"""A training without logs and checkpoints, as benchmarks time it."""

from __future__ import annotations

from typing import Any

import lightning

from outsourced.training import SamplerTraining
from outsourced.watch import Watch


def train_quietly(module: SamplerTraining, data: Any, steps: int) -> None:
    """Train a module on the CPU.

    Args:
        module: changed in place.
        data: its batches.
        steps: updates.
    """
    trainer = lightning.Trainer(
        callbacks=[Watch()],
        max_steps=steps,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, data)
