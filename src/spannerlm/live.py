"""What the terminal shows of a run: a live view while it works, tables and replies at its end.

Text that comes from elsewhere (prompts, replies, names) is stripped of escape codes before it reaches the terminal.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from spannerlm.progress import Progress
from spannerlm.wording import bill, count, few, interval, number, recommendation, seconds, share, short, visible

REFRESHES = 2
"""Refreshes a second: enough to look alive, and at some two milliseconds each less than half a percent of a core."""
BAR = 32
"""Width of the bar in columns, which leaves room for the numbers beside it at 80."""
REPLY = 160
"""Characters of a reply that are shown: about three lines at 80 columns."""

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|\x9c|$)"  # OSC, DCS, SOS, PM, APC: titles, links, clipboard
    r"|\x1b[ -/]*[0-~]?|\x9b[0-?]*[ -/]*[@-~]",
    re.DOTALL,
)


def stripped(text: str) -> str:
    r"""The text without escape codes; other characters that would steer the terminal are spelled out as ``\x07``."""
    return visible(_ESCAPES.sub("", text))


class LiveView:
    """Shows the latest `Progress` on a terminal, a few times a second; elsewhere it does nothing at all.

    A context manager and an observer: ``with LiveView(console, title) as view: run_job(config, directory, view)``. A
    call keeps the record and returns; a thread draws.
    """

    def __init__(self, console: Console | None = None, title: str = "", *, enabled: bool = True) -> None:
        self._console = console if console is not None else Console()
        self._title = stripped(title)
        self._shown = Progress("start", 0, 0, 0)
        self._received = time.monotonic()
        self._note = ""
        self._live: Live | None = None
        if enabled and _is_terminal(self._console):
            self._live = Live(
                console=self._console,
                get_renderable=self._render,
                refresh_per_second=REFRESHES,
                transient=True,
                redirect_stderr=sys.stderr.isatty(),  # a log file gets its lines, not the screen
            )

    def __enter__(self) -> LiveView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Take note of where the run stands."""
        self._received = time.monotonic()
        self._shown = progress

    def note(self, text: str) -> bool:
        """Show a line below the rest from now on; False where nothing is shown. Safe within a signal handler."""
        self._note = text
        return self._live is not None

    def abandon(self) -> None:
        """Give the terminal its cursor back before the process ends at once; takes no lock and waits for nothing."""
        if self._live is not None:
            os.write(self._console.file.fileno(), b"\x1b[?25h\n")

    def _render(self) -> RenderableType:
        shown = render(self._shown, self._title, time.monotonic() - self._received)
        return Group(shown, Text(self._note, style="bold yellow")) if self._note else shown


def render(progress: Progress, title: str = "", since: float = 0.0) -> RenderableType:
    """The live view of a record that came ``since`` seconds ago."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, max_width=36)
    grid.add_column()
    for name, shown in _rows(progress, since):
        grid.add_row(Text(stripped(name)), shown)
    return Group(Text(title, style="bold", no_wrap=True, overflow="ellipsis"), grid) if title else grid


def _rows(progress: Progress, since: float) -> list[tuple[str, RenderableType]]:
    rows: list[tuple[str, RenderableType]] = [("phase", Text(stripped(progress.phase)))]
    if progress.budget > 0:
        bar = ProgressBar(total=progress.budget, completed=progress.labels, width=BAR)
        labels = Table.grid(padding=(0, 1))
        labels.add_row(bar, Text(f"{count(progress.labels)} of {count(progress.budget)}"))
        rows.append(("labels", labels))
    rows.append(("draws", Text(count(progress.draws))))
    if progress.pairs is not None:
        rows.append(("spanner", Text(f"{count(progress.pairs)} pairs{_certificate(progress.certificate)}")))
    if progress.value is not None:
        rows.append((progress.value_name, Text(short(progress.value), style="bold")))
    rows.append(("time", Text(_time(progress, since))))
    return rows


def _certificate(certificate: Mapping[str, Any] | None) -> str:
    """What the spanner certifies, in a few words."""
    eta, nu = number((certificate or {}).get("eta")), number((certificate or {}).get("nu"))
    if not eta <= 1.0:
        return ""
    if eta == 1.0:
        return f", still a pair beyond ν = {few(nu)}"
    return f", at most {share(eta)} of base pairs beyond ν = {few(nu)}"


def _time(progress: Progress, since: float) -> str:
    elapsed = f"{_clock(progress.elapsed_s + since)} so far"
    if progress.remaining_s is None:
        return elapsed
    return f"{elapsed}, about {_clock(max(0.0, progress.remaining_s - since))} left"


def _clock(length: float) -> str:
    """Seconds as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(length), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _is_terminal(console: Console) -> bool:
    """Whether a person watches: colours forced on for a pipe or a log do not make it a terminal."""
    isatty = getattr(console.file, "isatty", None)
    return console.is_terminal and not console.is_dumb_terminal and isatty is not None and bool(isatty())


# --- the end of a run -----------------------------------------------------------------------------------------------


def show_report(console: Console, report: Mapping[str, Any], directory: Path) -> None:
    """Print a finished run: table, recommended KL, replies before and after, files, time by part."""
    kl = number(report.get("kl"))
    if report.get("table"):
        console.print(_table(report["table"], kl))
    for line in (*(report.get("warnings") or ()), *_findings(report)):
        console.print(Text(stripped(line)))
    for reply in (report.get("replies") or ())[:3]:
        console.print()
        console.print(_replies(reply))
    console.print()
    page = directory / "report.html"
    console.print(Text(f"report   {stripped(str(page))}" if page.exists() else f"run      {stripped(str(directory))}"))
    timings = report.get("timings") or {}
    if timings:
        console.print(Text(f"time     {_timings(timings)}"))


def _table(rows: Sequence[Mapping[str, Any]], kl: float) -> Table:
    """One row per policy."""
    at = f" at KL = {few(kl)}" if kl == kl else ""
    table = Table(
        title=f"Held-out prompts{at}, 95 % intervals", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False
    )
    table.add_column("policy", overflow="fold", min_width=20, max_width=24)
    table.add_column("value", no_wrap=True)
    for name in ("labels", "draws", "KL", "draws per\nanswer"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            Text(stripped(str(row.get("name")))),
            Text(interval(row)),
            *(Text(count(row.get(key))) for key in ("labels", "draws")),
            Text(few(round(number(row.get("kl")), 6))),  # the base model's is 0 up to rounding
            Text(few(row.get("draws_per_answer"))),
        )
    return table


def _findings(report: Mapping[str, Any]) -> list[str]:
    """Recommended KL, estimates from labels, and whether the features explain the reward."""
    lines = [recommendation(report)]
    lines += [f"{row.get('name')}: {interval(row)}, {row.get('note')}." for row in report.get("estimates") or ()]
    lines += [f"Requests to {name}: {bill(paid)}." for name, paid in (report.get("usage") or {}).items()]
    reading = (report.get("fit") or {}).get("reading")
    lines.append(f"Do the features explain this reward? {reading[:1].upper()}{reading[1:]}." if reading else "")
    return [line for line in lines if line]


def _replies(reply: Mapping[str, Any]) -> RenderableType:
    """Replies to one prompt, of the base model and of the learned policy, each with its reward where it is known."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text("prompt"), "", Text(_shown(str(reply.get("prompt", ""))), style="bold"))
    for name in ("before", "after"):
        for i, answer in enumerate((reply.get(name) or ())[:3]):
            text = Text(_shown(str(answer.get("text", ""))))
            grid.add_row(Text("" if i else name), Text(short(answer.get("reward"))), text)
    return grid


def _shown(text: str) -> str:
    """The text on one line, cut where it is long."""
    line = " ".join(stripped(text[: 4 * REPLY]).split())
    return line if len(line) <= REPLY else line[: REPLY - 1] + "…"


def _timings(timings: Mapping[str, Any]) -> str:
    """``31 s: generate 20 s, features 5 s, ...``, the longest first."""
    parts = sorted(((number(s), name) for name, s in timings.items() if name != "total"), reverse=True)
    total = timings.get("total", sum(s for s, _ in parts))
    shown = [f"{stripped(name)} {seconds(s)}" for s, name in parts if s >= 0.05]
    return f"{seconds(total)}{': ' if shown else ''}{', '.join(shown)}"
