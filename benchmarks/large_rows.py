"""Rows of the table of a large prior: what is called, and how many operations that takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from outsourced.build import build
from outsourced.losses import Losses
from outsourced.paths import PathMixture
from outsourced.posterior import Posterior
from outsourced.replay import ReplayBuffer
from outsourced.sampler import NoiseSampler
from outsourced.settings import Settings
from outsourced.solvers.levels import levels
from outsourced.solvers.moment import Moment
from outsourced.solvers.psld import PSLD
from outsourced.tasks.base import Observation

if TYPE_CHECKING:
    from benchmarks.operations import Parts

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PROMPT, GUIDANCE = "a photo", 7.5
BANK_BATCH = 8
PSLD_STEPS = 1000
TINY = [
    *("task.mask.min_side=4", "task.mask.max_side=8", "prior.steps=3", "sampler.lookup=4"),
    "prior.memory_gb=null",
    *("sampler.width=16", "sampler.depth=2", "sampler.embedding=8", "sampler.steps=4"),
]


@dataclass
class Scene:
    """A posterior under a large prior, its sampler and its training.

    Attributes:
        posterior, sampler: of one experiment.
        losses: of its training, by the path-wise gradient.
        settings: of the training.
        prompts: embeddings of both prompts of a guided call, (2, L, D).
        obs: one observation.
        device: of all of them.
    """

    posterior: Posterior
    sampler: NoiseSampler
    losses: Losses
    settings: Settings
    prompts: Tensor
    obs: Observation
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def prior(self) -> Any:
        """The prior, known to be a latent diffusion."""
        return self.posterior.prior

    def to(self, device: torch.device) -> None:
        """Move everything, and fill the stored draws, whose contents cost nothing to be right."""
        self.device = device
        self.posterior.to(device)
        self.sampler.to(device)
        self.prompts, self.obs = self.prompts.to(device), self.obs.to(device)
        assert self.sampler.anchoring is not None
        for stored in self.sampler.anchoring.lookup.buffers():
            stored.normal_()
        self.guide(False)
        if self.prior.memory_gb:  # found once, not in the first of the timed calls
            for grad in (False, True):
                self.prior.chunk_size(device, grad)

    def guide(self, on: bool) -> None:
        """Whether the prior calls its network for two prompts, or for one."""
        self.prior.embeddings = self.prompts if on else self.prompts[1:]

    def noise(self, n: int) -> Tensor:
        """z ~ N(0, I), the same at every call."""
        return self.posterior.draw_noise(n, torch.Generator().manual_seed(n))

    def batch(self, n: int) -> dict[str, Tensor]:
        """What a bank would give: pairs (z, x); f is not called."""
        x = torch.rand((n, *self.prior.data_shape), generator=torch.Generator().manual_seed(n))
        return {"z": self.noise(n), "x": (2 * x - 1).to(self.device)}


def make_scene(path: str, experiment: str, tiny: bool = False) -> Scene:
    """The posterior, the untrained sampler and the losses of an experiment, on the CPU.

    Args:
        path: folder of the pipeline.
        experiment: in configs/experiment.
        tiny: for pipelines of a size for tests.
    """
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    overrides = [f"experiment={experiment}", f"prior.path={path}", f"prior.prompt={PROMPT!r}"]
    overrides += [f"prior.guidance={GUIDANCE}", "run=r", *(TINY if tiny else [])]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", overrides=overrides)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    problem = build(config)
    paths = {name: value for name, value in config["paths"].items() if name != "buffer"}
    buffer = ReplayBuffer(**config["paths"]["buffer"])
    mixture = PathMixture(problem.sampler, problem.posterior, buffer, **paths)
    settings: Settings = instantiate(cfg.trainer)
    objective = instantiate(cfg.objective)
    losses = Losses(
        problem.sampler, problem.posterior, objective, mixture, settings.denoising_steps
    )
    x = torch.zeros(1, *problem.posterior.data_shape)
    obs = problem.posterior.task.sample(x, generator=torch.Generator().manual_seed(0))  # type: ignore[operator]
    prior: Any = problem.posterior.prior
    scene = Scene(problem.posterior, problem.sampler, losses, settings, prior.embeddings, obs)
    scene.guide(False)
    return scene


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        told: what it is about.
        prepare: gives the action that is timed.
        operations: of the action, from those of the parts.
    """

    told: Callable[[Scene], str]
    prepare: Callable[[Scene], Callable[[], object]]
    operations: Callable[[Parts, Scene], float]


def generate(guided: bool, batch: int = 1, grad: bool = False) -> Row:
    """f(z), or its gradient in z."""

    def told(scene: Scene) -> str:
        what = f"f(z), {scene.prior.calls} DDIM steps, guidance {GUIDANCE if guided else 1}"
        return what + (f", batch {batch}" if batch > 1 else "") + (", with gradient" * grad)

    def prepare(scene: Scene) -> Callable[[], object]:
        scene.guide(guided)
        z = scene.noise(batch)

        def plain() -> Tensor:
            with torch.no_grad():
                return scene.posterior.decode(z)

        def gradient() -> Tensor:
            leaf = z.clone().requires_grad_()
            return torch.autograd.grad(scene.posterior.decode(leaf).sum(), leaf)[0]

        return gradient if grad else plain

    def operations(parts: Parts, scene: Scene) -> float:
        return batch * (_gradient if grad else _sample)(parts, scene, guided)

    return Row(told, prepare, operations)


def _sample(parts: Parts, scene: Scene, guided: bool) -> float:
    return scene.prior.calls * (1 + guided) * parts.predict.forward + parts.decode.forward


def _gradient(parts: Parts, scene: Scene, guided: bool) -> float:
    calls = scene.prior.calls * (1 + guided)
    return calls * parts.predict.checkpointed + parts.decode.checkpointed


def _psld(scene: Scene) -> Callable[[], object]:
    scene.guide(False)
    solver = PSLD(scene.posterior, omega=1.0, gamma=0.1, steps=PSLD_STEPS)
    now, after = levels(scene.prior, PSLD_STEPS)[PSLD_STEPS // 2 :][:2]
    moment = Moment(now, after, scene.obs, torch.Generator(scene.device).manual_seed(0))
    z = scene.noise(1)
    return lambda: solver.step(z, moment)


def _psld_operations(parts: Parts, _: Scene) -> float:
    return parts.predict.both + parts.decode.both + parts.encode.both


def _training(scene: Scene, loss: Callable[[], Tensor]) -> Callable[[], object]:
    """One step of the optimiser, as training takes it."""
    scene.guide(False)
    weights = list(scene.sampler.parameters())
    optimizer = torch.optim.Adam(weights, lr=1e-6)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        torch.nn.utils.clip_grad_norm_(weights, scene.settings.clip)
        optimizer.step()

    return step


def _generators(scene: Scene) -> tuple[torch.Generator, torch.Generator]:
    return torch.Generator().manual_seed(0), torch.Generator(scene.device).manual_seed(1)


def _pairs(scene: Scene) -> Callable[[], object]:
    batch, count = scene.batch(scene.settings.batch), scene.settings.batch
    pair = _generators(scene)
    return _training(scene, lambda: scene.losses.likelihood(batch, count, *pair)[0])


def _kernels(scene: Scene) -> int:
    return min(scene.settings.denoising_steps, scene.sampler.steps)


def _pairs_operations(parts: Parts, scene: Scene) -> float:
    kernel = parts.kernel
    # Steps beyond `max_rows` wait for the backward pass without their activations.
    split = scene.settings.batch * _kernels(scene) > scene.sampler.max_rows
    each = kernel.checkpointed if split and _kernels(scene) > 1 else kernel.both
    return scene.settings.batch * (parts.embed.both + _kernels(scene) * each)


def _path(scene: Scene) -> Callable[[], object]:
    groups = scene.settings.groups
    batch, pair = scene.batch(groups), _generators(scene)
    balance = scene.losses.balance
    return _training(scene, lambda: balance(batch, groups, *pair)[0])


def _paths(scene: Scene) -> int:
    mixture = scene.losses.mixture
    return mixture.on + mixture.free + mixture.known


def _path_operations(parts: Parts, scene: Scene) -> float:
    roll = scene.sampler.steps * parts.kernel.checkpointed
    each = parts.embed.both + _paths(scene) * (roll + _gradient(parts, scene, False))
    return scene.settings.groups * each


def _pass(scene: Scene) -> Callable[[], object]:
    generator = torch.Generator(scene.device).manual_seed(0)
    return lambda: scene.sampler.forward_path(scene.obs, 1, generator)


def _pass_operations(parts: Parts, scene: Scene) -> float:
    return parts.embed.forward + scene.sampler.steps * parts.kernel.forward


ROWS = {
    "f": generate(False),
    "f_guided": generate(True),
    "f_batch": generate(False, BANK_BATCH),
    "f_gradient": generate(False, grad=True),
    "f_guided_gradient": generate(True, grad=True),
    "psld": Row(lambda _: "a step of PSLD, guidance 1", _psld, _psld_operations),
    "pairs": Row(
        lambda s: f"a training step on {s.settings.batch} stored pairs, {_kernels(s)} kernels each",
        _pairs,
        _pairs_operations,
    ),
    "path": Row(
        lambda s: f"a path-wise training step, {s.settings.groups * _paths(s)} paths",
        _path,
        _path_operations,
    ),
    "pass": Row(
        lambda s: f"a pass of the sampler, K = {s.sampler.steps}, without f",
        _pass,
        _pass_operations,
    ),
}
