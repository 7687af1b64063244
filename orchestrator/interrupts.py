"""Signals that end a command: Ctrl-C, SIGTERM and SIGHUP raise `KeyboardInterrupt`.

Python raises it wherever the program happens to be. Raised in a callback of the garbage collector
or in an import that a library tries, it is swallowed: the places that long work passes ask again.

The first signal is answered at once, by a sentence; a second one ends the process on the spot.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOPPING = "stopping; nothing recorded is lost. Press Ctrl-C again to stop now"
"""What the first signal is answered with."""

SAME_S = 0.5
"""Signals within this time of the first are the same wish: a wrapper such as make repeats one."""

_SHOW_CURSOR = b"\x1b[?25h"

_arrived: list[int] = []
_first_at: list[float] = []
_listeners: list[Callable[[], None]] = []


def interrupt_on(*numbers: signal.Signals) -> None:
    """Make signals raise `KeyboardInterrupt`; ignored ones, as under nohup, stay so."""
    _arrived.clear()
    _first_at.clear()
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


@contextmanager
def answered_by(listener: Callable[[], None]) -> Iterator[None]:
    """Let a display answer the first signal while the block runs, in place of a printed line.

    Args:
        listener: Called in the signal handler, wherever the main thread is: it must only set
            values.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def raise_swallowed() -> None:
    """Raise `KeyboardInterrupt` if a signal has arrived and the work goes on all the same."""
    if _arrived:
        raise KeyboardInterrupt


def ignore_signals() -> int:
    """Ignore further signals, while a command ends; returns the number of the first to arrive."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return _arrived[0] if _arrived else signal.SIGINT


def _interrupt(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if not _arrived:
        _arrived.append(number)
        _first_at.append(now)
        if _listeners:
            _listeners[-1]()
        else:
            _write(f"\n{STOPPING}\n".encode())
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
