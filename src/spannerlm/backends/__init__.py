"""Real models behind the sampling oracle, each loaded only when it is asked for: importing this imports no torch."""

from __future__ import annotations

import importlib
from typing import Any

from spannerlm.errors import InputError, ModelError

BACKENDS: dict[str, tuple[str, str]] = {
    "huggingface": ("spannerlm.backends.huggingface:HuggingFaceModel", "lm"),
}
"""Name -> (``module:Class``, the extra that brings what it needs)."""


def backend(name: str) -> Any:
    """The back end's class, imported now. InputError for an unknown name; ModelError where its extra is missing."""
    if name not in BACKENDS:
        raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}; choose one of them")
    place, extra = BACKENDS[name]
    module, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "spannerlm":
            raise
        raise ModelError(
            f"backend {name!r} needs the package {error.name!r}, which is not installed; "
            f"run: pip install 'spannerlm[{extra}]'"
        ) from error
