"""The user's own functions: rewards and comparisons, as TRL users know them. What is wrong is named with file and line.

A function is called by name with ``prompts``, ``completions`` and the columns of the prompts, as TRL's trainers call
it; sync or async; lists of messages where the prompts are. Of what trainers hand over beside that, a function gets
``trainer_state``, which is None, for there is no trainer, and ``log_extra`` and ``log_metric``, which write to the
logger `spannerlm.functions` at level INFO. A reward gets ``completion_ids`` where the model's tokenizer is here.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import logging
import math
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from spannerlm import fields
from spannerlm.dialogue import Form, Message
from spannerlm.errors import InputError, RewardError
from spannerlm.inputs import RESERVED, TRAINERS, kind_of, near, siblings
from spannerlm.rewards import CompareFunction, RewardFunction, ask_reward, call_reward, is_pure

LOG = logging.getLogger(__name__)
IDS = "completion_ids"
TokenIds = Callable[[Sequence[str], Sequence[str]], list[list[int]]]
"""``(prompts [k], completions [k]) ->`` [k] the tokens of each completion."""


def load_reward(
    reference: str,
    columns: Collection[str] | None = None,
    *,
    form: Form | None = None,
    token_ids: TokenIds | None = None,
) -> RewardFunction:
    """The function of ``path/to/file.py:function`` or ``module:function``: ``reward(prompts, completions, **columns)``.

    The file is run, as ``import`` would. Arguments are handed over by name, as TRL does it, so their order in the
    function does not matter. With ``columns``, arguments that no column of these supplies are refused at once. Where
    the prompts were lists of messages, of this ``form``, the function gets such lists, as from TRL.
    ``token_ids`` gives ``completion_ids``; without it a function that needs them is refused.
    Raises InputError (no such file or function, wrong signature) or RewardError (the file raised, and where).
    """
    function, extras = _load("reward", reference, columns, token_ids is not None)
    counted = extras.pop(IDS, None)

    @functools.wraps(function)
    def reward(prompts: Any, completions: Any, **others: Any) -> Any:
        if token_ids is not None and counted is not None:
            ids = _Late(functools.partial(token_ids, prompts, completions))
            others = {**others, IDS: list(ids) if counted else ids}
        if form is not None:
            prompts, completions = list(map(form.messages, prompts)), as_completions(completions)
        return function(prompts=prompts, completions=completions, **{**others, **extras})

    return reward


def load_compare(
    reference: str, columns: Collection[str] | None = None, *, form: Form | None = None
) -> CompareFunction:
    """The same for ``compare(prompts, completions, opponents, **columns)``; a column named ``opponents`` is refused."""
    if columns is not None and "opponents" in columns:
        raise InputError("compare: expected another name for the column 'opponents', an argument of every comparison")
    function, extras = _load("compare", reference, columns, False)

    @functools.wraps(function)
    def compare(prompts: Any, completions: Any, opponents: Any, **others: Any) -> Any:
        if form is not None:
            prompts = list(map(form.messages, prompts))
            completions, opponents = as_completions(completions), as_completions(opponents)
        return function(prompts=prompts, completions=completions, opponents=opponents, **{**others, **extras})

    return compare


class _Late(Sequence[list[int]]):
    """Tokens for a function that takes whatever there is: made when it reads them, for most never do."""

    def __init__(self, made: Callable[[], list[list[int]]]) -> None:
        self._made = made

    @functools.cached_property
    def _rows(self) -> list[list[int]]:
        return self._made()

    def __getitem__(self, place: Any) -> Any:
        return self._rows[place]

    def __len__(self) -> int:
        return len(self._rows)


def as_completions(texts: Sequence[str]) -> list[list[Message]]:
    """[k] responses as lists of one message."""
    return [[{"role": "assistant", "content": text}] for text in texts]


def combined(functions: Sequence[RewardFunction], weights: Sequence[float] | None = None) -> RewardFunction:
    """The weighted sum of reward functions: TRL's ``reward_funcs`` and ``reward_weights``, which are 1 if None.

    A function that returns None for a completion does not count there. Where all do there is no label (None); TRL's
    sum is 0. Functions are called one after another, each as `rewards.call_reward` does. Cost: one label a completion.
    Raises `InputError` unless there is a function, and one finite weight for each.
    """
    parts = list(functions)
    shares = [1.0] * len(parts) if weights is None else [float(weight) for weight in weights]
    if not parts or len(shares) != len(parts) or not all(map(math.isfinite, shares)):
        raise InputError(
            f"combined: expected one reward function at least and a finite weight for each, got {len(parts)} functions "
            f"and the weights {shares}"
        )

    def reward(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        others = {name: columns.pop(name) for name in TRAINERS if name in columns}
        table = [call_reward(_given(part, others), prompts, completions, columns) for part in parts]  # [functions, k]
        return [_weighted(row, shares) for row in zip(*table, strict=True)]

    reward.__name__ = "+".join(str(getattr(part, "__name__", type(part).__name__)) for part in parts)
    reward.pure = all(map(is_pure, parts))  # type: ignore[attr-defined]
    return reward


def _given(function: RewardFunction, others: Mapping[str, Any]) -> RewardFunction:
    """The function with what it takes of what a trainer hands over, which is no column with a value per completion."""
    parameters = inspect.signature(function).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    taken = {name: value for name, value in others.items() if open_ended or name in parameters}
    return functools.partial(function, **taken) if taken else function


def in_messages(function: Any, form: Form | None) -> Any:
    """The user's function, which gets lists of messages where the prompts were such; None: they were texts.

    What this package has for rewards, a judge for example, goes on reading texts.
    """
    if form is None or type(function).__module__.startswith("spannerlm."):
        return function

    def lists(name: str, value: Any) -> Any:
        if name == "prompts":
            return list(map(form.messages, value))
        return as_completions(value) if name in ("completions", "opponents") else value

    @functools.wraps(function)
    def called(*texts: Any, **named: Any) -> Any:
        placed = [lists("prompts" if i == 0 else "completions", value) for i, value in enumerate(texts)]
        return function(*placed, **{name: lists(name, value) for name, value in named.items()})

    called.pure = is_pure(function)  # type: ignore[attr-defined]
    return called


def handed(
    function: Any, columns: Collection[str] = (), token_ids: TokenIds | None = None, form: Form | None = None
) -> RewardFunction | Any:
    """A reward function called as TRL's trainers call it: with ``trainer_state``, ``log_extra`` and the like where it
    names them, or is a plain function that takes ``**kwargs``; several in a list are their sum. Objects that ask for
    nothing of that kind, a judge for example, are what they were. ``form``: see `in_messages`.

    Raises `InputError` where a function that names ``completions`` needs an argument that is no column.
    """
    if isinstance(function, list | tuple):
        return combined([handed(one, columns, token_ids, form) for one in function])
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return function
    named = [p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = {"prompts", "completions", *RESERVED, *columns} - ({IDS} if token_ids is None else set())
    missing = [p.name for p in named if p.default is p.empty and p.name not in known]
    if ("completions" in parameters or IDS in parameters) and missing:
        have = ", ".join(columns) or "no columns"
        raise InputError(
            f"reward: expected the argument {missing[0]!r} to be a column, got {have}{near(missing[0], columns)}: give "
            "it in columns=, or a default"
        )
    open_ended = inspect.isfunction(function) and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    own = in_messages(function, form)
    if not open_ended and not any(name in parameters for name in TRAINERS):
        return own

    @functools.wraps(function)
    def reward(prompts: Sequence[str], completions: Sequence[str], **others: Any) -> Any:
        extras = dict(_offered(getattr(function, "__name__", type(function).__name__)))
        if token_ids is not None:
            ids = _Late(functools.partial(token_ids, prompts, completions))
            extras[IDS] = list(ids) if IDS in parameters else ids
        return ask_reward(_given(own, extras), prompts, completions, others)

    del reward.__wrapped__  # its own arguments are those it is called with
    reward.pure = is_pure(function)  # type: ignore[attr-defined]
    return reward


def _weighted(row: Sequence[float | None], weights: Sequence[float]) -> float | None:
    terms = [weight * value for weight, value in zip(weights, row, strict=True) if value is not None]
    return math.fsum(terms) if terms else None


TEXTS = {"reward": ("prompts", "completions"), "compare": ("prompts", "completions", "opponents")}
"""Key of the configuration -> the arguments that its function gets whatever the columns are."""


def _load(
    key: str, reference: str, columns: Collection[str] | None, spelled: bool
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The checked function of a reference, and what it gets beside texts and columns."""
    file, _, name = reference.rpartition(":")
    if not file or not name:
        raise InputError(f"{key}: expected path/to/file.py:function or package.module:function, got {reference!r}")
    path = Path(file).expanduser().absolute()
    if fields.in_module(reference):
        module, place = _module(key, file), file
    elif not path.is_file():
        raise InputError(f"{key}: {path}: expected a Python file, found none{near(path.name, siblings(path))}")
    else:
        module, place = _import(key, path), str(path)
    function = _function(key, module, place, name)
    return function, _check_signature(key, function, f"{place}: {name}", columns, spelled)


def _module(key: str, name: str) -> ModuleType:
    """An installed module."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{key}: {name}: expected a module that is installed, but {error}; a file is named with its .py"
        ) from error
    except Exception as error:  # whatever the module does while it is imported
        raise RewardError(f"{key}: {name}: the module raised {type(error).__name__}: {error}") from error


def _import(key: str, path: Path) -> ModuleType:
    """The file as a module of a name of its own; its folder is searched last for what it imports."""
    name = f"_spannerlm_{key}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{key}: {path}: expected the name of a Python file, ending in .py")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as dataclasses and typing expect it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise RewardError(_where(key, error, path)) from error
    return module


def _where(key: str, error: BaseException, path: Path) -> str:
    """What the user's file raised, with the line of it."""
    if isinstance(error, SyntaxError) and error.filename:
        place, code = f"{error.filename}:{error.lineno}", error.text or ""
        return f"{key}: {place}: expected Python, but {error.msg}{_quoted(code)}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    place, code = (f"{path}:{frames[-1].lineno}", frames[-1].line or "") if frames else (str(path), "")
    return f"{key}: {place}: the file raised {type(error).__name__}: {error}{_quoted(code)}"


def _quoted(code: str) -> str:
    return f"\n    {code.strip()}" if code.strip() else ""


def _function(key: str, module: ModuleType, path: str, name: str) -> Any:
    if not hasattr(module, name):
        functions = ((own, value) for own, value in vars(module).items() if inspect.isfunction(value))
        names = [own for own, value in functions if value.__module__ == module.__name__ and own[0] != "_"]
        found = f"; it has {', '.join(names)}" if names else ""
        raise InputError(f"{key}: {path}: expected a function {name!r}, found none{found}{near(name, names)}")
    function = getattr(module, name)
    if not callable(function) or inspect.isclass(function):
        raise InputError(f"{key}: {path}: expected {name!r} to be a function, got {kind_of(function)}")
    return function


def _check_signature(
    key: str, function: Any, place: str, columns: Collection[str] | None, spelled: bool
) -> dict[str, Any]:
    """What the function gets beside texts and columns; of tokens, where they are ``spelled``, whether it names them.

    InputError unless it takes its texts by name, and the columns have what else it needs.
    """
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError) as error:
        raise InputError(f"{key}: {place}: expected a Python function, but it has no signature ({error})") from error
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {name: p for name, p in signature.parameters.items() if p.kind in kinds}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    required = any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in signature.parameters.values())
    if required or not all(name in named or open_ended for name in TEXTS[key]):
        raise InputError(
            f"{key}: {place}: expected a function ({', '.join(TEXTS[key])}, **columns) -> list of numbers, "
            f"got the arguments {signature}"
        )
    if not spelled and IDS in named and named[IDS].default is inspect.Parameter.empty:
        raise InputError(
            f"{key}: {place}: expected a function of texts, got one that needs {IDS}, which only a reward gets, and "
            "only where the model is loaded here; give that argument a default, or count words"
        )
    everything = open_ended and key == "reward"  # as TRL has it; it knows no comparison functions
    extras = {name: value for name, value in _offered(place).items() if everything or name in named}
    if spelled and (everything or IDS in named):
        extras[IDS] = IDS in named
    for name, parameter in named.items():
        if name in extras:
            continue
        needed = parameter.default is parameter.empty and name not in TEXTS[key]
        if needed and columns is not None and name not in columns:
            have = ", ".join(columns) or "no columns"
            raise InputError(
                f"{key}: {place}: expected the argument {name!r} to be a column of the prompts, which have "
                f"{have}{near(name, columns)}; give it a default, or add the column"
            )
    return extras


def _offered(place: str) -> Mapping[str, Any]:
    """What TRL's trainers hand over beside texts and columns, as far as it has a meaning here."""

    def log_extra(column: str, values: Sequence[Any]) -> None:
        LOG.info("%s: %s = %s", place, column, list(values))

    def log_metric(name: str, value: float) -> None:
        LOG.info("%s: %s = %s", place, name, value)

    return {"trainer_state": None, "log_extra": log_extra, "log_metric": log_metric}
