"""Latents beside the pairs of a bank, and moments of its data."""

import json

import pytest
import torch

from outsourced.bank import PairBank
from outsourced.matching import MatchingLosses
from outsourced.objectives import PathLikelihood
from outsourced.paths import PathMixture
from outsourced.posterior import Posterior
from outsourced.priors import LatentDiffusionPrior
from outsourced.replay import ReplayBuffer
from outsourced.tasks import Denoise
from outsourced.transport import NoiseTransport


def test_the_first_estimate_takes_bounded_memory(tmp_path, monkeypatch) -> None:
    """As many images as fit, but more than axes. Mutant: all rows of the bank at once."""
    prior = LatentDiffusionPrior("fashion_sd", guidance=1.0, steps=2)
    posterior = Posterior(prior, Denoise(prior.data_shape, 0.05))
    shapes = prior.noise_shape, posterior.task.feature_shape
    sampler = NoiseTransport(*shapes, posterior, width=8, axes=3)
    bank = PairBank.build(posterior, tmp_path, 16, progress=False)
    mixture = PathMixture(sampler, posterior, ReplayBuffer(8, 1), {"on_policy": 1.0}, 2)
    losses = MatchingLosses(sampler, posterior, PathLikelihood(), mixture, 1)
    seen: list[int] = []
    monkeypatch.setattr(sampler.about, "fill", lambda x: seen.append(len(x)))
    image = 4 * prior.data_shape[-1] ** 2
    for room in (10 * image, 2 * image, 100 * image):
        monkeypatch.setattr("outsourced.matching.BYTES", room)
        losses.store(bank)
    assert seen == [10, 4, 16]


def test_banks_of_diffusion_priors_have_latents(tmp_path, monkeypatch) -> None:
    """Of their own noise, made on the way to x by one pass; another process may have stopped, or an
    older version have begun without them.

    Mutants: latents of another row, a second pass of the network, a call that is not counted, a
    bank of other data, the older bank refused.
    """
    prior = LatentDiffusionPrior("fashion_sd", guidance=1.0, steps=2)
    posterior = Posterior(prior, Denoise(prior.data_shape, 0.05))
    passes: list[int] = []
    prior.network.register_forward_pre_hook(lambda *given: passes.append(1))
    bank = PairBank.build(posterior, tmp_path, 6, chunk=4, progress=False)
    assert (len(passes), posterior.prior_calls) == (2 * 2, 6)
    z, x = bank.rows(torch.arange(6))
    latents = bank.column("latents", None, progress=False)
    torch.testing.assert_close(latents, prior.denoise(z), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x, posterior.decode(z), rtol=1e-4, atol=1e-4)
    old = PairBank.build(posterior, tmp_path / "old", 6, chunk=4, progress=False)
    (old.folder / "latents.bin").unlink()
    meta = json.loads((old.folder / "bank.json").read_text())
    (old.folder / "bank.json").write_text(json.dumps({**meta, "done": 4}))
    again = PairBank.build(posterior, tmp_path / "old", 6, chunk=4, progress=False)
    torch.testing.assert_close(again.rows(torch.arange(6))[1], x, rtol=1e-4, atol=1e-4)
    assert not (again.folder / "latents.bin").exists()
    made = again.column("latents", posterior.denoise, progress=False)
    torch.testing.assert_close(made, latents, rtol=1e-4, atol=1e-4)


def test_latents_are_kept_beside_the_pairs(problem, tmp_path) -> None:
    """Made once, by chunks, and gone on with where they were stopped.

    Mutants: chunks out of order, a partial file taken for a whole one, values that are not finite.
    """
    bank = PairBank.build(problem().posterior, tmp_path, 50, chunk=16, progress=False)
    z, _ = bank.rows(torch.arange(50))
    seen = []

    def make(noise: torch.Tensor) -> torch.Tensor:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(noise))
        return 3 * noise

    with pytest.raises(KeyboardInterrupt):
        bank.column("h", make, chunk=16, progress=False)
    assert not (bank.folder / "h.bin").exists()
    column = bank.column("h", lambda noise: 3 * noise, chunk=16, progress=False)
    assert torch.equal(column[torch.tensor([49, 0, 20])], 3 * z[[49, 0, 20]])
    assert torch.equal(bank.column("h", None, progress=False), column)
    with pytest.raises(ValueError, match="k of stored draws must be finite, of shape"):
        bank.column("k", lambda noise: noise / 0, chunk=16, progress=False)
