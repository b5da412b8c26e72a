"""Deterministic samplers of diffusion and flow models, built on diffusers' schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from outsourced.priors.fixed_point import fixed_point

CLASSES = {
    "ddim": "DDIMScheduler",
    "dpm_solver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "flow_match_euler": "FlowMatchEulerDiscreteScheduler",
}
FLOW = ("flow_match_euler", "dpm_solver++", "unipc")  # those that integrate a rectified flow
DIFFUSION = ("ddim", "dpm_solver++", "euler", "unipc")
FIRST_ORDER = ("ddim", "euler", "flow_match_euler")  # a step knows nothing of those before it
TOLERANCE, MOST = 0.001, 40  # of an inversion: the flow amplifies the errors of few samples
STOCHASTIC = {"ddpm", "ddpm_parallel", "euler_ancestral", "k_dpm_2_ancestral", "lcm", "tcd", "sa"}
STOCHASTIC |= {"dpm_solver_sde", "sde_dpm_solver++", "sde_dpm_solver", "flow_match_lcm", "repaint"}


def check_scheduler(name: str | None, steps: int) -> None:
    """Refuse what no pipeline could make right, before anything is loaded.

    Raises:
        ValueError: An unknown or a stochastic scheduler, or steps < 1.
    """
    if name in STOCHASTIC:
        raise ValueError(
            f"prior.scheduler {name!r} draws noise at every step, but x = f(z) must be "
            f"deterministic; use one of {', '.join(CLASSES)}"
        )
    if name is not None and name not in CLASSES:
        raise ValueError(
            f"prior.scheduler must be one of {', '.join(CLASSES)} or null, got {name!r}"
        )
    if steps < 1:
        raise ValueError(f"prior.steps must be >= 1, got {steps}")


Step = tuple[Tensor, float, float, float]


class Schedule:
    """The time grid and update rule that carry noise to a sample; keeps no state between calls.

    Args:
        own: The scheduler that the pipeline came with: gives the noise schedule and the meaning
            of the network's output.
        name: A key of `CLASSES`; by default DDIM (Song et al., 2021, arXiv 2010.02502), or Euler
            steps where the pipeline is a rectified flow (Liu et al., 2023, arXiv 2209.03003).
        steps: Number of network calls, each of them possibly a guided pair.

    Attributes:
        flow: Whether the network predicts the velocity noise - data of a rectified flow.
        timesteps: The model's times that are visited, descending, (steps,).

    Raises:
        ValueError: A scheduler that does not fit the model, or that is configured to draw noise,
            or more steps than the model was trained on.
    """

    def __init__(self, own: Any, name: str | None = None, steps: int = 50) -> None:
        check_scheduler(name, steps)
        self.flow = _is_flow(own)
        self.name = name or ("flow_match_euler" if self.flow else "ddim")
        self.steps = steps
        fitting = FLOW if self.flow else DIFFUSION
        if self.name not in fitting:
            kind = "a rectified flow" if self.flow else "a model of noise"
            raise ValueError(
                f"prior.scheduler {self.name!r} does not fit {kind}; use one of "
                f"{', '.join(fitting)}"
            )
        trained = own.config.num_train_timesteps
        if steps > trained:
            raise ValueError(
                f"prior.steps must be <= {trained}, the steps of the model's training, got {steps}"
            )
        _check_config(own.config)
        self.config = self._build(own.config).config
        self.prediction_type = self.config.get("prediction_type", "flow_prediction")
        self.timesteps: Tensor = self.begin().timesteps

    def _build(self, config: Any) -> Any:
        import diffusers

        changes: dict[str, Any] = {}
        if self.name == "dpm_solver++":
            changes["algorithm_type"] = "dpmsolver++"  # of which "sde-dpmsolver++" draws noise
        if self.flow and self.name != "flow_match_euler":
            shift = config.get("flow_shift", config.get("shift", 1.0))
            changes |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
            changes["flow_shift"] = shift
        return getattr(diffusers, CLASSES[self.name]).from_config(config, **changes)

    @property
    def shift(self) -> float:
        """Shift of a rectified flow's times (Esser et al., 2024, arXiv 2403.03206, eq. 23); else 1.

        Both names exist, and a scheduler that is not the model's own knows `flow_shift` only.
        """
        if not self.flow:
            return 1.0
        name = "shift" if self.name == "flow_match_euler" else "flow_shift"
        return float(self.config.get(name) or 1.0)

    def begin(self, device: Any = None) -> Any:
        """A fresh diffusers scheduler, its times set: multi-step ones remember earlier steps."""
        scheduler = self._build(self.config)
        scheduler.set_timesteps(self.steps, device=device)
        return scheduler

    def integrate(self, predict: Callable[[Tensor, Tensor], Tensor], z: Tensor) -> Tensor:
        """Carry noise to a sample, as diffusers' pipelines do with `latents=z`.

        Args:
            predict: Network output at (scaled sample (B, ...), timestep ()).
            z: Noise, (B, ...), in the dtype of the network.

        Returns:
            The sample, (B, ...).
        """
        scheduler = self.begin(z.device)
        # Flow schedulers start from unit noise and do not rescale; these attributes are not theirs.
        x = z * getattr(scheduler, "init_noise_sigma", 1.0)
        scale = getattr(scheduler, "scale_model_input", lambda sample, _: sample)
        for timestep in scheduler.timesteps:
            output = predict(scale(x, timestep), timestep)
            x = scheduler.step(output, timestep, x, return_dict=False)[0]
        return x

    def invert(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        tolerance: float = TOLERANCE,
        most: int = MOST,
    ) -> Tensor:
        """Noise that `integrate` carries to a sample, each step undone by fixed-point iteration.

        One iteration is the usual inversion, which takes the network's output at the end of a step
        for that at its start (Song et al., 2021, arXiv 2010.02502). It loses the noise that a last
        long step takes away; iterations find it again (Pan et al., 2023, arXiv 2309.04907).

        Args:
            predict: As of `integrate`.
            x: The sample, (B, ...).
            tolerance: See `fixed_point`; in standard deviations of the noise.
            most: Network calls of a sample for each step, at most.

        Raises:
            ValueError: A multi-step scheduler, tolerance <= 0 or most < 1.
        """
        if tolerance <= 0 or most < 1:
            raise ValueError(
                f"an inversion needs tolerance > 0 and most >= 1, got {tolerance} and {most}"
            )
        output = None
        for step in reversed(self._steps(x)):
            x, output = _undo(predict, x, step, output, tolerance, most)
        return x / float(getattr(self.begin(), "init_noise_sigma", 1.0))

    def _steps(self, like: Tensor) -> list[Step]:
        """Timestep, scale of the network's input, and factors of the state and of the output in the
        state after it, of each step: read off the scheduler itself, whose steps are linear."""
        if self.name not in FIRST_ORDER:
            raise ValueError(
                f"prior.scheduler {self.name!r} remembers earlier steps and cannot be inverted; "
                f"use one of {', '.join(FIRST_ORDER)}"
            )
        for clipped in ("clip_sample", "thresholding"):
            if self.config.get(clipped):
                raise ValueError(
                    f"a scheduler with {clipped}=true cannot be inverted: its steps lose what they "
                    "clip; set it to false in the pipeline's scheduler_config.json"
                )
        states, outputs = self.begin(like.device), self.begin(like.device)
        one = torch.ones((1, *like.shape[1:]), device=like.device)
        scale = getattr(states, "scale_model_input", lambda sample, _: sample)
        found = []
        for timestep in states.timesteps:
            first = float(scale(one, timestep).flatten()[0])
            if hasattr(outputs, "scale_model_input"):
                outputs.scale_model_input(one, timestep)  # some count their steps by it
            keep = states.step(0 * one, timestep, one, return_dict=False)[0].flatten()[0]
            gain = outputs.step(one, timestep, 0 * one, return_dict=False)[0].flatten()[0]
            found.append((timestep, first, float(keep), float(gain)))
        return found


def _undo(
    predict: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    step: Step,
    output: Tensor | None,
    tolerance: float,
    most: int,
) -> tuple[Tensor, Tensor]:
    """The state before a step, from that after it, and the network's output there.

    The output that belongs to the following step, if it is known, makes the first guess.
    """
    timestep, scale, keep, gain = step

    def update(before: Tensor, rows: Tensor) -> Tensor:
        return (x[rows] - gain * predict(before * scale, timestep)) / keep

    start = x if output is None else (x - gain * output) / keep
    before = fixed_point(update, start, tolerance, most)
    return before, (x - keep * before) / gain


def _is_flow(scheduler: Any) -> bool:
    flow = scheduler.config.get("prediction_type") == "flow_prediction"
    return flow or type(scheduler).__name__.startswith("FlowMatch")


def _check_config(config: Any) -> None:
    if config.get("stochastic_sampling"):
        raise ValueError(
            "the pipeline's scheduler has stochastic_sampling on, but x = f(z) must be "
            "deterministic; set it to false in scheduler/scheduler_config.json"
        )
    if config.get("use_dynamic_shifting"):
        raise ValueError(
            "the pipeline's scheduler has use_dynamic_shifting on, which is not supported; set it "
            "to false and `shift` to a number in scheduler/scheduler_config.json"
        )
