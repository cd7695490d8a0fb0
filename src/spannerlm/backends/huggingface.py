"""A Hugging Face causal language model as sampling oracle: pi_ref exactly as it is, with the states asked for.

Temperature 1, the whole vocabulary, no penalties, whatever the model's generation settings say: pi_ref is the model's
own distribution, and log-probabilities are those of exactly what was sampled.

Pooled states. The tokens of a response are those before its end: before end-of-sequence, or before the token that
completes a stop string; all of them where the limit cut it off. ``before-eos`` is the state of the last such token
(from which the end was, or would be, predicted), ``mean`` the average over them; of an empty response both are the
state at the prompt's end. Two token sequences of one text are one response: the more probable one gives its states and
its log-probability.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from spannerlm.backends.batching import check_context, memory_named, rows_that_fit, sample_batches
from spannerlm.backends.collapse import collapse
from spannerlm.backends.decoding import Rules, Sequences
from spannerlm.backends.forward import accepted, parse_hidden
from spannerlm.backends.loading import end_ids, load_pretrained
from spannerlm.backends.scoring import score_rows
from spannerlm.backends.text import ChatTemplate, TextCodec, cut_at_stop
from spannerlm.errors import InputError
from spannerlm.records import Generated, IntArray

NEW_TOKENS = 128
"""Token limit where neither the caller nor the model's generation settings name one."""


class HuggingFaceModel:
    """pi_ref: a causal language model, its tokenizer, and how prompts are put to it.

    Conditions: (1) a decoder with a key-value cache; (2) logits over its whole vocabulary. The batch size and the other
    prompts of a batch touch results only through float noise. Threads may share one instance; they take turns.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        chat_template: ChatTemplate = "auto",
        system: str | None = None,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
        batch_size: int | None = None,
    ) -> None:
        accepted(model)
        self.model = model.eval()
        self.config = model.config.get_text_config(decoder=True)
        self.eos = end_ids(model, tokenizer)
        self.codec = TextCodec(tokenizer, self.eos, chat_template, system)
        settings = getattr(model, "generation_config", None)
        own = getattr(settings, "max_new_tokens", None) or NEW_TOKENS
        self.max_new_tokens = _positive("max_new_tokens", own if max_new_tokens is None else max_new_tokens)
        self.batch_size = batch_size if batch_size is None else _positive("batch_size", batch_size)
        self.stop = _checked_stop(stop)
        self._alone = threading.Lock()  # hidden states come through hooks on the model: one call at a time

    @classmethod
    def load(
        cls,
        name_or_path: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> HuggingFaceModel:
        """The model of a hub id or a local directory.

        ``device`` auto takes CUDA where there is one; ``dtype`` auto is float32 on a CPU and the checkpoint's own on a
        GPU. ``options``: ``chat_template`` (auto, always, never), ``system``, ``max_new_tokens``, ``stop``,
        ``batch_size`` (None: by memory). ModelError says why a model cannot be loaded and what to do.
        """
        model, tokenizer = load_pretrained(name_or_path, device, dtype, revision, trust_remote_code)
        return cls(model, tokenizer, **options)

    @property
    def hidden_size(self) -> int:
        """Width D of the hidden states."""
        return int(self.config.hidden_size)

    @property
    def end(self) -> str:
        """Text at the end of a segment that ended the response (see :meth:`extend`)."""
        return str(self.codec.tokenizer.convert_ids_to_tokens(self.eos[0])) if self.eos else ""

    def generate(
        self, prompts: Sequence[str], n: int, *, hidden: Sequence[str] = (), rng: np.random.Generator
    ) -> tuple[Generated, ...]:
        """[m] records of ``n`` independent responses to each prompt. Cost: ``n * m`` draws.

        Draws depend on ``rng`` and a prompt's place in the list, not on the batch size. ModelError for a prompt without
        tokens, or too long for the model's context.
        """
        _positive("n", n)
        ids = [self.codec.prompt_ids(p) for p in prompts]
        rules = Rules(self.max_new_tokens, self.eos, self._pools(hidden), self.codec.stop_test(self.stop))
        blocks = self._sample(ids, n, rules, _seeds(rng, len(ids)))
        texts = self.codec.decode([row for block in blocks for row in _content(block)])
        texts = [cut_at_stop(text, self.stop, keep=False) for text in texts]
        return collapse(prompts, blocks, _split(texts, blocks), rules.pools)

    def extend(
        self,
        prompts: Sequence[str],
        prefixes: Sequence[str],
        n: int,
        *,
        tokens: int,
        stop: Sequence[str] = (),
        hidden: Sequence[str] = (),
        rng: np.random.Generator,
    ) -> tuple[Generated, ...]:
        """[m] records of ``n`` next segments after prompt i and the response prefix i. Cost: ``n * m`` segments.

        A segment is at most ``tokens`` tokens, ends behind the first stop string, and carries the text :attr:`end`
        where the response ended; after that, the only segment is the empty one. Joined, segments are the response.
        A prefix is read as the tokenizer writes it, so a run resumed from text alone continues in the same way; tokens
        that hold part of a character do not survive that: with byte-level tokenizers take longer segments.
        ``hidden`` pools over the segment's own tokens.
        """
        _positive("n", n)
        stops = _checked_stop(stop)
        over = np.array([bool(self.end) and prefix.endswith(self.end) for prefix in prefixes], dtype=bool)
        plain = [p.removesuffix(self.end) if o else p for p, o in zip(prefixes, over, strict=True)]
        before = [self.codec.response_ids(p, prefix) for p, prefix in zip(prompts, plain, strict=True)]
        ids = [self.codec.prompt_ids(p) + b for p, b in zip(prompts, before, strict=True)]
        go = Rules(_positive("tokens", tokens), self.eos, self._pools(hidden), self.codec.stop_test(stops), True)
        seeds = _seeds(rng, len(ids))
        blocks: list[Sequences] = []
        for rules, chosen in ((go, np.flatnonzero(~over)), (replace(go, limit=0), np.flatnonzero(over))):
            part = self._sample([ids[i] for i in chosen], n, rules, seeds[chosen])
            blocks += [replace(block, prompt=chosen[block.prompt]) for block in part]
        texts = self._segments(before, blocks, stops)
        return collapse([p + prefix for p, prefix in zip(prompts, prefixes, strict=True)], blocks, texts, go.pools)

    def score(self, prompt: str, responses: Sequence[str], hidden: Sequence[str] = ()) -> Generated:
        """Record [n] of given responses, as if each had been generated once: same order, duplicates kept.

        Log-probabilities are those of the tokenizer's own spelling, followed by end-of-sequence unless the response
        fills the token limit. Cost: no draws; one forward pass over each response.
        """
        pools = self._pools(hidden)
        before = self.codec.prompt_ids(prompt)
        rows = [self.codec.response_ids(prompt, response) for response in responses]
        closed = [bool(self.eos) and len(row) != self.max_new_tokens for row in rows]
        longest = max(map(len, rows), default=0)
        check_context(self.config, [before], longest)
        batch = max(1, self._rows(len(before) + longest) // (len(before) + longest))  # logits at every position
        with self._alone, memory_named(batch):
            found = score_rows(self.model, before, rows, closed, self.eos, pools, batch)
        return Generated(
            prompt=prompt,
            responses=tuple(responses),
            counts=np.ones(len(rows), dtype=np.int64),
            logprobs=np.array([f.logprob for f in found]),
            lengths=np.array([len(row) + end for row, end in zip(rows, closed, strict=True)], dtype=np.int64),
            finished=np.array(closed, dtype=bool),
            hidden={k: np.array([f.pooled[k] for f in found]).reshape(-1, self.hidden_size) for k in pools},
        )

    def _segments(
        self, before: Sequence[Sequence[int]], blocks: Sequence[Sequences], stops: tuple[str, ...]
    ) -> list[Sequence[str]]:
        """Text of each block's segments, behind the tokens ``before`` of their prompt's prefix."""
        prefixes = [before[i] for block in blocks for i in block.prompt]
        texts = self.codec.continuations(prefixes, [row for block in blocks for row in _content(block)])
        ended = [bool(flag) for block in blocks for flag in block.ended]
        cut = [cut_at_stop(t, stops, keep=True) + self.end * e for t, e in zip(texts, ended, strict=True)]
        return _split(cut, blocks)

    def _sample(self, ids: Sequence[Sequence[int]], n: int, rules: Rules, seeds: IntArray) -> list[Sequences]:
        """Blocks of ``n`` draws per prompt; ``ids`` are its tokens."""
        check_context(self.config, ids, rules.limit)
        rows = self._rows(max(map(len, ids), default=0) + rules.limit)
        with self._alone, memory_named(rows):
            return sample_batches(self.model, ids, n, rules, seeds, rows)

    def _rows(self, length: int) -> int:
        """Rows of one batch of sequences of this length."""
        if self.batch_size is not None:
            return self.batch_size
        return rows_that_fit(self.config, self.model.device, self.model.dtype.itemsize, length)

    def _pools(self, hidden: Sequence[str]) -> dict[str, tuple[str, int]]:
        return {name: parse_hidden(name, self.config.num_hidden_layers) for name in hidden}


def _seeds(rng: np.random.Generator, m: int) -> IntArray:
    """[m] one seed per prompt."""
    return rng.integers(0, 2**63 - 1, size=m, dtype=np.int64)


def _content(block: Sequences) -> list[list[int]]:
    """Token rows of a block without end-of-sequence."""
    return [row[:-1] if ended else row for row, ended in zip(block.tokens.tolist(), block.ended, strict=True)]


def _split(texts: Sequence[str], blocks: Sequence[Sequences]) -> list[Sequence[str]]:
    """The texts of each block, from those of all blocks in a row."""
    ends = np.cumsum([len(block.prompt) for block in blocks]).tolist()
    return [texts[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _checked_stop(stop: Sequence[str]) -> tuple[str, ...]:
    if isinstance(stop, str) or not all(isinstance(s, str) and s for s in stop):
        raise InputError(f"stop: expected a list of non-empty strings, got {stop!r}")
    return tuple(stop)


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name}: expected a whole number above 0, got {value!r}")
    return int(value)
