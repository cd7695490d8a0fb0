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
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from spannerlm.backends.batching import check_context, memory_named, rows_that_fit, sample_batches
from spannerlm.backends.collapse import collapse
from spannerlm.backends.decoding import BoolArray, Rules, Sequences, Test
from spannerlm.backends.forward import Tally, accepted, parse_hidden
from spannerlm.backends.loading import end_ids, load_pretrained
from spannerlm.backends.prefixes import PrefixStore
from spannerlm.backends.scoring import score_rows
from spannerlm.backends.spelling import Reading, Spelled, Speller
from spannerlm.backends.text import ChatTemplate, TextCodec
from spannerlm.dialogue import Form
from spannerlm.errors import InputError
from spannerlm.records import Generated, IntArray
from spannerlm.segments import Segments, cut_at_stop

NEW_TOKENS = 128
"""Token limit where neither the caller nor the model's generation settings name one."""
PREFIX_CACHE = 2**28
"""Bytes of key-value states that are kept for prefixes to be extended again."""


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
        dialogues: bool = False,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
        batch_size: int | None = None,
        prefix_cache: int = PREFIX_CACHE,
    ) -> None:
        accepted(model)
        self.model = model.eval()
        self.config = model.config.get_text_config(decoder=True)
        self.eos = end_ids(model, tokenizer)
        self.codec = TextCodec(tokenizer, self.eos, chat_template, Form(system, dialogues))
        settings = getattr(model, "generation_config", None)
        own = getattr(settings, "max_new_tokens", None) or NEW_TOKENS
        self.max_new_tokens = _positive("max_new_tokens", own if max_new_tokens is None else max_new_tokens)
        self.batch_size = batch_size if batch_size is None else _positive("batch_size", batch_size)
        self.stop = _checked_stop(stop)
        if isinstance(prefix_cache, bool) or not isinstance(prefix_cache, int) or prefix_cache < 0:
            raise InputError(f"prefix_cache: expected a number of bytes, 0 for none, got {prefix_cache!r}")
        self._store = PrefixStore(prefix_cache) if prefix_cache else None
        self._tally = Tally()
        self._speller = Speller(self.codec, self.eos, self.end)
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
        GPU. ``options``: ``chat_template`` (auto, always, never), ``system``, ``dialogues`` (prompts are whole
        conversations, see `spannerlm.dialogue`), ``max_new_tokens``, ``stop``, ``batch_size`` (None: by memory),
        ``prefix_cache`` (bytes of key-value states that :meth:`extend` keeps, on the model's device; 0: none).
        ModelError says why a model cannot be loaded and what to do.
        """
        model, tokenizer = load_pretrained(name_or_path, device, dtype, revision, trust_remote_code)
        return cls(model, tokenizer, **options)

    @property
    def form(self) -> Form:
        """What the text of a prompt stands for."""
        return self.codec.form

    @property
    def hidden_size(self) -> int:
        """Width D of the hidden states."""
        return int(self.config.hidden_size)

    @property
    def encoded(self) -> int:
        """Tokens that have gone through the network so far: each row's own, prompts included, padding not."""
        return self._tally.encoded

    def forget(self) -> None:
        """Drop what is kept of prefixes: what follows then depends on itself alone, to the last bit."""
        with self._alone:
            if self._store is not None:
                self._store.clear()

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
        limits = np.full(len(ids), self.max_new_tokens)
        rules = Rules(limits, self.eos, self._pools(hidden), self.codec.stop_test(self.stop))
        blocks = self._sample(ids, n, rules, _seeds(rng, len(ids)))
        texts = self.codec.decode([row for block in blocks for row in _content(block)])
        texts = [cut_at_stop(text, self.stop, keep=False) for text in texts]
        return collapse(prompts, blocks, _split(texts, blocks), rules.pools)

    def extend(
        self,
        prompts: Sequence[str],
        prefixes: Sequence[Sequence[str]],
        n: int,
        *,
        segments: Segments,
        horizon: int | None = None,
        hidden: Sequence[str] = (),
        rng: np.random.Generator,
    ) -> tuple[Generated, ...]:
        """[m] records of ``n`` next segments after prompt i and the segments of prefix i. Cost: ``n * m`` segments.

        After ``horizon`` - 1 segments the next one runs to the response's end; after a complete response, or
        ``horizon`` segments, the only one is the empty one, of no token. Segments that are drawn one after the other
        and :meth:`joined` have the law of :meth:`generate`, whatever ends them and however tokens share characters.
        ``hidden`` pools over the segment's own tokens: ``before-eos`` is the state at its end, of its last token (of
        an end alone: the state before it). What is extended again is not encoded again while the ``prefix_cache`` holds
        it; that touches results only through float noise.
        """
        _positive("n", n)
        before = [self._speller.read(p, prefix) for p, prefix in zip(prompts, prefixes, strict=True)]
        ids = [[*self.codec.prompt_ids(p), *reading.ids] for p, reading in zip(prompts, before, strict=True)]
        steps = np.array([len(prefix) for prefix in prefixes], dtype=np.int64)
        final = steps >= (horizon or np.inf) - 1
        over = np.array([self._over(reading) for reading in before], dtype=bool) | (steps >= (horizon or np.inf))
        left = self.max_new_tokens - np.array([len(reading.ids) for reading in before], dtype=np.int64)
        limits = np.where(over, 0, np.where(final, left, np.minimum(left, segments.tokens)))
        rows = [reading.ids for reading in before]
        go = Rules(
            limits,
            self.eos,
            self._pools(hidden),
            self.codec.stop_test(self.stop, rows),
            None if segments.fixed else self._end_test(segments, rows, final),
        )
        seeds = _seeds(rng, len(ids))
        blocks: list[Sequences] = []
        for chosen in (np.flatnonzero(~over), np.flatnonzero(over)):
            part = self._sample([ids[i] for i in chosen], n, go.of(chosen), seeds[chosen], self._store)
            blocks += [replace(block, prompt=chosen[block.prompt]) for block in part]
        written = self._written(prompts, prefixes, before, blocks, final)
        shown = [p + t for p, t in zip(prompts, self._behind(prompts, rows), strict=True)]
        found = collapse(shown, blocks, written, go.pools)
        return tuple(
            replace(record, segments=record.responses, responses=tuple(map(self._speller.text, record.responses)))
            for record in found
        )

    def joined(self, prompt: str, segments: Sequence[str]) -> str:
        """The response that these segments make, as :meth:`generate` would give it: cut at the first stop string."""
        return cut_at_stop(self._speller.read(prompt, segments).text, self.stop, keep=False)

    def complete(self, prompt: str, segments: Sequence[str]) -> bool:
        """Whether the response has ended: by end-of-sequence, a stop string or the token limit."""
        return self._over(self._speller.read(prompt, segments))

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
        check_context(self.config, [before], [longest])
        batch = max(1, self._rows(len(before) + longest) // (len(before) + longest))  # logits at every position
        with self._alone, memory_named(batch):
            found = score_rows(self.model, before, rows, closed, self.eos, pools, batch)
            self._tally.encoded += sum(len(before) + len(row) for row in rows)
        return Generated(
            prompt=prompt,
            responses=tuple(responses),
            counts=np.ones(len(rows), dtype=np.int64),
            logprobs=np.array([f.logprob for f in found]),
            lengths=np.array([len(row) + end for row, end in zip(rows, closed, strict=True)], dtype=np.int64),
            finished=np.array(closed, dtype=bool),
            hidden={k: np.array([f.pooled[k] for f in found]).reshape(-1, self.hidden_size) for k in pools},
        )

    def completion_ids(self, prompt: str, response: str) -> list[int]:
        """The response's tokens, as :meth:`score` reads them; end-of-sequence stands last unless the limit cut it."""
        ids = self.codec.response_ids(prompt, response)
        return ids if len(ids) >= self.max_new_tokens else [*ids, *self.eos[:1]]

    def _over(self, reading: Reading) -> bool:
        stopped = any(s in reading.text for s in self.stop)
        return reading.ended or stopped or len(reading.ids) >= self.max_new_tokens

    def _end_test(self, segments: Segments, before: Sequence[Sequence[int]], final: BoolArray) -> Test:
        """Whether segments behind the tokens ``before`` are over by their text; those that are ``final`` never are."""

        def test(prompts: IntArray, tokens: IntArray) -> BoolArray:
            texts = self.codec.continuations([before[i] for i in prompts], tokens.tolist())
            return np.array([segments.over(text) for text in texts], dtype=bool) & ~final[prompts]

        return test

    def _behind(self, prompts: Sequence[str], before: Sequence[Sequence[int]]) -> list[str]:
        """What these tokens add to the text of their prompts."""
        return self.codec.continuations([self.codec.prompt_ids(p) for p in prompts], before)

    def _written(
        self,
        prompts: Sequence[str],
        prefixes: Sequence[Sequence[str]],
        before: Sequence[Reading],
        blocks: Sequence[Sequences],
        final: BoolArray,
    ) -> list[list[str]]:
        """Each block's segments as text, behind what was read of their prompts' prefixes."""
        out = []
        for block in blocks:
            closed = block.ended | block.stopped | final[block.prompt]
            columns = zip(_content(block), block.ended.tolist(), closed.tolist(), strict=True)
            texts = [""] * len(block.prompt)
            rows_of: dict[int, list[int]] = defaultdict(list)
            for row, i in enumerate(block.prompt.tolist()):
                rows_of[i].append(row)
            drawn = [Spelled(tuple(ids), ended, last) for ids, ended, last in columns]
            for i, rows in rows_of.items():
                own = self._speller.write(prompts[i], prefixes[i], before[i], [drawn[row] for row in rows])
                for row, text in zip(rows, own, strict=True):
                    texts[row] = text
            out.append(texts)
        return out

    def _sample(
        self,
        ids: Sequence[Sequence[int]],
        n: int,
        rules: Rules,
        seeds: IntArray,
        store: PrefixStore | None = None,
    ) -> list[Sequences]:
        """Blocks of ``n`` draws per prompt; ``ids`` are its tokens."""
        check_context(self.config, ids, rules.limits.tolist())
        rows = self._rows(max((len(p) + limit for p, limit in zip(ids, rules.limits.tolist(), strict=True)), default=0))
        with self._alone, memory_named(rows):
            return sample_batches(self.model, ids, n, rules, seeds, rows, self._tally, store)

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
