"""What a step is: where it ends, and how it is written down."""

from __future__ import annotations

from typing import Any

import pytest

from spannerlm.errors import InputError
from spannerlm.segments import LIMIT, Segments, cut_at_stop, segments


def first_end(rule: Segments, text: str) -> str:
    """What a segment of this text is when characters come one by one."""
    return next((text[:k] for k in range(1, len(text) + 1) if rule.over(text[:k])), text)


@pytest.mark.parametrize(
    ("until", "text", "own"),
    [
        ("line", "one. two\nthree", "one. two\n"),
        ("line", "\n\n", "\n"),
        ("sentence", "one two. three", "one two."),
        ("sentence", "(is it?) no", "(is it?"),
        ("sentence", "\u597d\u3002\u597d", "\u597d\u3002"),
        ("sentence", "a list\nof things", "a list\n"),
        ("sentence", "no end", "no end"),
        (None, "a.\nb", "a.\nb"),
    ],
)
def test_segments_end_as_soon_as_their_text_says_so(until: Any, text: str, own: str) -> None:
    assert first_end(Segments(until=until), text) == own


def test_a_token_that_brings_more_than_the_end_belongs_to_the_segment() -> None:
    assert Segments(until="line").over("one\ntwo")
    assert Segments(until="sentence").over('he said "no."  ')
    assert not Segments(until="sentence").over("3.5 and")
    assert not Segments(until="sentence").over("3.5")


def test_a_function_is_asked() -> None:
    rule = Segments(ends=lambda text: text.count(";") == 2, tokens=9)
    assert first_end(rule, "a;b;c;") == "a;b;"
    assert not rule.fixed
    assert Segments(3).fixed
    with pytest.raises(InputError, match=r"expected what a file can describe, got the Python function '.*lambda>'"):
        rule.spec()
    assert str(rule).endswith("<lambda>:9")


@pytest.mark.parametrize(
    ("config", "meant"),
    [
        (8, Segments(8)),
        ("8", Segments(8)),
        ("line", Segments(LIMIT, "line")),
        ("sentence:40", Segments(40, "sentence")),
        ({"tokens": 8}, Segments(8)),
        ({"until": "line"}, Segments(LIMIT, "line")),
        ({"until": "sentence", "tokens": 5}, Segments(5, "sentence")),
        (Segments(2), Segments(2)),
    ],
)
def test_every_form_means_the_same_and_comes_back(config: Any, meant: Segments) -> None:
    rule = segments(config)
    assert rule == meant == segments(rule.spec()) == segments(str(rule))


def test_functions_are_taken_as_they_are() -> None:
    assert segments(str.isspace) == Segments(LIMIT, ends=str.isspace)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (0, "whole number of tokens above 0, got 0"),
        (True, "whole number of tokens above 0, got True"),
        ({"tokens": 2.0}, "whole number of tokens"),
        ({"until": "word"}, "expected until 'line' or 'sentence', got 'word'"),
        ({"size": 3}, r"expected the keys tokens and until, got \['size'\]"),
        ({}, "got an empty mapping"),
        ("line:", "got 'line:'"),
        ("word", "expected tokens \\('8'\\), 'line' or 'sentence'"),
        ("-3", "got '-3'"),
        (None, "expected a number, a text, a mapping or a function, got None"),
    ],
)
def test_what_is_no_segment_is_named(config: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        segments(config)


def test_until_and_ends_exclude_each_other() -> None:
    with pytest.raises(InputError, match="expected until or ends, got both: leave until='line' out"):
        Segments(until="line", ends=str.isspace)
    with pytest.raises(InputError, match="expected a function"):
        Segments(ends="line")  # type: ignore[arg-type]


def test_cutting_takes_the_earliest_stop_string():
    assert cut_at_stop("one. two! three", ("!", "."), keep=False) == "one"
    assert cut_at_stop("one. two! three", ("!", "."), keep=True) == "one."
    assert cut_at_stop("one", ("!",), keep=True) == "one"
