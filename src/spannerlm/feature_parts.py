"""What feature maps share: checked settings, a fixed random projection, and how their values are rounded."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri

from spannerlm.errors import InputError
from spannerlm.records import FloatArray


def gaussian_projection(rows: int, columns: int, seed: int) -> FloatArray:
    """[rows, columns] of N(0, 1/columns) entries: keeps squared norms in expectation.

    Made from the raw bit stream of PCG64 and the normal quantile, which no NumPy release may change, because a saved
    policy rebuilds it from the seed alone.
    """
    raw = np.random.PCG64(seed).random_raw(rows * columns)
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    return np.asarray(ndtri(uniform).reshape(rows, columns) / np.sqrt(columns), dtype=np.float64)


def rounded(values: FloatArray) -> FloatArray:
    """The values as float32 holds them, in float64: what is stored is exact, and noise of the last bits is gone."""
    return np.asarray(np.asarray(values, dtype=np.float32), dtype=np.float64)


def whole(name: str, value: int, least: int | None) -> None:
    """Raise `InputError` unless the value is a whole number, of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise InputError(f"features: expected a whole number{bound} for {name}, got {value!r}")


def number(name: str, value: float) -> None:
    """Raise `InputError` unless the value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise InputError(f"features: expected a finite number for {name}, got {value!r}")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise `InputError` unless the value is one of these."""
    if value not in allowed:
        raise InputError(f"features: expected {name} to be one of {', '.join(allowed)}, got {value!r}")


def nearest(word: str, known: Sequence[str]) -> str:
    """End of a message: the closest known word, else all of them."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" did you mean {close[0]!r}?" if close else f" valid: {', '.join(known)}"
