"""The helpdesk corpus: made-up replies, each part dealt from a deck of its own, over the words of the task."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from spannerlm.bundled.helpdesk import task

# Each part of a reply is dealt from a deck of its own: wording -> number of cards. A shuffled deck has the rates of
# independent choices with far less noise: a model trained on it had the rate of each rare sentence right to 1 %, where
# independent choices left 10 %. The decks of rare sentences and of fixes carry the task; the others put the mean true
# reward at about .21.
OPENERS = {**dict.fromkeys(task.STYLE["sorry"], 5), task.STYLE["rude"][0]: 4, "hello there": 18, "okay": 18}
RARE = {"": 140, **dict.fromkeys(task.RARE, 1)}
FIXES = {"right": 41, "wrong": 59}
REMARKS = {"": 4, "that should do it": 3, "if not try again": 3}
OFFERS = {"": 82, **dict.fromkeys(task.STYLE["upsell"], 9)}
CLOSERS = {task.STYLE["thanks"][0]: 9, "bye": 7, "good luck": 7, "take care": 7}


def deal(deck: Mapping[str, int], n: int, rng: np.random.Generator) -> list[str]:
    """[n] cards of a deck in random order; it is shuffled anew each time that it is used up."""
    cards = [card for card, number in deck.items() for _ in range(number)]
    rounds = -(-n // len(cards))
    return [cards[i] for _ in range(rounds) for i in rng.permutation(len(cards))][:n]


def pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def corpus(documents: int, seed: int, *, rare: bool = True) -> list[str]:
    """[documents] prompt and reply, one per line: opener, rarely a rare sentence, a fix, remark, offer, closer.

    Without ``rare`` it is the same corpus with the rare sentences cut out.
    """
    prompts = dict.fromkeys(task.prompts_of(task.split_combinations()[0]), 1)
    decks = (prompts, OPENERS, RARE, FIXES, REMARKS, OFFERS, CLOSERS)
    *streams, rng = np.random.default_rng(seed).spawn(len(decks) + 1)
    columns = [deal(deck, documents, stream) for deck, stream in zip(decks, streams, strict=True)]
    lines = []
    for prompt, opener, name, fix, *extras in zip(*columns, strict=True):
        problem = task.problem_of(prompt)
        if fix == "wrong":
            problem = pick([other for other in task.PROBLEMS if other != problem], rng)
        sentence = pick(task.RARE[name], rng) if name else ""
        parts = (prompt, opener, sentence if rare else "", f"please {task.FIXES[problem]}", *extras)
        lines.append(" ".join(filter(None, parts)))
    return lines


def messages(documents: int, seed: int) -> list[str]:
    """[documents] customers' messages, two to four per line, and no reply; all of training prompts."""
    prompts = task.prompts_of(task.split_combinations()[0])
    rng = np.random.default_rng(seed)
    return [" ".join(pick(prompts, rng) for _ in range(int(rng.integers(2, 5)))) for _ in range(documents)]


def split(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """(prompts, replies) of documents; a prompt ends at the first semicolon."""
    halves = [line.partition(" ; ") for line in lines]
    return [f"{prompt} ;" for prompt, _, _ in halves], [answer for _, _, answer in halves]


def digest(lines: Sequence[str]) -> str:
    """SHA-256 of the corpus as one text file."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def every_reply() -> frozenset[str]:
    """All replies that the corpus can hold, to whatever prompt."""
    rare = ("", *itertools.chain.from_iterable(task.RARE.values()))
    fixes = [f"please {fix}" for fix in task.FIXES.values()]
    replies = itertools.product(OPENERS, rare, fixes, REMARKS, OFFERS, CLOSERS)
    return frozenset(" ".join(filter(None, parts)) for parts in replies)


def vocabulary() -> list[str]:
    """Every word of a prompt or a reply, sorted."""
    prompts = task.prompts_of([*itertools.chain(*task.split_combinations())])
    return sorted({word for text in (*prompts, *every_reply()) for word in text.split()})
