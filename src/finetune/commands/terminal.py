"""What the command prints: no control character of a file's name acts, no reader has to stay.

Names of files and classes may hold anything. A terminal would obey an escape sequence in one, and a
carriage return would overwrite the line; through these streams both are shown, not obeyed. Progress
bars, which need such sequences, are drawn by rich on the interpreter's own streams.
"""

from __future__ import annotations

import io
import os
import sys
import threading
import unicodedata
import warnings
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

# Categories of Unicode that act instead of being shown: controls, line and paragraph separators.
_ACTING = {"Cc", "Zl", "Zp"}
_TURNING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # of the direction of the text
_ESCAPES = {
    code: chr(code).encode("unicode_escape").decode("ascii")
    for code in range(0x2100)
    if (unicodedata.category(chr(code)) in _ACTING or code in _TURNING) and chr(code) not in "\n\t"
}


def shown(text: str) -> str:
    """The text with every character that a terminal would act upon written as its escape."""
    return text.translate(_ESCAPES)


def shown_in_one_line(text: str) -> str:
    """The same of a text that is to be one line, whose names may hold line breaks and tabs."""
    return shown(text).translate({ord("\n"): "\\n", ord("\t"): "\\t"})


def print_line(text: str, *, error: bool = False) -> None:
    """Print one line at once, which a line break in a name does not break."""
    print(shown_in_one_line(text), file=sys.stderr if error else sys.stdout, flush=True)


class _AboveText(io.TextIOBase):
    """A text stream that writes to another one, and is like it otherwise."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def writable(self) -> bool:
        """Always."""
        return True


class ShownText(_AboveText):
    """A text stream that escapes what would act, and that outlives its reader.

    Args:
        stream: where the text goes.
        needs_reader: whether a closed pipe ends the command: it only prints, so nobody waits for
            what it would still do. Otherwise what nobody reads is dropped.
    """

    def __init__(self, stream: TextIO, *, needs_reader: bool) -> None:
        super().__init__(stream)
        self._needs_reader = needs_reader

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream below."""
        return self._stream.encoding

    def fileno(self) -> int:
        """Of the stream below."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """False, so that libraries send no escape sequences, which would be shown."""
        return False

    def write(self, text: str) -> int:
        """Write the text, escaped."""
        with self._without_reader():
            self._stream.write(shown(text))
        return len(text)

    def flush(self) -> None:
        """Hand on what is waiting."""
        if not self.closed:
            with self._without_reader():
                self._stream.flush()

    @contextmanager
    def _without_reader(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            discard(self._stream)
            if self._needs_reader:
                raise


def discard(stream: TextIO) -> None:
    """Send what is still written to a stream nowhere, also at the interpreter's end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextmanager
def shown_streams(*, needs_reader: bool) -> Iterator[None]:
    """Print through :class:`ShownText` while the block runs; a closed stream is none to fail on."""
    before = sys.stdout, sys.stderr
    with ExitStack() as nowhere:
        wrapped: list[TextIO] = []
        for stream in before:
            if stream is None:  # closed by the caller, as `>&-` does
                stream = nowhere.enter_context(open(os.devnull, "w", encoding="utf-8"))
            if isinstance(stream, io.TextIOWrapper):  # letters without a code are escaped too
                stream.reconfigure(errors="backslashreplace")
            wrapped.append(cast(TextIO, ShownText(stream, needs_reader=needs_reader)))
        sys.stdout, sys.stderr = wrapped
        try:
            yield
            sys.stdout.flush()
        finally:
            sys.stdout, sys.stderr = before


class HushedText(_AboveText):
    """A text stream that drops what the thread prints that made it, and passes on all other."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._hushed = threading.get_ident()

    def write(self, text: str) -> int:
        """Write the text, unless it is the hushed thread's."""
        return len(text) if threading.get_ident() == self._hushed else self._stream.write(text)

    def flush(self) -> None:
        """Hand on what is waiting."""
        if not self.closed:
            self._stream.flush()


def aligned(rows: Sequence[Sequence[str]], left: Container[int] = (0,)) -> list[str]:
    """Rows of cells as lines of columns, two blanks between; those of ``left`` begin at one place,
    the others end at one.
    """
    rows = [[shown_in_one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def on_terminal() -> bool:
    """Whether a person watches what is printed."""
    watched = sys.__stdout__ is not None and sys.__stdout__.isatty()
    return watched and not isinstance(sys.stdout, HushedText)


def progress_bar() -> Callback:
    """Lightning's progress bar on the terminal itself."""
    from lightning.pytorch.callbacks import RichProgressBar

    return RichProgressBar(console_kwargs={"file": sys.__stdout__})


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Show each of our warnings as one line on the standard error stream."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module=r"finetune\.")
        warnings.showwarning = show
        yield
