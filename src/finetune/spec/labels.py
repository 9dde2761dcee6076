"""What is known of one image: the class that it is of, or which of several labels it has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SEPARATOR = "|"
NOT_KNOWN = "?"  # before a label, in a cell
THRESHOLD = (
    "t:"  # before a label, the column of a table that says from which probability it is named
)

# An index into the class names; or, of several labels an image, 1, 0 or -1 (not known) for each.
Label = int | tuple[int, ...]


def indexes(label: Label) -> tuple[int, ...]:
    """The names that an image has, as indexes."""
    if isinstance(label, int):
        return (label,)
    return tuple(index for index, value in enumerate(label) if value == 1)


def order(label: Label) -> tuple[int, ...]:
    """By class; several labels by the first that differs, those of a label before those without."""
    return (label,) if isinstance(label, int) else tuple(-value for value in label)


def moved(label: Label, positions: Sequence[int], names: int) -> Label:
    """The same in another vocabulary of so many names.

    Args:
        label: of one image.
        positions: where each name stands there; -1: it is not there, and a class then counts as
            the first one.
        names: how many there are; an image has none of those that are new.
    """
    if isinstance(label, int):
        return max(positions[label], 0)
    result = [0] * names
    for position, value in zip(positions, label, strict=True):
        if position >= 0:
            result[position] = value
    return tuple(result)


def cell(label: Label, names: Sequence[str]) -> str:
    """As a manifest has it: ``red``, or ``red|round|?small``; empty for none of them."""
    if isinstance(label, int):
        return names[label]
    marks = {1: "", -1: NOT_KNOWN}
    return SEPARATOR.join(
        marks[value] + name for name, value in zip(names, label, strict=True) if value in marks
    )


def text(label: Label) -> str:
    """As a checkpoint has it: the index, or ``+``, ``-`` and ``?`` for each name."""
    if isinstance(label, int):
        return str(label)
    return "".join("?-+"[value + 1] for value in label)


def from_text(written: str) -> Label:
    """The inverse of :func:`text`.

    Raises:
        ValueError: anything else.
    """
    if written.isdecimal():
        return int(written)
    if set(written) - {"+", "-", "?"} or not written:
        raise ValueError(f"no label: {written[:20]!r}")
    return tuple({"+": 1, "-": 0, "?": -1}[mark] for mark in written)


def several(labels: Iterable[Label]) -> bool:
    """Whether they are several an image."""
    return any(not isinstance(label, int) for label in labels)
