"""The text of the benchmark of inverse problems: targets, the figures that count, all tables."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import solver_report
from benchmarks.contenders import AMORTISED, COOLED, DISTILLED, GENERAL, REFINED, TUNED
from benchmarks.driver import told
from benchmarks.tables import Column, Record, filled, markdown
from benchmarks.targets import (
    PRIOR,
    by_task,
    figure,
    least,
    not_met,
    per_instance,
    psld,
    psld_break_even,
    ratio,
    targets,
    with_break_even,
)

COLUMNS = (
    Column("prior", "prior"),
    Column("task", "task"),
    Column("rival", "best other"),
    Column("perceptual", "perceptual", ".3f"),
    Column("refined_perceptual", "refined", ".3f"),
    Column("tuned_perceptual", "tuned", ".3f"),
    Column("cooled_perceptual", "at T = 0", ".3f"),
    Column("general_perceptual", "one for all tasks", ".3f"),
    Column("rival_perceptual", "other's", ".3f"),
    Column("frechet", "Fréchet", ".1f"),
    Column("refined_frechet", "refined", ".1f"),
    Column("tuned_frechet", "tuned", ".1f"),
    Column("cooled_frechet", "at T = 0", ".1f"),
    Column("rival_frechet", "other's", ".1f"),
    Column("residual", "residual / σ", ".3f"),
    Column("refined_residual", "refined", ".3f"),
    Column("rival_residual", "other's", ".3f"),
    Column("cover_90", "in 90 %", ".1%"),
    Column("seconds", "s / sample", ".2g"),
    Column("refined_seconds", "refined", ".2g"),
    Column("tuned_seconds", "tuned", ".2g"),
    Column("distilled_seconds", "distilled", ".2g"),
    Column("rival_seconds_one", "other's", ".3g"),
    Column("minutes", "training min", ".1f"),
    Column("break_even", "break-even images", ".0f"),
)
# Of the README.
SHORT = (
    Column("task", "task"),
    Column("psld_seconds", "PSLD, s", ".2f"),
    Column("default_times", "times faster: default", ".0f"),
    Column("refined_times", "refined", ".0f"),
    Column("tuned_times", "tuned", ".0f"),
    Column("distilled_times", "one step", ".0f"),
    Column("psld_perceptual", "perceptual: PSLD", ".3f"),
    Column("cooled_perceptual", "estimate", ".3f"),
    Column("tuned_perceptual", "tuned", ".3f"),
    Column("refined_perceptual", "refined", ".3f"),
    Column("default_perceptual", "default", ".3f"),
    Column("psld_frechet", "Fréchet: PSLD", ".1f"),
    Column("tuned_frechet", "tuned", ".1f"),
    Column("refined_frechet", "refined", ".1f"),
    Column("default_frechet", "default", ".1f"),
    Column("cover_90", "in 90 %", ".0%"),
    Column("minutes", "training, min", ".0f"),
    Column("images", "earned back, images", ".0f"),
)
OURS = {
    "default": AMORTISED,
    "refined": REFINED,
    "tuned": TUNED,
    "cooled": COOLED,
    "distilled": DISTILLED,
}
BESIDE = ("perceptual", "frechet", "residual", "seconds", "seconds_one")
SUMMARY = (
    "\n\nBest other: of least perceptual distance among the solvers that are not trained. Refined: "
    "`solver.refine=[2,2,2]`. Tuned: refined, with the temperature and the medoids that a search "
    "on validation images chose for the task, [docs/tune_draws.md](tune_draws.md). T = 0: one "
    "refined estimate, `solver.temperature=0`. One for all tasks: samples of a single sampler, "
    "trained on a mixture of operators."
)


def lines(records: Sequence[Record]) -> list[Record]:
    """For each prior and task the amortised sampler beside the best of the others."""
    found: list[Record] = []
    for prior, task in dict.fromkeys((r["prior"], r["task"]) for r in records):
        rows = [r for r in records if (r["prior"], r["task"]) == (prior, task)]
        by_name = {str(r["solver"]): r for r in rows}
        if AMORTISED not in by_name:
            continue
        rival = least(per_instance(rows), "perceptual") or {}
        names = {"refined": REFINED, "tuned": TUNED, "cooled": COOLED, "general": GENERAL}
        beside = {"rival": rival} | {kind: by_name.get(name, {}) for kind, name in names.items()}
        line = {**by_name[AMORTISED], "rival": rival.get("solver", "")}
        line |= {f"{whose}_{k}": row.get(k, "") for whose, row in beside.items() for k in BESIDE}
        line["distilled_seconds"] = figure(by_name.get(DISTILLED), "seconds")
        found.append(line)
    return found


def short_line(task: str, rows: dict[str, Record]) -> Record:
    """The trained samplers of a task beside PSLD at 1000 steps.

    Args:
        task: its name.
        rows: by solver.
    """
    line: dict[str, object] = {"task": task, "images": psld_break_even(rows)}
    line |= {name: figure(rows.get(AMORTISED), name) for name in ("cover_90", "minutes")}
    for name in ("seconds", "perceptual", "frechet"):
        line[f"psld_{name}"] = psld(rows, name)
        line |= {f"{kind}_{name}": figure(rows.get(whose), name) for kind, whose in OURS.items()}
    return line | {f"{kind}_times": ratio(whose, "seconds")(rows) for kind, whose in OURS.items()}


def nearer(records: Sequence[Record]) -> str:
    """Solvers without training that are nearer to the truth than PSLD at 1000 steps, as a text."""
    found = [
        f"`{row['rival']}` on {row['task']} ({float(str(row['rival_perceptual'])):.3f} in "
        f"{float(str(row['rival_seconds_one'])):.2g} s; training is earned back after "
        f"{float(str(row['break_even'])):.0f} images)"
        for row in lines(with_break_even([r for r in records if r["prior"] == PRIOR]))
        if row["break_even"] != "" and not str(row["rival"]).endswith(", 1000")
    ]
    if not found:
        return ""
    return f" Nearer to the truth than PSLD of 1000 steps: {'; '.join(found)}."


def headline(records: Sequence[Record]) -> str:
    """The text for the README."""
    tasks = by_task(records, PRIOR)
    if not tasks:
        return targets(records)
    first = records[0]
    table = markdown([short_line(*each) for each in tasks.items()], SHORT)
    return (
        f"{table}\n\n{not_met(records)}\n\n"
        f"{first['images']} held-out images, sigma = {first['sigma']}; PSLD at 1000 steps. "
        "Refined: `solver.refine=[2,2,2]`; tuned: with a temperature and medoids that a search on "
        "validation images chose for the task (docs/tune_draws.md), as PSLD's step sizes are; "
        "estimate: refined, `solver.temperature=0`; one step: a distilled sampler. "
        "Perceptual: distance to the truth; Fréchet: of sets of images, on "
        "fashion_features both; in 90 %: pixels of the prior's own images in central intervals of "
        "the samples; earned back: images after which training has paid off."
        f"{nearer(records)} All solvers, columns and targets: docs/inverse.md. {told(first)}."
    )


def report(records: Sequence[Record]) -> str:
    """The text between the markers of docs/inverse.md."""
    first, known = records[0], with_break_even(records)
    parts = [solver_report.report(known) + " " + notes(first)]
    if by_task(records, PRIOR):
        parts.insert(0, targets(records))
    if rows := lines(known):
        parts.insert(0, markdown(rows, filled(COLUMNS, rows)) + SUMMARY)
    return "\n\n".join(parts)


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
