"""State as plain named tensors, so that nothing pickled is ever loaded."""

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


def flat(parts: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all parts, their names behind those of their part and a slash."""
    return {f"{part}/{k}": v for part, values in parts.items() for k, v in values.items()}


def parts_of(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Undo `flat`; what has no slash in its name is of no part."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if "/" in name:
            part, key = name.split("/", 1)
            found.setdefault(part, {})[key] = value
    return found
