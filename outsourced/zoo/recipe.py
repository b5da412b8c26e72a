"""What the recipes of the embedded networks share: command line, device, set-up."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from outsourced.allocator import keep_freed_memory
from outsourced.weights import ZOO_WEIGHTS


def recipe_parser(doc: str | None, out: str | None) -> argparse.ArgumentParser:
    """Parser of the arguments that every recipe takes.

    Args:
        doc: description of the recipe.
        out: name of the weights that it writes by default, in the folder of the embedded ones;
            None where another argument decides it.
    """
    parser = argparse.ArgumentParser(description=doc)
    default = None if out is None else ZOO_WEIGHTS / out
    parser.add_argument("--out", type=Path, default=default, help="weights to write")
    parser.add_argument("--folder", help="where the full data set lies")
    parser.add_argument("--device", default="cpu", help="where to train: cpu, cuda, cuda:1, ...")
    return parser


def start(args: argparse.Namespace, seed: int) -> torch.device:
    """Set threads, memory, precision and seed for a training.

    Args:
        args: arguments of `recipe_parser`.
        seed: seed of the initial weights.

    Returns:
        the device to train on.

    Raises:
        ValueError: the device is unknown or missing.
    """
    try:
        device = torch.device(args.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device {args.device} cannot be used ({str(error).splitlines()[0]}); use cpu, or "
            f"cuda on a machine with an accelerator"
        ) from error
    # With several threads a CPU spends longer waiting than computing on networks this small.
    torch.set_num_threads(1)
    keep_freed_memory()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(seed)
    return device


def settings(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The named arguments, as keyword arguments of a recipe's `train`."""
    return {name: getattr(args, name) for name in names}


def metadata(recipe: dict[str, Any], device: torch.device) -> dict[str, str]:
    """What a weights file says of its training."""
    return {**{name: str(value) for name, value in recipe.items()}, "device": device.type}
