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


def _dashed(option: str) -> str:
    return option.replace("_", "-")


def explain(message: str, program: str, options: Iterable[str]) -> str:
    """A parser's message in one line, with the nearest option where one was mistyped."""
    line = re.sub(r"\s+", " ", message).strip().rstrip(".")
    wrong = re.search(
        r"(?:unrecognized arguments:|does not accept (?:option|nested key)) *'?([^ =']+)", line
    )
    hint = ""
    if wrong:
        name = "--" + wrong.group(1).lstrip("-")
        nearest = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
    return f"{line}; {hint}See {program} --help."
