"""configs/experiment: settings for large priors, which this machine runs in small."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from benchmarks.pipelines import write_pipeline

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LARGE = sorted(
    path.stem
    for path in (CONFIGS / "experiment").glob("*.yaml")
    if path.stem.startswith(("sd15", "ffhq256"))
)
# One step of each kind, on images of 32 x 32 (`tiny` and `tiny_ldm`).
DRY = [
    *("prior.steps=2", "sampler.steps=2", "sampler.width=16", "sampler.adapters=2"),
    *("trainer.batch=2", "trainer.anchor_batch=2", "data.bank_size=8", "data.bank_chunk=4"),
    *("trainer.max_steps=2", "trainer.anchor_steps=1", "trainer.evaluate_every=0", "logger=none"),
    *("evaluate.observations=1", "evaluate.n=2", "run=r", "prior.dtype=float32"),
    *("lightning.accelerator=cpu", "+lightning.enable_progress_bar=false"),
]
SMALL_TASKS = {
    "inpaint": ("task.mask.min_side=8", "task.mask.max_side=16"),
    "gaussian_deblur": ("task.kernel.width=1.0", "task.kernel.size=5"),
    "motion_deblur": ("task.kernel.size=7",),
    "destripe": ("task.mask.min_period=4", "task.mask.max_period=8"),
}


def settings(name: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", overrides=[f"experiment={name}", "run=r"])


@pytest.mark.parametrize("name", LARGE)
def test_settings_are_consistent(name) -> None:
    """What a training would refuse, or pay for in vain, hours after its bank was begun.

    Mutant: a task of another experiment, settings of a prior that an experiment loses, a copy of
    the whole network, axes that are images in the weights of a run.
    """
    cfg = settings(name)
    base, _, task = name.partition("_")
    own = {"sd15": "LatentDiffusionPrior", "ffhq256": "UnconditionalLatentPrior"}
    assert cfg.prior._target_ == f"outsourced.priors.{own[base]}"
    if task:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            plain = compose("train", overrides=[f"task={task}", "run=r"])
        assert cfg.task._target_ == plain.task._target_
        assert cfg.task.sigma == 0.05
    assert cfg.objective._target_.endswith("PathLikelihood")
    assert cfg.sampler._target_.endswith("NoiseTransport")
    assert cfg.data.bank_size % cfg.data.bank_chunk == 0
    assert cfg.sampler.adapters
    assert cfg.sampler.checkpointing
    assert cfg.sampler.axes is None
    assert cfg.prior.dtype == "bfloat16"
    assert cfg.trainer.anchor_steps < cfg.trainer.max_steps
    assert cfg.trainer.save_every <= 100  # minutes on the accelerators that docs/sd15.md names


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "sd15_inpaint")) for name in LARGE],
)
def test_dry_run(name, train, sample, tmp_path) -> None:
    """Bank, a step of the encoder, one of the network, evaluation and samples, on random weights.

    Mutant: a key that the prior, the task or the sampler does not know, measurements that the
    encoder cannot read, a task without gradients.
    """
    base, _, task = name.partition("_")
    folder = write_pipeline("tiny" if base == "sd15" else "tiny_ldm", tmp_path / "pipeline")
    small = SMALL_TASKS.get(task or "inpaint", ())
    answer = train(f"experiment={name}", f"prior.path={folder}", *DRY, *small, tiny=False)
    assert answer.code == 0, answer.error
    assert json.loads(Path("r/metrics.json").read_text())["skipped"] == 0
    answer = sample("run=r", "n=2", "observations=1", "device=cpu")
    assert answer.code == 0, answer.error
    assert Path("r/samples/figure.png").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "size"), [("sd15_inpaint", "sd15"), ("ffhq256_superres", "ldm256")]
)
def test_dry_run_in_full_size(name, size, train, sample, tmp_path) -> None:
    """The same with networks of the full size, two steps of the prior, 128 or 64 pixels.

    Mutant: settings that only fit small networks, such as groups of channels.
    """
    folder = write_pipeline(size, tmp_path / "pipeline")
    few = [text for text in DRY if "width" not in text and "adapters" not in text]
    few += ["prior.dtype=bfloat16", "data.bank_size=3", "trainer.batch=1"]
    if size == "sd15":
        few += ["prior.image_size=128", "task.mask.min_side=32", "task.mask.max_side=64"]
    else:
        path = folder / "unet" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 16}))
    answer = train(f"experiment={name}", f"prior.path={folder}", *few, tiny=False)
    assert answer.code == 0, answer.error
    answer = sample("run=r", "n=2", "observations=1", "device=cpu")
    assert answer.code == 0, answer.error
