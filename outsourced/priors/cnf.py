"""A continuous normalizing flow trained by flow matching: an ODE from noise to pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from outsourced.priors.base import Prior
from outsourced.weights import Embedded

Field = Callable[[Tensor, Tensor], Tensor]
CALLS = {"euler": 1, "heun": 2}  # evaluations of the velocity in one step


def _euler(velocity: Field, x: Tensor, t: Tensor, h: float) -> Tensor:
    return x + h * velocity(x, t)


def _heun(velocity: Field, x: Tensor, t: Tensor, h: float) -> Tensor:
    first = velocity(x, t)
    second = velocity(x + h * first, t + h)
    return x + 0.5 * h * (first + second)


def integrate(
    velocity: Field, z: Tensor, solver: str, steps: int, checkpointed: bool = True
) -> Tensor:
    """Solve dx/dt = velocity(x, t) from x = z at t = 0 to t = 1 in equal steps.

    Args:
        velocity: maps x (B, ...) and t (B,) to dx/dt (B, ...).
        z: start, (B, ...).
        solver: "euler" (order 1, one call a step) or "heun" (order 2, two calls a step).
        steps: number of steps.
        checkpointed: where a gradient is wanted, keep only the states between the steps and
            evaluate each step again in the backward pass: memory of one step, not of all.

    Returns:
        x at t = 1, (B, ...).
    """
    step = _heun if solver == "heun" else _euler
    x = z
    for k in range(steps):
        t = z.new_full((len(z),), k / steps)
        if checkpointed and torch.is_grad_enabled() and x.requires_grad:
            x = checkpoint(
                step, velocity, x, t, 1 / steps, use_reentrant=False, preserve_rng_state=False
            )
        else:
            x = step(velocity, x, t, 1 / steps)
    return x


class Velocity(Embedded):
    """The velocity field of flow matching, a linear field plus a UNet on patches.

    Along x_t = (1 - t) z + t x the best linear estimate of x - z from x_t, pixel by pixel, is
    known in closed form from the mean and the standard deviation of the images; the UNet adds the
    rest, in units of its standard deviation (the preconditioning of Karras et al., 2022, arXiv
    2206.00364, for straight paths). With a UNet that returns zero the ODE is exactly
    x = mean + std z. Folding patches into channels leaves a quarter of the positions to the UNet.

    Args:
        channels: channels of each resolution of the UNet, from the finest; multiples of 8.
        layers: residual blocks in each resolution.
        patch: side of the square of pixels that is folded into channels.
        image_shape: (C, H, W).

    Raises:
        ValueError: a size is not positive, channels are not multiples of 8, or H or W is not a
            multiple of patch * 2^(resolutions - 1).
    """

    embedded = "fashion_cnf"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 64),
        layers: int = 1,
        patch: int = 2,
        image_shape: Sequence[int] = (1, 32, 32),
    ) -> None:
        super().__init__()
        _check(channels, layers, patch, image_shape)
        self.config = {
            "channels": list(channels),
            "layers": layers,
            "patch": patch,
            "image_shape": list(image_shape),
        }
        self.image_shape = tuple(image_shape)
        self.patch = patch
        self.unet = _unet(channels, layers, patch, image_shape)
        self.register_buffer("mean", torch.zeros(self.image_shape))
        self.register_buffer("std", torch.ones(self.image_shape))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set the mean and the standard deviation of the images, pixel by pixel.

        Args:
            mean: (C, H, W).
            std: (C, H, W); positive.
        """
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity at x and flow time t.

        Args:
            x: state of the ODE, (B, C, H, W).
            t: flow time in [0, 1], (B,); 0 is noise, 1 is data.

        Returns:
            dx/dt, (B, C, H, W).
        """
        time = t.reshape(-1, 1, 1, 1).to(x.dtype)
        variance = self.std.square()
        total = time.square() * variance + (1 - time).square()  # of x_t
        centred = x - time * self.mean
        linear = (time * variance - (1 - time)) / total * centred
        scale = total.rsqrt()
        patches = F.pixel_unshuffle(scale * centred, self.patch)
        # 1000 t: diffusers' embedding of time is made for step numbers.
        residual = self.unet(patches, 1000 * t.to(x.dtype), return_dict=False)[0]
        residual = F.pixel_shuffle(residual.to(x.dtype), self.patch)
        return self.mean + linear + self.std * scale * residual


class CNF(Prior):
    """A continuous normalizing flow (Lipman et al., 2023, arXiv 2210.02747): an ODE from z to x.

    The solver and its steps are part of the map: other ones give another prior. x is not clamped,
    so that the map stays smooth; values leave [-1, 1] a little.
    `CNF.from_weights("fashion_cnf")` gives the embedded Fashion-MNIST prior.

    Args:
        velocity: the velocity field.
        solver: "euler" or "heun".
        steps: equal steps in [0, 1]; each calls the network once (euler) or twice (heun).
        checkpointed: recompute each step in the backward pass instead of keeping its activations.

    Raises:
        ValueError: an unknown solver, or no steps.
    """

    alphas_cumprod = None  # a flow, not a diffusion
    shift = 1.0  # of its times

    def __init__(
        self,
        velocity: Velocity,
        solver: str = "euler",
        steps: int = 12,
        checkpointed: bool = True,
    ) -> None:
        if solver not in CALLS:
            raise ValueError(f"CNF.solver must be one of {', '.join(CALLS)}, got {solver!r}")
        if steps < 1:
            raise ValueError(f"CNF.steps must be >= 1, got {steps}")
        super().__init__(velocity.image_shape, velocity.image_shape)
        self.velocity = velocity
        self.solver, self.steps, self.checkpointed = solver, steps, checkpointed
        self.freeze()

    @classmethod
    def from_weights(
        cls,
        path_or_name: str | os.PathLike[str] | None = None,
        solver: str = "euler",
        steps: int = 12,
        checkpointed: bool = True,
    ) -> CNF:
        """Load the velocity from a weights file, see `Velocity.from_weights`, and choose a solver.

        Args:
            path_or_name: A `.safetensors` file, or the name of an embedded one.
            solver: "euler" or "heun".
            steps: equal steps in [0, 1].
            checkpointed: recompute each step in the backward pass.
        """
        return cls(Velocity.from_weights(path_or_name), solver, steps, checkpointed)

    @property
    def calls(self) -> int:
        """Evaluations of the network for one x."""
        return CALLS[self.solver] * self.steps

    def predict_velocity(self, z_t: Tensor, timestep: float | Tensor) -> Tensor:
        """The model's estimate of ε - x in z_t = (1 - s) x + s ε, as of `DiffusionPrior`.

        Args:
            z_t: Noisy images, (B, C, H, W).
            timestep: 1000 s = 1000 (1 - t), t the flow time; a number or numbers (B,).
        """
        time = torch.as_tensor(timestep, dtype=z_t.dtype, device=z_t.device)
        return -self.velocity(z_t, (1 - time / 1000).expand(len(z_t)))

    def decode(self, h: Tensor) -> Tensor:
        """Images of what the ODE moves: the pixels themselves."""
        return h

    def forward(self, z: Tensor) -> Tensor:
        """Integrate the ODE from noise to images, both (B, C, H, W)."""
        return integrate(self.velocity, z, self.solver, self.steps, self.checkpointed)

    def extra_repr(self) -> str:
        return f"solver={self.solver}, steps={self.steps}"


def _check(channels: Sequence[int], layers: int, patch: int, image_shape: Sequence[int]) -> None:
    for name, size in {"layers": layers, "patch": patch}.items():
        if size < 1:
            raise ValueError(f"Velocity.{name} must be >= 1, got {size}")
    if not channels or any(c < 8 or c % 8 for c in channels):
        raise ValueError(f"Velocity.channels must be multiples of 8, got {tuple(channels)}")
    factor = patch * 2 ** (len(channels) - 1)
    if image_shape[1] % factor or image_shape[2] % factor:
        raise ValueError(
            f"Velocity.image_shape needs H and W divisible by {factor} (patch times the "
            f"downsampling of {len(channels)} resolutions), got {tuple(image_shape)}"
        )


def _unet(
    channels: Sequence[int], layers: int, patch: int, image_shape: Sequence[int]
) -> nn.Module:
    from diffusers import UNet2DModel

    planes = image_shape[0] * patch**2
    unet = UNet2DModel(
        sample_size=(image_shape[1] // patch, image_shape[2] // patch),
        in_channels=planes,
        out_channels=planes,
        block_out_channels=tuple(channels),
        layers_per_block=layers,
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        norm_num_groups=8,
        attention_head_dim=8,  # of the one attention layer, at the coarsest resolution
    )
    network = cast(nn.Module, unet)  # diffusers' own types hide that it is one
    # An untrained field is the linear one.
    for parameter in network.get_submodule("conv_out").parameters():
        nn.init.zeros_(parameter)
    return network
