"""Noise levels of a diffusion or a rectified flow: states a h + s noise, whatever the network says.

Source of the conversions: Salimans & Ho, 2022, arXiv 2202.00512, section 4; Liu et al., 2023, arXiv
2209.03003.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 20.0  # spread / signal beyond which a state is noise: some models begin without signal
KINDS = ("epsilon", "sample", "v_prediction", "flow_prediction")


@dataclass(frozen=True)
class Levels:
    """Some of the levels of a model, the noisiest first.

    Attributes:
        timesteps: what the network is told, (K,).
        signal, spread: a and s of the states a h + s noise, (K,).
        kind: what the network predicts, one of `KINDS`.

    Raises:
        ValueError: another kind.
    """

    timesteps: Tensor
    signal: Tensor
    spread: Tensor
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a network predicts one of {', '.join(KINDS)}, got {self.kind!r}")

    @classmethod
    def visited(cls, timesteps: Tensor, alphas_cumprod: Tensor | None, kind: str) -> "Levels":
        """Those of given times.

        Args:
            timesteps: descending, (K,).
            alphas_cumprod: squared signal at every training step; None for a rectified flow, whose
                time is 1000 times its share of noise.
            kind: what the network predicts.
        """
        times = timesteps.cpu()
        if alphas_cumprod is None:
            spread = times.float() / 1000
            return cls(times, 1 - spread, spread, "flow_prediction")
        alpha = alphas_cumprod.cpu().float()[times.long()]
        return cls(times, alpha.sqrt(), (1 - alpha).sqrt(), kind)

    @classmethod
    def spaced(
        cls,
        timesteps: Tensor,
        alphas_cumprod: Tensor | None,
        kind: str,
        count: int,
        between: tuple[float, float] | None = None,
    ) -> "Levels":
        """`count` of them, evenly in log spread / signal.

        Even times leave the last factor of ten in the noise to a single step; what y determines
        is decided there.

        Args:
            timesteps, alphas_cumprod, kind: as of `visited`.
            count: how many.
            between: spread / signal of the first and the last one; by default those of the first
                and the last of the times.
        """
        ends = cls.visited(timesteps[[0, -1]], alphas_cumprod, kind)
        bounds = ends.spread / ends.signal.clamp_min(1 / MOST)
        high, low = (bounds if between is None else torch.tensor(between)).log().tolist()
        ratio = torch.linspace(high, low, count, dtype=torch.float64).exp()
        if alphas_cumprod is None:
            times = (1000 * ratio / (1 + ratio)).float()
        else:
            alpha = alphas_cumprod.cpu().double()
            every = ((1 - alpha) / alpha).sqrt().log()
            times = (every[None] - ratio.log()[:, None]).abs().argmin(1)
            for step in reversed(range(count - 1)):  # whole times, no two of them the same
                times[step] = max(times[step], times[step + 1] + 1)
        if between is None:
            times[0] = timesteps[0]
        return cls.visited(times, alphas_cumprod, kind)

    def __len__(self) -> int:
        return len(self.timesteps)

    def at(self, level: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """a and s at levels (B,), shaped to multiply (B, ...)."""
        shape = (-1, *[1] * (like.ndim - 1))
        index = level.cpu()
        return self.signal[index].to(like).view(shape), self.spread[index].to(like).view(shape)

    def noised(self, h: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """States of h and noise (B, ...) at levels (B,)."""
        signal, spread = self.at(level, h)
        return signal * h + spread * noise

    def output(self, h: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What the network should say at the states of h and noise (B, ...) at levels (B,)."""
        if self.kind == "epsilon":
            return noise
        if self.kind == "sample":
            return h
        if self.kind == "flow_prediction":
            return noise - h
        signal, spread = self.at(level, h)
        return signal * noise - spread * h

    def read(self, output: Tensor, state: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """h and noise (B, ...) that the network's output at states stands for."""
        signal, spread = self.at(level, state)
        if self.kind == "epsilon":
            return (state - spread * output) / signal, output
        if self.kind == "sample":
            return output, (state - signal * output) / spread
        if self.kind == "flow_prediction":
            return state - spread * output, state + signal * output
        return signal * state - spread * output, spread * state + signal * output

    def ahead(
        self, clean: Tensor, state: Tensor, level: int, before: Tensor | None = None
    ) -> Tensor:
        """The state at the next level, or clean itself after the last one.

        Args:
            clean: what the network takes the state (B, ...) at the level for.
            state: at the level.
            before: what it took the state at the level before for. With it the step is of second
                order (Lu et al., 2022, arXiv 2211.01095, algorithm 2), else that of DDIM.
        """
        if level + 1 == len(self):
            return clean
        odds = (self.signal / self.spread).double().log()
        length = odds[level + 1] - odds[level]
        if before is not None:
            share = 0.5 * float(length / (odds[level] - odds[level - 1]))
            clean = (1 + share) * clean - share * before
        keep = float(self.spread[level + 1] / self.spread[level])
        return keep * state - float(self.signal[level + 1] * torch.expm1(-length)) * clean

    def gaussian(self, mean: Tensor, variance: Tensor, state: Tensor, level: Tensor) -> Tensor:
        """The exact output where h is N(mean, variance), independent entries, (B, ...)."""
        signal, spread = self.at(level, state)
        excess = (state - signal * mean) / (signal.square() * variance + spread.square())
        return self.output(mean + variance * signal * excess, spread * excess, level)

    def enter(self, mean: Tensor, variance: Tensor, noise: Tensor, level: int) -> Tensor:
        """Where the exact flow of h ~ N(mean, variance), independent entries, carries noise
        (B, ...) until a level."""
        signal, spread = self.signal[level].to(noise), self.spread[level].to(noise)
        return signal * mean + (signal.square() * variance + spread.square()).sqrt() * noise

    def leave(self, mean: Tensor, variance: Tensor, state: Tensor, level: int) -> Tensor:
        """Where that flow carries states (B, ...) from a level to: h."""
        signal, spread = self.signal[level].to(state), self.spread[level].to(state)
        std = (signal.square() * variance + spread.square()).sqrt()
        return mean + variance.sqrt() * (state - signal * mean) / std
