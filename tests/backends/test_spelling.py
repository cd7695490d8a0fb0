"""Segments as text: read back, they are the tokens that were drawn."""

from __future__ import annotations

import itertools

import pytest
from tiny_models import make, pair_tokenizer

from spannerlm.backends.spelling import MARK, Reading, Spelled, Speller
from spannerlm.backends.text import TextCodec

pytest.importorskip("transformers")


def spellers() -> tuple[Speller, Speller]:
    """One that writes and another one, with no memory of it, that reads."""
    codec = TextCodec(pair_tokenizer(), (0,))
    return Speller(codec, (0,), "</s>"), Speller(codec, (0,), "</s>")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_sequence_of_tokens_is_read_as_it_was_drawn(size):
    writer, reader = spellers()
    codec = TextCodec(pair_tokenizer(), (0,))
    marked = 0
    for ids in itertools.product(range(1, 6), repeat=4):
        parts = [ids[k : k + size] for k in range(0, 4, size)]
        written: tuple[str, ...] = ()
        for k, row in enumerate(parts):
            ended = k == len(parts) - 1
            spelled = Spelled(row, ended, ended)
            written = (*written, writer.write("ab", written, writer.read("ab", written), [spelled])[0])
        reading = reader.read("ab", written)
        assert reading == writer.read("ab", written)
        assert reading.ended
        assert reading.text == codec.decode([ids])[0]
        before = sum(map(len, parts[:-1]))
        assert reader.read("ab", written[:-1]).ids == ids[:before]
        marked += MARK in "".join(written)
    assert 0 < marked < 5**4


def test_texts_that_look_like_ends_or_marks_are_told_from_them():
    codec = make().codec
    codec.tokenizer.add_tokens(["a</s>", f"b{MARK}7"])
    odd, mark = (codec.tokenizer.convert_tokens_to_ids(t) for t in ("a</s>", f"b{MARK}7"))
    speller = Speller(codec, (0,), "</s>")
    for row, ended in itertools.product(((odd,), (mark,), (2,)), (False, True)):
        for last in (ended, True):
            text = speller.write("a", (), Reading(), [Spelled(row, ended, last)])[0]
            found = Speller(codec, (0,), "</s>").read("a", [text])
            assert found.ended == ended
            assert found.ids == row or last
            assert found.text == codec.decode([row])[0] == speller.text(text)


def test_texts_from_elsewhere_are_read_as_the_tokenizer_writes_them():
    speller = Speller(make().codec, (0,), "</s>")
    assert speller.read("a", ["b c", " d"]) == Reading((3, 4, 5), "b c d", False)
    assert speller.read("a", ["b c", " d</s>"]) == Reading((3, 4, 5), "b c d", True)
    assert speller.read("a", []) == Reading()
    assert speller.text(" d</s>") == " d"
