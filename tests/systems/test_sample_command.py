"""`python sample.py` with priors that choose a training of their own."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks.pipelines import write_pipeline


@pytest.mark.parametrize("prior", ["fashion_sd", "sd15"])
def test_priors_that_choose_a_training_need_none(sample, prior: str, tmp_path: Path) -> None:
    """Their sampler and trainer are nothing to a solver of its own.

    Mutants: an override of a group that sample.py does not have, a training that is resolved.
    """
    small = ("prior.steps=2", "task.mask.min_side=4", "task.mask.max_side=8", "task.sigma=0.1")
    if prior == "sd15":
        small = (*small, f"prior.path={write_pipeline('tiny', tmp_path / 'pipeline')}")
    given = ("solver=psld", f"prior={prior}", "task=inpaint", "solver.steps=2", *small)
    few = ("source=simulated", "n=2", "observations=1", "device=cpu")
    answer = sample(*given, *few, "solver.omega=0.1", "solver.gamma=0.1")
    assert answer.code == 0, answer.error
    folder = Path(f"samples/{prior}-inpaint-psld")
    assert load_file(folder / "samples.safetensors")["x"].shape[:2] == (2, 1)
    answer = sample(*given, *few, "sampler.steps=3")
    assert "sampler.steps=3 is an argument of train.py; sample.py trains nothing" in answer.error
