"""Stable Diffusion 1.5 at 512 x 512 in full size: seconds, memory and operations of what matters.

    python -m benchmarks.large --device cuda
    python -m benchmarks.large --device cpu --rows f,pass

The weights are random, unless --path names a pipeline; neither time nor memory depends on them.
Finished rows are in the CSV file, and the same command continues with the missing ones. Operations
are counted on tensors without contents, so that they hold for any machine; what other accelerators
would take is computed from them, from the peak rates below and from the share of its own peak that
this machine reaches in the same row.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.driver import call, kept, parser, render, told
from benchmarks.large_rows import ROWS, Scene, make_scene
from benchmarks.operations import count_parts
from benchmarks.pipelines import write_pipeline
from benchmarks.tables import Column, Record, machine, markdown, read_csv, write_csv
from outsourced.build import code_version

SECTION = "sd15"
# Dense bfloat16 with float32 accumulation, TFLOP/s, of the makers' data sheets.
PEAKS = {"H100 PCIe": 756.0, "H100": 989.0, "H200": 989.0, "A100": 312.0, "RTX 4090": 165.0}
SHOWN_PEAKS = ("A100", "H100", "RTX 4090")
MATRIX = 8192  # side of the product that tells the peak of a machine that is not in the list
QUICK_MATRIX = 256
COLUMNS = (
    Column("what", "what"),
    Column("seconds", "s", ".3g"),
    Column("gib", "GiB", ".2f"),
    Column("tflop", "TFLOP", ".3g"),
    Column("share", "of peak", ".1%"),
    *(Column(f"on {name}", f"{name}, s", ".2g") for name in SHOWN_PEAKS),
)


def device_name(device: torch.device) -> str:
    """What the figures were measured on."""
    if device.type != "cuda":
        return machine()
    return torch.cuda.get_device_name(device)


def wait(device: torch.device) -> None:
    """Until the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, side: int) -> float:
    """TFLOP/s of a bfloat16 matrix product, the best of three."""
    a = torch.randn(side, side, device=device).bfloat16()
    best = float("inf")
    for _ in range(4):  # the first one warms up
        wait(device)
        start = time.perf_counter()
        a @ a
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best / 1e12


def peak_rate(device: torch.device, side: int) -> float:
    """Peak TFLOP/s in bfloat16: the data sheet's, or that of a large matrix product."""
    known = [peak for name, peak in PEAKS.items() if name in device_name(device)]
    return known[0] if known else matrix_rate(device, side)


@contextmanager
def memory(device: torch.device) -> Iterator[list[float]]:
    """Peak GiB inside the block, all that was there before included; empty where unknown."""
    found: list[float] = []
    refs, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif refs.exists():
        refs.write_text("5")  # sets the peak of what is resident back to what is now
    yield found
    if device.type == "cuda":
        found.append(torch.cuda.max_memory_allocated(device) / 2**30)
    elif refs.exists():
        lines = status.read_text().splitlines()
        found.append(next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 2**20)


def measure(name: str, scene: Scene, repeats: int) -> Record:
    """Seconds (the best), and peak memory, of a row.

    Args:
        name: a key of `ROWS`.
        scene: what it works on.
        repeats: calls that are timed, after one that warms up; 1: the first call is timed.
    """
    action = ROWS[name].prepare(scene)
    if repeats > 1:
        action()
    seconds = []
    with memory(scene.device) as gib:
        for _ in range(repeats):
            wait(scene.device)
            start = time.perf_counter()
            action()
            wait(scene.device)
            seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "gib": gib[0] if gib else ""}


def computed(record: Mapping[str, object], peak: float) -> Record:
    """A row with its share of the peak, and the seconds that other accelerators would take."""
    seconds, tflop = float(str(record["seconds"])), float(str(record["tflop"]))
    share = tflop / seconds / peak
    others = {f"on {name}": tflop / (share * PEAKS[name]) for name in SHOWN_PEAKS}
    return {**record, "share": share, **others}


def conditions(args: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """What a figure depends on besides its row; all rows of one file must share it."""
    return {
        "machine": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else 1,
        "torch": torch.__version__,
        "experiment": args.experiment,
        "size": "tiny" if args.quick else "full",
    }


def table(records: list[dict[str, str]]) -> str:
    """The markdown table, and under it how it was made."""
    first = records[0]
    ordered = sorted(records, key=lambda record: list(ROWS).index(record["row"]))
    peaks = ", ".join(f"{name} {PEAKS[name]:.0f}" for name in SHOWN_PEAKS)
    return (
        f"{markdown(ordered, COLUMNS)}\n\n"
        f"Weights and activations of the prior in bfloat16, the sampler in float32; GiB at most "
        "during a row, the weights of all networks included. Operations: two for a multiplication "
        "with addition, backward passes and what checkpoints run again included. `of peak`: of "
        f"{float(first['peak']):.4g} TFLOP/s, dense bfloat16. The last columns are computed, not "
        f"measured: the same share of the peak of another accelerator (TFLOP/s: {peaks}). "
        f"{told(first)}; settings of experiment={first['experiment']}, {first['size']} size."
    )


def chosen(text: str | None) -> list[str]:
    """The rows of the command line.

    Raises:
        ValueError: an unknown row.
    """
    names = list(ROWS) if text is None else text.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise ValueError(f"--rows must be of {', '.join(ROWS)}, got {', '.join(unknown)}")
    return names


def fill(args: argparse.Namespace, names: list[str], device: torch.device) -> None:
    """Measure the rows that the file does not have yet."""
    asked = conditions(args, device)
    known = kept(args.out, asked)
    records = list(known)
    missing = [name for name in names if all(record["row"] != name for record in known)]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder:
        size = "tiny" if args.quick else "sd15"
        path = args.path or str(write_pipeline(size, Path(folder)))
        scene = make_scene(path, args.experiment, args.quick)
    parts = count_parts(scene)  # before the move: on this machine's own tensors
    scene.to(device)
    peak = peak_rate(device, QUICK_MATRIX if args.quick else MATRIX)
    for name in missing:
        row = ROWS[name]
        about = {"row": name, "what": row.told(scene), "tflop": row.operations(parts, scene) / 1e12}
        record = {**about, **measure(name, scene, args.repeats)}
        records.append({**computed(record, peak), "peak": peak, **asked, "code": code_version()})
        write_csv(args.out, records)
        print(markdown([records[-1]], COLUMNS).splitlines()[-1], flush=True)


def run(args: argparse.Namespace) -> None:
    """Fill the table that the arguments ask for."""
    names, device = chosen(args.rows), torch.device(args.device)
    if args.repeats < 1:
        raise ValueError(f"--repeats must be >= 1, got {args.repeats}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a GPU that torch sees; use --device cpu")
    fill(args, names, device)
    render(args, SECTION, table(read_csv(args.out)))


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    arguments = parser(SECTION, __doc__, threads=2, quick="a tiny pipeline, for tests")
    add = arguments.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    add("--rows", help=f"of {','.join(ROWS)}; default: all")
    add("--repeats", type=int, default=3, help="timed calls after one that warms up; 1: no warm-up")
    add("--path", help="a Stable Diffusion 1.5 pipeline; default: random weights")
    add("--experiment", default="sd15_inpaint", help="whose settings")
    call(run, arguments, argv)


if __name__ == "__main__":
    main()
