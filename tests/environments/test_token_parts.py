"""Texts of sequences and back, states along the way, all sequences in order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spannerlm.environments.token_parts import all_paths, log_probs, parsed, sequence_text, walk
from spannerlm.errors import InputError


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(1, 12), st.data())
def test_texts_go_there_and_back(length: int, actions: int, data: st.DataObject) -> None:
    paths = data.draw(st.lists(st.lists(st.integers(0, actions - 1), min_size=length, max_size=length), max_size=5))
    texts = [sequence_text(path).split(" ") for path in paths]
    found = parsed(texts, length, actions)
    assert found.shape == (len(paths), length)
    assert found.tolist() == paths


def test_the_empty_prefix_is_one() -> None:
    assert sequence_text([]) == ""
    assert parsed([()], 0, 3).shape == (1, 0)


@pytest.mark.parametrize("parts", [["0", "3"], ["0"], ["0", "1", "2"], ["0", "٣"], ["0", "+1"], ["0", "1.0"]])
def test_what_is_no_sequence_is_refused(parts: list[str]) -> None:
    with pytest.raises(InputError, match=r"response: expected 2 actions|action: expected the text of one of 0 \.\. 2"):
        parsed([["0", "1"], parts], 2, 3)


@pytest.mark.parametrize(("actions", "length"), [(1, 1), (1, 100), (2, 5), (3, 4), (7, 1), (4, 0)])
def test_all_paths_are_in_lexicographic_order(actions: int, length: int) -> None:
    slow = [list(path) for path in itertools.product(range(actions), repeat=length)]
    assert all_paths(actions, length).tolist() == slow


def test_a_walk_follows_the_transitions() -> None:
    after = np.random.default_rng(0).integers(4, size=(5, 4, 3))
    paths = np.random.default_rng(1).integers(3, size=(20, 4))  # one step short of the end
    prompts = np.random.default_rng(2).integers(4, size=20)
    states = walk(after, prompts, paths)
    assert states.shape == (20, 5)
    for row, (x, path) in enumerate(zip(prompts, paths, strict=True)):
        state = x
        assert states[row, 0] == state
        for step, action in enumerate(path):
            state = after[step, state, action]
            assert states[row, step + 1] == state


def test_log_of_nothing_is_minus_infinity() -> None:
    np.testing.assert_array_equal(log_probs(np.array([0.0, 1.0])), [-np.inf, 0.0])
