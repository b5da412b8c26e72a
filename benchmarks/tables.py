"""Results as a CSV file that a run appends to, and as a markdown table between two markers."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Record = Mapping[str, object]


@dataclass(frozen=True)
class Column:
    """A column of a markdown table.

    Attributes:
        key: of the record.
        title: as printed.
        form: format of numbers, such as ".3f"; empty for text.
    """

    key: str
    title: str
    form: str = ""

    def known(self, record: Record) -> bool:
        """Whether the record has such a figure."""
        return record.get(self.key, "") not in ("", None)

    def show(self, record: Record) -> str:
        """The cell of a record; a dash where the record has no such figure."""
        if not self.known(record):
            return "–"
        value = record[self.key]
        return format(float(str(value)), self.form) if self.form else str(value)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Records of a CSV file, all as text; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """Write records under the union of their keys, in order of appearance."""
    names = list(dict.fromkeys(name for record in records for name in record))
    partial = path.with_suffix(path.suffix + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    os.replace(partial, path)


def markdown(records: Sequence[Record], columns: Sequence[Column]) -> str:
    """A markdown table with numbers to the right."""
    lines = [
        [column.title for column in columns],
        ["---:" if column.form else "---" for column in columns],
        *[[column.show(record) for column in columns] for record in records],
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def filled(columns: Sequence[Column], records: Sequence[Record]) -> list[Column]:
    """The columns in which a record has something."""
    return [column for column in columns if any(map(column.known, records))]


def has_section(path: Path, name: str) -> bool:
    """Whether a text file has the two markers `<!-- name:start -->` and `<!-- name:end -->`."""
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8")
    return all(f"<!-- {name}:{end} -->" in text for end in ("start", "end"))


def write_section(path: Path, name: str, content: str) -> None:
    """Replace what lies between the markers of a section; a missing file is created.

    Args:
        path: a markdown file.
        name: of the markers `<!-- name:start -->` and `<!-- name:end -->`.
        content: the new text between them.

    Raises:
        ValueError: the file exists but has not exactly one pair of the markers, in order.
    """
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    text = path.read_text(encoding="utf-8") if path.is_file() else f"{start}\n{end}\n"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"{path} must hold one {start} and, after it, one {end}; add them")
    before, after = text[: text.index(start)], text[text.index(end) :]
    partial = path.with_suffix(path.suffix + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(f"{before}{start}\n{content}\n{after}", encoding="utf-8")
    os.replace(partial, path)


def machine() -> str:
    """The processor's name, with the number of processors."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{os.cpu_count()} x {name}"
