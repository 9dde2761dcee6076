"""Parsers whose errors are one line and name the nearest right option."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from finetune.errors import UsageError


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, with errors in one line; for the verbs without a Trainer."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving the process."""
        raise UsageError(explain(message, self.prog, self._option_string_actions))


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
