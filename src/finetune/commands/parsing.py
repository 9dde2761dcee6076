"""Parsers whose errors are one line and name the nearest right option."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from finetune.errors import UsageError


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, with errors in one line; for the verbs without a Trainer.

    ``--val-fraction`` and ``--val_fraction`` are the same option, for nobody remembers which.
    """

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", _Help)
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, with every option in the spelling that it was added with."""
        given: Sequence[str] = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._as_added(text) for text in given], namespace)

    def _as_added(self, argument: str) -> str:
        name, sign, value = argument.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return argument
        alike = {_dashed(option): option for option in self._option_string_actions}
        return alike.get(_dashed(name), name) + sign + value

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving the process."""
        raise UsageError(explain(message, self.prog, self._option_string_actions))


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults where there are any: "(default: None)" says nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


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


def whole_number(least: int) -> Callable[[str], int]:
    """For ``type=``: a whole number of at least ``least``, or an error that says so."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(
                f"Expected a whole number of at least {least}, found {text!r}"
            )
        return value

    return convert


TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
}


def _in_our_words(line: str, options: Iterable[str]) -> str:
    """Names of options as they are typed, names of types as one says them."""
    missing = re.fullmatch(r"the following arguments are required: (.+)", line)
    if missing:
        typed = {option.lstrip("-"): option for option in options}  # what stands alone is no option
        names = (typed.get(name.lstrip("-"), name) for name in missing[1].split(", "))
        return f"Expected {', '.join(names)}, found none"
    wrong = re.fullmatch(r'Parser key "([^"]+)": (.*?)(?: Given value: (.*))?', line)
    if wrong is None:
        return line
    name, what, value = wrong.groups()
    expected = re.findall(r"Expected a <class '(\w+)'>", what)
    given = re.search(r"Got value: (\S+)", what)
    value = value or (given[1] if given else None)
    choices = re.fullmatch(r"Expected a typing.Literal\[(.*)\]. Got value: .*", what)
    if choices and value:
        return f"Expected --{name} to be one of {choices[1]}, found {value!r}"
    if expected and value and what.count("Expected") == len(expected):
        wanted = " or ".join(TYPES.get(each, each) for each in dict.fromkeys(expected))
        return f"Expected --{name} to be {wanted}, found {value!r}"
    return f"--{name}: {what}" + (f" Given value: {value}" if value else "")


def _dashed(option: str) -> str:
    return option.replace("_", "-")


def explain(message: str, program: str, options: Iterable[str]) -> str:
    """A parser's message in one line, with the nearest option where one was mistyped."""
    options = list(options)
    line = _in_our_words(re.sub(r"\s+", " ", message).strip().rstrip("."), options)
    wrong = re.search(
        r"(?:unrecognized arguments:|does not accept (?:option|nested key)) *'?([^ =']+)", line
    )
    hint = ""
    if wrong:
        name = "--" + wrong.group(1).lstrip("-")
        nearest = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
    return f"{line}; {hint}See {program} --help."
