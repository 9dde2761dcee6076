"""How much may be in work at once: what finds no room is turned away, and nothing waits unseen."""

from __future__ import annotations

import threading
from dataclasses import dataclass

MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for, and all of them together.

    Attributes:
        body_bytes: most bytes of a request's body.
        images: most images of a request.
        bytes_in_work: most bytes of all bodies that are held at once.
        images_in_work: most images that wait or are answered at once.
        reading_seconds: longest that a body may take to arrive.
        answer_seconds: longest that a request may take in all.
        connections: most connections that are open at once.
    """

    body_bytes: int = 32 * MEBIBYTE
    images: int = 100
    bytes_in_work: int = 256 * MEBIBYTE
    images_in_work: int = 400
    reading_seconds: float = 30.0
    answer_seconds: float = 60.0
    connections: int = 256


class Busy(Exception):
    """Too much is in work; a later try may find room."""


class Budget:
    """So much of something for all, taken and given back by any thread."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._taken = 0
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """How much is not free."""
        return self._taken

    def take(self, amount: int) -> None:
        """Take so much.

        Raises:
            Busy: that much is not free; nothing was taken.
        """
        with self._lock:
            if self._taken + amount > self._total:
                raise Busy
            self._taken += amount

    def give_back(self, amount: int) -> None:
        """Free what was taken."""
        with self._lock:
            self._taken -= amount
