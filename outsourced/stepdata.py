"""Training data: item i depends on the seed and on i alone, so that a resumed run sees the same."""

from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from outsourced.bank import PairBank
from outsourced.settings import Settings

RANK_STRIDE = 2**40  # keeps the seeds of different processes apart


class StepData(Dataset):
    """Bank rows (z, x) and real images of the steps from `start` on.

    Args:
        bank: Pairs (z, f(z)).
        images: Real images (N, C, H, W), or None.
        settings: Batch sizes, number of steps and seed.
        start: Steps that are done already.
        rank: Of this process among several; each sees its own rows at every step.
        reserved: First rows of the bank that are no training pairs.
    """

    def __init__(
        self,
        bank: PairBank,
        images: Tensor | None,
        settings: Settings,
        start: int,
        rank: int = 0,
        reserved: int = 0,
    ):
        self.bank, self.images, self.settings = bank, images, settings
        self.start, self.rank, self.reserved = start, rank, reserved

    def __len__(self) -> int:
        return self.settings.max_steps - self.start

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):  # what ends an iteration
            raise IndexError(index)
        step, s = self.start + index, self.settings
        generator = torch.Generator().manual_seed(
            s.seed * 1_000_003 + 2 * step + RANK_STRIDE * self.rank
        )
        later = max(s.batch, s.groups)  # the later phases read the first of these
        count = max(s.anchor_batch, later) if step < s.anchor_steps else later
        rows = torch.randint(self.reserved, len(self.bank), (count,), generator=generator)
        z, x = self.bank.rows(rows)
        item: dict[str, Any] = {"step": step, "rows": rows, "z": z, "x": x}
        if self.images is not None:
            rows = torch.randint(len(self.images), (count,), generator=generator)
            item["images"] = self.images[rows]
        return item


class PairData(lightning.LightningDataModule):
    """The pair bank of a prior, and real images if the observations need them.

    Args:
        bank: Pairs (z, f(z)).
        images: Real images (N, C, H, W), or None.
        settings: Batch sizes and seed.
        reserved: First rows of the bank that are no training pairs: a sampler that looks draws up
            among them would find the very noise it is asked for.

    Raises:
        ValueError: Observations of images were asked for, but there are none; or no pair is left.
    """

    def __init__(
        self, bank: PairBank, images: Tensor | None, settings: Settings, reserved: int = 0
    ):
        super().__init__()
        if len(bank) <= reserved:
            raise ValueError(
                f"data.bank_size must be > sampler.lookup = {reserved}, got {len(bank)}"
            )
        if settings.observations != "simulated" and images is None:
            raise ValueError(
                f"data.observations={settings.observations} needs data.images; for priors without "
                "real data use data.observations=simulated"
            )
        self.bank, self.settings, self.reserved = bank, settings, reserved
        self.images = None if settings.observations == "simulated" else images
        self.start = 0

    def train_dataloader(self) -> DataLoader:
        """One item a step, from `start` on."""
        rank = 0 if self.trainer is None else self.trainer.global_rank
        data = StepData(self.bank, self.images, self.settings, self.start, rank, self.reserved)
        return DataLoader(data, batch_size=None)
