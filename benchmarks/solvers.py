"""All solvers side by side: the same prior, observations and figures, in one run.

    python -m benchmarks.solvers --minutes 10 --device cuda

A cell is a prior, a task and a solver. It is a row of the CSV file; the same command goes on where
it was stopped, and runs again what has other settings by now. Amortised samplers are those of the
run folders RUNS/PRIOR-TASK; where one is missing, `train.py` makes it in --minutes of training.
Solvers that do not apply to a prior are left out. Step sizes of diffusion samplers are those that
`benchmarks.tune_solvers --install` has written, or else published.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.driver import add_device, call, check_conditions, parser, render, surroundings
from benchmarks.pictures import cases, draw
from benchmarks.solver_cells import Setting, begin, measure, prepare
from benchmarks.solver_report import REAL, report
from benchmarks.tables import Record, read_csv, write_csv
from outsourced.build import code_version
from outsourced.figures import Case

SECTION = "solvers"
PRIORS, TASKS = ("fashion_sd", "fashion_vae"), ("inpaint", "superres", "gaussian_deblur")
KEY = ("prior", "task", "solver")
QUICK = {"images": 3, "n": 2}


class Table:
    """The rows of the CSV file, by prior, task and solver.

    Args:
        path: of the file.
        asked: the conditions that its rows share.

    Raises:
        ValueError: the file holds rows of other conditions.
    """

    def __init__(self, path: Path, asked: dict[str, object]) -> None:
        self.path, self.asked = path, asked
        known = read_csv(path)
        check_conditions(path, known, asked)
        self.rows: dict[tuple[str, ...], Record] = {self.key(row): row for row in known}

    @staticmethod
    def key(row: Record) -> tuple[str, ...]:
        """What identifies a row."""
        return tuple(str(row[name]) for name in KEY)

    def has(self, about: Record) -> bool:
        """Whether there is a row of the same settings."""
        known = self.rows.get(self.key(about))
        return known is not None and known["settings"] == about["settings"]

    def put(self, row: Record) -> None:
        """Write a row, in place of one of other settings."""
        self.rows[self.key(row)] = {**row, **self.asked, "code": code_version()}
        write_csv(self.path, list(self.rows.values()))


def fill(table: Table, contenders: list[Contender], setting: Setting, args: Any) -> None:
    """Run the cells of a prior and a task that the table does not have."""
    about = {**setting.name, "solver": REAL, "settings": ""}
    if not table.has(about):
        table.put({**about, **setting.judge.truth(setting.posterior, setting.obs)})
    where, left_out = " | ".join(map(str, setting.name.values())), []
    for contender in contenders:
        begun = begin(contender, setting)
        if begun is None:
            left_out.append(contender.name)
        if begun is None or table.has(begun[1]):
            continue
        row = measure(contender, *begun, setting, args)
        table.put(row)
        names = ("psnr", "frechet", "residual", "seconds")
        shown = [f"{name} {float(str(row[name])):.4g}" for name in names if name in row]
        text = ", ".join(shown) or str(row["note"])
        print(f"{where} | {contender.name} | {text}", flush=True)
    if left_out:
        print(f"{where} | not for this prior and task, or untrained: {'; '.join(left_out)}")


def chosen(args: argparse.Namespace) -> list[Contender]:
    """The solvers that are asked for; in small if --quick.

    Raises:
        ValueError: an unknown name.
    """
    known = {contender.name: contender for contender in CONTENDERS}
    for name in args.solvers or ():
        if name not in known:
            raise ValueError(f"--solvers knows {'; '.join(known)}; got {name!r}")
    found = [c for name, c in known.items() if not args.solvers or name in args.solvers]
    return [contender.quick() for contender in found] if args.quick else found


def run(args: argparse.Namespace) -> None:
    """Fill the cells that the arguments ask for; write table and figures of them and the others."""
    contenders = chosen(args)
    if args.quick:
        vars(args).update(QUICK)
    names = ("sigma", "images", "n", "seed", "quick")
    asked = {name: getattr(args, name) for name in names}
    table = Table(args.out, {**asked, **surroundings(args.device)})
    pictures: dict[str, list[Case]] = {}
    for prior in args.priors:
        for task in args.tasks:
            setting = prepare(prior, task, args)
            fill(table, contenders, setting, args)
            about = setting.name, setting.posterior.task, setting.obs, setting.judge.x
            pictures.setdefault(prior, []).extend(cases(args.runs, *about))
    render(args, SECTION, report(read_csv(args.out)))
    draw(pictures, args.out.parent / "figures" / f"{SECTION}.png")


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    arguments = parser(SECTION, __doc__, 1, "few images, steps and moves, for tests")
    add = arguments.add_argument
    add("--priors", nargs="+", default=PRIORS, help="names in configs/prior")
    add("--tasks", nargs="+", default=TASKS, help="names in configs/task")
    add("--solvers", nargs="+", help="names in the table; all by default")
    add("--runs", type=Path, default=Path("runs/solvers"), help="run folders PRIOR-TASK")
    add("--minutes", type=float, default=0.0, help="of each missing training; 0: none")
    add("--train", nargs="*", default=[], help="overrides of train.py, e.g. sampler.climb=20")
    add("--images", type=int, default=64, help="held-out images")
    add("--n", type=int, default=2, help="samples of each")
    add("--sigma", type=float, default=0.05, help="of the noise, on [-1, 1]")
    add("--seed", type=int, default=0, help="of observations and samples")
    add("--progress", action="store_true", help="show progress bars")
    add_device(arguments)
    call(run, arguments, argv)


if __name__ == "__main__":
    main()
