"""Optimiser state as plain tensors, so that nothing pickled is ever loaded."""

from typing import Any

import torch
from torch import Tensor


def optimizer_tensors(optimizer: Any) -> dict[str, Tensor]:
    """State of an optimiser, keyed by parameter index and name."""
    state = optimizer.state_dict()["state"]
    return {f"{i}/{name}": value for i, entry in state.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo `optimizer_tensors` on an optimiser of the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
