"""Lists of messages as one text that people can read and that is read back exactly: each message behind its speaker.

Everything here keeps prompts as texts: ledgers, questionnaires, reports, features. TRL has prompts that are lists of
messages. Where all of them are one message of the user's behind the same system message, or none, the user's words are
the text. Else the text is the whole conversation, ``user: ...`` and ``assistant: ...`` in turn, further lines of a
message indented; models, rewards and exports turn it into messages again (`Form`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from spannerlm.errors import InputError

Message = dict[str, str]
"""``{"role": ..., "content": ...}``"""

ROLES = ("system", "user", "assistant")
INDENT = "    "


@dataclass(frozen=True)
class Form:
    """What the text of a prompt stands for."""

    system: str | None = None
    """System message in front of all prompts, which are the user's; None: none."""
    dialogues: bool = False
    """Whether a text is a whole conversation, as :func:`spoken` writes it, rather than the user's words."""

    def messages(self, text: str) -> list[Message]:
        """The messages of a prompt. `InputError` where it should be a conversation and is none."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        if not self.dialogues:
            return [*first, {"role": "user", "content": text}]
        return [*first, *({"role": role, "content": said} for role, said in heard(text, ROLES))]


PLAIN = Form()
"""The user's words, behind no system message."""


def written(messages: Sequence[Message]) -> str:
    """The text of a conversation, for a `Form` of dialogues."""
    return spoken([(message["role"], message["content"]) for message in messages])


def spoken(said: Sequence[tuple[str, str]]) -> str:
    """(speaker, words) one below the other, further lines of the words indented. `heard` reads it back exactly."""
    return "\n".join(f"{speaker}: {words}".replace("\n", "\n" + INDENT) for speaker, words in said)


def heard(text: str, speakers: Collection[str]) -> list[tuple[str, str]]:
    """(speaker, words) of a text that `spoken` wrote. `InputError` for any other."""
    found = []
    for part in re.split(f"\n(?!{INDENT})", text) if text else ():
        speaker, colon, words = part.partition(": ")
        if not colon or speaker not in speakers:
            raise InputError(
                f"conversation: expected lines that begin with one of {', '.join(f'{s!r}' for s in speakers)} and a "
                f"colon, got {part[:80]!r}"
            )
        found.append((speaker, words.replace("\n" + INDENT, "\n")))
    return found
