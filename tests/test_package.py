"""What is installed is complete, light to import, and holds no trace of where it was made."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "spannerlm"


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    kept = [p for p in SOURCE.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    missing = {f"spannerlm/{p.relative_to(SOURCE)}" for p in kept} - names
    assert not missing
    assert any(name.endswith("templates/report.html") for name in names)
    assert any(name.endswith("model.safetensors") for name in names)


def test_importing_the_package_loads_no_extra() -> None:
    code = "import sys, spannerlm, spannerlm.cli; print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert not loaded & {"torch", "transformers", "matplotlib", "fastapi", "ray", "trl"}
    assert "numpy" in loaded


def test_no_file_of_the_package_unpickles() -> None:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "import pickle" not in text, path
        assert "torch.load" not in text, path
