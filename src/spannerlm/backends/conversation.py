"""Turns of a conversation as steps: a real model, and a user who answers it, as a `TokenOracle` (THEORY 1, 5)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from spannerlm.backends.oracle import TextModel
from spannerlm.dialogue import heard, spoken
from spannerlm.errors import InputError
from spannerlm.features import FeatureMap
from spannerlm.records import Draws, FloatArray, Generated

User = Callable[[str, tuple[str, ...]], str | None]
"""``user(prompt, replies)``: what the model is given next, after these replies; None: the conversation is over."""

USER, MODEL = "user", "model"


def written(turns: Sequence[tuple[str, str]]) -> str:
    """Inputs and replies as one text, each behind its speaker; further lines of either are indented.

    `turns_of` reads it back exactly.
    """
    return spoken([said for given, reply in turns for said in ((USER, given), (MODEL, reply))])


def turns_of(text: str) -> tuple[tuple[str, str], ...]:
    """[k] (input, reply) of a conversation that `written` wrote. `InputError` for any other text."""
    said = heard(text, (USER, MODEL))
    if [speaker for speaker, _ in said] != [USER, MODEL] * (len(said) // 2):
        raise InputError(f"conversation: expected lines of '{USER}: ' and '{MODEL}: ' in turn, got {text[:80]!r}")
    words = [words for _, words in said]
    return tuple(zip(words[::2], words[1::2], strict=True))


class ConversationOracle:
    """Whole replies of a model as segments, with a user in between; a conversation is a response.

    ``user(prompt, replies)`` must be deterministic. It is asked before every reply, the first one included (with no
    replies): it may return the next question alone, or the whole conversation so far. A conversation is over after
    ``horizon`` replies, or where the user returns None. Features of a step are the map's, of the reply to its input.

    What a reply is worth may depend on what was said before: where one bad reply spoils all, a good one is worth
    nothing after it, and features of the reply alone cannot say so. A user that is an object may keep track: where it
    has ``remembers``, a number d2, its ``remember(prompt, replies, candidates)`` gives [n, d2] further features of n
    candidates for the next reply, behind those of the map.
    """

    def __init__(
        self, model: TextModel, prompts: Sequence[str], features: FeatureMap, user: User, *, horizon: int
    ) -> None:
        if isinstance(prompts, str) or not prompts:
            raise InputError(f"prompts: expected a list of at least one text, got {prompts!r}")
        if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
            raise InputError(f"horizon: expected a whole number of replies above 0, got {horizon!r}")
        if not callable(user):
            raise InputError(f"user: expected a function of a prompt and the replies so far, got {user!r}")
        self._model, self._features, self._user, self._horizon = model, features, user, horizon
        self._memory = getattr(user, "remembers", 0)
        if isinstance(self._memory, bool) or not isinstance(self._memory, int) or self._memory < 0:
            raise InputError(f"user.remembers: expected a number of features, got {self._memory!r}")
        self._prompts = tuple(prompts)

    @property
    def prompts(self) -> Sequence[str]:
        """[X] the prompts, by index."""
        return self._prompts

    @property
    def features(self) -> FeatureMap:
        """The feature map phi of one reply."""
        return self._features

    @property
    def horizon(self) -> int:
        """H, replies of a conversation at most."""
        return self._horizon

    @property
    def step_dim(self) -> int:
        """Dimension d of a reply's feature, what :meth:`extend` returns."""
        return self._features.dim + self._memory

    @property
    def dim(self) -> int:
        """Dimension H d of a conversation's feature, what :meth:`draw` returns."""
        return self._horizon * self.step_dim

    def draw(self, prompts: Sequence[int], n: int, *, rng: np.random.Generator) -> tuple[Draws, ...]:
        """[m] records of ``n`` independent conversations, replies drawn from pi_ref one after another.

        Features [k, H d], phi_h in the h-th block, 0 beyond a conversation's end. Cost: ``n * m`` draws, of at most H
        replies each. `InputError` where the user has nothing to say at the start, or n is below 1.
        """
        if n < 1:
            raise InputError(f"n: expected at least one conversation, got {n}")
        paths: list[tuple[int, tuple[str, ...]]] = [(row, ()) for row in range(len(prompts)) for _ in range(n)]
        features = np.zeros((len(paths), self._horizon, self.step_dim))
        tokens = [0] * len(prompts)
        for h in range(self._horizon):
            alike: dict[tuple[int, str], list[int]] = defaultdict(list)
            for i, (row, replies) in enumerate(paths):
                given = self._input(prompts[row], replies)
                if given is not None and len(replies) == h:
                    alike[row, given].append(i)
            sizes: dict[int, list[tuple[int, str]]] = defaultdict(list)
            for key, rows in alike.items():
                sizes[len(rows)].append(key)
            for size, keys in sizes.items():  # conversations that stand alike share a call
                found = self._model.generate([given for _, given in keys], size, hidden=self._features.hidden, rng=rng)
                for key, record in zip(keys, found, strict=True):
                    phi = self._features(record)
                    tokens[key[0]] += _tokens(record)
                    drawn = rng.permutation(np.repeat(np.arange(len(record.responses)), record.counts))
                    for i, k in zip(alike[key], drawn, strict=True):
                        replies, reply = paths[i][1], record.responses[k]
                        features[i, h] = self._with_memory(prompts[key[0]], replies, [reply], phi[k : k + 1])[0]
                        paths[i] = (key[0], (*replies, reply))
        return tuple(
            self._record(x, paths[row * n : (row + 1) * n], features[row * n : (row + 1) * n], tokens[row])
            for row, x in enumerate(prompts)
        )

    def extend(
        self, prompts: Sequence[int], prefixes: Sequence[tuple[str, ...]], n: int, *, rng: np.random.Generator
    ) -> tuple[Draws, ...]:
        """[m] records of ``n`` next replies after prompt i and the replies of prefix i, with features [k, d].

        Cost: ``n * m`` replies. `InputError` after a conversation's end, or unless there is one prefix per prompt.
        """
        if len(prefixes) != len(prompts):
            raise InputError(f"prefixes: expected one per prompt, {len(prompts)} in all, got {len(prefixes)}")
        inputs = []
        for x, prefix in zip(prompts, prefixes, strict=True):
            given = self._input(x, prefix)
            if given is None:
                raise InputError(f"prefixes: expected a conversation to go on, got {len(prefix)} replies to its end")
            inputs.append(given)
        found = self._model.generate(inputs, n, hidden=self._features.hidden, rng=rng)
        return tuple(
            Draws(
                x,
                r.responses,
                r.counts,
                self._with_memory(x, tuple(prefix), r.responses, self._features(r)),
                tuple(prefix),
                _tokens(r),
            )
            for x, prefix, r in zip(prompts, prefixes, found, strict=True)
        )

    def joined(self, prompt: int, segments: Sequence[str]) -> str:
        """The conversation with these replies, as :meth:`draw` gives it; `turns_of` reads it back."""
        text = self._prompts[prompt]
        inputs = [self._user(text, tuple(segments[:h])) for h in range(len(segments))]
        if None in inputs or len(segments) > self._horizon:
            raise InputError(f"segments: expected replies of one conversation, got {len(segments)}, some after its end")
        return written([(str(given), reply) for given, reply in zip(inputs, segments, strict=True)])

    def complete(self, prompt: int, segments: Sequence[str]) -> bool:
        """Whether the conversation is over: H replies, or a user with nothing more to say."""
        return self._input(prompt, tuple(segments)) is None

    def tokens(self, draws: Draws) -> int:
        """Tokens generated for the draws of one record, ends included. `InputError` for one that was not just made."""
        if draws.tokens is None:
            raise InputError("tokens: expected draws as a model made them, got a record without their number of tokens")
        return draws.tokens

    def _input(self, prompt: int, replies: tuple[str, ...]) -> str | None:
        """What comes before the next reply; None where there is none."""
        if len(replies) >= self._horizon:
            return None
        given = self._user(self._prompts[prompt], replies)
        if given is not None and not isinstance(given, str):
            raise InputError(f"user: expected a text, or None at the end, got {given!r}")
        if given is None and not replies:
            raise InputError(f"user: expected a first input for prompt {prompt}, got None: return one without replies")
        return given

    def _with_memory(
        self, prompt: int, replies: tuple[str, ...], candidates: Sequence[str], phi: FloatArray
    ) -> FloatArray:
        """[n, d] features of candidates for the next reply: the map's [n, d1], and what the user remembers."""
        if not self._memory:
            return phi
        remember = getattr(self._user, "remember")  # noqa: B009 - what a plain function does not have
        found = np.asarray(remember(self._prompts[prompt], replies, tuple(candidates)), dtype=np.float64)
        if found.shape != (len(candidates), self._memory) or not np.isfinite(found).all():
            raise InputError(
                f"user.remember: expected finite numbers of shape {[len(candidates), self._memory]}, got shape "
                f"{list(found.shape)}: return a row per candidate"
            )
        return np.concatenate([phi, found.astype(np.float32)], axis=1)

    def _record(
        self, prompt: int, paths: Sequence[tuple[int, tuple[str, ...]]], features: FloatArray, tokens: int
    ) -> Draws:
        rows: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for i, (_, replies) in enumerate(paths):
            rows[replies].append(i)
        texts = tuple(self.joined(prompt, replies) for replies in rows)
        counts = np.array([len(found) for found in rows.values()], dtype=np.int64)
        flat = features[[found[0] for found in rows.values()]].reshape(len(rows), -1)
        return Draws(prompt, texts, counts, flat, tokens=tokens)


def _tokens(record: Generated) -> int:
    """Tokens of all draws; where the back end does not say, those of each response's one spelling."""
    return int(record.counts @ record.lengths) if record.tokens is None else record.tokens
