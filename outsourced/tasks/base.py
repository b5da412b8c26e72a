"""What every task shares: an observation, and the log-likelihood that it induces on data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_PREFIX = "params."


@dataclass(frozen=True)
class Observation:
    """A batch of observations with the operator and the noise level that produced each of them.

    Args:
        y: measurements, (B, *measurement_shape).
        params: operator parameters, each (B, ...), e.g. {"mask": (B, 1, H, W)}; empty when the
            operator is fixed.
        sigma: noise standard deviation in the units of y, (B,).

    Raises:
        ValueError: when sigma is not one number per observation or a parameter has another batch
            size than y.
    """

    y: Tensor
    params: dict[str, Tensor]
    sigma: Tensor

    def __post_init__(self) -> None:
        if self.y.dim() < 1:
            raise ValueError("observation.y must have a batch dimension, got a scalar; use y[None]")
        if self.sigma.shape != self.y.shape[:1]:
            raise ValueError(
                f"observation.sigma must have shape ({self.y.shape[0]},), one per observation, "
                f"got {tuple(self.sigma.shape)}"
            )
        for name, value in self.params.items():
            if value.dim() < 1 or value.shape[0] != self.y.shape[0]:
                raise ValueError(
                    f"observation.params[{name!r}] must have batch size {self.y.shape[0]} like y, "
                    f"got shape {tuple(value.shape)}; expand it to one entry per observation"
                )

    def __len__(self) -> int:
        return self.y.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> Observation:
        """Select observations; an integer keeps the batch dimension.

        Args:
            index: integer, slice, or index tensor (n,) over the batch.

        Raises:
            IndexError: when an integer is outside the batch.
        """
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"observation index {index} is outside a batch of {len(self)}")
            start = index % len(self)
            index = slice(start, start + 1)
        return Observation(
            self.y[index], {k: v[index] for k, v in self.params.items()}, self.sigma[index]
        )

    def to(self, device: torch.device | str) -> Observation:
        """Return the observation on another device."""
        return Observation(
            self.y.to(device),
            {k: v.to(device) for k, v in self.params.items()},
            self.sigma.to(device),
        )

    def repeat(self, n: int) -> Observation:
        """Repeat each observation n times in a row: (B, ...) becomes (B n, ...), y_0 first.

        Args:
            n: number of copies of each observation, at least 1.

        Raises:
            ValueError: when n < 1.
        """
        if n < 1:
            raise ValueError(f"observation.repeat needs n >= 1, got {n}")
        return Observation(
            self.y.repeat_interleave(n, 0),
            {k: v.repeat_interleave(n, 0) for k, v in self.params.items()},
            self.sigma.repeat_interleave(n, 0),
        )

    @staticmethod
    def cat(observations: Sequence[Observation]) -> Observation:
        """Join batches of observations of one task, in order.

        Args:
            observations: at least one observation, all with the same operator parameters.

        Raises:
            ValueError: when the sequence is empty or the parameter names differ.
        """
        if not observations:
            raise ValueError("Observation.cat needs at least one observation, got none")
        names = observations[0].params.keys()
        for other in observations[1:]:
            if other.params.keys() != names:
                raise ValueError(
                    "Observation.cat needs the same operator parameters everywhere, got "
                    f"{sorted(names)} and {sorted(other.params)}"
                )
        return Observation(
            torch.cat([o.y for o in observations]),
            {k: torch.cat([o.params[k] for o in observations]) for k in names},
            torch.cat([o.sigma for o in observations]),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return a flat dictionary of tensors: "y", "sigma" and one "params.<name>" each."""
        flat = {"y": self.y, "sigma": self.sigma}
        return flat | {_PREFIX + k: v for k, v in self.params.items()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> Observation:
        """Rebuild an observation from `state_dict()`.

        Args:
            state: flat dictionary with "y", "sigma" and any number of "params.<name>".

        Raises:
            ValueError: when "y" or "sigma" is missing, or another key is present.
        """
        params = {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}
        rest = {k for k in state if not k.startswith(_PREFIX)}
        if rest != {"y", "sigma"}:
            raise ValueError(
                f"an observation holds 'y', 'sigma' and 'params.*', got keys {sorted(state)}"
            )
        return cls(state["y"], params, state["sigma"])


class Task(nn.Module):
    """A likelihood r(x, y): how well data x explain an observation y.

    Attributes:
        differentiable: whether the gradient of log r in x exists and tells something.
    """

    differentiable: bool = True

    def log_reward(self, x: Tensor, obs: Observation) -> Tensor:
        """Return log r(x, y) in nats, one number per sample, up to a constant of y alone.

        Args:
            x: data, (B, *data_shape).
            obs: B observations, one for each x.
        """
        raise NotImplementedError(f"{type(self).__name__} must define log_reward(x, obs)")

    def pairwise_log_reward(self, x: Tensor, obs: Observation) -> Tensor:
        """Return log r(x_i, y_j) of all pairs, (N, B) nats, up to a constant of y_j.

        Args:
            x: data, (N, *data_shape).
            obs: B observations.
        """
        columns = [self.log_reward(x, obs[j].repeat(len(x))) for j in range(len(obs))]
        return torch.stack(columns, 1)
