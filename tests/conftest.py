"""Settings every test runs under: one thread, no network, no display."""

import os

# Read when the libraries are imported, so they are set before anything else.
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator in a fixed state: a failure can be repeated."""
    return torch.Generator().manual_seed(0)
