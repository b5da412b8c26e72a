"""`train.py` with a low-rank curvature at the anchors."""

import json
from pathlib import Path

import pytest

from outsourced.build import load_run
from outsourced.run import METRICS

ANCHORED = (
    *("sampler.informed=anchor", "sampler.lookup=32", "sampler.anchors=2", "sampler.rank=2"),
    *("sampler.anchor_precision=-9", "sampler.covariance=diagonal"),
    *("trainer.warm_steps=1", "trainer.anchor_steps=0", "trainer.max_steps=3"),
)


@pytest.mark.parametrize("objective", ["reverse_kl", "log_variance"])
def test_a_linear_posterior_is_known_before_training(train, sample, objective) -> None:
    """Two measurements of three noises: the Gaussian is the posterior, and three steps leave it so.

    Mutant: gates that stay closed, a rank that the configuration does not pass on, weights that
    are stored without it.
    """
    answer = train(*ANCHORED, f"objective={objective}")
    assert answer.code == 0, answer.error
    figures = json.loads(Path("r", METRICS).read_text())
    assert figures["simulated/ess"] > 0.95
    assert abs(figures["simulated/gap"]) < 0.05
    assert load_run("r").sampler.anchoring.rank == 2
    answer = sample("run=r", "n=4", "observations=2")
    assert answer.code == 0, answer.error
