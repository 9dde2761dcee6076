"""Reading JSON and YAML that strangers may have written: plain values within bounds, or one line.

Settings of a run, its figures, its group: every such file is read here. One that is no regular
file, is too long, is no UTF-8, nests too deeply or repeats itself without end is refused before
its values are built.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from finetune.errors import UsageError
from finetune.spec.schema import Check, UnexpectedValue

MOST_BYTES = 2**20
MOST_DEPTH = 32  # nested lists and dictionaries
MOST_VALUES = 100_000  # each counted as often as it is repeated

_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
_PLAIN_TAGS = {None, "!", *(f"tag:yaml.org,2002:{kind}" for kind in _KINDS)}  # "!": quoted text


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML's safe loader, for which a date is text, as it is for the command line."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class BoundsError(yaml.YAMLError):
    """YAML that is well formed and refused all the same."""


def read_json(path: str | Path, check: Check) -> Any:
    """The values of a JSON file, as the schema wants them.

    Raises:
        UsageError: no regular file, too long, no UTF-8, no JSON, or other values than expected.
    """
    try:
        content = json.loads(read_document(path))
        check(content)
    except RecursionError:
        raise _refusal(path, "brackets that nest without end") from None
    except UnexpectedValue as error:
        raise _refusal(path, f"another: {error}") from None
    except ValueError as error:
        raise _refusal(path, f"no JSON ({error})") from None
    return content


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file; empty where it says nothing.

    Raises:
        UsageError: as for JSON; also a repeated key, or a tag that stands for more than plain
            values.
    """
    document = read_document(path)
    try:
        check_yaml(document)
        content = yaml.load(document, Loader=_Loader) or {}
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise _refusal(path, f"no settings ({error})") from None
    if not isinstance(content, dict):
        raise _refusal(path, f"a {type(content).__name__} instead of names and values")
    return content


def read_document(path: str | Path) -> str:
    """The text of a small regular file in UTF-8, whoever wrote it.

    Raises:
        UsageError: anything else; a pipe or a device is not waited for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _refusal(path, "something else, such as a pipe")
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _refusal(path, f"that it cannot be read ({reason})") from None
    if len(content) > MOST_BYTES:
        raise _refusal(path, f"more than {MOST_BYTES // 2**20} MiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _refusal(path, "other bytes than UTF-8") from None
    if "\0" in text:
        raise _refusal(path, "a binary file")
    return text


def check_yaml(document: str) -> None:
    """Refuse YAML whose values would be deep, many, repeated without end, or more than plain.

    Raises:
        yaml.YAMLError: it is no YAML, or a :class:`BoundsError`.
    """
    sizes: dict[str, int] = {}  # values behind each anchor, once it is complete
    open_nodes = [_Node(None)]
    for event in yaml.parse(document, Loader=_Loader):
        match event:
            case yaml.AliasEvent():
                if event.anchor not in sizes:
                    raise BoundsError(f"*{event.anchor} stands for nothing, or for itself")
                open_nodes[-1].add(sizes[event.anchor])
            case yaml.ScalarEvent():
                _check_tag(event.tag)
                open_nodes[-1].add(1, event.value)
                sizes |= {event.anchor: 1} if event.anchor else {}
            case yaml.CollectionStartEvent():
                _check_tag(event.tag)
                open_nodes.append(_Node(event.anchor, isinstance(event, yaml.MappingStartEvent)))
                if len(open_nodes) > MOST_DEPTH:
                    raise BoundsError(f"lists and names nest deeper than {MOST_DEPTH}")
            case yaml.CollectionEndEvent():
                node = open_nodes.pop()
                open_nodes[-1].add(node.values)
                sizes |= {node.anchor: node.values} if node.anchor else {}


@dataclass(slots=True)
class _Node:
    """A list or dictionary that is being read."""

    anchor: str | None
    is_mapping: bool = False
    values: int = 1
    keys: set[str] = field(default_factory=set)
    key_is_next: bool = True

    def add(self, values: int, scalar: str | None = None) -> None:
        """Count a complete item; in a dictionary every other one is a key."""
        self.values += values
        if self.values > MOST_VALUES:
            raise BoundsError(f"aliases and items make more than {MOST_VALUES:,} values")
        if self.is_mapping and self.key_is_next:
            if scalar is None:
                raise BoundsError("a key is no name")
            if scalar in self.keys:
                raise BoundsError(f"the key {scalar[:60]!r} stands there twice")
            self.keys.add(scalar)
        self.key_is_next = not self.key_is_next


def _check_tag(tag: str | None) -> None:
    if tag not in _PLAIN_TAGS:
        raise BoundsError(f"the tag {tag[:60] if tag else tag} stands for more than plain values")


def _refusal(path: str | Path, found: str) -> UsageError:
    return UsageError(
        f"Expected a small text file of settings or figures in {path}, found "
        f"{' '.join(found.split())}; mend it, or take another copy."
    )
