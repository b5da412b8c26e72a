"""Replay buffer of observations with the best-known noise of each."""

import torch
from torch import Tensor

from outsourced.tasks.base import Observation

PRIORITIES = ("uniform", "reward", "rank")


class ReplayBuffer:
    """The last `capacity` observations, each with `slots` draws of z and their log-rewards.

    Rewards of different observations are not comparable (their normalisers differ by hundreds of
    nats), so rows are drawn uniformly and the priority acts among the draws of one observation.

    Args:
        capacity: Number of observations; the oldest is replaced.
        slots: Draws kept for each.
        priority: How a draw is chosen: `uniform`, `reward` (softmax of log r / temperature) or
            `rank` (probability proportional to 1 / (rank + 1), best first).
        temperature: In nats; `reward` only.

    Raises:
        ValueError: Out-of-range arguments.
    """

    def __init__(
        self,
        capacity: int = 2048,
        slots: int = 4,
        priority: str = "rank",
        temperature: float = 1.0,
    ):
        for name, value in (("capacity", capacity), ("slots", slots), ("temperature", temperature)):
            if value <= 0:
                raise ValueError(f"paths.buffer.{name} must be > 0, got {value}")
        if priority not in PRIORITIES:
            raise ValueError(
                f"paths.buffer.priority must be one of {', '.join(PRIORITIES)}, got {priority!r}"
            )
        self.capacity, self.slots = capacity, slots
        self.priority, self.temperature = priority, temperature
        self.count = 0  # rows ever written
        self._data: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return min(self.count, self.capacity)

    def _allocate(self, values: dict[str, Tensor]) -> None:
        self._data = {
            name: torch.zeros((self.capacity, *value.shape[1:]), dtype=value.dtype)
            for name, value in values.items()
        }

    def add(self, obs: Observation, z: Tensor, log_reward: Tensor) -> None:
        """Append B observations with their n >= slots draws; the `slots` best by reward are kept.

        Args:
            obs: B observations.
            z: (n, B, *noise_shape).
            log_reward: (n, B) nats; what is not a number counts as a reward of zero (-inf).

        Raises:
            ValueError: Fewer draws than slots.
        """
        if len(z) < self.slots:
            raise ValueError(f"the buffer keeps {self.slots} draws per observation, got {len(z)}")
        log_reward = torch.where(log_reward.isnan(), -torch.inf, log_reward)
        order = log_reward.argsort(0, descending=True)[: self.slots]
        index = order.reshape(*order.shape, *[1] * (z.ndim - 2)).expand(-1, -1, *z.shape[2:])
        best = z.gather(0, index)
        values = {"z": best.transpose(0, 1), "log_reward": log_reward.gather(0, order).T}
        values |= {f"obs.{name}": value for name, value in obs.state_dict().items()}
        values = {name: value.detach().cpu() for name, value in values.items()}
        if not self._data:
            self._allocate(values)
        rows = (self.count + torch.arange(len(obs))) % self.capacity
        for name, value in values.items():
            self._data[name][rows] = value
        self.count += len(obs)

    def draw_rows(self, n: int, generator: torch.Generator) -> Tensor:
        """At most n distinct row indices, uniformly."""
        return torch.randperm(len(self), generator=generator)[:n]

    def observations(self, rows: Tensor) -> Observation:
        """The observations of rows (B,)."""
        prefix = "obs."
        state = {
            k.removeprefix(prefix): v[rows] for k, v in self._data.items() if k.startswith(prefix)
        }
        return Observation.from_state_dict(state)

    def draw_slots(self, rows: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """n slot indices for each row by priority, with replacement: (n, B)."""
        log_reward = self._data["log_reward"][rows]
        if self.priority == "uniform":
            weight = torch.ones_like(log_reward)
        elif self.priority == "reward":
            best = log_reward.amax(-1, keepdim=True)
            gap = torch.where(best.isinf(), 0.0, log_reward - best)  # all -inf: no preference
            weight = torch.softmax(gap / self.temperature, -1)
        else:
            rank = log_reward.argsort(-1, descending=True).argsort(-1)
            weight = 1 / (rank + 1.0)
        return torch.multinomial(weight, n, replacement=True, generator=generator).T

    def read(self, rows: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """z (n, B, *noise_shape) and log-reward (n, B) at rows (B,), slots (n, B)."""
        return self._data["z"][rows, slots], self._data["log_reward"][rows, slots]

    def write(self, rows: Tensor, slots: Tensor, z: Tensor, log_reward: Tensor) -> None:
        """Replace draws in place, shapes as in `read`; of equal slots the last one stays."""
        for slot, value, reward in zip(slots, z.cpu(), log_reward.cpu(), strict=True):
            self._data["z"][rows, slot] = value
            self._data["log_reward"][rows, slot] = reward

    def statistics(self) -> dict[str, float]:
        """Number of observations, and mean best and mean log-reward of their draws in nats."""
        figures = {"observations": float(len(self))}
        if len(self):
            value = self._data["log_reward"][: len(self)]
            figures["best_log_reward"] = float(value.amax(1).mean())
            figures["log_reward"] = float(value.mean())
        return figures

    def state_dict(self) -> dict[str, Tensor]:
        """All contents as tensors."""
        return {"count": torch.tensor(self.count), **self._data}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore `state_dict()`.

        Raises:
            ValueError: The state belongs to a buffer of another size.
        """
        data = {name: value.clone() for name, value in state.items() if name != "count"}
        if data and data["log_reward"].shape != (self.capacity, self.slots):
            raise ValueError(
                f"saved replay buffer is {tuple(data['log_reward'].shape)}, expected capacity and "
                f"slots {(self.capacity, self.slots)}; resume with the settings of the run"
            )
        self.count, self._data = int(state["count"]), data
