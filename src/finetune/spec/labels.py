"""What is known of one image: its class, which of several labels it has, or a number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from finetune.spec.numbers import number

SEPARATOR = "|"
NOT_KNOWN = "?"  # before a label, in a cell
THRESHOLD = (
    "t:"  # before a label, the column of a table that says from which probability it is named
)

# An index into the class names; or, of several labels an image, 1, 0 or -1 (not known) for each;
# or a number, in the user's unit, of the one column that the names then are.
Label = int | tuple[int, ...] | float


def indexes(label: Label) -> tuple[int, ...]:
    """The names that an image has, as indexes; of a number the one column."""
    if isinstance(label, float):
        return (0,)
    if isinstance(label, int):
        return (label,)
    return tuple(index for index, value in enumerate(label) if value == 1)


def order(label: Label) -> tuple[float, ...]:
    """By class or number; several labels by the first that differs, those of it before the rest."""
    return tuple(-value for value in label) if isinstance(label, tuple) else (label,)


def moved(label: Label, positions: Sequence[int], names: int) -> Label:
    """The same in another vocabulary of so many names.

    Args:
        label: of one image.
        positions: where each name stands there; -1: it is not there, and a class then counts as
            the first one.
        names: how many there are; an image has none of those that are new.
    """
    if isinstance(label, float):
        return label
    if isinstance(label, int):
        return max(positions[label], 0)
    result = [0] * names
    for position, value in zip(positions, label, strict=True):
        if position >= 0:
            result[position] = value
    return tuple(result)


def cell(label: Label, names: Sequence[str]) -> str:
    """As a manifest has it: ``red``, ``31.5``, or ``red|round|?small``; empty for none of them."""
    if isinstance(label, float):
        return repr(label)
    if isinstance(label, int):
        return names[label]
    marks = {1: "", -1: NOT_KNOWN}
    return SEPARATOR.join(
        marks[value] + name for name, value in zip(names, label, strict=True) if value in marks
    )


def text(label: Label) -> str:
    """As a checkpoint has it: the index, ``+``, ``-`` and ``?`` for each name, or ``31.5``."""
    if not isinstance(label, tuple):
        return repr(label)  # of a number always with a point or an exponent
    return "".join("?-+"[value + 1] for value in label)


def from_text(written: str) -> Label:
    """The inverse of :func:`text`.

    Raises:
        ValueError: anything else.
    """
    if written.isdecimal():
        return int(written)
    if set(written) - {"+", "-", "?"} or not written:
        if not {".", "e"} & set(written):
            raise ValueError(f"no label: {written[:20]!r}")
        return number(written)
    return tuple({"+": 1, "-": 0, "?": -1}[mark] for mark in written)


def several(labels: Iterable[Label]) -> bool:
    """Whether they are several an image."""
    return any(isinstance(label, tuple) for label in labels)
