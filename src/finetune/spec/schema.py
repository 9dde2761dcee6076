"""What plain values of a file may be: small checks that make up a schema.

A check takes a value and raises :class:`UnexpectedValue`, which knows the value's place in the
file, unless the value is as expected. Unknown keys are accepted: later versions write more.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], None]
MOST = sys.float_info.max


class UnexpectedValue(ValueError):
    """A value that is not what the schema expects, and where it stands."""

    def __init__(self, expected: str, found: object, where: tuple[object, ...] = ()) -> None:
        super().__init__(expected)
        self.expected, self.found, self.where = expected, found, where

    def within(self, key: object) -> UnexpectedValue:
        """The same, seen from the container that holds the value under ``key``."""
        return UnexpectedValue(self.expected, self.found, (key, *self.where))

    def __str__(self) -> str:
        place = ".".join(map(str, self.where))[:120] or "the whole"
        return f"expected {place} to be {self.expected}, found {_short(self.found)}"


def _short(value: object) -> str:
    """A few letters of any value, without walking through a large one."""
    if isinstance(value, str | bytes):
        return repr(value[:60])
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 10**30 else "a huge number"
    return f"a {type(value).__name__}"


def whole(least: int, most: int = 2**63 - 1) -> Check:
    """A whole number in ``[least, most]``; a truth value is none."""

    def check(value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise UnexpectedValue(f"a whole number from {least} to {most}", value)

    return check


def number(least: float = -math.inf, most: float = math.inf, *, finite: bool = True) -> Check:
    """A number in ``[least, most]``, and finite unless it may be otherwise; never NaN.

    Whole numbers count up to 64 bits: larger ones are no number to torch.
    """

    def check(value: Any) -> None:
        is_number = isinstance(value, float) or (
            isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
        )
        if not is_number or not least <= value <= most or (finite and not -MOST <= value <= MOST):
            raise UnexpectedValue(f"a number from {least:g} to {most:g}", value)

    return check


def text(most: int = 4096, pattern: str = r".*", says: str = "text") -> Check:
    """Text of at most so many letters that the pattern matches as a whole."""

    def check(value: Any) -> None:
        fits = isinstance(value, str) and len(value) <= most
        if not fits or re.fullmatch(pattern, value, re.DOTALL) is None:
            raise UnexpectedValue(says, value)

    return check


def truth(value: Any) -> None:
    """true or false, and no number."""
    if not isinstance(value, bool):
        raise UnexpectedValue("true or false", value)


def scalar(value: Any) -> None:
    """Text, a number, a truth value or nothing."""
    if value is not None and not isinstance(value, str | int | float):
        raise UnexpectedValue("text or a number", value)


def one_of(*choices: str) -> Check:
    """One of the names."""

    def check(value: Any) -> None:
        if not isinstance(value, str) or value not in choices:
            raise UnexpectedValue(f"one of {', '.join(choices)}", value)

    return check


def optional(inner: Check) -> Check:
    """None, or what the inner check takes."""

    def check(value: Any) -> None:
        if value is not None:
            inner(value)

    return check


def either(*checks: Check) -> Check:
    """What one of the checks takes."""

    def check(value: Any) -> None:
        expected = []
        for each in checks:
            try:
                return each(value)
            except UnexpectedValue as error:
                expected.append(error.expected)
        raise UnexpectedValue(" or ".join(expected), value)

    return check


def several(inner: Check, least: int = 0, most: int = 10**8) -> Check:
    """A list with so many items."""

    def check(value: Any) -> None:
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            raise UnexpectedValue(f"a list of {least} or more", value)
        for position, item in enumerate(value):
            _check_within(inner, item, position)

    return check


def by_name(inner: Check, pattern: str = r".*", most: int = 10**6) -> Check:
    """A dictionary with text as keys, which the pattern matches as a whole."""

    def check(value: Any) -> None:
        if not isinstance(value, Mapping) or len(value) > most:
            raise UnexpectedValue("a dictionary", value)
        for key, item in value.items():
            if not isinstance(key, str) or re.fullmatch(pattern, key, re.DOTALL) is None:
                raise UnexpectedValue(f"a dictionary with keys like {pattern}", key)
            _check_within(inner, item, key)

    return check


def record(required: Mapping[str, Check], /, *, closed: bool = False, **further: Check) -> Check:
    """A dictionary with these keys, and perhaps with the further ones; others too unless closed."""
    known = {**required, **further}

    def check(value: Any) -> None:
        by_name(_anything)(value)
        for key in required:
            if key not in value:
                raise UnexpectedValue(f"a dictionary with {key!r}", value)
        for key, item in value.items():
            if key in known:
                _check_within(known[key], item, key)
            elif closed:
                raise UnexpectedValue(f"a dictionary with no more than {', '.join(known)}", key)

    return check


def every(*checks: Check) -> Check:
    """What all of the checks take."""

    def check(value: Any) -> None:
        for each in checks:
            each(value)

    return check


def _anything(value: Any) -> None:
    """Nothing is expected of it."""


def _check_within(inner: Check, item: Any, key: object) -> None:
    try:
        inner(item)
    except UnexpectedValue as error:
        raise error.within(key) from None


def plain(depth: int = 16) -> Check:
    """Text, numbers, truth values, None, and lists and dictionaries of them, not too deep."""

    def check(value: Any) -> None:
        if value is None or isinstance(value, str | int | float):
            return
        if depth == 0 or not isinstance(value, list | tuple | Mapping):
            raise UnexpectedValue("plain values, not too deeply nested", value)
        if isinstance(value, Mapping):
            by_name(plain(depth - 1))(value)
        else:
            several(plain(depth - 1))(value)

    return check
