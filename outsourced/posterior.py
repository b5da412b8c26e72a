"""Posterior in noise space: the only place where a prior meets a task."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from outsourced.latents import LatentView
from outsourced.priors.base import Prior
from outsourced.tasks.base import Observation, Task

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Posterior(LatentView):
    """pi(z | y) proportional to N(z; 0, I) r(f(z), y)^beta.

    Args:
        prior: Frozen generator x = f(z).
        task: Likelihood or reward of data under an observation.
        beta: Inverse temperature > 0 of the reward; training may anneal it.
        chunk: Largest batch that passes through the prior at once.
        precision: Autocast type of the prior; its output is float32 again.

    Attributes:
        prior_calls: Number of z that have passed through f so far.

    Raises:
        ValueError: Out-of-range arguments.
    """

    def __init__(
        self,
        prior: Prior,
        task: Task,
        beta: float = 1.0,
        chunk: int = 4096,
        precision: str = "float32",
    ):
        if beta <= 0:
            raise ValueError(f"posterior.beta must be > 0, got {beta}")
        if chunk < 1:
            raise ValueError(f"posterior.chunk must be >= 1, got {chunk}")
        if precision not in PRECISIONS:
            raise ValueError(
                f"posterior.precision must be one of {list(PRECISIONS)}, got {precision!r}"
            )
        self.prior, self.task = prior, task
        self.beta, self.chunk, self.precision = beta, chunk, precision
        self.prior_calls = 0

    @property
    def device(self) -> torch.device:
        """Where the prior lives."""
        tensors = [*self.prior.parameters(), *self.prior.buffers()]
        return tensors[0].device if tensors else torch.device("cpu")

    @property
    def black_box(self) -> str | None:
        """Name of the part that log r has no gradient through, if any: the prior or the task."""
        for part in (self.prior, self.task):
            if not part.differentiable:
                return f"the {'prior' if part is self.prior else 'task'} {type(part).__name__}"
        return None

    @property
    def differentiable(self) -> bool:
        """Whether log r has a gradient in z."""
        return self.black_box is None

    def to(self, device: torch.device | str) -> "Posterior":
        """Move the prior and the task; returns itself."""
        self.prior.to(device)
        self.task.to(device)
        return self

    def decode(self, z: Tensor) -> Tensor:
        """x = f(z) for z (B, *noise_shape), in chunks: (B, *data_shape)."""
        return torch.cat([self._decode(z[piece]) for piece in self._pieces(len(z))])

    def _pieces(self, count: int) -> Iterator[slice]:
        return (slice(start, start + self.chunk) for start in range(0, max(count, 1), self.chunk))

    def _decode(self, z: Tensor) -> Tensor:
        self.prior_calls += len(z)
        if self.precision == "float32":
            return self.prior(z)
        with torch.autocast(z.device.type, PRECISIONS[self.precision]):
            x = self.prior(z)
        return x.to(z.dtype)

    def log_reward(self, z: Tensor, obs: Observation) -> Tensor:
        """beta log r(f(z), y) for z (B, *noise_shape) under B observations, in chunks: (B,)
        nats."""
        parts = (self.task.log_reward(self._decode(z[s]), obs[s]) for s in self._pieces(len(z)))
        return self.beta * torch.cat(list(parts))

    def pairwise_log_reward(self, x: Tensor, obs: Observation) -> Tensor:
        """beta log r(x_i, y_j) of data (N, *data_shape) and B observations, up to a constant of
        y_j: (N, B) nats."""
        score: Callable[[Tensor, Observation], Tensor] = self.task.pairwise_log_reward
        return self.beta * score(x, obs)

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Event shape of x."""
        return self.prior.data_shape

    def log_density(self, z: Tensor, obs: Observation) -> Tensor:
        """Unnormalised log pi(z | y): log_reward - |z|^2 / 2, (B,)."""
        return self.log_reward(z, obs) - 0.5 * z.flatten(1).square().sum(-1)

    def grad_log_reward(self, z: Tensor, obs: Observation) -> tuple[Tensor, Tensor]:
        """(beta log r, its gradient in z), without graph: (B,) and (B, *noise_shape).

        Raises:
            ValueError: The prior or the task is a black box.
        """
        self._require_gradient("the gradient of log r")
        values, gradients = [], []
        for piece in self._pieces(len(z)):
            with torch.enable_grad():
                leaf = z[piece].detach().requires_grad_()
                value = self.beta * self.task.log_reward(self._decode(leaf), obs[piece])
                (gradient,) = torch.autograd.grad(value.sum(), leaf)
            values.append(value.detach())
            gradients.append(gradient)
        return torch.cat(values), torch.cat(gradients)

    def gauss_newton(self, z: Tensor, obs: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """beta log r, its gradient and its Gauss-Newton matrix beta J^T J in z (B, d).

        J is the Jacobian of the task's whitened residual, by forward-mode differentiation: d
        tangents through f for each z. Source: Nocedal & Wright 2006, section 10.3.

        Raises:
            ValueError: Black-box prior or task, spatial noise, or a task without residual.
        """
        self._require_gradient("a Gauss-Newton matrix")
        if z.ndim != 2 or not hasattr(self.task, "whitened_jacobian"):
            raise ValueError(
                "a Gauss-Newton matrix needs vector noise and a task with a Gaussian likelihood, "
                "got "
                f"noise {tuple(z.shape[1:])} and {type(self.task).__name__}; use sampler.informed="
                "gradient or none"
            )
        parts = [self._gauss_newton(z[piece], obs[piece]) for piece in self._pieces(len(z))]
        value, gradient, matrix = (torch.cat(part) for part in zip(*parts, strict=True))
        return value, gradient, matrix

    def _gauss_newton(self, z: Tensor, obs: Observation) -> tuple[Tensor, Tensor, Tensor]:
        batch, d = z.shape
        self.prior_calls += batch
        eye = torch.eye(d, dtype=z.dtype, device=z.device)

        def tangent(direction: Tensor) -> Any:
            return torch.func.jvp(self.prior, (z,), (direction.expand(batch, d),))

        x, columns = torch.func.vmap(tangent, out_dims=(None, 0))(eye)  # type: ignore[arg-type]
        residual = self.task.whitened_residual(x, obs)  # type: ignore[operator]
        jacobian = self.task.whitened_jacobian(columns, x, obs)  # type: ignore[operator]
        jacobian = jacobian.transpose(0, 1)
        matrix = jacobian @ jacobian.mT
        gradient = -(jacobian @ residual.unsqueeze(-1)).squeeze(-1)
        value = self.task.log_reward(x, obs)
        return self.beta * value, self.beta * gradient, self.beta * matrix

    def random_vjp(self, z: Tensor, obs: Observation, count: int) -> Tensor:
        """J^T w of count fixed draws w ~ N(0, I), for z (B, *noise_shape): (count, B,
        *noise_shape).

        J is the Jacobian of the task's whitened residual times sqrt(beta): J^T J is the
        Gauss-Newton matrix of beta log r. The draws are the same for every z and in every call.

        Raises:
            ValueError: Black-box prior or task, or a task without residual.
        """
        self._require_residual("products with the Jacobian")
        rows, each = self._rows(len(z), count)
        parts, draws = [], None
        for piece in self._pieces(len(rows)):
            index = rows[piece]
            with torch.enable_grad():
                leaf = z[index].detach().requires_grad_()
                x = self._decode(leaf)
                signal = self._signal(x, obs[index], x.detach())
                if draws is None:
                    source = torch.Generator().manual_seed(0)
                    draws = torch.randn(count, signal.shape[1], generator=source).to(signal)
                (gradient,) = torch.autograd.grad((signal * draws[each[piece]]).sum(), leaf)
            parts.append(gradient)
        return torch.cat(parts).unflatten(0, (count, len(z)))

    @torch.no_grad()
    def jvp(self, z: Tensor, obs: Observation, tangents: Tensor) -> Tensor:
        """J t by differences of f, for tangents (r, B, *noise_shape) of length 1 at z (B,
        *noise_shape): (r, B, m). J: see `random_vjp`."""
        self._require_residual("products with the Jacobian")
        rows, each = self._rows(len(z), len(tangents))
        x = self.decode(z)
        start = self._signal(x, obs, x)
        parts = []
        for piece in self._pieces(len(rows)):
            index = rows[piece]
            moved = self._decode(z[index] + self._difference * tangents[each[piece], index])
            change = self._signal(moved, obs[index], x[index]) - start[index]
            parts.append(change / self._difference)
        return torch.cat(parts).unflatten(0, (len(tangents), len(z)))

    def _signal(self, x: Tensor, obs: Observation, about: Tensor) -> Tensor:
        signal: Any = self.task.whitened_signal
        return math.sqrt(self.beta) * signal(x, obs, about)

    @property
    def _difference(self) -> float:
        """Length of a difference in noise: rounding and curvature of f err alike."""
        return max(0.01, math.sqrt(torch.finfo(PRECISIONS[self.precision]).eps))

    def _rows(self, batch: int, count: int) -> tuple[Tensor, Tensor]:
        """Index of z and of the product in each of count * batch rows."""
        index = torch.arange(count * batch, device=self.device)
        return index % batch, index // batch

    def _require_residual(self, what: str) -> None:
        self._require_gradient(what)
        if not hasattr(self.task, "whitened_signal"):
            raise ValueError(
                f"{what} need a measurement with a residual, got the task "
                f"{type(self.task).__name__}; use sampler.rank=0"
            )

    def _require_gradient(self, what: str) -> None:
        if not self.differentiable:
            raise ValueError(
                f"{what} does not exist, since {self.black_box} is a black box; use "
                "sampler.informed=none and a gradient-free objective"
            )

    def features(self, obs: Observation) -> Tensor:
        """What an encoder sees of observations: the task's features."""
        features: Callable[[Observation], Tensor] = self.task.features  # type: ignore[assignment]
        return features(obs)

    def draw_noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ N(0, I), (n, *noise_shape)."""
        device = self.device if generator is None else generator.device
        z = torch.randn((n, *self.prior.noise_shape), generator=generator, device=device)
        return z.to(self.device)

    @torch.no_grad()
    def simulate(
        self, n: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Observation]:
        """Joint draws z ~ N(0, I), x = f(z), y ~ p(y | x): z is an exact posterior draw of its
        y."""
        z = self.draw_noise(n, generator)
        x = self.decode(z)
        return z, x, self.task.sample(x, generator=generator)  # type: ignore[operator]
