"""Rows of the table of a large prior: what is called, and how many operations that takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from outsourced.build import build
from outsourced.matching import MatchingLosses
from outsourced.paths import PathMixture
from outsourced.posterior import Posterior
from outsourced.replay import ReplayBuffer
from outsourced.settings import Settings
from outsourced.solvers.moment import Moment
from outsourced.solvers.psld import PSLD
from outsourced.solvers.schedule import levels
from outsourced.tasks.base import Observation
from outsourced.transport import NoiseTransport

if TYPE_CHECKING:
    from benchmarks.operations import Parts

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PROMPT, GUIDANCE = "a photo", 7.5
BANK_BATCH = 8
PSLD_STEPS = 1000
TINY = [
    *("task.mask.min_side=4", "task.mask.max_side=8", "prior.steps=3", "prior.memory_gb=null"),
    *("sampler.width=16", "sampler.steps=2", "sampler.adapters=2"),
]


@dataclass
class Scene:
    """A posterior under a large prior, its sampler and its training.

    Attributes:
        posterior, sampler: of one experiment.
        losses: of its training.
        settings: of the training.
        prompts: embeddings of both prompts of a guided call, (2, L, D).
        obs: one observation.
        device: of all of them.
    """

    posterior: Posterior
    sampler: NoiseTransport
    losses: MatchingLosses
    settings: Settings
    prompts: Tensor
    obs: Observation
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def prior(self) -> Any:
        """The prior, known to be a latent diffusion."""
        return self.posterior.prior

    def to(self, device: torch.device) -> None:
        """Move everything."""
        self.device = device
        self.posterior.to(device)
        self.sampler.to(device)
        self.prompts, self.obs = self.prompts.to(device), self.obs.to(device)
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
        """What a bank would give: pairs (z, x) and their latents; f is not called."""
        x = torch.rand((n, *self.prior.data_shape), generator=torch.Generator().manual_seed(n))
        self.losses.latents = self.noise(n)
        pairs = {"z": self.noise(n), "x": (2 * x - 1).to(self.device)}
        return {**pairs, "rows": torch.arange(n)}


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
    assert isinstance(problem.sampler, NoiseTransport)
    pair = problem.sampler, problem.posterior
    losses = MatchingLosses(*pair, objective, mixture, settings.denoising_steps)
    x = torch.zeros(1, *problem.posterior.data_shape)
    obs = problem.posterior.task.sample(x, generator=torch.Generator().manual_seed(0))
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
    weights = [weight for weight in scene.sampler.parameters() if weight.requires_grad]
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
    count = scene.settings.batch
    batch, pair = scene.batch(count), _generators(scene)
    return _training(scene, lambda: scene.losses.likelihood(batch, count, *pair)[0])


def _pairs_operations(parts: Parts, scene: Scene) -> float:
    levels = scene.settings.denoising_steps * parts.kernel.both
    return scene.settings.batch * (parts.encode.forward + parts.embed.both + levels)


def _pass(scene: Scene) -> Callable[[], object]:
    scene.guide(False)
    generator = torch.Generator(scene.device).manual_seed(0)

    def sample() -> Tensor:
        with torch.no_grad():
            _, latents = scene.sampler.draw(scene.obs, 1, generator)
            return scene.posterior.decode_latents(latents[0])

    return sample


def _pass_operations(parts: Parts, scene: Scene) -> float:
    fits, steps = scene.sampler.refine, sum(scene.sampler.refine)
    decode = parts.decode
    # A fit begins with a call of the decoder; each of its steps takes another, and a backward pass.
    fitted = (len(fits) + steps) * decode.forward + steps * (decode.both - decode.forward)
    network = scene.sampler.steps * parts.kernel.forward
    return parts.encode.forward + parts.embed.forward + network + fitted + decode.forward


ROWS = {
    "f": generate(False),
    "f_guided": generate(True),
    "f_batch": generate(False, BANK_BATCH),
    "f_gradient": generate(False, grad=True),
    "psld": Row(lambda _: "a step of PSLD, guidance 1", _psld, _psld_operations),
    "pairs": Row(
        lambda s: f"a training step on {s.settings.batch} stored pairs",
        _pairs,
        _pairs_operations,
    ),
    "pass": Row(
        lambda s: (
            f"a posterior sample, {s.sampler.steps} network calls, fits of "
            f"{', '.join(map(str, s.sampler.refine))} steps, no f"
        ),
        _pass,
        _pass_operations,
    ),
}
