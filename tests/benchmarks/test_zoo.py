"""The quality table of the zoo: which priors, what they are compared with, and the command."""

from pathlib import Path

import pytest
import torch
from torchvision.io import read_image

from benchmarks import zoo
from benchmarks.tables import read_csv
from outsourced.priors.vae import VAE
from outsourced.weights import ZOO_WEIGHTS


def test_prior_is_that_of_the_configuration() -> None:
    """Mutant: a class of its own choice, or other weights than `train.py prior=...` takes."""
    prior = zoo.load_prior("fashion_vae")
    assert prior.fingerprint() == VAE.from_weights().fingerprint()


def test_priors_without_weights_are_skipped_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mutant: a silent gap, a stop at the first gap, or a prior that was asked for left out."""
    monkeypatch.setattr(zoo, "ZOO_WEIGHTS", tmp_path)
    monkeypatch.setattr(zoo, "known_priors", lambda: ["fashion_a", "fashion_b", "fashion_c"])
    (tmp_path / "fashion_a.safetensors").write_bytes(b"12345")
    (tmp_path / "fashion_c" / "unet").mkdir(parents=True)
    (tmp_path / "fashion_c" / "unet" / "w").write_bytes(b"123")
    (tmp_path / "fashion_c" / "index").write_bytes(b"1")
    assert zoo.chosen_priors(None) == ["fashion_a", "fashion_c"]
    told = capsys.readouterr().out
    assert told.count("skipped") == 1
    assert "fashion_b has no weights; train it with `python -m outsourced.zoo.fashion_b`" in told
    assert zoo.chosen_priors("fashion_c") == ["fashion_c"]
    with pytest.raises(ValueError, match="fashion_b has no weights"):
        zoo.chosen_priors("fashion_a,fashion_b")
    with pytest.raises(ValueError, match=r"knows fashion_a, .*got 'vae'"):
        zoo.chosen_priors("vae")
    sizes = {n: sum(p.stat().st_size for p in zoo.weights_of(n)) for n in zoo.known_priors()}
    assert sizes == {"fashion_a": 5, "fashion_b": 0, "fashion_c": 4}


def test_known_priors_are_the_fashion_configs() -> None:
    """Mutant: a list kept by hand, or one that takes the planar priors."""
    assert "fashion_vae" in zoo.known_priors()
    assert all(name.startswith("fashion_") for name in zoo.known_priors())


def test_command_writes_table_and_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table with brackets in order, and a sheet of the samples with seed 0.

    Mutant: brackets and prior judged by different sets or sizes, samples of the wrong prior, a
    distance of test images to themselves, or megabytes in MiB.
    """
    out, figures = tmp_path / "zoo.csv", tmp_path / "figures"
    out.with_suffix(".md").write_text(
        "Text.\n<!-- zoo:start -->\n<!-- zoo:end -->\n<!-- sheets:start -->\n<!-- sheets:end -->\n"
    )
    monkeypatch.setattr(zoo, "SHEET", 32)
    zoo.main(
        [
            *("--priors", "fashion_vae", "--n", "400", "--quick", "--threads", "1"),
            *("--out", str(out), "--figures", str(figures), "--repeats", "1"),
            *("--readme", str(tmp_path / "README.md")),
        ]
    )
    rows = {row["name"]: row for row in read_csv(out)}
    assert next(iter(rows)) == "test images"
    assert rows["test images"]["frechet"] == ""
    real, blurred, noisy, prior = (
        rows[name]
        for name in (
            *("training images", "training images, blurred (3×3)"),
            *("training images, noisy (0.1)", "fashion_vae"),
        )
    )
    assert 0 < float(real["frechet"]) < float(blurred["frechet"])
    assert float(real["frechet"]) < float(noisy["frechet"])
    assert float(real["frechet"]) < float(prior["frechet"])
    assert float(real["nearest_median"]) < 1e-3
    assert 0.05 < float(noisy["nearest_median"]) < 0.1  # the noise is clamped on the background
    assert float(noisy["nearer_train"]) == 1
    assert float(prior["nearest_median"]) > 0.1
    size = (ZOO_WEIGHTS / "fashion_vae.safetensors").stat().st_size
    assert float(prior["megabytes"]) == pytest.approx(size / 1e6)
    assert (prior["noise"], prior["n"], prior["threads"]) == ("16", "400", "1")
    sheet = read_image(str(figures / "zoo_fashion_vae.png"))[:1]
    with torch.no_grad():
        first = VAE.from_weights()(torch.randn(32, 16, generator=torch.Generator().manual_seed(0)))
    shown = sheet[0, 4:68:2, 4:68:2].float() / 127.5 - 1
    torch.testing.assert_close(shown, first[0, 0], rtol=0, atol=0.01)
    text = out.with_suffix(".md").read_text()
    assert text.startswith("Text.\n")
    assert "(figures/zoo_fashion_vae.png)" in text
    assert "400 images of each row against 1024 test images" in text
    assert "| fashion_vae |" in text
    assert "| fashion_vae |" in capsys.readouterr().out
