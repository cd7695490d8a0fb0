"""Loading a Hugging Face model and its tokenizer, with errors that say what to do."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
import transformers
from huggingface_hub.constants import ENDPOINT
from safetensors import SafetensorError

from spannerlm.errors import InputError, ModelError

DTYPES = ("float32", "bfloat16", "float16")


def load_pretrained(
    name_or_path: str, device: str, dtype: str, revision: str | None, trust_remote_code: bool
) -> tuple[Any, Any]:
    """(model, tokenizer) on the device, ready to generate. ModelError says what could not be loaded and why."""
    place = pick_device(device)
    kind = pick_dtype(dtype, place)
    local = _is_directory(name_or_path)
    common: dict[str, Any] = {
        "trust_remote_code": trust_remote_code,
        "local_files_only": not local and not _hub_known(),
    }
    if revision is not None:
        common["revision"] = revision
    try:
        with _no_progress_bar():
            tokenizer = transformers.AutoTokenizer.from_pretrained(name_or_path, **common)
            model = transformers.AutoModelForCausalLM.from_pretrained(name_or_path, dtype=kind, **common)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(_why(name_or_path, error)) from error
    return model.to(place).eval(), tokenizer


def pick_device(device: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is one. ModelError where it is not usable."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ModelError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:NUMBER', got {device!r}")
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("device='cuda', but this PyTorch sees no CUDA device; use device='cpu' or 'auto'")
    return place


def pick_dtype(dtype: str, device: torch.device) -> Any:
    """Argument ``dtype`` of ``from_pretrained``: ``auto`` is float32 on a CPU, the checkpoint's own elsewhere."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in DTYPES:
        raise InputError(f"dtype: expected 'auto' or one of {', '.join(DTYPES)}, got {dtype!r}")
    return getattr(torch, dtype)


def end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """End-of-sequence ids: the generation settings' list, else the configuration's, else the tokenizer's; or none."""
    settings = getattr(model, "generation_config", None)
    for source in (settings, model.config.get_text_config(decoder=True), tokenizer):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            return tuple(dict.fromkeys([ids] if isinstance(ids, int) else ids))
    return ()


def _is_directory(name: str) -> bool:
    """Whether this is a local model. ModelError for what can only be meant as a path and is not a model directory."""
    if not name:
        raise ModelError("model: expected a directory or a Hugging Face hub id, got an empty name")
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return True
    if path.is_dir():
        raise ModelError(f"model {name!r}: the directory has no config.json; give the one save_pretrained wrote")
    if path.exists():
        raise ModelError(f"model {name!r} is a file; give the directory that holds its config.json")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"model {name!r}: no such directory; check the path, or give a Hugging Face hub id")
    return False


def _hub_known() -> bool:
    """Whether the hub's name resolves, or a proxy will see to that. Without it the client retries for a minute."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _why(name: str, error: BaseException) -> str:
    first = " ".join(str(error).split())[:300].rstrip(" .") or type(error).__name__
    if "trust_remote_code" in str(error):
        return f"model {name!r} brings its own Python code: {first}; set trust_remote_code=True if you trust its author"
    if Path(name).expanduser().is_dir():
        return f"model {name!r} could not be loaded: {first}; is it a complete causal language model with a tokenizer?"
    return (
        f"model {name!r} is neither a local directory nor could it be had from the Hugging Face hub: {first}; check "
        "the name and the network (private models need HF_TOKEN), or download it elsewhere and give its directory"
    )


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep standard error clean while weights load, and leave the user's setting as it was."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
