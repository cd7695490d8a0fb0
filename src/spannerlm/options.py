"""What the commands share: options of the same name and meaning, and the form of a help page's end."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def examples(*lines: str) -> str:
    """The end of a help page, line breaks kept."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
