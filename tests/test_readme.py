"""README says what is true: its examples run, its output is what comes out, its tree is the tree."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from spannerlm.config import load_config
from spannerlm.tasks import load_model, load_task

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CORNERS = r"\n```(\w*)\n(.*?)```\n(?:\n```\n(.*?)```)?"


def blocks(mark: str) -> list[tuple[str, str]]:
    """(block, the output shown right after it or "") of each block behind this comment."""
    found = re.findall(re.escape(f"<!-- {mark} -->") + CORNERS, README, flags=re.DOTALL)
    return [(text, output) for _, text, output in found]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder from which the paths in README are valid."""
    (tmp_path / "src").symlink_to(ROOT / "src")
    (tmp_path / "my.yaml").write_text(blocks("file: my.yaml")[0][0])
    lines = [
        {"prompt": f"my {thing} is {problem} ;"}
        for thing in ("printer", "laptop", "phone")
        for problem in ("hot", "slow")
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    function = next(text for text, _ in blocks("runs: python") if "def helpful" in text)
    (tmp_path / "reward.py").write_text(function[function.index("def helpful") : function.index("result =")])
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(("code", "shown"), blocks("runs: python"))
def test_python_examples_run_and_print_what_is_shown(code: str, shown: str, folder: Path) -> None:
    printed = run([sys.executable, "-c", code], folder)
    assert printed
    if shown:
        assert printed == shown


def test_the_sources_that_are_shown_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line as the reward of the configuration that is shown; the judge may wait for its server."""
    monkeypatch.setenv("KEY", "secret")
    base = blocks("file: my.yaml")[0][0]
    lines = blocks("sources")[0][0].splitlines()
    kinds = set()
    for line in lines:
        (folder / "other.yaml").write_text(re.sub(r"reward: .*", "", base) + line + "\n")
        config = load_config(folder / "other.yaml")
        assert config.reward is not None
        assert not isinstance(config.reward, str)
        load_task(config, folder)
        kinds.add(config.reward.kind)
    assert kinds == {"numeric", "function", "sum", "judge"}


def test_the_server_that_is_shown_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "secret")
    rest = [line for line in blocks("file: my.yaml")[0][0].splitlines() if not line.startswith("model:")]
    (folder / "other.yaml").write_text("\n".join([*rest, blocks("server")[0][0]]))
    config = load_config(folder / "other.yaml")
    loaded = load_model(config, load_task(config), folder)  # nothing is sent before the first draw
    assert (loaded.name, loaded.hidden_size) == ("my-model", None)
    page = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "SERVERS.md").read_text(), flags=re.DOTALL)
    assert page is not None
    (folder / "page.yaml").write_text("\n".join([*rest, page[1]]))
    assert load_config(folder / "page.yaml").server.retries == 6


@pytest.mark.slow
def test_every_shell_command_runs(folder: Path) -> None:
    commands = [line.split("#")[0].strip() for line in blocks("runs: shell")[0][0].splitlines()]
    assert {shlex.split(c)[1] for c in commands} == {"run", "sample", "resume", "report", "verify", "backup"}
    for command in commands:
        run(shlex.split(command), folder)
    assert (folder / "runs" / "own" / "report.html").exists()
    assert (folder / "runs" / "own.backup").exists()
    serve, *exports = [line.split("#")[0].strip() for line in blocks("runs: onwards")[0][0].splitlines()]
    for command in exports:
        run(shlex.split(command), folder)
    assert (folder / "sft.jsonl").read_text()
    assert (folder / "pairs" / "README.md").exists()
    script = str(Path(sys.executable).parent / "spannerlm")
    with subprocess.Popen(
        [script, *shlex.split(serve)[1:], "--port", "0"], cwd=folder, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split(" at ")[1].strip()
        body = json.dumps({"model": "own", "messages": [{"role": "user", "content": "my printer is hot ;"}]})
        asked = urllib.request.Request(
            f"{address}/chat/completions", body.encode(), {"content-type": "application/json"}
        )
        assert json.loads(urllib.request.urlopen(asked).read())["usage"]["spannerlm"]["draws"] >= 64
        process.send_signal(signal.SIGINT)
    coverage = [line.split("#")[0].strip() for line in blocks("runs: coverage")[0][0].splitlines()]
    for command in coverage:  # the last one looks at the run that the first command above has made
        run([*shlex.split(command), "--quiet"], folder)
    for name in ("foundation", "labelled", "looked-at"):
        assert (folder / "runs" / name / "coverage.html").exists()


@pytest.mark.slow
def test_the_bundled_models_coverage_says_what_is_shown(tmp_path: Path) -> None:
    """All but the forecast, which takes a minute: it is made without; another processor may draw otherwise."""
    found = json.loads(run(["spannerlm", "coverage", "--json", "--set", "coverage.simulations=0"], tmp_path))
    model = found["models"][0]
    shown = " ".join(blocks("output of: spannerlm coverage")[0][0].split())
    assert model["verdict"]["kind"] == "go"
    said = [float(x) for x in re.findall(r"\d+\.?\d*", shown.split("succeeds")[1])]
    level, rate, draws, one_of = said[:4]
    passes = {row["k"]: row for row in model["success"]["pass_at"]}
    assert (level, draws) == (found["settings"]["success"]["value"], found["settings"]["draws"])
    assert passes[1]["low"] <= rate <= passes[1]["high"]
    assert passes[512]["low"] <= one_of <= passes[512]["high"]
    best = model["maps"]["best"]
    kept = next(row["share"] for row in model["maps"]["rows"] if row["map"] == best)
    assert f"a policy on {best} keeps" in shown
    assert kept["low"] <= float(shown.split(f"{best} keeps ")[1].split(" %")[0]) / 100 <= kept["high"]
    cost = float(shown.split("costs ")[1].split(" base")[0])
    assert cost == pytest.approx(model["reach"]["at"]["draws_per_answer"]["value"], rel=0.5)


@pytest.mark.slow
def test_the_default_run_gives_the_table_that_is_shown(tmp_path: Path) -> None:
    report = json.loads(run(["spannerlm", "run", "--json"], tmp_path))
    shown = blocks("output of: spannerlm run")[0][0]
    for row in report["table"]:
        line = next(line for line in shown.splitlines() if line.strip().startswith(row["name"]))
        value = float(re.findall(r"-?\d+\.\d+", line)[0])
        assert value == pytest.approx(row["value"], abs=0.12), line  # another processor may draw otherwise
        if row["labels"]:
            assert f" {row['labels']:,} " in line
    for name in ("base model", "random, same labels", "random, 10x labels", "directed", "true-reward optimum"):
        assert name in shown


@pytest.mark.slow
def test_the_bench_gives_the_table_that_is_shown(folder: Path) -> None:
    command, shown = blocks("runs: bench")[0]
    printed = run(shlex.split(command), folder)
    for line in filter(None, (line.strip() for line in shown.splitlines())):
        assert re.sub(r"\s+", " ", line).strip("─ ") in re.sub(r"\s+", " ", printed), line


def test_every_test_that_the_labels_page_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "LABELS.md").read_text(encoding="utf-8")))
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    assert len(named) > 30
    assert named <= there, sorted(named - there)


@pytest.mark.slow
def test_every_command_for_labels_that_come_later_runs(folder: Path) -> None:
    commands = [line.split("#")[0].strip() for line in blocks("runs: later")[0][0].splitlines()]
    assert [shlex.split(command)[1] for command in commands] == ["ask", "tell", "ask", "label"]
    run(shlex.split(commands[0]), folder)
    header, *rows = (folder / "queries.csv").read_text().splitlines()
    assert header.endswith(",value")
    (folder / "labels.csv").write_text("\n".join([header, *(f"{row}{i}" for i, row in enumerate(rows))]) + "\n")
    for command in commands[1:3]:
        run(shlex.split(command), folder)
    assert len((folder / "more.jsonl").read_text().splitlines()) == 4
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = str(Path(sys.executable).parent / "spannerlm")
    page = [script, *shlex.split(commands[3])[1:], "--port", str(port)]
    process, answer = subprocess.Popen(page, cwd=folder, stdout=subprocess.PIPE, text=True), b"null"
    try:
        for _ in range(300):
            try:
                answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).read()
                break
            except OSError:
                time.sleep(0.1)
        assert json.loads(answer) == {"state": "up"}
    finally:
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=30)
    assert "what was rated is kept" in printed


def test_the_tree_lists_every_file_and_no_other() -> None:
    package = ROOT / "src" / "spannerlm"
    listed = set(re.findall(r"^  (\w+(?:\.py|/)) ", README, flags=re.MULTILINE))
    there = {p.name for p in package.glob("*.py") if p.name != "__init__.py"}
    there |= {f"{p.name}/" for p in package.iterdir() if (p / "__init__.py").exists()}
    assert listed == there


def test_the_make_targets_and_files_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
    named = [
        "docs/helpdesk.png",
        "docs/coverage.png",
        "docs/COVERAGE.md",
        "docs/label.png",
        "docs/LABELS.md",
        "docs/SERVERS.md",
        "examples/handover.py",
        "CONTRIBUTING.md",
    ]
    for path in [*re.findall(r"((?:benchmarks|training)/\w+\.py)`", README), *named]:
        assert (ROOT / path).exists()
    assert "@@" not in README
