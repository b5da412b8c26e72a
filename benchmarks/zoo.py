"""Quality of the embedded Fashion-MNIST priors, between brackets of real and of damaged images.

    python -m benchmarks.zoo --n 5000 --out docs/zoo.csv

One row for each configs/prior/fashion_*.yaml whose weights exist, or for those of --priors, and a
sheet of samples of each. Needs the full data set.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.driver import call, parser, render, surroundings, told
from benchmarks.tables import Column, Record, has_section, markdown, write_csv, write_section
from outsourced.build import code_version
from outsourced.classifiers import FashionFeatures
from outsourced.data import fashion_mnist_subset, load_fashion_mnist, to_model_range
from outsourced.priors import Prior
from outsourced.weights import ZOO_WEIGHTS
from outsourced.zoo.quality import (
    NOISE,
    Judge,
    blurred,
    draw,
    noisy,
    sampling_seconds,
    save_samples,
)

SECTION, SHEETS = "zoo", "sheets"
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
COMPARED = 2000  # images whose nearest neighbours are sought
SHEET = 128  # samples on a sheet, drawn with seed 0
COLUMNS = (
    Column("name", "images"),
    Column("frechet", "Fréchet distance", ".2f"),
    Column("entropy", "class entropy", ".3f"),
    Column("classes", "exp", ".2f"),
    Column("smallest_share", "rarest class", ".1%"),
    Column("nearest_median", "nearest training image, median", ".3f"),
    Column("nearest_low", "1 %", ".3f"),
    Column("nearer_train", "nearer to training", ".1%"),
    Column("seconds", "s / 64", ".3f"),
    Column("megabytes", "MB", ".2f"),
    Column("noise", "noise", ".0f"),
)


def known_priors() -> list[str]:
    """Names of the embedded Fashion-MNIST priors, with or without weights."""
    return sorted(path.stem for path in (CONFIGS / "prior").glob("fashion_*.yaml"))


def weights_of(name: str) -> list[Path]:
    """The files that ship for a prior: one, or a folder of them; none before it was trained."""
    single, folder = ZOO_WEIGHTS / f"{name}.safetensors", ZOO_WEIGHTS / name
    found = [single] if single.is_file() else [*folder.rglob("*")]
    return [path for path in found if path.is_file()]


def chosen_priors(text: str | None) -> list[str]:
    """The priors of `--priors`, or all that have weights.

    Raises:
        ValueError: a name that is not known, or one that was asked for and has no weights.
    """
    names = text.split(",") if text else known_priors()
    present = []
    for name in names:
        if name not in known_priors():
            raise ValueError(f"--priors knows {', '.join(known_priors())}, got {name!r}")
        if weights_of(name):
            present.append(name)
            continue
        problem = f"{name} has no weights; train it with `python -m outsourced.zoo.{name}`"
        if text:
            raise ValueError(problem)
        print(f"skipped: {problem}", flush=True)
    return present


def load_prior(name: str) -> Prior:
    """The prior that `train.py prior=NAME` gets."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("train", overrides=[f"prior={name}"])
    prior: Prior = instantiate(config.prior)
    return prior


def brackets(judge: Judge, n: int, seed: int) -> list[Record]:
    """Real images, and images that are damaged in known ways."""
    real = judge.train[:n]
    sets: dict[str, Tensor] = {
        "training images": real,
        "training images, blurred (3×3)": blurred(real),
        f"training images, noisy ({NOISE})": noisy(real, seed),
    }
    rows = [
        {"name": name, **judge.fidelity(x), **judge.copying(x[:COMPARED])}
        for name, x in sets.items()
    ]
    # Their distance to themselves would say nothing.
    fidelity = {k: v for k, v in judge.fidelity(judge.test[:n]).items() if k != "frechet"}
    copying = judge.copying(judge.test[:COMPARED], independent=False)
    return [{"name": "test images", **fidelity, **copying}, *rows]


def prior_row(name: str, judge: Judge, n: int, seed: int, repeats: int, sheet: Path) -> Record:
    """The figures of one prior; writes its sheet."""
    prior = load_prior(name)
    save_samples(draw(prior, SHEET, seed=0), sheet)
    x = draw(prior, n, seed, progress=True)
    return {
        "name": name,
        **judge.fidelity(x),
        **judge.copying(x[:COMPARED]),
        "seconds": sampling_seconds(prior, repeats=repeats),
        "megabytes": sum(path.stat().st_size for path in weights_of(name)) / 1e6,
        "noise": torch.Size(prior.noise_shape).numel(),
    }


def real_images(quick: bool) -> tuple[Tensor, Tensor]:
    """Training and test images in [-1, 1]: all of them, or the embedded part."""
    if quick:
        return fashion_mnist_subset("train")[0], fashion_mnist_subset("test")[0]
    train, test = (to_model_range(load_fashion_mnist(split)[0]) for split in ("train", "test"))
    return train, test


def notes(judge: Judge, args: argparse.Namespace, record: Record) -> str:
    """What the columns are, for the text under the table."""
    return (
        f"Fréchet distance on fashion_features (not an FID): {args.n} images of each row against "
        f"{len(judge.test)} test images. Classes by the same network, entropy in nats. Nearest of "
        f"{len(judge.train)} training images to {min(COMPARED, args.n)} images, root mean square "
        "over pixels in units of [-1, 1]; nearer to training: to one of them than to any test "
        f"image, {judge.unlearned:.1%} for draws that know neither. Noise seed {args.seed}. "
        f"{told(record)}."
    )


def run(args: argparse.Namespace) -> None:
    """Measure everything and write the table and the sheets."""
    if args.n < 2:
        raise ValueError(f"--n must be at least 2, got {args.n}")
    names = chosen_priors(args.priors)
    judge = Judge(*real_images(args.quick), FashionFeatures.from_weights())
    records: list[Record] = list(brackets(judge, args.n, args.seed))
    for name in names:
        sheet = args.figures / f"zoo_{name}.png"
        records.append(prior_row(name, judge, args.n, args.seed, args.repeats, sheet))
        print(markdown(records[-1:], COLUMNS).splitlines()[-1], flush=True)
    told_by = {"n": args.n, "seed": args.seed, **surroundings(), "code": code_version()}
    records = [{**record, **told_by} for record in records]
    write_csv(args.out, records)
    render(args, SECTION, f"{markdown(records, COLUMNS)}\n\n{notes(judge, args, records[0])}")
    print(markdown(records, COLUMNS))
    if has_section(args.out.with_suffix(".md"), SHEETS):
        shown = [f"![{SHEET} samples of {name}](figures/zoo_{name}.png)" for name in names]
        text = "\n\n".join(
            f"### {name}\n\n{sheet}" for name, sheet in zip(names, shown, strict=True)
        )
        write_section(args.out.with_suffix(".md"), SHEETS, text)


def main(argv: list[str] | None = None) -> None:
    arguments = parser("zoo", __doc__, threads=2, quick="the embedded part of the data, for tests")
    arguments.add_argument("--priors", help="names with commas; by default all that have weights")
    arguments.add_argument("--n", type=int, default=5000, help="images of each row")
    arguments.add_argument("--seed", type=int, default=0, help="of the noise")
    arguments.add_argument("--repeats", type=int, default=5, help="timings of 64 samples")
    arguments.add_argument("--figures", type=Path, default=Path("docs/figures"))
    call(run, arguments, argv)


if __name__ == "__main__":
    main()
