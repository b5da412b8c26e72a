"""The text of the side-by-side table: a table for each prior and task, and the speed."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.contenders import AMORTISED
from benchmarks.driver import told
from benchmarks.reach import REACH
from benchmarks.tables import Column, Record, filled, markdown

REAL = "the images themselves"
SLOW = ("psld, 1000", "psld paper, 1000")
COLUMNS = (
    Column("solver", "solver"),
    Column("draws", "samples", ".0f"),
    Column("psnr", "PSNR", ".2f"),
    Column("ssim", "SSIM", ".3f"),
    Column("psnr_of_mean", "PSNR of mean", ".2f"),
    Column("perceptual", "perceptual", ".3f"),
    Column("frechet", "Fréchet", ".1f"),
    Column("residual", "residual / σ", ".3f"),
    Column("residual_simulated", "on simulated", ".3f"),
    Column("std", "std", ".3f"),
    Column("cover_50", "in 50 %", ".0%"),
    Column("cover_90", "in 90 %", ".0%"),
    Column("rank_p", "rank χ² p", ".2g"),
    Column("rank_below", "p < 0.05", ".0%"),
    Column("seconds", "s / sample", ".3g"),
    Column("f_calls", "f calls", ".0f"),
    Column("f_backward", "backward", ".0f"),
    Column("network_forward", "network forward", ".0f"),
    Column("network_backward", "backward", ".0f"),
    Column("decoder_forward", "decoder forward", ".0f"),
    Column("decoder_backward", "backward", ".0f"),
    Column("moves", "moves", ".0f"),
    Column("megabytes", "peak MB", ".0f"),
    Column("minutes", "training min", ".1f"),
    Column("break_even", "break-even images", ".0f"),
    Column("rhat", "R-hat", ".2f"),
    Column("note", "gave up"),
)


def report(records: Sequence[Record]) -> str:
    """The text between the markers."""
    pairs = dict.fromkeys((r["prior"], r["task"]) for r in records)
    parts = []
    for prior, task in pairs:
        rows = [r for r in records if (r["prior"], r["task"]) == (prior, task)]
        table = markdown(rows, filled(COLUMNS, rows))
        parts.append(f"### {prior}, {task}\n\n{table}\n\n{speed(rows)}".rstrip())
    return "\n\n".join([*parts, notes(records[0])])


def speed(rows: Sequence[Record]) -> str:
    """How much faster the amortised sampler is, and what it adds to f(z)."""
    by_name = {r["solver"]: r for r in rows if r.get("seconds")}
    if AMORTISED not in by_name:
        return ""
    ours, f = (float(str(by_name[AMORTISED][name])) for name in ("seconds", "seconds_f"))
    lines = [
        f"One amortised sample takes 1/{float(str(by_name[name]['seconds'])) / ours:.0f} of the "
        f"time of {name} (wanted: 1/100 or less)."
        for name in SLOW
        if name in by_name
    ]
    share = f"{ours / f:.0%} of" if ours < 10 * f else f"{ours / f:.0f} times"
    own = f"It takes {share} the time of f(z), {1000 * f:.3g} ms a sample"
    return " ".join([*lines, f"{own} (wanted for diffusion priors: 125 % or less)."])


def notes(record: Record) -> str:
    """What the columns are, and how they were measured."""
    return (
        f"{record['images']} held-out images, the samples of all at once; sigma = "
        f"{record['sigma']}. PSNR, SSIM, perceptual distance: means over single samples. "
        "Perceptual: squared distance of unit-length features after each of the four convolutions "
        "of fashion_features, all weights one (LPIPS's formula on other features). Fréchet: of "
        "sets of one sample an image to the held-out images that were not observed, on the 96 "
        f"features of the same network; {record['images']} images are few for it, so that "
        f"`{REAL}` do not score 0 but the floor. Residual: root mean square, in units of sigma; "
        f"`{REACH}`: the images of the prior's decoder that Gauss-Newton steps from a ridge "
        "estimate found to fit y best, noise included, whatever the prior says of them; it is a "
        "local search. "
        "Std: of the samples of one observation, root mean square over pixels. Calls are a "
        "sample's: f, and below it evaluations of the diffusion network and of the decoder, "
        "forward (with those that checkpointing repeats) and backward; those of a trained "
        "sampler's own network are not among them. Peak: memory added at the "
        "peak, all samples at once, allocated on a GPU, else resident. R-hat: worst coordinate, "
        "median over observations; inf where that never moved. "
        f"Seed {record['seed']}, {told(record)}."
    )
