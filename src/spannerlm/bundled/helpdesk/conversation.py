"""Conversations on the helpdesk: a customer asks K questions, and only a conversation without a bad reply succeeds.

A prompt is the K questions of a conversation, one a line, each about another product or problem. The customer asks them
one after the other, whatever the replies are: to the model each is a prompt of the kind that it was made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from spannerlm.backends.conversation import turns_of
from spannerlm.bundled.helpdesk.task import RIGHT_FIX, TEMPLATES, has, prompts_of, split_combinations
from spannerlm.errors import InputError

GOOD_RATE = 0.37
"""Share of the base model's replies that are good, about: .41 have the right fix, .08 are rude."""


def conversations(replies: int, count: int, *, heldout: bool = False, seed: int = 0) -> tuple[str, ...]:
    """[count] prompts of ``replies`` questions each, of the training or the held-out combinations; no draws.

    `InputError` for a number below 1, or more questions than there are combinations.
    """
    pool = split_combinations()[1 if heldout else 0]
    if not 1 <= replies <= len(pool) or count < 1:
        raise InputError(
            f"conversations: expected 1 to {len(pool)} replies and a count above 0, got {replies}, {count}"
        )
    rng = np.random.default_rng([seed, int(heldout)])
    asked = [prompts_of([pool[i] for i in rng.choice(len(pool), replies, replace=False)]) for _ in range(count)]
    width = len(TEMPLATES)  # a combination is there in each template
    return tuple("\n".join(texts[width * h + int(rng.integers(width))] for h in range(replies)) for texts in asked)


def customer(prompt: str, replies: tuple[str, ...]) -> str | None:
    """The next of the prompt's questions; None after the last."""
    questions = prompt.split("\n")
    return questions[len(replies)] if len(replies) < len(questions) else None


class Customer:
    """The `customer`, who remembers whether all replies were good so far: one feature, 1 where the next one is as well.

    The value of a reply is linear in it, while one theta for features of the reply alone cannot say that a good reply
    is worth nothing after a bad one.
    """

    remembers: ClassVar[int] = 1

    def __call__(self, prompt: str, replies: tuple[str, ...]) -> str | None:
        """The next of the prompt's questions; None after the last."""
        return customer(prompt, replies)

    def remember(self, prompt: str, replies: tuple[str, ...], candidates: Sequence[str]) -> list[list[float]]:
        """[n, 1] 1 where all replies so far are good and the candidate is."""
        questions = prompt.split("\n")
        so_far = all(good(question, reply) for question, reply in zip(questions, replies, strict=False))
        return [[float(so_far and good(questions[len(replies)], reply))] for reply in candidates]


def good(question: str, reply: str) -> bool:
    """Whether a reply has the right fix and is not rude."""
    return has(question, reply, RIGHT_FIX) and not has(question, reply, "rude")


@dataclass(frozen=True)
class ConversationReward:
    """The reward of a conversation, known at its end alone: 1 where all replies are good, else 0."""

    pure: ClassVar[bool] = True
    """It may be called again at no cost."""

    def value(self, prompt: str, conversation: str) -> float:
        """1 or 0. `InputError` unless it is a whole conversation about the prompt's questions."""
        turns = turns_of(conversation)
        if [question for question, _ in turns] != prompt.split("\n"):
            raise InputError(f"conversation: expected replies to {prompt!r}, got {conversation[:80]!r}")
        return float(all(good(question, reply) for question, reply in turns))

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:  # noqa: ARG002
        """[k] rewards; columns are ignored."""
        if len(prompts) != len(completions):
            raise InputError(f"expected one prompt per completion; got {len(prompts)} and {len(completions)}")
        return [self.value(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
