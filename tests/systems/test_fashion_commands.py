"""`python train.py` and `python sample.py` on the shipped prior: pictures, and a user's own."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from outsourced.evaluation import against_truth
from outsourced.pictures import read_image, read_mask, write_image
from outsourced.solvers.base import Samples

FIELDS = {"elbo", "log_z", "ess", "ess_median", "residual", "seconds", "prior_calls"}
# The shipped prior, the default task; tiny sampler.
FASHION = [
    *("run=f", "logger=none", "sampler.steps=4", "sampler.width=16", "sampler.depth=1"),
    *("sampler.embedding=8", "trainer.max_steps=8", "trainer.warm_steps=4", "trainer.batch=4"),
    *("trainer.groups=4", "trainer.evaluate_every=5", "trainer.log_every=4"),
    *("data.bank_size=32", "evaluate.observations=2", "evaluate.n=4"),
    *("lightning.accelerator=cpu", "+lightning.enable_progress_bar=false"),
]


def test_fashion_commands(train, sample, tmp_path) -> None:
    """The default problem, end to end: held-out, simulated and own images, with their pictures.

    Mutant: a user's mask that is ignored or inverted, an observed picture that is measured a second
    time, a truth of other images, a figure that is not written at an evaluation.
    """
    answer = train(*FASHION, tiny=False)
    assert answer.code == 0, answer.error
    assert Path("f/figures/step_000005.png").stat().st_size > 5000
    assert Path("f/figures/step_000008.png").is_file()
    metrics = json.loads(Path("f/metrics.json").read_text())
    assert {"real/elbo", "simulated/gap", "real/psnr", "simulated/residual"} <= metrics.keys()
    answer = sample("run=f", "n=2", "observations=2")
    assert answer.code == 0, answer.error
    drawn = load_file("f/samples/samples.safetensors")
    from outsourced.data import fashion_images

    assert torch.equal(drawn["truth"], fashion_images("test")[:2])
    assert (drawn["observation.y"][drawn["observation.params.mask"] == 0] == 0).all()
    values = json.loads(Path("f/samples/metrics.json").read_text())
    direct = against_truth(Samples(drawn["x"], drawn["z"], None, 0, 0.0), drawn["truth"])
    assert values["psnr"] == pytest.approx(float(direct["psnr"].mean()), rel=1e-4)
    assert values.keys() > FIELDS
    assert len(list(Path("f/samples/images").glob("*.png"))) == 4
    assert Path("f/samples/figure.png").is_file()
    own_picture(sample, drawn["truth"][0])
    answer = sample("run=f", "source=simulated", "n=1", "observations=1", "figure=s.png")
    assert answer.code == 0, answer.error
    assert len(list(Path("f/samples/images").glob("*.png"))) == 1  # the earlier ones are gone
    assert not list(tmp_path.rglob("*partial*"))


def own_picture(sample, picture: torch.Tensor) -> None:
    write_image(Path("photo.png"), picture)
    mask = torch.ones(1, 32, 32)
    mask[:, :20, 3:9] = 0
    write_image(Path("mask.png"), 2 * mask - 1)
    write_image(Path("small.png"), torch.ones(1, 16, 16))
    known = read_image("photo.png", (1, 32, 32))
    assert torch.equal(read_mask("mask.png", (1, 32, 32)), mask)
    answer = sample("run=f", "image=photo.png", "mask=mask.png", "n=2", "out=own")
    assert answer.code == 0, answer.error
    drawn = load_file("own/samples.safetensors")
    assert torch.equal(drawn["observation.params.mask"][0], mask)
    noise = (drawn["observation.y"][0] - known)[mask == 1]
    assert 0.17 < float(noise.std()) < 0.23
    answer = sample("run=f", "image=photo.png", "mask=mask.png", "observed=true", "n=2", "out=seen")
    assert answer.code == 0, answer.error
    drawn = load_file("seen/samples.safetensors")
    assert torch.equal(drawn["observation.y"][0], torch.where(mask == 1, known, 0.0))
    assert "truth" not in drawn
    for arguments, message in (
        (("image=photo.png", "mask=small.png"), "must be 32 x 32 pixels"),
        (("image=photo.png", "observed=true"), "observed=true needs mask="),
        (("image=none.png",), "none.png does not exist"),
        (("image=f/config.json",), "cannot be read"),
    ):
        answer = sample("run=f", *arguments, "out=wrong")
        assert answer.code == 1
        assert message in answer.line
        assert not Path("wrong").exists()
