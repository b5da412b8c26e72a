"""What the commands of the tables share: arguments, the conditions of a file, the written table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from benchmarks.tables import Record, has_section, machine, read_csv, write_section
from outsourced.allocator import keep_freed_memory
from outsourced.commands import hide_jit_notice


def parser(name: str, text: str | None, threads: int, quick: str) -> argparse.ArgumentParser:
    """The arguments that every table has; the caller adds its own.

    Args:
        name: of the module in `benchmarks`, of its files in docs and of its section.
        text: the help text.
        threads: default number of threads.
        quick: what `--quick` does.
    """
    result = argparse.ArgumentParser(f"python -m benchmarks.{name}", description=text)
    result.formatter_class = argparse.RawDescriptionHelpFormatter
    result.add_argument("--out", type=Path, default=Path(f"docs/{name}.csv"))
    result.add_argument("--readme", type=Path, default=Path("README.md"))
    result.add_argument("--threads", type=int, default=threads)
    result.add_argument("--quick", action="store_true", help=quick)
    return result


def call(
    run: Callable[[argparse.Namespace], None],
    arguments: argparse.ArgumentParser,
    argv: list[str] | None,
) -> None:
    """One line for what the user can mend; a traceback for the rest."""
    try:
        args = arguments.parse_args(argv)
        keep_freed_memory()
        hide_jit_notice()
        torch.set_num_threads(args.threads)
        run(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def add_device(arguments: argparse.ArgumentParser) -> None:
    """The argument `--device`, a torch device."""
    arguments.add_argument("--device", type=_device, default=torch.device("cpu"), help="cpu, cuda")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"must be cpu or cuda, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"{name} is not available on this machine; use cpu")
    return device


def surroundings(device: torch.device | None = None) -> dict[str, object]:
    """What every figure depends on besides the effort.

    Args:
        device: of the tensors, where a table offers a choice.
    """
    around: dict[str, object] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": machine(),
    }
    if device is None:
        return around
    cuda = device.type == "cuda"
    return {**around, "device": torch.cuda.get_device_name(device) if cuda else device.type}


def told(record: Record) -> str:
    """The surroundings of a record, for the text under a table."""
    device = record.get("device", "cpu")
    beside = "" if device == "cpu" else f"{device}, "
    return f"{beside}{record['machine']}, {record['threads']} thread(s), torch {record['torch']}"


def kept(path: Path, conditions: Mapping[str, object]) -> list[Record]:
    """The rows of a CSV file, none if there is no such file.

    Args:
        path: of the file.
        conditions: what a figure depends on besides its row; all rows must share it.

    Raises:
        ValueError: the file holds rows of other effort or machines, which do not mix.
    """
    records: list[Record] = [*read_csv(path)]
    for record in records:
        for name, value in conditions.items():
            if record.get(name) != str(value):
                raise ValueError(
                    f"{path} holds rows with {name} = {record.get(name)}, this call has {value}; "
                    "choose another --out, or delete the file"
                )
    return records


def render(args: argparse.Namespace, section: str, text: str, short: str | None = None) -> None:
    """Write the table beside the CSV file, and into the README where it has the markers.

    Args:
        args: of the command.
        section: of the markers.
        text: with the table.
        short: another text for the README, where the table is too long for it.
    """
    write_section(args.out.with_suffix(".md"), section, text)
    if has_section(args.readme, section):
        write_section(args.readme, section, text if short is None else short)
