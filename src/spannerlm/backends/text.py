"""Prompts to tokens and tokens to text: chat templates, stop strings, and a response's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from spannerlm.backends.decoding import BoolArray, Test
from spannerlm.dialogue import PLAIN, Form
from spannerlm.errors import InputError, ModelError
from spannerlm.records import IntArray

ChatTemplate = Literal["auto", "always", "never"]
REMEMBERED = 100_000
"""Prompts whose tokens are kept: a run draws from the same prompts again and again; about 1 kB each."""


class TextCodec:
    """A tokenizer with the choice of chat template, and with what the texts of prompts stand for.

    A response's text is the decoding of its tokens without special ones, exactly as decoded: nothing is stripped.
    """

    def __init__(
        self, tokenizer: Any, eos: tuple[int, ...], chat_template: ChatTemplate = "auto", form: Form | None = None
    ) -> None:
        if chat_template not in ("auto", "always", "never"):
            raise InputError(f"chat_template: expected 'auto', 'always' or 'never', got {chat_template!r}")
        has_one = bool(getattr(tokenizer, "chat_template", None))
        if chat_template == "always" and not has_one:
            raise ModelError("chat_template='always', but the tokenizer has no chat template; use 'auto' or 'never'")
        self.templated = has_one and chat_template != "never"
        self.form = form or PLAIN
        if self.form.system is not None and not self.templated:
            raise ModelError(
                "a system prompt needs a chat template, and none is in use; put it at the start of each prompt instead"
            )
        if self.form.dialogues and not self.templated:
            raise ModelError(
                "prompts: expected a chat template in use where they are conversations, got none: use a model whose "
                "tokenizer has one, and leave chat_template at auto, or give each prompt as one text"
            )
        self.tokenizer = tokenizer
        self._eos = eos
        self._known: dict[str, list[int]] = {}
        self._completing: dict[tuple[str, ...], BoolArray] = {}

    def prompt_ids(self, prompt: str) -> list[int]:
        """Tokens of the prompt as the model reads it, at least one. ModelError for a prompt without any."""
        ids = self._known.get(prompt)
        if ids is None:
            ids = self._encode(self._render(prompt), special=not self.templated)
            if not ids and self.tokenizer.bos_token_id is not None:
                ids = [self.tokenizer.bos_token_id]
            if not ids:
                raise ModelError(f"prompt {prompt!r} has no tokens, and the tokenizer has no start token; give it text")
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[prompt] = ids
        return ids

    def response_ids(self, prompt: str, response: str) -> list[int]:
        """Tokens of a response as the tokenizer writes it behind the prompt, without end-of-sequence."""
        if not response:
            return []
        before = self.prompt_ids(prompt)
        whole = self._encode(self._render(prompt) + response, special=not self.templated)
        behind = whole[len(before) :]
        if whole[: len(before)] == before and self.decode([behind]) == [response]:
            return behind
        return self.own_ids(response)

    def own_ids(self, text: str) -> list[int]:
        """Tokens of a text that stands alone, without special ones."""
        return self._encode(text, special=False)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Text of each row of tokens, special tokens left out."""
        if not len(rows):
            return []
        if self.tokenizer.is_fast:  # the same call without transformers' conversions, which take longer than it does
            return list(self.tokenizer.backend_tokenizer.decode_batch(rows, skip_special_tokens=True))
        return list(self.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def continuations(self, prefixes: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> list[str]:
        """What each row of tokens adds to the text of its prefix, the space between them included."""
        bases = self.decode(prefixes)
        wholes = self.decode([[*prefix, *row] for prefix, row in zip(prefixes, rows, strict=True)])
        alone = self.decode(rows)
        pairs = zip(wholes, bases, alone, strict=True)
        return [whole[len(base) :] if whole.startswith(base) else text for whole, base, text in pairs]

    def stop_test(self, stop: tuple[str, ...], before: Sequence[Sequence[int]] | None = None) -> Test | None:
        """(prompts [k], tokens [k, L]) -> [k] whether a stop string occurs in the text; None without stop strings.

        ``before`` are the tokens that precede, by prompt. Only rows whose last token can complete one are decoded.
        """
        if not stop:
            return None
        if stop not in self._completing:
            self._completing[stop] = self._completing_tokens(stop)
        table = self._completing[stop]

        def test(prompts: IntArray, tokens: IntArray) -> BoolArray:
            hit = table[np.minimum(tokens[:, -1], len(table) - 1)]
            rows = np.flatnonzero(hit)
            whole = tokens[rows].tolist()
            if before is not None:
                whole = [[*before[i], *own] for i, own in zip(prompts[rows], whole, strict=True)]
            texts = self.decode(whole)
            hit[rows] = [any(s in text for s in stop) for text in texts]
            return hit

        return test

    def _completing_tokens(self, stop: tuple[str, ...]) -> BoolArray:
        """[V + 1] whether a token's text holds the last character of a stop string, or part of a character."""
        last = {s[-1] for s in stop} | {"\N{REPLACEMENT CHARACTER}"}
        if any(c.isspace() for c in last):  # a decoder may write a space between any two tokens
            return np.ones(len(self.tokenizer) + 1, dtype=bool)
        texts = self.decode([[i] for i in range(len(self.tokenizer))])
        return np.array([not last.isdisjoint(text) for text in texts] + [True])

    def _render(self, prompt: str) -> str:
        if not self.templated:
            return prompt
        try:
            text = self.tokenizer.apply_chat_template(
                self.form.messages(prompt), tokenize=False, add_generation_prompt=True
            )
        except InputError:
            raise
        except Exception as error:  # a template is a program of the model's author: any error may come out of it
            raise ModelError(
                f"the chat template refused the prompt {prompt!r}: {error}; use chat_template='never' or another system"
            ) from error
        return str(text)

    def _encode(self, text: str, *, special: bool) -> list[int]:
        ids = list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        if special and ids and ids[-1] in self._eos:  # some tokenizers close every text; a prompt stays open
            plain = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(plain) < len(ids) and (not plain or plain[-1] != ids[-1]):
                ids.pop()
        return ids
