"""Real models behind the sampling oracle, each loaded only when it is asked for: importing this imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spannerlm.errors import InputError, ModelError

BACKENDS: dict[str, tuple[str, str]] = {
    "huggingface": ("spannerlm.backends.huggingface:HuggingFaceModel", "lm"),
    "server": ("spannerlm.backends.server:ServerModel", "serve"),
}
"""Name -> (``module:Class``, the extra that brings what it needs)."""
OPTIONS = (
    *("max_new_tokens", "stop", "batch_size", "prefix_cache", "chat_template", "system", "dialogues"),
    *("device", "dtype", "revision", "trust_remote_code"),
)
"""What may be said of a model that is loaded here."""
SERVER_OPTIONS = (
    *("base_url", "api", "key_env", "system", "dialogues", "max_new_tokens", "stop"),
    *("concurrency", "per_request", "timeout_s", "retries", "price"),
)
"""What may be said of a model behind a server."""
DRAWN = "draws.jsonl"
"""File in a run's directory: replies of a model's server that are on their way into the ledger."""


def load(model: str, options: Mapping[str, Any], folder: Path | None = None) -> Any:
    """The model: behind a server where ``options`` have a ``base_url``, else a hub id or path that is loaded here.

    ``folder``: of the run, where a server's replies are kept until the ledger has them. `InputError` for an option that
    the back end does not have; `ModelError` where the model cannot be loaded or reached.
    """
    served = "base_url" in options
    journal = {"journal": folder / DRAWN} if served and folder is not None else {}
    found = backend("server" if served else "huggingface")
    try:
        return found.load(model, **options, **journal)
    except TypeError as error:
        unknown = str(error).rpartition("unexpected keyword argument ")[2]
        if unknown == str(error):
            raise
        known = SERVER_OPTIONS if served else OPTIONS
        raise InputError(f"generation: expected some of {', '.join(known)}, got {unknown}") from error


def backend(name: str) -> Any:
    """The back end's class, imported now. InputError for an unknown name; ModelError where its extra is missing."""
    if name not in BACKENDS:
        raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}; choose one of them")
    return _imported(f"backend {name!r}", *BACKENDS[name])


def encoder() -> Any:
    """The class of local encoders, imported now. ModelError where its extra is missing."""
    return _imported("features of an encoder", "spannerlm.backends.encoder:Encoder", "lm")


def _imported(what: str, place: str, extra: str) -> Any:
    module, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "spannerlm":
            raise
        raise ModelError(
            f"{what}: the package {error.name!r} is needed and not installed; run: pip install 'spannerlm[{extra}]'"
        ) from error
