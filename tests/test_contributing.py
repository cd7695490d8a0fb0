"""CONTRIBUTING says what is true: whoever does what it says has a new explorer and a new environment that obey."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import invariances
import laws
import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(mark: str) -> list[tuple[str, ...]]:
    """What the mark's groups matched, then the block behind it, for each comment of this kind."""
    return re.findall(rf"<!-- {mark} -->\n```\w*\n(.*?)```\n", TEXT, flags=re.DOTALL)


def inserted(text: str, code: str, place: str) -> str:
    """The file with a line of code at its place: with the imports, in a table, or above another line."""
    if place == "with the imports":
        return re.sub(r"^from spannerlm", f"{code}\nfrom spannerlm", text, count=1, flags=re.MULTILINE)
    what, name = place.split(" ", 1)
    if what == "in":
        found, after = rf"^{name}\b[^\n]*[{{\[]\n", True
    else:
        assert what == "above", place
        found, after = rf"^    {re.escape(name)},\n", False
    match = re.search(found, text, flags=re.MULTILINE)
    assert match is not None, f"no place {place!r}"
    at = match.end() if after else match.start()
    return f"{text[:at]}    {code}\n{text[at:]}"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository after everything that the text says has been done."""
    folder = tmp_path_factory.mktemp("repository")
    skipped = shutil.ignore_patterns("__pycache__", "*.safetensors")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for path, code in blocks(r"file: (\S+)"):
        assert not (folder / path).exists(), f"{path} is there already"
        (folder / path).write_text(code, encoding="utf-8")
    for block in blocks("lines"):
        for line in str(block).splitlines():
            code, path, place = re.fullmatch(r"(.*?) +# (\S+), (.*)", line).groups()  # type: ignore[union-attr]
            old = (folder / path).read_text(encoding="utf-8")
            (folder / path).write_text(inserted(old, code, place), encoding="utf-8")
    return folder


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder / "src")}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_code_explores(copy: Path) -> None:
    (code,) = blocks("runs: python")
    lines = run([sys.executable, "-c", str(code)], copy).splitlines()
    found = [re.fullmatch(r"(\S+): 200 labels, regret (\S+) -> (\S+)", line) for line in lines]
    assert [match[1] for match in found if match] == ["on-policy", "passive"]
    assert all(float(match[3]) < 0.2 * float(match[2]) for match in found if match)


def test_its_files_are_in_the_style_of_the_others(copy: Path) -> None:
    files = [path for path, _ in blocks(r"file: (\S+)")]
    assert len(files) == 2
    run(["ruff", "check", *files], copy)
    run(["ruff", "format", "--check", *files], copy)


@pytest.mark.slow
def test_the_laws_run_over_both_and_hold(copy: Path) -> None:
    (command,) = blocks("runs: shell")
    printed = run(["bash", "-c", f"{str(command).strip()} -v -p no:cacheprovider -o addopts="], copy)
    for law in (*laws.EXPLORER_LAWS, *invariances.INVARIANCE_LAWS):
        assert re.search(rf"on-policy-{law.__name__}\S* PASSED", printed), law.__name__
    assert "test_every_family_and_modifier_obeys[ladder] PASSED" in printed
    assert "test_every_file_imports_only_files_above_it PASSED" in printed
