"""The table of back ends: lazy, and clear about what it lacks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spannerlm import backends
from spannerlm.backends import backend
from spannerlm.errors import InputError, ModelError


def test_unknown_back_ends_are_named_and_nothing_heavy_is_imported():
    with pytest.raises(InputError, match="expected one of huggingface"):
        backend("vllm")
    code = "import sys, spannerlm, spannerlm.backends, spannerlm.backends.oracle, spannerlm.features; "
    code += "sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(backends.BACKENDS, "far", ("no_such_package_here.module:Class", "lm"))
    with pytest.raises(ModelError, match=r"'no_such_package_here'.*pip install 'spannerlm\[lm\]'"):
        backend("far")
