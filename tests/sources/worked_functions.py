"""Functions that run in a worker."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def lengths(prompts: list[str], completions: list[str]) -> list[float]:
    print("a line on standard output")
    return [float(len(text)) for text in completions]


async def slowly(completions: list[str], level: list[int], **rest: Any) -> list[float]:
    await asyncio.sleep(0.001)
    return [float(a) + sum(map(len, rest)) for a in level]


def longer(prompts: list[str], completions: list[str], opponents: list[str]) -> list[float]:
    return [float(len(a) > len(b)) for a, b in zip(completions, opponents, strict=True)]


def everything(completions: list[str]) -> list[Any]:
    from decimal import Decimal  # here: the other functions start in an instant

    import numpy as np

    from spannerlm.records import Failed, Later, Unknown

    known = {
        "none": None,
        "int": 3,
        "numpy": np.float32(0.5),
        "decimal": Decimal("0.25"),
        "failed": Failed("broken", charged=False),
        "later": Later(2.5, "busy"),
        "unknown": Unknown("cut off", b"\xff\x00"),
        "nan": float("nan"),
        "true": True,
        "text": "1.0",
    }
    return [known[text] for text in completions]


def echo(completions: list[str], seen: list[Any]) -> list[float]:
    return [float(text == other) for text, other in zip(completions, seen, strict=True)]


def moody(completions: list[str]) -> Any:
    for text in completions:
        if text == "raise":
            raise KeyError("x")
        if text == "leave":
            sys.exit(0)
        if text == "die":
            os._exit(7)
        if text.startswith("hang"):
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            Path(text.partition(" ")[2]).write_text(f"{os.getpid()} {child.pid}")
            time.sleep(60)
        if text == "number":
            return 1.0
    return [float(os.getpid())] * len(completions)
