"""Signals that end a command: Ctrl-C, SIGTERM and SIGHUP raise `KeyboardInterrupt`.

Python raises it wherever the program happens to be. Raised in a callback of the garbage collector
or in an import that a library tries, it is swallowed: the places that long work passes ask again.

The first signal is answered at once, by a sentence; a second one ends the process on the spot.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

STOPPING = "stopping; nothing recorded is lost. Press Ctrl-C again to stop now."
"""What the first signal is answered with, before the hint of the command."""

SAME_S = 0.5
"""Signals within this time of the first are the same wish: a wrapper such as make repeats one."""

_SHOW_CURSOR = b"\x1b[?25h"

_arrived: list[int] = []
_first_at: list[float] = []
_listeners: list[Callable[[str], None]] = []
_hints: list[str] = []


def interrupt_on(*numbers: signal.Signals, hint: str = "") -> None:
    """Make signals raise `KeyboardInterrupt`; ignored ones, as under nohup, stay so.

    Args:
        numbers: The signals.
        hint: A sentence for the answer to the first signal, such as how to go on.
    """
    _arrived.clear()
    _first_at.clear()
    _hints[:] = [hint] if hint else []
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


@contextmanager
def answered_by(listener: Callable[[str], None]) -> Iterator[None]:
    """Let a display answer the first signal while the block runs, in place of a printed line.

    Args:
        listener: Called with the answer in the signal handler, wherever the main thread is: it
            must only set values.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class BackgroundThread(threading.Thread):
    """A daemon thread whose end can be waited for in spite of interrupts.

    An interrupt in `Thread.join` can mark a thread as ended that still runs: Python 3.11,
    `_wait_for_tstate_lock`. What it uses is then taken away, and Ray ends a process that calls it
    after its end. Waiting for an event has no such fault.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._over = threading.Event()

    @property
    def is_over(self) -> bool:
        """Whether the work has ended."""
        return self._over.is_set()

    def run(self) -> None:
        """Do the work."""
        try:
            self._work()
        finally:
            self._over.set()

    def await_end(self, timeout_s: float) -> bool:
        """Wait for the end of the work; returns whether it came in time."""
        return self._over.wait(timeout_s)


def raise_swallowed() -> None:
    """Raise `KeyboardInterrupt` if a signal has arrived and the work goes on all the same."""
    if _arrived:
        raise KeyboardInterrupt


def ignore_signals() -> int:
    """Ignore further signals, while a command ends; returns the number of the first to arrive."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return _arrived[0] if _arrived else signal.SIGINT


def leave_at_once(code: int) -> NoReturn:
    """End the process without the clean-up of libraries, which takes seconds after an interrupt.

    Ray's, started half, may even crash.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if not _arrived:
        _arrived.append(number)
        _first_at.append(now)
        answer = " ".join([STOPPING, *_hints])
        if _listeners:
            _listeners[-1](answer)
        else:
            _write(f"\n{answer}\n".encode())
        raise KeyboardInterrupt
    if now - _first_at[0] >= SAME_S:
        _write(b"\nstopped\n")
        os._exit(128 + _arrived[0])


def _write(text: bytes) -> None:
    """Write to standard output past its buffer, in which the main thread may be writing."""
    # The first stream of the process: `orchestrator.quiet` redirects the present one.
    with suppress(OSError, ValueError, AttributeError):
        out = sys.__stdout__.fileno()  # type: ignore[union-attr]
        os.write(out, (_SHOW_CURSOR if os.isatty(out) else b"") + text)
