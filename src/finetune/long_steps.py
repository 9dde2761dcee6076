"""Long steps are not silent: a bar on a terminal, a line now and then elsewhere; the one place.

Nothing is shown of a step that is over soon, in a library call, by any process but the first, or
where Lightning shows its own bar. All goes to standard error, so that answers can be piped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TypeVar

from finetune.processes import own_place

T = TypeVar("T")

SOON_SECONDS = 3.0
LINE_SECONDS = 30.0  # from one line to the next, and to the first
COSTLY_SECONDS = 600.0  # of a step whose cost is said as soon as it can be told
TELLING = 2  # items, of which the first one warms up

_allowed: ContextVar[bool] = ContextVar("_allowed", default=False)


@contextmanager
def shown_steps(allowed: bool = True) -> Iterator[None]:
    """Let the long steps of the block be shown: of a command, not of a program's calls."""
    token = _allowed.set(allowed)
    try:
        yield
    finally:
        _allowed.reset(token)


def told(items: Iterable[T], what: str, total: int, *, cheaper: str = "") -> Iterator[T]:
    """Hand on the items, and show how many of them are done where that takes long.

    Args:
        items: of a step, such as its batches.
        what: happens to them: "Opening images".
        total: how many there are.
        cheaper: what to do where it will take very long, said after the first items.
    """
    with told_steps(what, total, cheaper=cheaper) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def told_steps(
    what: str, total: float | None, *, bar: bool = True, cheaper: str = ""
) -> Iterator[Callable[[], None]]:
    """The same for a loop that is somebody else's: call what is given after each item.

    Args:
        what, total, cheaper: as above; None where nobody knows how many there are.
        bar: False speaks in lines on a terminal too.
    """
    if not _allowed.get() or own_place().rank > 0:
        yield lambda: None
        return
    with ExitStack() as open_bars:
        yield _Told(what, total, open_bars, bar=bar, cheaper=cheaper)


class _Told:
    """Counts, and decides when to speak."""

    def __init__(
        self, what: str, total: float | None, open_bars: ExitStack, *, bar: bool, cheaper: str
    ) -> None:
        self._what, self._total, self._open_bars, self._cheaper = what, total, open_bars, cheaper
        self._begun = self._spoke = time.monotonic()
        self._done = 0
        self._advance: Callable[[], None] | None = None
        stream = sys.__stderr__
        self._with_bar = bar and stream is not None and stream.isatty()

    def __call__(self) -> None:
        self._done += 1
        now = time.monotonic()
        if self._done == 1:
            self._warm = now
        if self._done == TELLING:
            self._tell_cost(now - self._warm)
        if self._advance is not None:
            self._advance()
        elif self._with_bar and now - self._begun > SOON_SECONDS:
            self._advance = self._bar()
        elif not self._with_bar and now - self._spoke > LINE_SECONDS:
            self._spoke = now
            left = self._left((now - self._begun) / self._done)
            _say(f"{self._what}: {self._how_far} after {now - self._begun:.0f} s{left}")

    def _tell_cost(self, seconds: float) -> None:
        """Say what all takes, where that is very long, by the seconds of one item."""
        if self._total is not None and seconds * self._total > COSTLY_SECONDS:
            _say(f"{self._what} takes about {in_words(seconds * self._total)}{self._cheaper}")

    def _left(self, seconds: float) -> str:
        if self._total is None:
            return ""
        return f", about {in_words(seconds * max(0, self._total - self._done))} left"

    @property
    def _how_far(self) -> str:
        if self._total is None:
            return f"{self._done:,} done"
        return f"{min(1.0, self._done / max(1, self._total)):.0%}"

    def _bar(self) -> Callable[[], None]:
        from rich.console import Console
        from rich.progress import Progress

        # On the interpreter's own stream: bars need what sys.stderr would escape.
        bar = Progress(console=Console(file=sys.__stderr__), transient=True)
        task = bar.add_task(self._what, total=self._total, completed=self._done)
        self._open_bars.enter_context(bar)
        return lambda: bar.advance(task)


def in_words(seconds: float) -> str:
    """A duration to two figures or so, in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
