"""From configurations to problems."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

import outsourced.build
from outsourced.build import build_posterior, code_version, resolve
from outsourced.tasks.base import Task

PRIOR = {"_target_": "outsourced.priors.LinearGaussian", "dim": 3}
TASK = {"_target_": "outsourced.tasks.vectors.LinearMeasurement", "measurements": 2, "dim": 3}
POSTERIOR = {"beta": 1.0, "chunk": 8, "precision": "float32"}
CONFIG = {"prior": PRIOR, "task": {**TASK, "seed": 0, "sigma": 0.1}, "posterior": POSTERIOR}
SIZES = {"width": "auto", "embedding": "auto"}
AUTO = {"informed": "auto", "covariance": "auto", "network": "auto", **SIZES, "steps": 5}


class Reward(Task):
    """A reward that is no measurement."""

    def log_reward(self, x, obs):
        return x.sum(1)


@pytest.mark.parametrize(
    ("dim", "differentiable", "informed", "covariance"),
    [
        (3, True, "gauss_newton", "full"),
        (65, True, "gradient", "diagonal"),
        (3, False, "none", "full"),
    ],
)
def test_auto(dim, differentiable, informed, covariance) -> None:
    """`auto` becomes what the noise and the prior allow; what was chosen stays.

    Mutants: gradients of a black box, a triangular factor of any size.
    """
    task = {**CONFIG["task"], "dim": dim}
    posterior = build_posterior({**CONFIG, "prior": {**PRIOR, "dim": dim}, "task": task})
    posterior.prior.differentiable = differentiable
    resolved = resolve({"sampler": AUTO}, posterior)
    sizes = {"network": "auto", "width": 256, "embedding": 128}
    assert resolved == {"informed": informed, "covariance": covariance, **sizes, "steps": 5}
    chosen = {"informed": "none", "covariance": "diagonal", **sizes, "width": 7}
    assert resolve({"sampler": chosen}, posterior) == chosen
    assert AUTO["informed"] == "auto"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"informed": "gradient"}, "sampler.informed=gradient needs the gradient"),
        ({"informed": "gauss_newton"}, "sampler.informed=gauss_newton needs the gradient"),
        ({"informed": "anchor", "climb": 3}, "sampler.climb=3 needs the gradient"),
        ({"informed": "anchor", "rank": 2}, "sampler.rank=2 needs the gradient"),
    ],
)
@pytest.mark.parametrize("part", ["prior", "task"])
def test_guidance_by_gradients_that_do_not_exist_is_refused(part, options, message) -> None:
    """Before any work, naming the part and the way out.

    Mutants: only the prior is asked; a failure after the bank was built; a climb along zeros.
    """
    posterior = build_posterior(CONFIG)
    box = getattr(posterior, part)
    box.differentiable = False
    name = f"the {part} {type(box).__name__} is a black box"
    with pytest.raises(ValueError, match=f"{message} of log r, but {name}; use .*climb=0"):
        resolve({"sampler": {**AUTO, **options}}, posterior)
    for allowed in ({"informed": "anchor", "climb": 0}, {"informed": "anchor"}, {}):
        informed = allowed.get("informed", "none")
        assert resolve({"sampler": {**AUTO, **allowed}}, posterior)["informed"] == informed


@pytest.mark.parametrize(
    "options", [{"informed": "gauss_newton"}, {"informed": "anchor", "rank": 2}]
)
def test_rewards_without_a_residual_are_refused(options) -> None:
    """Before any work. Mutant: an attribute that is missing in the middle of the training."""
    posterior = build_posterior(CONFIG)
    posterior.task = Reward()
    with pytest.raises(ValueError, match=r"needs a measurement with a residual, got the task Rew"):
        resolve({"sampler": {**AUTO, **options}}, posterior)
    assert resolve({"sampler": {**AUTO, "informed": "anchor"}}, posterior)["informed"] == "anchor"


@pytest.mark.parametrize(
    ("shape", "network", "width", "embedding"),
    [
        ((4, 8, 8), "auto", 512, 256),
        ((16, 8, 8), "auto", 1024, 256),
        ((4, 64, 64), "auto", 64, 64),
        ((4, 8, 8), "convolutional", 64, 64),
        ((208,), "auto", 416, 256),
    ],
)
def test_networks_grow_with_the_noise(shape, network, width, embedding) -> None:
    """Mutants: a dense network's width for the channels of a U-Net, or the pixels of the noise
    counted without its channels."""
    posterior = build_posterior(CONFIG)
    posterior.prior.noise_shape = shape
    resolved = resolve({"sampler": {**AUTO, "network": network}}, posterior)
    assert (resolved["width"], resolved["embedding"]) == (width, embedding)


def test_posterior_of_a_configuration() -> None:
    """Options reach the posterior; a task for other data is refused; null shapes are the prior's.

    Mutant: a task that is built for its default shape.
    """
    posterior = build_posterior(CONFIG)
    assert posterior.chunk == 8
    with pytest.raises(ValueError, match=r"data of shape \(4,\), but the prior generates \(3,\)"):
        build_posterior({**CONFIG, "task": {**CONFIG["task"], "dim": 4}})
    function = "outsourced.tasks.functions.absolute_first"
    nonlinear = {
        "_target_": "outsourced.tasks.vectors.NonlinearMeasurement",
        **{"function": function, "data_shape": None, "sigma": 0.2},
    }
    assert build_posterior({**CONFIG, "task": nonlinear}).task.data_shape == (3,)
    assert nonlinear["data_shape"] is None


def test_code_version(tmp_path, monkeypatch) -> None:
    """The commit of this package, and no commit of a repository that it was installed into.

    Mutants: the commit of whatever repository surrounds the file, a crash without git.
    """
    assert re.fullmatch(r"[^+]+(\+[0-9a-f]{7,}(-dirty)?)?", code_version())
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    commit = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=b", "commit", "-q"]
    subprocess.run([*commit, "--allow-empty", "-m", "somebody's"], check=True)
    installed = tmp_path / "build.py"
    shutil.copy(outsourced.build.__file__, installed)
    monkeypatch.setattr(outsourced.build, "__file__", str(installed))
    assert "+" not in code_version()
    subprocess.run(["git", "-C", tmp_path, "add", "build.py"], check=True)
    subprocess.run([*commit, "-m", "ours"], check=True)
    assert "+" in code_version()
    assert not code_version().endswith("-dirty")
    installed.write_text("changed")
    assert code_version().endswith("-dirty")
    monkeypatch.setattr(outsourced.build.shutil, "which", lambda _: None)
    assert "+" not in code_version()


OWN_FILES = {"inpaint_mask": "mask.mask", "deblur_kernel": "kernel.kernel"}
VECTORS = ("linear", "nonlinear")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TASKS = sorted(path.stem for path in (CONFIGS / "task").glob("*.yaml"))


@pytest.mark.parametrize("name", [t for t in TASKS if t not in (*VECTORS, "physics")])
def test_every_task_of_images_observes_the_default_prior(name, tmp_path) -> None:
    """From its file of configs/, on the default prior: y, its features and its likelihood.

    Mutants: a key that the class does not know, a size that does not fit 32 x 32 pixels, nested
    `data_shape: null` that is left as it is, features that are not what the encoder is built for.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    pixels = torch.full((32, 32), 255) if name == "inpaint_mask" else torch.zeros(5, 5)
    pixels[1:4, 2] = 128
    Image.fromarray(pixels.byte().numpy()).save(tmp_path / "own.png")
    given = [f"task.{OWN_FILES[name]}={tmp_path}/own.png"] if name in OWN_FILES else []
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", [f"task={name}", *given])
    whole = OmegaConf.to_container(config, resolve=False)
    assert isinstance(whole, dict)
    posterior = build_posterior({str(k): whole[k] for k in ("prior", "task", "posterior")})
    generator = torch.Generator().manual_seed(0)
    z, _, obs = posterior.simulate(6, generator)
    features = posterior.features(obs)
    assert features.shape[1:] == posterior.task.feature_shape
    assert len(posterior.task.feature_shape) == 3
    assert features.isfinite().all()
    true, other = posterior.log_reward(z, obs), posterior.log_reward(z.flip(0), obs)
    assert (true > other + 5).all()
