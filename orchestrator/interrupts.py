"""Signals that end a command: Ctrl-C, SIGTERM and SIGHUP raise `KeyboardInterrupt`.

Python raises it wherever the program happens to be. Raised in a callback of the garbage collector
or in an import that a library tries, it is swallowed: the places that long work passes ask again.
"""

from __future__ import annotations

import signal
from types import FrameType

_arrived: list[int] = []


def interrupt_on(*numbers: signal.Signals) -> None:
    """Make signals raise `KeyboardInterrupt`; ignored ones, as under nohup, stay so."""
    _arrived.clear()
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


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
    _arrived.append(number)
    raise KeyboardInterrupt
