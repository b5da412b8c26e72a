"""The contract every prior keeps: a frozen, deterministic map from Gaussian noise to data."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


class Prior(nn.Module):
    """A frozen generator x = f(z), z ~ N(0, I).

    A subclass builds its modules and buffers in its constructor, ends that constructor with
    `self.freeze()`, and implements `forward(z)`, which maps (B, *noise_shape) to (B, *data_shape)
    without any randomness. Settings that are not weights belong in `extra_repr`, because the
    fingerprint hashes it.

    Args:
        noise_shape: event shape of z.
        data_shape: event shape of x.
        differentiable: whether gradients flow from x to z.
    """

    def __init__(
        self,
        noise_shape: tuple[int, ...],
        data_shape: tuple[int, ...],
        differentiable: bool = True,
    ) -> None:
        super().__init__()
        self.noise_shape = tuple(int(size) for size in noise_shape)
        self.data_shape = tuple(int(size) for size in data_shape)
        self.differentiable = bool(differentiable)

    def forward(self, z: Tensor) -> Tensor:
        """Map noise to data.

        Args:
            z: noise, (B, *noise_shape).

        Returns:
            x = f(z), (B, *data_shape); equal z give equal x.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement forward(z)")

    def freeze(self) -> None:
        """Switch to eval mode and stop all gradients to the weights."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Prior:
        """Stay in eval mode whatever `mode` says: a training loop must not wake batch norms."""
        return super().train(False)

    def fingerprint(self) -> str:
        """Identify this prior in run folders and banks.

        Returns:
            The SHA-256 hex digest of the class name, the event shapes, `extra_repr()` and every
            parameter and buffer (name, dtype, shape, bytes). It does not depend on the device.
        """
        digest = hashlib.sha256()
        header = (type(self).__qualname__, self.noise_shape, self.data_shape, self.extra_repr())
        digest.update(repr(header).encode())
        tensors = dict(self.named_parameters()) | dict(self.named_buffers())
        for name in sorted(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
