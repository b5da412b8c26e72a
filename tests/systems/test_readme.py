"""The commands that README and docs tell: their settings exist."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).resolve().parents[2]
COMMAND = re.compile(r"python (train|sample)\.py ([^#`\n]*)")


def commands() -> list[tuple[str, str]]:
    """Program and arguments of every command, in code blocks and in sentences."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = [match for page in pages for match in COMMAND.findall(page.read_text())]
    return sorted({(name, arguments.strip()) for name, arguments in found})


def values(arguments: str) -> list[str]:
    """Overrides, the first value of a sweep's, a task for the letter T."""
    words = [word for word in shlex.split(arguments) if "=" in word]
    return [
        re.sub(r"\bT\b", "inpaint", word).split(",")[0] if word.startswith("task=") else word
        for word in words
    ]


@pytest.mark.parametrize(("name", "arguments"), commands())
def test_commands_name_settings_that_exist(name: str, arguments: str) -> None:
    """Mutant: a group, a key or a file of a configuration that was renamed or is not there."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        compose(name, overrides=values(arguments))


def test_commands_are_found() -> None:
    """Mutant: a pattern that finds nothing."""
    found = commands()
    assert len(found) > 20
    assert {name for name, _ in found} == {"train", "sample"}
    assert values("-m task=T,denoise n=2") == ["task=inpaint", "n=2"]
