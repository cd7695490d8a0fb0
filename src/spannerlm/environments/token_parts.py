"""What `TokenEnvironment` stands on: texts of sequences, the states along them, and checks of arrays (TESTBEDS)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spannerlm.errors import InputError
from spannerlm.records import FloatArray, IntArray


def sequence_text(actions: Sequence[int] | IntArray) -> str:
    """The text of a sequence of actions: their numbers with blanks between them."""
    return " ".join(str(int(action)) for action in actions)


def parsed(texts: Sequence[Sequence[str]], length: int, actions: int) -> IntArray:
    """[k, length] sequences of actions from the texts of their actions; the inverse of `sequence_text`.

    Raises `InputError` for another length, or for what is no action's own text: "03" is none.
    """
    names = {str(action): action for action in range(actions)}
    for parts in texts:
        if len(parts) != length:
            raise InputError(f"response: expected {length} actions, got {len(parts)} in {' '.join(parts)!r}")
        unknown = [part for part in parts if part not in names]
        if unknown:
            raise InputError(f"action: expected the text of one of 0 .. {actions - 1}, got {unknown[0]!r}")
    paths = [[names[part] for part in parts] for parts in texts]
    return np.array(paths, dtype=np.int64).reshape(len(texts), length)


def walk(next_state: IntArray, prompts: IntArray, paths: IntArray) -> IntArray:
    """[k, h + 1] latent states along ``paths`` [k, h], from the initial states ``prompts`` [k] on; time k h."""
    states = np.empty((len(paths), paths.shape[1] + 1), dtype=np.int64)
    states[:, 0] = prompts
    for step in range(paths.shape[1]):
        states[:, step + 1] = next_state[step, states[:, step], paths[:, step]]
    return states


def all_paths(actions: int, length: int) -> IntArray:
    """[A^length, length] every sequence of actions, in lexicographic order."""
    places = [actions ** (length - 1 - step) for step in range(length)]
    paths: IntArray = np.arange(actions**length)[:, None] // np.array(places, dtype=np.int64) % actions
    return paths


def log_probs(probs: FloatArray) -> FloatArray:
    """[...] log of probabilities, -inf at 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(probs))


def checked_array(name: str, value: Any, shape: tuple[int | None, ...]) -> FloatArray:
    """The value as finite float64 of this shape, None standing for any length; else `InputError`."""
    array = np.asarray(value, dtype=np.float64)
    _check_shape(name, array.shape, shape)
    if not np.all(np.isfinite(array)):
        raise InputError(f"{name}: expected finite numbers, got {np.sum(~np.isfinite(array))} NaN or infinite entries")
    return array


def checked_states(name: str, value: Any, shape: tuple[int, int, int]) -> IntArray:
    """The value as indices of states, [H, S, A]; else `InputError`."""
    array = np.asarray(value)
    _check_shape(name, array.shape, shape)
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= shape[1]:
        found = f"{array.dtype} {array.min()} .. {array.max()}"
        raise InputError(f"{name}: expected integers of 0 .. {shape[1] - 1}, indices of states, got {found}")
    return array.astype(np.int64)


def check_probabilities(name: str, array: FloatArray) -> None:
    """`InputError` unless rows are non-negative and sum to 1 within 1e-9."""
    sums = array.sum(axis=-1)
    if np.any(array < 0.0) or np.max(np.abs(sums - 1.0)) > 1e-9:
        raise InputError(
            f"{name}: expected non-negative rows that sum to 1, got minimum {array.min():.3g} and sums "
            f"{sums.min():.9g} .. {sums.max():.9g}: normalise them"
        )


def _check_shape(name: str, got: tuple[int, ...], wanted: tuple[int | None, ...]) -> None:
    fits = len(got) == len(wanted) and all(w in (None, g) for w, g in zip(wanted, got, strict=True))
    if not fits or 0 in got:
        lengths = ", ".join("any" if length is None else str(length) for length in wanted)
        raise InputError(f"{name}: expected a non-empty array of shape ({lengths}), got shape {got}")
