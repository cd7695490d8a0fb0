"""Eight people rate at once while the run recomputes: how long the labelling page takes, and whether overlap holds.

    OMP_NUM_THREADS=1 python benchmarks/label_page.py [--raters 8] [--items 50] [--overlap 2]

The page is a process of its own, on the bundled helpdesk model, with `directed` choosing pairs. Each rater is a thread
that asks, waits a moment as a person would, and answers. Times are those of a whole HTTP request on this machine.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import httpx
import numpy as np

from spannerlm import Run

THINKING_S = 0.3
"""How long a rater looks at an item."""


def rate(url: str, name: str, times: dict[str, list[float]], rng: np.random.Generator) -> None:
    """Rate until nothing is left; the seconds of each request go into ``times``."""
    with httpx.Client(base_url=url, timeout=60.0) as client:
        while True:
            found = post(client, "/api/next", {"rater": name}, times)
            if found["state"] == "done":
                return
            if found["state"] == "thinking":
                time.sleep(0.2)
                continue
            time.sleep(THINKING_S * (0.5 + rng.uniform()))
            choice = str(rng.choice(["left", "right", "tie"]))
            post(client, "/api/answer", {"rater": name, "id": found["item"]["id"], "choice": choice}, times)


def post(client: httpx.Client, path: str, body: dict[str, str], times: dict[str, list[float]]) -> dict[str, object]:
    start = time.perf_counter()
    answer = client.post(path, json=body)
    times[path].append(time.perf_counter() - start)
    answer.raise_for_status()
    found: dict[str, object] = answer.json()
    return found


def started(folder: Path, budget: int, overlap: int) -> tuple[subprocess.Popen[bytes], str]:
    """The page in a process of its own, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = [f"labels={budget}", "feedback=comparison", "explorer=directed"]
    command = [str(Path(sys.executable).parent / "spannerlm"), "label", str(folder), "--port", str(port)]
    command += ["--overlap", str(overlap), *(word for setting in settings for word in ("--set", setting))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            httpx.get(url + "/health", timeout=1.0)
            return process, url
        except httpx.HTTPError:
            time.sleep(0.1)
    process.kill()
    raise SystemExit("the page did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raters", type=int, default=8)
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--overlap", type=int, default=2)
    args = parser.parse_args()
    times: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "run")
        process, url = started(folder, args.items * args.overlap, args.overlap)
        try:
            names = [f"rater {i}" for i in range(args.raters)]
            threads = [
                threading.Thread(target=rate, args=(url, name, times, np.random.default_rng(i)))
                for i, name in enumerate(names)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            process.kill()
            process.wait()
        with Run.open(folder) as run:
            answers = [answer for answer in run.answers() if answer.status == "label"]
    raters: dict[object, list[str]] = defaultdict(list)
    for answer in answers:
        pair = frozenset((answer.query.response, answer.query.opponent))
        raters[answer.query.prompt, pair].append(answer.query.worker)
    most = max(len(who) for who in raters.values())
    twice = sum(len(who) != len(set(who)) for who in raters.values())
    print(f"{args.raters} raters, {len(answers)} answers to {len(raters)} items, overlap {args.overlap}")
    print(f"most answers to one item: {most}; items rated twice by one person: {twice}")
    print("| request | n | median ms | 95 % ms | longest ms |")
    print("|---|--:|--:|--:|--:|")
    for path, seconds in sorted(times.items()):
        low, high = 1e3 * np.quantile(seconds, [0.5, 0.95])
        print(f"| {path} | {len(seconds)} | {low:.1f} | {high:.1f} | {1e3 * max(seconds):.1f} |")
    if most > args.overlap or twice:
        raise SystemExit("an item was rated more often than it should be")


if __name__ == "__main__":
    main()
