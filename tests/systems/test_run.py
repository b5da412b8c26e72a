"""A run folder and its files."""

import json

import pytest
import torch

from outsourced.run import CHECKPOINT, WEIGHTS, Run, check_prior, read_tensors, write_tensors

CONFIG = {"sampler": {"steps": 4}, "trainer": {"lr": 1e-3, "seed": 0}}
PRIOR = {"prior": "abc"}


def test_life_of_a_run(tmp_path) -> None:
    """New, unfinished, finished, overwritten: what `create` answers in each state.

    Mutants: a resume without checkpoint, an unfinished run that is refused or replaced by its own
    command, leftovers of the run that was replaced.
    """
    run = Run(tmp_path / "a" / "b")
    assert run.create(CONFIG) is False
    assert run.config == CONFIG
    assert run.create({**CONFIG, "sampler": {"steps": 5}}) is False  # nothing was trained yet
    run.create(CONFIG)
    write_tensors(run.folder / CHECKPOINT, {"w": torch.ones(2)}, PRIOR)
    assert run.create(CONFIG) is True
    assert run.create(CONFIG, overwrite=True) is True
    changed = {"sampler": {"steps": 4, "late": 0.5}, "trainer": {"lr": 0.5, "seed": 0}}
    with pytest.raises(ValueError, match=r"sampler.late: None -> 0.5; trainer.lr: 0.001 -> 0.5"):
        run.create(changed)
    assert run.config == CONFIG
    run.finish({"w": torch.ones(2)}, PRIOR, {"elbo": -1.0})
    assert run.finished
    assert not (run.folder / CHECKPOINT).exists()
    assert json.loads((run.folder / "metrics.json").read_text()) == {"elbo": -1.0, "prior": "abc"}
    with pytest.raises(ValueError, match=r"holds a finished run.*overwrite=true"):
        run.create(CONFIG)
    (run.folder / "csv").mkdir()
    (run.folder / "notes.txt").write_text("mine")
    assert run.create(changed, overwrite=True) is False
    assert {path.name for path in run.folder.iterdir()} == {"config.json", "notes.txt"}


def test_unfinished_run_replaced_by_another(tmp_path) -> None:
    """Mutant: `overwrite=true` that keeps the checkpoint of the other settings."""
    run = Run(tmp_path)
    run.create(CONFIG)
    write_tensors(run.folder / CHECKPOINT, {"w": torch.ones(2)}, PRIOR)
    assert run.create({"sampler": {}}, overwrite=True) is False
    assert not (run.folder / CHECKPOINT).exists()


def test_weights_of_one_prior_and_one_network(tmp_path) -> None:
    """What does not fit is refused before the sampler is touched in part.

    Mutant: `strict=False`.
    """
    run, layer = Run(tmp_path), torch.nn.Linear(2, 3)
    run.create(CONFIG)
    with pytest.raises(FileNotFoundError, match=f"{WEIGHTS} does not exist; train first"):
        run.load_weights(layer, "abc")
    weights = {name: value + 1 for name, value in layer.state_dict().items()}
    run.finish(weights, PRIOR, {})
    assert run.load_weights(layer, "abc")["prior"] == "abc"
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in weights.items())
    with pytest.raises(ValueError, match="fingerprint abc, but the prior at hand has xyz"):
        run.load_weights(layer, "xyz")
    with pytest.raises(ValueError, match="does not fit the network of"):
        run.load_weights(torch.nn.Linear(3, 3), "abc")
    with pytest.raises(ValueError, match="fingerprint unknown"):
        check_prior(tmp_path / WEIGHTS, {}, "abc")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_file(tmp_path, share) -> None:
    """Mutant: an error of the file format, without a name and a way out."""
    path = tmp_path / WEIGHTS
    write_tensors(path, {"w": torch.arange(100.0)}, PRIOR)
    assert torch.equal(read_tensors(path)[0]["w"], torch.arange(100.0))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=f"{WEIGHTS} is truncated or damaged.*overwrite=true"):
        read_tensors(path)


def test_no_run(tmp_path) -> None:
    """Mutant: a bare FileNotFoundError of config.json."""
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        _ = Run(tmp_path / "nothing").config
