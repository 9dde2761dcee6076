"""How one cell of a table is written, and read back as what it was."""

from __future__ import annotations

import math
import re

PREFIX = "p:"  # of the columns that hold a class's probability
DIGITS = 9  # keep a float32
SMALLEST = 5e-324  # the smallest positive float: what a probability of exactly 0 counts as
SMALLEST_LOG = math.log(SMALLEST)  # -744 nats
TINY = 1e-300  # below it floats lose digits, then everything
LN10 = math.log(10)
FORMULA = re.compile(r"'*[=+\-@\t\r]")  # what a spreadsheet would compute, and what hides it


def probability_text(log_probability: float, *, exact: bool = False) -> str:
    """A probability in decimal from its logarithm in nats; never 0, however small it is.

    ``1.5e-1738`` is such a one: float parsers take it for 0, :func:`log_probability` does not.

    Args:
        exact: all digits that a float64 has.
    """
    if log_probability > math.log(TINY):
        probability = math.exp(log_probability)
        return repr(probability) if exact else f"{probability:.{DIGITS}g}"
    exponent = math.floor(log_probability / LN10)
    return f"{math.exp(log_probability - exponent * LN10):.{DIGITS}g}e{exponent}"


def log_probability(text: str) -> float:
    """The logarithm in nats of a probability in decimal; exactly 0 counts as the smallest float.

    Raises:
        ValueError: no number, or one outside ``[0, 1]`` by more than rounding.
    """
    value = float(text)
    if not 0 <= value <= 1.01:
        raise ValueError(f"no probability: {text!r}")
    if value > TINY:
        return math.log(value)
    mantissa, _, exponent = text.lower().partition("e")
    if float(mantissa) == 0:
        return SMALLEST_LOG
    return math.log(float(mantissa)) + int(exponent or 0) * LN10


def escaped(text: str) -> str:
    """Text that no spreadsheet takes for a formula: behind an apostrophe, as OWASP recommends."""
    return f"'{text}" if FORMULA.match(text) else text


def disambiguated(text: str) -> str:
    """Text as it is, but for such that looks escaped already: that gets one apostrophe more."""
    return f"'{text}" if text.startswith("'") and FORMULA.match(text) else text


def unescaped(text: str) -> str:
    """The inverse of :func:`escaped` and of :func:`disambiguated`."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text
