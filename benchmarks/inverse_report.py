"""The text of the benchmark of inverse problems: targets, the figures that count, all tables."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import solver_report
from benchmarks.contenders import AMORTISED, COOLED, DISTILLED, GENERAL, REFINED, TEMPERED
from benchmarks.driver import told
from benchmarks.tables import Column, Record, markdown
from benchmarks.targets import figure, least, per_instance, targets, with_break_even

COLUMNS = (
    Column("prior", "prior"),
    Column("task", "task"),
    Column("rival", "best other"),
    Column("perceptual", "perceptual", ".3f"),
    Column("refined_perceptual", "refined", ".3f"),
    Column("tempered_perceptual", "at T = 0.5", ".3f"),
    Column("cooled_perceptual", "at T = 0", ".3f"),
    Column("general_perceptual", "one for all tasks", ".3f"),
    Column("rival_perceptual", "other's", ".3f"),
    Column("frechet", "Fréchet", ".1f"),
    Column("refined_frechet", "refined", ".1f"),
    Column("tempered_frechet", "at T = 0.5", ".1f"),
    Column("cooled_frechet", "at T = 0", ".1f"),
    Column("rival_frechet", "other's", ".1f"),
    Column("residual", "residual / σ", ".3f"),
    Column("refined_residual", "refined", ".3f"),
    Column("rival_residual", "other's", ".3f"),
    Column("cover_90", "in 90 %", ".1%"),
    Column("seconds", "s / sample", ".2g"),
    Column("refined_seconds", "refined", ".2g"),
    Column("distilled_seconds", "distilled", ".2g"),
    Column("rival_seconds_one", "other's", ".3g"),
    Column("minutes", "training min", ".1f"),
    Column("break_even", "break-even images", ".0f"),
)

BESIDE = ("perceptual", "frechet", "residual", "seconds", "seconds_one")


def lines(records: Sequence[Record]) -> list[Record]:
    """For each prior and task the amortised sampler beside the best of the others."""
    found: list[Record] = []
    for prior, task in dict.fromkeys((r["prior"], r["task"]) for r in records):
        rows = [r for r in records if (r["prior"], r["task"]) == (prior, task)]
        by_name = {str(r["solver"]): r for r in rows}
        if AMORTISED not in by_name:
            continue
        rival = least(per_instance(rows), "perceptual") or {}
        names = {"refined": REFINED, "tempered": TEMPERED, "cooled": COOLED, "general": GENERAL}
        beside = {"rival": rival} | {kind: by_name.get(name, {}) for kind, name in names.items()}
        line = {**by_name[AMORTISED], "rival": rival.get("solver", "")}
        line |= {f"{whose}_{k}": row.get(k, "") for whose, row in beside.items() for k in BESIDE}
        line["distilled_seconds"] = figure(by_name.get(DISTILLED), "seconds")
        found.append(line)
    return found


def headline(records: Sequence[Record]) -> str:
    """The text for the README."""
    rows = lines(with_break_even(records))
    if not rows:
        return targets(records)
    first = records[0]
    return (
        f"{markdown(rows, COLUMNS)}\n\n{targets(records)}\n\n"
        f"{first['images']} held-out images, sigma = {first['sigma']}. Refined: "
        "`solver.refine=[2,2,2]`. T: `solver.temperature` of refined samples, which are draws of "
        "the posterior at T = 1, nearer to its middle below, and at T = 0 one estimate. One for "
        "all tasks: samples of a single sampler, trained on a mixture of operators. "
        f"All solvers and columns are in docs/inverse.md. {told(first)}."
    )


def report(records: Sequence[Record]) -> str:
    """The text between the markers of docs/inverse.md."""
    first = records[0]
    body = solver_report.report(with_break_even(records))
    return f"{targets(records)}\n\n{body} {notes(first)}"


def notes(first: Record) -> str:
    """What the columns mean that `benchmarks.solvers` does not have."""
    whose = "All solvers" if first["calibrate"] == "all" else "Trained samplers"
    return (
        f"Here {first['n']} samples of each image are those of trained samplers and of chains; the "
        f"others, and chains of the time of the amortised sampler's {first['n']} samples, have "
        f"{first['others']}. Seconds of trained samplers are taken at {first['others']} samples of "
        f"each image at once, as the others'. `mean of 16`: figures of the mean of 16 samples. "
        f"{whose} also ran on {first['images']} observations of the prior's own images: shares of "
        "pixels in central intervals of the samples (randomised ranks, so that exact samples score "
        "50 % and 90 % at any number of them), and chi-square tests of the ranks of the means of "
        "4 x 4 blocks of an image, the least p-value times 16, and the share of blocks with "
        "p < 0.05. Training minutes of students include their teachers'. Break-even: training "
        "seconds / (seconds of the other - seconds), for one sample an image, against the solver "
        "without training that has the least perceptual distance; a chain's seconds for one sample "
        "are those of the whole chain."
    )
