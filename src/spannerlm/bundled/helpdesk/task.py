"""What the helpdesk is about: its prompts, what a reply may contain, and what each part is truly worth (TESTBEDS)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from spannerlm.errors import InputError
from spannerlm.rewards import RewardFunction

PRODUCTS = (
    "printer",
    "laptop",
    "phone",
    "tablet",
    "router",
    "camera",
    "monitor",
    "keyboard",
    "speaker",
    "scanner",
    "projector",
    "headset",
)
FIXES = {
    "hot": "let it cool",
    "slow": "free some space",
    "noisy": "clean the fan",
    "dirty": "wipe the case",
    "dead": "charge the battery",
    "stuck": "hold the button",
    "loose": "tighten the screw",
    "blurry": "adjust the focus",
    "offline": "check the cable",
    "silent": "raise the volume",
}
"""Problem -> the one fix that is right for it, whatever the product."""
PROBLEMS = tuple(FIXES)
TEMPLATES = ("my {product} is {problem} ;", "the {product} seems {problem} ;", "why is this {product} {problem} ;")

STYLE = {
    "sorry": ("sorry about that", "so sorry"),
    "rude": ("not you again",),
    "upsell": ("or buy a new one", "we sell better ones"),
    "thanks": ("many thanks",),
}
"""Common part of a reply -> its wordings."""
RARE = {
    "manual": tuple(f"see page {page} of the manual" for page in ("two", "four", "seven", "nine")),
    "password": ("send me your password",),
    "ticket": ("your ticket is open",),
    "call": ("this call is recorded",),
    "hours": ("we open at noon",),
    "office": ("our office has moved",),
    "survey": ("a survey will follow",),
    "holiday": ("monday is a holiday",),
}
"""Rare sentence -> its wordings. Planted: one is worth much, one does harm, the others change nothing."""
RIGHT_FIX = "right fix"
"""The part that depends on the prompt: "please" and the fix for its problem."""
PARTS = (RIGHT_FIX, *STYLE, *RARE)

WORTH = {RIGHT_FIX: 0.5, "sorry": 0.2, "rude": -0.3, "upsell": -0.2, "thanks": 0.1}
"""Part of a reply -> what it adds to the true reward."""
RARE_WORTH = 1.5
"""What the valuable rare sentence adds and the harmful one takes away: more than all else together, so that a learner
who never met it stays far from the optimum, and one who took the wrong one does worse than the base model."""

NOISE_STD = 0.3
SUCCESS = 1.2
"""Reward from which a reply is a success: the valuable sentence, and at most one small fault."""
MAX_NEW_TOKENS = 32
"""The longest reply of the corpus has 25 tokens with its end; the rest is room for what the model makes up."""


def split_combinations() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(train, held-out) combinations of product and problem: every fifth is held out, along the diagonals.

    So each product keeps eight of its ten problems and each problem nine or ten of its twelve products.
    """
    train: list[tuple[str, str]] = []
    heldout: list[tuple[str, str]] = []
    for i, product in enumerate(PRODUCTS):
        for j, problem in enumerate(PROBLEMS):
            (heldout if (i + j) % 5 == 0 else train).append((product, problem))
    return train, heldout


def prompts_of(combinations: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Each combination in each template, templates innermost."""
    return tuple(t.format(product=product, problem=problem) for product, problem in combinations for t in TEMPLATES)


def problem_of(prompt: str) -> str:
    """The problem that a prompt names."""
    found = [word for word in prompt.split() if word in FIXES]
    if len(found) != 1:
        raise InputError(
            f"expected a helpdesk prompt that names one of the problems {', '.join(PROBLEMS)}; got {prompt!r}, "
            f"which names {len(found)}; use the bundled prompts, or bring your own reward along with your own prompts"
        )
    return found[0]


def has(prompt: str, completion: str, part: str) -> bool:
    """Whether the completion has this part, in one of its wordings, as whole words."""
    wordings = (f"please {FIXES[problem_of(prompt)]}",) if part == RIGHT_FIX else {**STYLE, **RARE}[part]
    padded = f" {' '.join(completion.split())} "
    return any(f" {wording} " in padded for wording in wordings)


@dataclass(frozen=True)
class TrueReward:
    """The mean reward of a reply; a part counts once, however often it is said."""

    valuable: str = "manual"
    """The rare sentence that is worth 1.5."""
    harmful: str = "password"
    """The rare sentence that costs 1.5."""
    pure: ClassVar[bool] = True
    """It may be called again at no cost."""

    def __post_init__(self) -> None:
        for name in (self.valuable, self.harmful):
            if name not in RARE:
                raise InputError(f"expected the name of a rare sentence, one of {', '.join(RARE)}; got {name!r}")
        if self.valuable == self.harmful:
            raise InputError(f"expected two different rare sentences; got {self.valuable!r} as valuable and as harmful")

    def weights(self) -> dict[str, float]:
        """Part of a reply -> what it is worth; the parts add up."""
        return {**WORTH, self.valuable: RARE_WORTH, self.harmful: -RARE_WORTH}

    def value(self, prompt: str, completion: str) -> float:
        """The mean reward of one reply."""
        return sum((weight for part, weight in self.weights().items() if has(prompt, completion, part)), 0.0)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:  # noqa: ARG002
        """[k] mean rewards; columns are ignored. Free and pure: it is not a label until noise is added."""
        if len(prompts) != len(completions):
            raise InputError(f"expected one prompt per completion; got {len(prompts)} and {len(completions)}")
        return [self.value(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]

    def parts(self) -> dict[str, RewardFunction]:
        """Name of a part of a reply -> the function that gives what it adds to the reward; their sum is the reward."""
        return {part: partial(self._part, part, weight) for part, weight in self.weights().items()}

    def _part(
        self,
        part: str,
        weight: float,
        prompts: Sequence[str],
        completions: Sequence[str],
        **columns: Any,  # noqa: ARG002
    ) -> list[float | None]:
        return [weight if has(prompt, text, part) else 0.0 for prompt, text in zip(prompts, completions, strict=True)]
