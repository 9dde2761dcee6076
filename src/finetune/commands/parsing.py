"""Parsers whose errors are one line and name the nearest right option."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from jsonargparse import DefaultHelpFormatter

from finetune.errors import UsageError


class Help(DefaultHelpFormatter):
    """What an option means, and its default where there is one: no types, no "default: null"."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        says_nothing = any(action.default is each for each in (None, False, argparse.SUPPRESS))
        if says_nothing or not (action.option_strings or action.nargs == argparse.OPTIONAL):
            return text
        return f"{text} (default: %(default)s)"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """All spellings, then the value once."""
        if not action.option_strings or action.nargs == 0:
            return argparse.HelpFormatter._format_action_invocation(self, action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        """Of the options only those that must be there: the others are listed below."""
        needed = [each for each in actions if each.required]
        text: str = super()._format_usage(usage, needed, groups, prefix)
        return text.replace(self._prog, f"{self._prog} [OPTIONS]", 1)


def take(arguments: Sequence[str], option: str) -> tuple[list[str], str | None]:
    """The arguments without the first such option, and its value; None where it is not there."""
    rest = list(arguments)
    for index, argument in enumerate(rest):
        name, attached, value = argument.partition("=")
        if name == option:
            del rest[index]
            if not attached:
                value = rest.pop(index) if index < len(rest) else ""
            return rest, value
    return rest, None


def take_all(arguments: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """The arguments without an option, and the values of every time that it was given."""
    values = []
    rest, value = take(arguments, option)
    while value is not None:
        values.append(value)
        rest, value = take(rest, option)
    return rest, values


def unknown_setting(of: str, name: str, known: Iterable[str]) -> UsageError:
    """What to say of a setting by a name that is not there, with the nearest that is."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"see finetune {of} --help."
    return UsageError(f"Expected a setting of finetune {of}, found {name!r}; {hint}")


def plain_value(value: Any) -> Any:
    """Paths as text, and NumPy's or PyTorch's numbers and arrays as Python's, also in lists."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [plain_value(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value


TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
}


def _in_our_words(line: str, options: Iterable[str], names: Mapping[str, str]) -> str:
    """Names of options as they are typed, names of types as one says them."""
    missing = re.fullmatch(r"the following arguments are required: (.+)", line)
    if missing:
        typed = {option.lstrip("-"): option for option in options}  # what stands alone is no option
        typed |= names
        wanted = [typed.get(name.lstrip("-"), name) for name in missing[1].split(", ")]
        return f"Expected {', '.join(wanted)}, found none"
    if alone := re.fullmatch(r"argument (\S+): invalid (\w+) value: (.*)", line):
        return f"Expected {alone[1]} to be {TYPES.get(alone[2], alone[2])}, found {alone[3]}"
    wrong = re.fullmatch(
        r'Parser key "([^"]+)"(?: element \d+)?: (.*?)(?: Given value: (.*))?', line
    )
    if wrong is None:
        return line
    key, what, value = wrong.groups()
    name = names.get(key, f"--{key}")
    if number := re.fullmatch(r"could not convert string to (\w+): (.*)", what):
        return f"Expected {name} to be {TYPES[number[1]]}, found {number[2]}"
    expected = re.findall(r"Expected a <class '(\w+)'>", what)
    given = re.search(r"Got value: ?(\S*)", what)
    value = value or (given[1] if given else None)
    choices = re.fullmatch(r"Expected a typing.Literal\[(.*)\]. Got value:.*", what)
    if choices and value is not None:
        return f"Expected {name} to be one of {choices[1]}, found {value!r}"
    if expected and value is not None and what.count("Expected") == len(expected):
        kinds = " or ".join(TYPES.get(each, each) for each in dict.fromkeys(expected))
        return f"Expected {name} to be {kinds}, found {value!r}"
    return f"{name}: {what}" + (f" Given value: {value}" if value else "")


def _nearest(name: str, options: Sequence[str]) -> str | None:
    """The option that was meant: the same word in another section, one spelt alike, or longer."""

    def word(option: str) -> str:
        return option.rpartition(".")[2].strip("-").replace("-", "_")

    same = [option for option in options if word(option) == word(name)]
    alike = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    longer = [option for option in options if word(option).endswith(f"_{word(name)}")]
    return next(iter(same or alike or longer), None)


def explain(
    message: str,
    program: str,
    options: Iterable[str],
    names: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """A parser's message in one line, with the nearest option where one was mistyped.

    Args:
        message: of jsonargparse.
        program: the command and its verb.
        options: all that there are, as they are typed.
        names: how keys are typed, where that is not ``--key``.
    """
    options = list(options)
    line = re.sub(r"(?<=\S)\.$", "", re.sub(r"\s+", " ", message).strip())  # "." is a folder
    line = _in_our_words(line, options, names)
    wrong = re.search(
        r"(?:unrecognized arguments:|does not accept (?:option|nested key)) *'?([^ =']+)", line
    )
    if wrong is None:
        return f"{line}. See {program} --help."
    name = "--" + wrong[1].lstrip("-")
    found = wrong[1] if line.startswith("unrecognized") else name
    nearest = _nearest(name, options)
    if not found.startswith("-"):  # a value without an option, which is mostly the images
        takes_images = "--data.root" in options and os.path.isdir(found)
        hint = f"; did you mean --data.root {found}?" if takes_images else "."
    elif nearest is not None:
        hint = f"; did you mean {nearest}?"
    elif name.startswith("--data.") and "--model.backbone" not in options:
        hint = ", which is about the images of a fit: this verb takes those that are named."
    elif not found.startswith("-"):
        hint = "; a pattern of several files goes in quotes."
    else:
        hint = "."
    return f"Expected an option of {program}, found {found}{hint} See {program} --help."
