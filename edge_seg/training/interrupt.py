"""Ctrl-C where it does no harm."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupts:
    """Raises KeyboardInterrupt for Ctrl-C at once, or holds it back while something is half done.

    In the middle of a step BatchNorm statistics and part of the weights have moved already: a state saved there
    would repeat them on resume. Processes that work together leave together, or not at all.

    Args:
        held: Whether it is held back unless a block says otherwise.
    """

    def __init__(self, *, held: bool) -> None:
        self._held, self._asked = held, False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Takes over SIGINT while the block runs. Outside the main thread no signal arrives, and nothing is done."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._arrived)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextlib.contextmanager
    def during(self, *, held: bool) -> Iterator[None]:
        """Holds Ctrl-C back, or lets it through, while the block runs; what was held back is raised where it may."""
        before, self._held = self._held, held
        try:
            self._raise_due()
            yield
        finally:
            self._held = before
        self._raise_due()

    def _arrived(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
        self._raise_due()

    def _raise_due(self) -> None:
        if self._asked and not self._held:
            self._asked = False
            raise KeyboardInterrupt
