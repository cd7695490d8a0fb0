"""The shipped base models, each with its prompts and true reward; loading one imports no torch."""

from __future__ import annotations

import difflib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from spannerlm.errors import InputError
from spannerlm.rewards import RewardFunction

MODULES: Mapping[str, str] = {
    "helpdesk": "spannerlm.bundled.helpdesk",
    "countdown": "spannerlm.bundled.countdown",
}
"""Name of a bundled task -> the module whose ``load()`` returns it."""


@dataclass(frozen=True)
class BundledTask:
    """A base model on disk, the prompts it was made for, and the true mean reward of its replies."""

    name: str
    model_path: Path
    """Directory of the model and its tokenizer, as ``from_pretrained`` takes it."""
    train_prompts: tuple[str, ...]
    """Prompts to explore on."""
    heldout_prompts: tuple[str, ...]
    """Prompts to judge on; none of them was trained on, neither here nor when the base model was made."""
    reward: RewardFunction
    """The true mean reward: pure and free, so a value can be known and not only estimated."""
    noise_std: float
    """Standard deviation of the noise that a label adds to the mean reward."""
    max_new_tokens: int
    """Enough for the longest reply and its end-of-sequence token."""
    stop: tuple[str, ...] = ()
    """Stop strings; empty where the end-of-sequence token is enough."""
    features: tuple[str, ...] = ("hidden",)
    """The feature maps a run takes unless told otherwise: short names, side by side where there are several."""
    success: float | None = None
    """Reward from which a reply has what the task is about; None where nothing marks it."""
    parts: Mapping[str, RewardFunction] = field(default_factory=dict)
    """Name of a part of the reward -> the function that gives it."""
    kl: float = 2.0
    """KL budget in nats at which its policies are compared: enough to reach what the base model can, not much more."""


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of a JSON-lines file with one ``{"prompt": ...}`` per line."""
    return tuple(json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines())


class _Loader(Protocol):
    """What a module of ``MODULES`` offers."""

    def load(self) -> BundledTask:
        """The bundled task."""


def load(name: str) -> BundledTask:
    """The bundled task ``name``, read from the installed package. Cost: no draws, no labels, no network."""
    if name not in MODULES:
        near = difflib.get_close_matches(name, MODULES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"expected the name of a bundled task, one of {', '.join(sorted(MODULES))}; got {name!r}{hint}"
        )
    return cast(_Loader, importlib.import_module(MODULES[name])).load()
