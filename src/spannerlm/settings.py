"""Settings as they were written down: YAML text and ``--set`` overrides, with the place of every key.

YAML's safe types only, no anchors; ``1e-3`` is a number here, which YAML 1.1 takes for text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from spannerlm.errors import ConfigError

LARGEST_FILE = 2**18
"""Bytes of a configuration file at most: a hand-written one has a few hundred."""
DEEPEST = 64
"""Levels of nesting at most: what is loaded can then be written and read again within Python's recursion limit."""

Key = tuple[object, ...]
"""A dotted key by its parts; an index within a list is a part too."""


@dataclass
class Settings:
    """What has been read, where each key of it stands, and what was wrong with it."""

    name: str
    data: dict[Any, Any] = field(default_factory=dict)
    places: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Key, each part as it is written, -> ``file:line: `` or ``--set ``."""
    problems: list[str] = field(default_factory=list)

    def place(self, key: Key) -> str:
        """The dotted key with the place of it, or of the nearest enclosing key that was written down."""
        parts = tuple(map(str, key))
        dotted = ".".join(map(clean, parts))
        for end in range(len(parts), 0, -1):
            if parts[:end] in self.places:
                return f"{self.places[parts[:end]]}{dotted}"
        return f"{self.name}: {dotted}"

    def read_file(self, path: Path, rooted: Callable[[dict[Any, Any], Path], dict[Any, Any]]) -> None:
        """Take the file's data, after ``rooted(data, folder)`` has made its relative paths absolute."""
        data = _parse(_text_of(path), str(path), self)
        if data is None:
            return
        if not isinstance(data, dict):
            raise ConfigError(f"{path}:1: expected keys and values such as 'labels: 100', got {show(data)}")
        self.data = rooted(data, Path(os.path.abspath(path)).parent)

    def override(self, override: str) -> None:
        """Put one ``dotted.key=value`` in, the value being YAML."""
        dotted, equals, text = override.partition("=")
        keys = tuple(dotted.strip().split("."))
        if not equals or not all(keys) or len(keys) > DEEPEST:
            self.problems.append(f"--set {clean(override)}: expected key=value, for example labels=200")
            return
        try:
            self._put(keys, _parse(text, f"--set {clean(dotted)}"))
        except ConfigError as error:
            self.problems.append(str(error))

    def _put(self, keys: tuple[str, ...], value: object) -> None:
        target = self.data
        for i, key in enumerate(keys[:-1]):
            inner = target.get(key, {})
            if not isinstance(inner, dict):
                whole = clean(".".join(keys[: i + 1]))
                raise ConfigError(
                    f"--set {clean('.'.join(keys))}: expected {whole} to be a mapping, it is {show(inner)}; "
                    f"give --set {whole}=... as a whole"
                )
            target[key] = target = dict(inner)
        target[keys[-1]] = value
        self.places = {key: place for key, place in self.places.items() if key[: len(keys)] != keys}
        for end in range(1, len(keys) + 1):
            self.places.setdefault(keys[:end], "--set ")

    def listing(self) -> str:
        """All problems, in the order of the lines that they name."""
        if len(self.problems) == 1:
            return self.problems[0]
        ordered = sorted(self.problems, key=_line)
        return f"{self.name}: {len(ordered)} mistakes\n" + "\n".join(f"  {problem}" for problem in ordered)


def dump(data: object) -> str:
    """YAML text from which plain data is read back as it was."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def clean(text: str) -> str:
    """The text on one line, at most 80 characters, nothing unprintable."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:81])
    return shown if len(shown) <= 80 else shown[:77] + "..."


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def show(value: object) -> str:
    """The value as it may stand in a message, and what it is."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, (dict, list, tuple)):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    try:
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        shown = "very long"
    return f"{clean(shown)} ({_WORDS.get(type(value), type(value).__name__)})"


class _Loader(yaml.SafeLoader):
    """The safe loader without anchors, with a limit of depth, and with the line of a value that it cannot build."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.check_event(yaml.AliasEvent):
            raise self._refused("anchors (*name) are not supported; repeat the value")
        if self.depth > DEEPEST:
            raise self._refused(f"it is nested deeper than {DEEPEST} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _refused(self, why: str) -> yaml.MarkedYAMLError:
        return yaml.composer.ComposerError(None, None, why, self.peek_event().start_mark)  # type: ignore[no-untyped-call]

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, OverflowError, LookupError, AttributeError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, f"it is no valid value: {error}", node.start_mark
            ) from error


class _Dumper(yaml.SafeDumper):
    """The safe dumper, which quotes what the loader would read as a number and uses no anchors."""

    def ignore_aliases(self, _data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Text with every control character escaped: unquoted, U+0085 and its like come back as spaces."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _text)
_NUMBER = re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def _text_of(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: expected a configuration file in YAML, could not read it ({why})") from error
    if len(data) > LARGEST_FILE:
        raise ConfigError(f"{path}: expected a configuration of at most {LARGEST_FILE} bytes, got more")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: expected UTF-8 text, got the byte 0x{data[error.start]:02x}") from error


def _parse(text: str, name: str, settings: Settings | None = None) -> Any:
    """The YAML value; `ConfigError` with the line of what is no YAML. Fills the places of the settings."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if settings is not None:
            settings.problems += _walk(node, (), name, settings.places)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None and settings is not None else ""
        raise ConfigError(f"{name}{line}: expected YAML, but {_reason(error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: expected YAML, but {clean(str(error).split(chr(10))[0])}") from error


def _reason(error: yaml.MarkedYAMLError) -> str:
    problem = " ".join(str(error.problem or error.context).split())
    hint = "; put a value with ': ' in it in quotes" if "mapping values are not allowed" in problem else ""
    return f"{problem[:200]}{hint}"


def _walk(node: yaml.Node, key: tuple[str, ...], name: str, places: dict[tuple[str, ...], str]) -> Iterator[str]:
    """Record the place of every key; yield the keys that stand twice."""
    if isinstance(node, yaml.SequenceNode):
        items: list[tuple[str, yaml.Node, yaml.Node]] = [(str(i), child, child) for i, child in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode):
        items = [(k.value, k, v) for k, v in node.value if isinstance(k, yaml.ScalarNode)]
    else:
        return
    for part, marked, child in items:
        here, line = (*key, part), marked.start_mark.line + 1
        if here in places:
            dotted = ".".join(map(clean, here))
            yield f"{places[here]}{dotted}: expected each key once, got it again in line {line}"
        places.setdefault(here, f"{name}:{line}: ")
        yield from _walk(child, here, name, places)


def _line(problem: str) -> int:
    found = re.match(r".*?:(\d+): ", problem)
    return int(found[1]) if found else 2**31
