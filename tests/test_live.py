"""The terminal's view: nothing where nobody watches, few refreshes, 80 columns, and no escape code of anyone else's."""

import io
import os
import pty
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from spannerlm.live import REFRESHES, LiveView, render, show_report, stripped
from spannerlm.progress import Progress

MIDWAY = Progress(
    phase="explore",
    draws=32_768,
    labels=45,
    budget=100,
    pairs=22,
    certificate={"eta": 0.031, "nu": 0.5, "delta": 0.05},
    value=0.5234,
    value_name="held-out value at KL = 2",
    elapsed_s=83.2,
    remaining_s=4000.0,
)
ROW = {"value": 0.9, "low": 0.8, "high": 1.0, "kl": 2.0, "draws_per_answer": 14.31}
REPORT = {
    "kl": 2.0,
    "table": [
        {"name": "base model", "labels": 0, "draws": 0, **ROW, "kl": 9e-17, "draws_per_answer": 1.0},
        {"name": "spanner-sampling", "labels": 1000, "draws": 1_234_567, **ROW},
        {"name": "true-reward optimum", "labels": None, "draws": None, **ROW, "low": None, "high": float("nan")},
    ],
    "recommended": {**ROW, "kl": 1.5, "beta": 0.2},
    "fit": {"reading": "yes: they do"},
    "estimates": [{"name": "posterior prediction", "value": 0.7, "low": 0.6, "high": 0.8, "note": "by regression"}],
    "replies": [
        {
            "prompt": "\x1b]0;title\x07my \x1b[31mprinter\x1b[0m",
            "before": [{"text": "word " * 200, "reward": -0.5}, {"text": "[bold]not markup[/]", "reward": None}],
            "after": [{"text": "two\nlines\x08\u202e", "reward": 2.0}],
        }
    ],
    "timings": {"generation": 20.0, "load": 3.2, "ledger": 0.01, "total": 30.0},
}


def text_of(renderable, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def report_text(report, directory=Path("runs/x")):
    console = Console(file=io.StringIO(), width=80, highlight=False)
    show_report(console, report, directory)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, é 🌍 שלום\tand\nlines", "plain, é 🌍 שלום\tand\nlines"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x9b31mred", "red"),
        ("\x1b]8;;https://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;aGk=\x07clipboard", "clipboard"),
        ("\x1b]0;never closed", ""),
        ("\x1bPdevice\x1b\\control", "control"),
        ("\x1bcreset", "reset"),
        ("a\x1b", "a"),
        ("\x1b\x1b[31mtwice", "twice"),
        ("bell\x07 back\x08 carriage\r", "bell\\x07 back\\x08 carriage\\r"),
        ("\u202eoverride\ud800", "\\u202eoverride\\ud800"),
    ],
)
def test_escape_codes_are_stripped_and_other_controls_spelled_out(text, shown):
    assert stripped(text) == shown


def test_the_live_view_says_all_that_is_asked_of_it_within_80_columns():
    text = text_of(render(MIDWAY, "helpdesk · spanner-sampling · runs/helpdesk-1", since=2.0))
    assert max(map(len, text.splitlines())) <= 80
    for part in (
        "helpdesk · spanner-sampling · runs/helpdesk-1",
        "phase                     explore",
        "45 of 100",
        "32,768",
        "22 pairs, at most 3.1 % of base pairs beyond ν = 0.5",
        "held-out value at KL = 2  0.52",
        "1:25 so far, about 1:06:38 left",
    ):
        assert part in text


def test_what_is_not_known_yet_is_left_out():
    text = text_of(render(Progress("load the model", 0, 0, 100)))
    assert [line.split()[0] for line in text.splitlines()] == ["phase", "labels", "draws", "time"]
    assert "left" not in text


@pytest.mark.parametrize(
    ("certificate", "said"),
    [(None, "22 pairs"), ({}, "22 pairs"), ({"eta": 1.0, "nu": 0.25}, "22 pairs, still a pair beyond ν = 0.25")],
)
def test_a_certificate_that_promises_nothing_is_not_made_to(certificate, said):
    text = text_of(render(replace(MIDWAY, certificate=certificate)))
    assert re.search(rf"spanner +{said} *\n", text)


@pytest.mark.parametrize("forced", [True, False])
def test_nothing_is_printed_where_nobody_watches(forced):
    file = io.StringIO()
    with LiveView(Console(file=file, force_terminal=forced), "title") as view:
        view(MIDWAY)
        assert not view.note("stopping")
        view.abandon()
    assert file.getvalue() == ""


def on_a_terminal(watch):
    """What `watch(console)` leaves on a terminal of 80 columns."""
    master, slave = pty.openpty()
    seen = []

    def read():
        while b"\x04" not in (piece := os.read(master, 4096)):
            seen.append(piece)
        seen.append(piece.partition(b"\x04")[0])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with open(slave, "w", closefd=False) as file:
            watch(Console(file=file, width=80, height=24, color_system="standard", force_terminal=True))
    finally:
        os.write(slave, b"\x04")
        reader.join()
        os.close(master)
        os.close(slave)
    return b"".join(seen).decode()


def test_on_a_terminal_the_latest_record_is_shown_a_few_times_a_second_and_gone_at_the_end(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    seconds = 1.2

    def watch(console):
        with LiveView(console, "a\x1b[31m title") as view:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                view(MIDWAY)
                time.sleep(0.01)
            assert view.note("stopping after the request at hand")
            time.sleep(2.0 / REFRESHES)

    shown = on_a_terminal(watch)
    frames = shown.count("a title")
    assert 2 <= frames <= (seconds + 2.0 / REFRESHES) * REFRESHES + 3
    assert "45 of 100" in shown
    assert "stopping after the request at hand" in shown
    assert shown.rstrip("\r\n").endswith("\x1b[2K")  # the view is wiped
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is back


def test_taking_note_of_a_record_costs_next_to_nothing(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")

    def watch(console):
        with LiveView(console) as view:
            start = time.thread_time()
            for _ in range(100_000):
                view(MIDWAY)
            assert time.thread_time() - start < 1.0  # ten microseconds each; one or two measured

    on_a_terminal(watch)


def test_a_dumb_terminal_gets_no_live_view(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")

    def watch(console):
        with LiveView(console, "title") as view:
            view(MIDWAY)
        console.file.write("end")

    assert on_a_terminal(watch) == "end"


def test_the_end_of_a_run_fits_80_columns_and_holds_what_it_must(tmp_path):
    (tmp_path / "report.html").touch()
    text = report_text(REPORT, tmp_path)
    lines = text.replace(str(tmp_path), "").splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.split("  ")[0].strip(): line for line in lines}
    assert re.search(r"0\.90 \[0\.80, 1\.00\] +0 +0 +0 +1 *$", rows["base model"])
    assert re.search(r"0\.90 \[0\.80, 1\.00\] +1,000 +1,234,567 +2 +14\.3 *$", rows["spanner-sampling"])
    assert re.search(r"0\.90 +– +– +2 +14\.3 *$", rows["true-reward optimum"])
    flat = " ".join(text.split())
    assert "Sample at a KL of 1.5 nats from the base model (β = 0.2)." in flat
    assert "posterior prediction: 0.70 [0.60, 0.80], by regression." in flat
    assert "Do the features explain this reward? Yes: they do." in flat
    assert "30 s: generation 20 s, load 3.2 s" in flat
    assert f"report   {tmp_path}/report.html".replace(" ", "") in text.replace("\n", "").replace(" ", "")


def test_replies_before_and_after_are_inert_and_short():
    text = report_text(REPORT)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "my printer" in text
    assert "[bold]not markup[/]" in text
    assert "two lines\\x08\\u202e" in text
    assert "…" in text
    assert [line.split()[0] for line in text.splitlines() if re.match("(before|after)", line)] == ["before", "after"]


@pytest.mark.parametrize("report", [{}, {"table": [], "replies": [], "timings": {}, "fit": {}, "recommended": None}])
def test_a_report_of_next_to_nothing_still_says_where_the_run_is(report):
    assert report_text(report).strip() == "run      runs/x"
