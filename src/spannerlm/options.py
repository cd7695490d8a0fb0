"""What the commands share: options of the same name and meaning, the form of a help page's end, new directories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def examples(*lines: str) -> str:
    """The end of a help page, line breaks kept."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def next_free(name: str) -> Path:
    """``runs/NAME-N`` with the first N for which there is none; two commands at once get two."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._") else "-" for c in name).strip(".-") or "own"
    number = 1
    while True:
        directory = Path("runs", f"{name[:64]}-{number}")
        directory.parent.mkdir(exist_ok=True)
        try:
            directory.mkdir()
        except FileExistsError:
            number += 1
        else:
            return directory
