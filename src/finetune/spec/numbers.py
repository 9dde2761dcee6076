"""Numbers as labels: read strictly, and dealt into bins of about as many images each."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

# As spreadsheets and programs write them. float() takes nan, inf and 1_000 as well.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
LARGEST = 1e30  # well within single precision

MOST_BINS = 10
IMAGES_A_BIN = 5


def number(text: str) -> float:
    """The number that a cell holds, blanks around it or not.

    Raises:
        ValueError: it holds anything else, or more than 1e30.
    """
    if not _NUMBER.fullmatch(text.strip()) or abs(float(text)) > LARGEST:
        raise ValueError(f"no number: {text[:40]!r}")
    return float(text)


def quantile_bins(values: Sequence[float]) -> list[int]:
    """The bin of each of N numbers, from 0: at most ten, of five images or more, equals together.

    What is dealt out evenly of each bin has small, middling and large numbers on every side.
    """
    bins, ordered = max(1, min(MOST_BINS, len(values) // IMAGES_A_BIN)), sorted(values)
    return [bisect_left(ordered, value) * bins // len(ordered) for value in values]
