"""The referee's process (`faults/referee.py`), seen from a test."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import TracebackType

PROGRAM = Path(__file__).parent / "faults" / "referee.py"


class Referee:
    """A paid server that can be told what goes wrong, stopped, and started again at its place."""

    def __init__(self, folder: Path) -> None:
        self.charges, self.plan = folder / "charges.txt", folder / "plan.json"
        self.charges.touch()
        self.port = 0
        self.goes_wrong([])
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(PROGRAM), str(self.charges), str(self.plan), str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def goes_wrong(self, plan: list[str]) -> None:
        """What becomes of the requests, counted since the referee's start."""
        self.plan.write_text(json.dumps(plan))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def charged(self) -> list[str]:
        """The keys that were charged, in order."""
        return self.charges.read_text().split()

    def label(self, key: str) -> float:
        """One label, paid for."""
        return label(self.url, key)

    def __enter__(self) -> Referee:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def label(url: str, key: str) -> float:
    """One label of the referee at this address, paid for."""
    request = urllib.request.Request(f"{url}/chat/completions", data=b"{}", headers={"Idempotency-Key": key})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as reply:
        said = json.loads(reply.read())
    return float(json.loads(said["choices"][0]["message"]["content"])["score"])
