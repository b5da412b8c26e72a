"""What a solver costs besides time: evaluations of networks, and memory at its peak."""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what Linux is told to forget the largest resident size so far


def networks(prior: nn.Module) -> dict[str, nn.Module]:
    """The networks behind a prior, by what they are called in the table.

    Those of a diffusion or a flow are `network`, the `decoder` and the `encoder` of its latents.
    Any other prior is one network, `f`.
    """
    known: Any = prior
    for attribute in ("network", "velocity"):
        if hasattr(prior, attribute):
            parts = {"network": getattr(known, attribute)}
            if hasattr(prior, "vae"):
                parts |= {"decoder": known.vae.decoder, "encoder": known.vae.encoder}
            return parts
    return {"f": prior}


@contextmanager
def counted(prior: nn.Module) -> Iterator[Counter[str]]:
    """Count evaluations within the block, one for each sample: `NAME_forward`, `NAME_backward`.

    A pass that checkpointing repeats is an evaluation too. A Gauss-Newton matrix counts as one
    forward pass, though it carries a tangent for each dimension of the noise.
    """
    counts: Counter[str] = Counter()
    hooks = []
    for name, module in networks(prior).items():
        hooks += [
            module.register_forward_pre_hook(_forward(counts, name)),
            module.register_forward_hook(_backward(counts, name)),
        ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def _forward(counts: Counter[str], name: str) -> Any:
    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts[f"{name}_forward"] += len(inputs[0])

    return count


def _backward(counts: Counter[str], name: str) -> Any:
    def count(gradient: Tensor) -> None:
        counts[f"{name}_backward"] += len(gradient)

    def wait(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        first = output if isinstance(output, Tensor) else output[0]
        if first.requires_grad:
            first.register_hook(count)

    return wait


class Peak:
    """How much memory is added at the peak of what runs within the block.

    On a GPU allocated memory, on the CPU the resident memory of the process; freed memory that the
    C library keeps is given back first.

    Args:
        device: of the work.

    Attributes:
        megabytes: after the block; None on a CPU whose system does not tell.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.megabytes: float | None = None

    def __enter__(self) -> Peak:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before: float | None = torch.cuda.memory_allocated(self.device) / 1e6
        else:
            self.before = _reset_resident()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            after: float | None = torch.cuda.max_memory_allocated(self.device) / 1e6
        else:
            after = _resident("VmHWM")
        if self.before is not None and after is not None:
            self.megabytes = after - self.before


def _reset_resident() -> float | None:
    """Forget the largest resident size so far; the present one in MB, None where unknown."""
    if not sys.platform.startswith("linux"):
        return None
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:
        return None
    return _resident("VmRSS")


def _resident(name: str) -> float | None:
    if not STATUS.is_file():
        return None
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return float(line.split()[1]) * 1024 / 1e6
    return None
