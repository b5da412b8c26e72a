"""A training without evaluation, logs and checkpoints, as benchmarks time it."""

from __future__ import annotations

from typing import Any

import lightning


def train_quietly(module: lightning.LightningModule, data: Any, steps: int) -> None:
    """Train a module on the CPU.

    Args:
        module: changed in place.
        data: its batches.
        steps: updates.
    """
    trainer = lightning.Trainer(
        max_steps=steps,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, data)
